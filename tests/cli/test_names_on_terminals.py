"""Names that hold escape codes, line ends or marks of direction: shown on a terminal, never sent to it."""

from __future__ import annotations

import csv
import io
import os
import pty
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.table import Table
from rich.text import Text

from captune.cli.console import labelled, plain_console, say
from captune.cli.main import main
from captune.data.tree import name_some, printable
from captune.plain_text import as_unicode, on_one_line, visible

CLEARS, COPIES, TURNS = "a\x1b[2Jb", "c\x1b]52;c;cm0gLXJm\x07d", "e\u202egnp.exe"
EVERYTHING = "".join(map(chr, range(0x20000)))


def test_no_character_acts_and_none_is_lost() -> None:
    shown = visible(EVERYTHING)
    assert len(shown) == len(EVERYTHING)
    changed = {old for old, new in zip(EVERYTHING, shown, strict=True) if old != new}
    assert {"\x1b", "\x07", "\r", "\x7f", "\x9b", "\u202e", "\u2066", "\udce9"} < changed
    assert not changed & {"\n", "\t", "\u00e9", "\u0301", "\u05e9", "\u200f", "\U0001f408"}
    assert not {character for character in shown if ord(character) < 0x20} - {"\n", "\t"}
    shown.encode()
    assert on_one_line("new\nline\tof\x1b") == "new\u240aline\u2409of\u241b"


def test_sentences_name_files_on_one_line_and_tables_keep_the_name() -> None:
    odd = os.fsdecode(b"caf\xe9\n.png")
    assert printable(odd) == "caf\ufffd\u240a.png"
    assert name_some(["\ud800", "b\x1b[0m"]) == "\ufffd, b\u241b[0m"
    assert as_unicode(odd) == "caf\ufffd\n.png"


@pytest.mark.parametrize("name", [CLEARS, COPIES, TURNS])
def test_names_do_not_act_wherever_they_are_printed(name: str) -> None:
    table = Table(name, title=name, caption=name)
    table.add_row(name)
    table.add_row(Text(name, "red"))
    console = plain_console(file=io.StringIO())
    for one in (name, Text(name), labelled("note", name, "yellow"), table):
        say(console, one) if not isinstance(one, Table) else console.print(one)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert name[0] in text and not set("\x1b\x07\u202e") & set(text)


def test_styles_stay_where_they_were() -> None:
    file = io.StringIO()
    console = plain_console(file=file)
    with console.capture() as captured:
        console.print(Text.assemble("a\x1b", ("b", "bold")), highlight=False)
    assert captured.get() == "a\u241bb\n"
    segments = [segment for segment in console.render(Text.assemble("a\x1b", ("b", "bold"))) if segment.text.strip()]
    assert [(segment.text, bool(segment.style and segment.style.bold)) for segment in segments] == [
        ("a\u241b", False), ("b", True),
    ]  # fmt: skip


def test_a_stranger_folder_cannot_write_to_the_terminal_of_predict(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    names = [f"{CLEARS}.png", f"{COPIES}.png", TURNS, "new\nline.png", "tab\t.png", "-rf", "zero[b].png"]
    generator = np.random.default_rng(0)
    for name in names:
        Image.fromarray(generator.integers(0, 255, (24, 24, 3), np.uint8)).save(folder / name, "PNG")
    (folder / f"broken{CLEARS}\n.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 40)
    classes = tmp_path / "names.yaml"
    classes.write_text('- "-rf"\n- "r\\e[31med"\n- "new\\nline"\n- "zero[/b]"\n')
    adapt = ["--class-names", str(classes), "--backbone", "tiny", "--method", "zero_shot", "--max-unreadable", "0.5"]
    out, table = tmp_path / "out", tmp_path / "p.csv"
    with pytest.raises(SystemExit) as ended:
        main(["adapt", "--dataset", f"folder:{folder}", "--paradigm", "ul", *adapt, "--out", str(out)])
    assert ended.value.code == 0
    sent = _on_a_terminal("predict", out, folder, "--copy-to", tmp_path / "sorted")
    for acting in ("\x1b[2Jb", "\x1b]52", "\x1b[31med", "\u202e"):
        assert acting not in sent
    assert "a\u241b[2Jb.png" in sent and f"broken{visible(CLEARS)}\u240a.png" in sent
    with pytest.raises(SystemExit):
        main(["predict", str(out), str(folder), "--out", str(table)])
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["image"] for row in rows} == {str(folder / name) for name in names}, "a file keeps names as they are"
    assert {row["class"] for row in rows} <= {"-rf", "r\x1b[31med", "new\nline", "zero[/b]"}
    copies = [path for path in (tmp_path / "sorted").rglob("*") if path.is_file()]
    assert sorted(copy.name for copy in copies) == sorted(names)


def _on_a_terminal(*arguments: object) -> str:
    """What `captune` sends to a terminal, both of its outputs; run in a copy of this process."""
    copy, ours = pty.fork()
    if copy == 0:
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
        torch.set_num_threads(1)  # a pool of threads does not survive a fork
        try:
            main(list(map(str, arguments)))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
    sent = b""
    try:
        while piece := os.read(ours, 65536):
            sent += piece
    except OSError:  # Linux ends a terminal that nobody holds any more with an input/output error
        pass
    os.close(ours)
    os.waitpid(copy, 0)
    return sent.decode()
