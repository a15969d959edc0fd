"""Every page tells the truth: its commands and options exist, its links lead somewhere, the site builds."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer.main

from captune.cli.main import COMMANDS, _register, app
from tests.slow import in_one_test
from tests.tools.site import API, GUIDES, ROOT, build, pages, targets

PAGES = [page for page in pages() if page != Path("README.md")]
PACKAGES = sorted(path.parent for path in (ROOT / "captune").glob("**/__init__.py"))
PACKAGE_PAGES = [str((package / "README.md").relative_to(ROOT)) for package in PACKAGES]


def commands(page: Path) -> list[str]:
    """The captune commands in a page's blocks, each whole, without comments and what is piped or chained."""
    blocks = re.findall(r"```\w*\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
    lines = [line.split(" #")[0] for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    parts = [part.strip() for line in lines for part in re.split(r"&&|[|;]|(?<!\S)>", line)]
    return [part for part in parts if part.startswith("captune ")]


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    for name in COMMANDS:
        _register([name])
    group = typer.main.get_command(app)
    return {
        name: {o for p in group.commands[name].params for o in (*p.opts, *p.secondary_opts)}  # type: ignore[attr-defined]
        for name in COMMANDS
    }


@in_one_test("page", PAGES)
def test_commands_and_options_exist(page: Path, known: dict[str, set[str]]) -> None:
    for line in commands(page):
        words = shlex.split(line)
        if words[1].startswith("-"):
            continue
        assert words[1] in known, line
        options = {word.split("=")[0] for word in words if word.startswith("--")}
        assert options - {"--debug", "--help"} <= known[words[1]], line


@in_one_test("page", PAGES)
def test_links_lead_to_files(page: Path) -> None:
    assert [target for target in targets(page) if not ((ROOT / page).parent / target).exists()] == []


def test_guides_show_commands_and_the_reference_is_of_modules_that_are_there() -> None:
    for page in ("captune/data/OWN_IMAGES.md", "captune/algorithms/CHOOSING.md", "captune/results/READING.md"):
        assert commands(Path(page)), page
    assert all((ROOT / page).exists() for page in GUIDES.values())
    assert all((ROOT / (module.replace(".", "/") + ".py")).exists() for module in API.values())


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_a_packages_page_names_each_of_its_modules(package: Path) -> None:
    text = (package / "README.md").read_text(encoding="utf-8")
    # A method's module is called as the method, and is named so.
    names = {module.name for module in package.glob("*.py")} - {"__init__.py"}
    assert [name for name in sorted(names) if name not in text and f"`{name.removesuffix('.py')}`" not in text] == []


@pytest.mark.parametrize("page", sorted({*GUIDES.values(), *PACKAGE_PAGES}))
def test_no_line_of_a_pages_prose_is_longer_than_100_characters(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    prose = [line for line in text.splitlines() if not line.startswith(("|", "#"))]
    assert [line for line in prose if len(line) > 100 and not re.fullmatch(r"\S+|!\[.*", line.strip())] == []


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    assert build(tmp_path / "site") == 0
    assert "AdaptedModel" in (tmp_path / "site" / "api" / "captune.adapted.model.html").read_text()


@pytest.mark.skipif(shutil.which("codespell") is None, reason="needs codespell")
def test_pages_are_spelt_right() -> None:
    files = [str(ROOT / page) for page in pages()]
    done = subprocess.run(["codespell", *files], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
