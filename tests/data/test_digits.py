"""The embedded digits: what is loaded, and how it is split."""

from __future__ import annotations

import gzip
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from captune.data import digits
from captune.data.digits import CLASS_NAMES, SPLIT_SEED, digits_splits, load_digits_arrays, stratified_split
from captune.errors import DataError


def test_images_are_eight_by_eight_bytes_and_labels_name_ten_classes() -> None:
    images_NHW, labels_N = load_digits_arrays()
    assert images_NHW.shape == (1797, 8, 8)
    assert images_NHW.dtype == np.uint8
    assert labels_N.dtype == np.int64
    # The counts by digit that scikit-learn documents ("about 180 a class").
    assert np.bincount(labels_N).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert len(CLASS_NAMES) == 10


def test_they_are_scikit_learns_whether_read_from_its_file_or_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    ink_N64, labels_N = load_digits(return_X_y=True)
    read = load_digits_arrays()
    monkeypatch.setattr(digits, "find_spec", lambda name: None)
    for images_NHW, found_N in (read, load_digits_arrays()):
        np.testing.assert_array_equal(images_NHW.reshape(-1, 64), np.rint(ink_N64 * 255 / 16))
        np.testing.assert_array_equal(found_N, labels_N)


def test_a_table_in_the_current_directory_is_not_taken_for_scikit_learns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = load_digits_arrays()
    (tmp_path / "datasets" / "data").mkdir(parents=True)
    with gzip.open(tmp_path / "datasets" / "data" / "digits.csv.gz", "wt") as file:
        file.write("0,0,0,0,0\n")
    monkeypatch.chdir(tmp_path)
    # As a package without an __init__.py has none, or one that is not there.
    for found in (ModuleSpec("sklearn", None), None):
        monkeypatch.setattr(digits, "find_spec", lambda name, found=found: found)
        for read, wanted in zip(load_digits_arrays(), expected, strict=True):
            np.testing.assert_array_equal(read, wanted)


def test_ink_sixteen_becomes_full_white_and_paper_black() -> None:
    images_NHW, _ = load_digits_arrays()
    assert images_NHW.min() == 0
    assert images_NHW.max() == 255
    # The first image's second row is 0 0 13 15 10 15 5 0 of 16: 13·255/16 = 207.19, 15 → 239.06, 10 → 159.4, 5 → 79.7.
    assert images_NHW[0, 1].tolist() == [0, 0, 207, 239, 159, 239, 80, 0]


def test_splits_are_disjoint_complete_and_sorted() -> None:
    splits = digits_splits()
    together = np.concatenate(list(splits.values()))
    assert list(splits) == ["train", "val", "test"]
    assert np.array_equal(np.sort(together), np.arange(1797))
    for indices in splits.values():
        assert (np.diff(indices) > 0).all()


def test_every_class_is_split_sixty_ten_thirty_to_within_one_image() -> None:
    _, labels_N = load_digits_arrays()
    for name, share in (("train", 0.6), ("val", 0.1), ("test", 0.3)):
        counts_K = np.bincount(labels_N[digits_splits()[name]], minlength=10)
        assert (np.abs(counts_K - share * np.bincount(labels_N)) <= 1).all(), name


def test_split_is_the_same_every_time_and_pinned() -> None:
    first, second = digits_splits(), digits_splits()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert SPLIT_SEED == 1797
    assert {name: len(indices) for name, indices in first.items()} == {"train": 1078, "val": 180, "test": 539}


def test_another_seed_gives_another_split() -> None:
    _, labels_N = load_digits_arrays()
    shares = {"train": 0.6, "rest": 0.4}
    one, other = (stratified_split(labels_N, shares, seed=seed)["train"] for seed in (0, 1))
    assert not np.array_equal(one, other)


def test_a_hand_worked_split() -> None:
    # Four images of class 0, two of class 1, halves: two and one of each in each part.
    halves = stratified_split(np.array([0, 0, 1, 0, 1, 0]), {"a": 0.5, "b": 0.5}, seed=3)
    labels = np.array([0, 0, 1, 0, 1, 0])
    assert np.bincount(labels[halves["a"]]).tolist() == [2, 1]
    assert np.bincount(labels[halves["b"]]).tolist() == [2, 1]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=0, max_size=60), st.floats(0.1, 0.8), st.integers(0, 2**31))
def test_any_split_is_a_partition_with_each_class_near_its_share(labels: list[int], share: float, seed: int) -> None:
    labels_N = np.array(labels, dtype=np.int64)
    parts = stratified_split(labels_N, {"a": share, "b": 1 - share}, seed=seed)
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(len(labels)))
    for label in set(labels):
        got = (labels_N[parts["a"]] == label).sum()
        assert abs(got - share * labels.count(label)) <= 1


@pytest.mark.parametrize("fractions", [{"a": 0.5, "b": 0.6}, {"a": 1.5, "b": -0.5}, {}])
def test_shares_that_do_not_add_up_are_refused(fractions: dict[str, float]) -> None:
    with pytest.raises(DataError, match="must each be above 0 and add up to 1, but got"):
        stratified_split(np.array([0, 1]), fractions, seed=0)
