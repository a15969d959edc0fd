"""Names and paths are text in everything commands print, whatever brackets and colons they hold."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.table import Table

from captune.cli.console import labelled, plain_console
from captune.cli.main import main
from tests.slow import in_one_test

ODD = ["zero[/b]", "[red]one", ":cat: two", "exp[lr=0.1]", "[link=x]", "back\\[slash"]


@in_one_test("name", ODD)
def test_a_name_is_printed_as_it_is(name: str) -> None:
    file = io.StringIO()
    console = plain_console(file=file)
    table = Table("class", title=name)
    table.add_row(name, style="bold red")
    console.print(name, highlight=False)
    console.print(labelled("note", name, "yellow"))
    console.print(table)
    assert file.getvalue().count(name) == 4


def captune(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def test_classes_and_folders_with_markup_go_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    root = tmp_path / "exp[lr=0.1]"
    for name in ("zero[/b]", "[red]one"):
        # A name cannot hold a slash on disk; the names file says it.
        folder = root / name.replace("/", "")
        folder.mkdir(parents=True)
        for number in range(12):
            Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    names = tmp_path / "names[0].yaml"
    names.write_text("- '[red]one'\n- zero[/b]\n")
    common = ["--dataset", f"folder:{root}", "--paradigm", "ul", "--backbone", "tiny", "--class-names", names]
    assert captune("mismatch", *common) == 0
    shown = capsys.readouterr()
    assert "zero[/b]" in shown.out and "[red]one" in shown.out
    method = ["--method", "zero_shot", "--batch-size", "4", "--out", tmp_path / "out[b]"]
    assert captune("adapt", *common, *method) == 0
    assert f"written: {tmp_path / 'out[b]'}" in capsys.readouterr().out.replace("\n", "")
    assert captune("adapt", "--dataset", f"folder:{tmp_path / 'no[/b]where'}", "--paradigm", "ul", "--out", "x") in (
        1,
        2,
    )
    assert "no[/b]where" in capsys.readouterr().err.replace("\n", "")


@pytest.mark.parametrize("command", ["adapt", "run"])
def test_the_ceiling_is_refused_before_anything_is_loaded(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("the dataset was loaded")

    monkeypatch.setattr("captune.data.catalog.load_dataset", loaded)
    arguments = ["--dataset", "digits", "--paradigm", "ul", "--method", "supervised", "--out", tmp_path / "o"]
    assert captune(command, *arguments) == 2
    assert "captune compare" in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "o").exists()
