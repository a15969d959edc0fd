"""What `--class-names` takes for names and what for a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from captune.cli.main import main
from captune.config import TaskConfig
from captune.data.catalog import load_dataset
from captune.data.overrides import read_class_names


@pytest.mark.parametrize(
    ("given", "step"),
    [
        ("ring", 'Name what else the images may show, as "ring,other"'),
        ("golden ring", 'as "golden ring,other"'),
        ("ring;bar; cup", 'Part them by commas: "ring,bar,cup".'),
        ("ring|bar", 'Part them by commas: "ring,bar".'),
        ("ring\nbar", 'Part them by commas: "ring,bar".'),
    ],
)
def test_what_is_neither_names_nor_a_file_is_told_how_to_write_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: str, step: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["datasets", "--check", "digits", "--class-names", given])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "at least two, parted by commas, or a file that is there" in said
    assert step in said


def test_a_file_with_a_comma_in_its_name_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ring,bar").write_text("".join(f"digit {number}\n" for number in range(10)))
    task = TaskConfig.parse({"dataset": "digits", "paradigm": "ul", "class_names": "ring,bar"})
    assert load_dataset(task).class_names[:2] == ("digit 0", "digit 1")
    given = read_class_names(",".join(f"class {number}" for number in range(5000)))
    assert given is not None and given.names is not None and len(given.names) == 5000
