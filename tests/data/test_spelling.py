"""Class names that only case, blanks or the coding of accents tells apart."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from captune.config import TaskConfig
from captune.data.catalog import load_dataset
from captune.data.dataset import Dataset
from captune.errors import DataError
from tests.data.miniatures import write_image


def _load(dataset: str, **values: object) -> Dataset:
    return load_dataset(TaskConfig.parse({"dataset": dataset, "paradigm": "ul", **values}))


def _classes(folder: Path, names: list[str], count: int) -> None:
    for name in names:
        for number in range(count):
            write_image(folder / name / f"{number}.jpg")


# One name to a reader: é as one character (NFC), and as e with an accent of its own (NFD), as macOS writes file names.
CAFE, CAFE_OF_MACOS = "caf\u00e9", "cafe\u0301"


def test_splits_may_write_an_accent_or_a_capital_in_two_ways(tmp_path: Path) -> None:
    _classes(tmp_path / "train", [CAFE, "Tea"], 2)
    _classes(tmp_path / "test", [CAFE_OF_MACOS, "tea"], 3)
    dataset = _load(f"folder:{tmp_path}")
    assert dataset.class_names == ("Tea", CAFE)
    held = [
        (Path(path).parent.name, int(label))
        for path, label in zip(dataset.test.paths, dataset.test.labels_N, strict=True)
    ]
    assert Counter(held) == {("tea", 0): 3, (CAFE_OF_MACOS, 1): 3}
    # Names in any order and spelling stay with their folders.
    assert _load(f"folder:{tmp_path}", class_names=f"{CAFE_OF_MACOS},tea").class_names == ("tea", CAFE_OF_MACOS)


def test_classes_that_only_their_spelling_tells_apart_are_refused(tmp_path: Path) -> None:
    _classes(tmp_path / "accents", [CAFE, CAFE_OF_MACOS, "tea"], 3)
    with pytest.raises(DataError, match=r"different .* but got 'cafe\\u0301' and 'caf\\xe9'"):
        _load(f"folder:{tmp_path / 'accents'}")
    _classes(tmp_path / "case", ["Tea", "tea", "ring"], 3)
    with pytest.raises(DataError, match=r"different .* but got 'Tea' and 'tea'"):
        _load(f"folder:{tmp_path / 'case'}")
    labels = f"path,label\na.jpg,{CAFE}\nb.jpg,{CAFE_OF_MACOS}\nc.jpg,tea\n"
    (tmp_path / "m.csv").write_text(labels, encoding="utf-8")
    with pytest.raises(DataError, match=r"one way, but got 'cafe\\u0301' and 'caf\\xe9'"):
        _load(f"csv:{tmp_path / 'm.csv'}")


def test_splits_of_the_same_folders_may_hold_classes_that_names_tell_apart(tmp_path: Path) -> None:
    for split in ("train", "test"):
        _classes(tmp_path / split, ["A", "a", "b"], 2)
    dataset = _load(f"folder:{tmp_path}", class_names="capital A,small a,small b")
    assert dataset.class_names == ("capital A", "small a", "small b")
    held = zip(dataset.test.paths, dataset.test.labels_N, strict=True)
    assert {(Path(path).parent.name, int(label)) for path, label in held} == {("A", 0), ("a", 1), ("b", 2)}
    with pytest.raises(DataError, match=r"different .* but got 'A' and 'a'"):
        _load(f"folder:{tmp_path}")


@pytest.mark.parametrize("folder", ["train", "test"])
def test_a_split_that_spells_a_class_in_two_ways_is_named(tmp_path: Path, folder: str) -> None:
    for split in ("train", "test"):
        _classes(tmp_path / split, ["A", "a", "b"] if split == folder else ["a", "b"], 2)
    with pytest.raises(DataError, match=f"spelled in one way, but got 'A' and 'a' in {folder} "):
        _load(f"folder:{tmp_path}", class_names="capital A,small a,small b" if folder == "train" else None)
