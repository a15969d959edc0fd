"""The README tells the truth: its commands and options exist, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from captune.cli.main import COMMANDS, _register, app
from tests.slow import in_one_test

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [line for block in README.split("```")[1::2] for line in block.splitlines()]
CHAINS = [line.split("#")[0] for line in BLOCKS if re.match(r"(pip install.*&& )?captune ", line)]
LINES = [part.strip() for line in CHAINS for part in line.split("&&") if part.strip().startswith("captune ")]


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    for name in COMMANDS:
        _register([name])
    group = typer.main.get_command(app)
    return {name: {o for p in group.commands[name].params for o in p.opts} for name in COMMANDS}  # type: ignore[attr-defined]


def test_the_readme_shows_commands() -> None:
    assert any(line.startswith("captune run --dataset digits --paradigm ul") for line in LINES)
    assert len(LINES) > 5


@in_one_test("line", LINES)
def test_commands_and_options_of_the_readme_exist(line: str, known: dict[str, set[str]]) -> None:
    _, command, *words = shlex.split(line)
    assert command in known
    assert {word for word in words if word.startswith("--")} <= known[command]


def test_links_of_the_readme_lead_to_files() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert len(targets) > 5
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_the_output_shown_is_there() -> None:
    assert "<!-- output" not in README
    assert "(sealed test)" in README
