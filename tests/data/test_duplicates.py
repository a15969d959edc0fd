"""The same image twice: found by path, link and bytes; kept together or refused; near duplicates by their features."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from captune.config import TaskConfig
from captune.data import catalog
from captune.data.catalog import DATASETS, load_dataset
from captune.data.dataset import Dataset
from captune.data.duplicates import equal_files, nearest_across
from captune.data.names import EUROSAT_PAPER
from captune.errors import DataError
from tests.data.miniatures import MINIATURES, write_image


def _load(dataset: str, paradigm: str = "ul", **values: object) -> Dataset:
    return load_dataset(TaskConfig.parse({"dataset": dataset, "paradigm": paradigm, **values}))


def _files(folder: Path, *names: str) -> list[str]:
    for number, name in enumerate(names):
        write_image(folder / name, number, size=(12 + number, 10))
    return [str(folder / name) for name in names]


def test_one_file_and_equal_bytes_are_found(tmp_path: Path) -> None:
    first, other, copy, hard, soft = _files(tmp_path, *(f"{name}.jpg" for name in ("a", "b", "c", "d", "e")))
    shutil.copy(first, copy)
    for name, make in ((hard, os.link), (soft, os.symlink)):
        Path(name).unlink()
        make(first, name)
    assert equal_files([first, other, copy, hard, soft]) == [[0, 2, 3, 4]]
    (tmp_path / "x").write_bytes(b"")
    (tmp_path / "y").write_bytes(b"")
    assert equal_files([str(tmp_path / "x"), str(tmp_path / "y"), other]) == [], "empty files are no images"


def test_the_answer_for_many_files_is_kept_until_one_changes(tmp_path: Path) -> None:
    names = _files(tmp_path / "i", *(f"{number}.jpg" for number in range(10)))
    for number in range(500):
        shutil.copy(names[number % 10], tmp_path / "i" / f"copy{number}.jpg")
    paths = sorted(map(str, (tmp_path / "i").iterdir()))
    found = equal_files(paths, tmp_path / "cache")
    assert len(found) == 10 and all(len(group) == 51 for group in found)
    assert len(list((tmp_path / "cache" / "equal-files").iterdir())) == 1
    assert equal_files(paths, tmp_path / "cache") == found
    write_image(Path(paths[0]), 99, size=(50, 50))
    assert sum(map(len, equal_files(paths, tmp_path / "cache"))) == 509


def test_copies_stay_on_one_side_of_captunes_own_cut(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for number in range(20):
            write_image(tmp_path / name / f"{number:02d}.jpg", number)
            shutil.copy(tmp_path / name / f"{number:02d}.jpg", tmp_path / name / f"{number:02d} copy.jpg")
    dataset = _load(f"folder:{tmp_path}")
    sides = {
        name: {Path(path).read_bytes() for path in split.paths}
        for name, split in (("train", dataset.train), ("val", dataset.val), ("test", dataset.test))
    }
    assert not sides["train"] & sides["test"] and not sides["val"] & (sides["train"] | sides["test"])
    assert all(sides.values())
    assert any("40 of 80 images are copies of another" in note for note in dataset.notes)


def test_copies_across_given_splits_are_refused_by_name_unless_allowed(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            write_image(tmp_path / split / name / "1.jpg", 3 if name == "a" else 4, size=(14, 10))
            write_image(tmp_path / split / name / "2.jpg", 5, size=(15 if split == "test" else 16, 10))
    shutil.copy(tmp_path / "train" / "a" / "1.jpg", tmp_path / "test" / "a" / "again.jpg")
    with pytest.raises(DataError, match=r"but got 1 that are: .*again\.jpg = .*train/a/1\.jpg.*--allow-duplicates"):
        _load(f"folder:{tmp_path}")
    dataset = _load(f"folder:{tmp_path}", allow_duplicates=True)
    assert any("1 test image is in the training images too" in note for note in dataset.notes)
    assert len(_load(f"folder:{tmp_path}", "tft").test) == 5, "tft trains on its test images anyway"
    # Every test image that is a copy counts, also where several are of one training image.
    shutil.copy(tmp_path / "train" / "a" / "1.jpg", tmp_path / "test" / "a" / "a third time.jpg")
    with pytest.raises(DataError, match="but got 2 that are"):
        _load(f"folder:{tmp_path}")


def test_one_image_with_two_labels_is_an_error(tmp_path: Path) -> None:
    _files(tmp_path, "a/1.jpg", "b/2.jpg")
    shutil.copy(tmp_path / "a" / "1.jpg", tmp_path / "b" / "1.jpg")
    with pytest.raises(DataError, match=r"one label, but got 1 with two, as copies: .*a/1\.jpg \(a\).*b/1\.jpg \(b\)"):
        _load(f"folder:{tmp_path}", allow_duplicates=True)


def test_copies_in_a_published_split_are_noted_and_nothing_is_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    MINIATURES[("caltech101", 0)](tmp_path)
    monkeypatch.setitem(DATASETS, "caltech101", replace(DATASETS["caltech101"], num_classes=3))
    settings = {"data_root": tmp_path, "cache_dir": tmp_path / "cache"}
    before = _load("caltech101", **settings)
    assert not [note for note in before.notes if "copies" in note]
    trained, tested = Path(before.train.paths[0]), Path(before.test.paths[0])
    shutil.copy(trained, tested)
    catalog._read_dataset.cache_clear()
    after = _load("caltech101", **settings)
    assert (after.train.paths, after.test.paths) == (before.train.paths, before.test.paths)
    (note,) = [note for note in after.notes if "published split" in note]
    assert note.startswith("1 test image is in the training images too") and str(tested) in note
    assert "learned by heart" in note
    shutil.copy(trained, Path(before.test.paths[-1]))
    catalog._read_dataset.cache_clear()
    assert any("1 image with two labels, as copies" in note for note in _load("caltech101", **settings).notes)


def test_copies_stay_on_one_side_where_captune_cuts_a_catalogue_dataset(tmp_path: Path) -> None:
    names = list(EUROSAT_PAPER)
    for name in names:
        for number in range(10):
            write_image(tmp_path / "eurosat" / "2750" / name / f"{name}_{number}.jpg", number)
        shutil.copy(*(tmp_path / "eurosat" / "2750" / name / f"{name}_{number}.jpg" for number in (1, 2)))
    dataset = _load("eurosat", data_root=tmp_path, cache_dir=tmp_path / "cache")
    sides = [{Path(path).read_bytes() for path in split.paths} for split in (dataset.train, dataset.val, dataset.test)]
    assert not sides[0] & sides[2] and not sides[1] & (sides[0] | sides[2])
    assert any(f"{len(names)} of {10 * len(names)} images are copies" in note for note in dataset.notes)


@pytest.mark.parametrize("block", [3, 7, 1024])
def test_near_duplicates_are_those_of_the_whole_cosine_matrix(block: int) -> None:
    generator = np.random.default_rng(0)
    pool_ND, test_TD = (generator.normal(size=(count, 8)).astype(np.float32) for count in (23, 11))
    test_TD[4] = pool_ND[17] * 3
    test_TD[9] = pool_ND[2] + 0.01
    pool_ND, test_TD = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (pool_ND, test_TD))
    count, pairs = nearest_across(pool_ND, test_TD, block=block, num_pairs=4)
    cosine_TN = test_TD @ pool_ND.T
    assert count == int((cosine_TN.max(1) >= 0.99).sum()) == 2
    expected = sorted(((cosine_TN[t].max(), cosine_TN[t].argmax(), t) for t in range(11)), reverse=True)[:4]
    assert [(row, test) for row, test, _ in pairs] == [(int(row), test) for _, row, test in expected]
    assert nearest_across(pool_ND[:0], test_TD) == (0, [])
