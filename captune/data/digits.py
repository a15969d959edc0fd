"""The embedded dataset: 1,797 real handwritten digits that travel with scikit-learn.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998
(doi 10.24432/C50P49, CC BY 4.0); the copy is the UCI test set in `sklearn.datasets.load_digits`. Thirteen people wrote
them on forms; each 32 × 32 bitmap was cut into 4 × 4 blocks whose ink was counted, so an image is 8 × 8 with values
0-16, bright on dark.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from captune.errors import DataError
from captune.seeding import numpy_generator

CLASS_NAMES: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Class names in label order: label k is the digit k."""

TEMPLATE: Final = "a photo of a {}."
"""The prompt of zero-shot classification; `{}` takes a class name."""

SPLIT_SEED: Final = 1797
"""Seed of the one split everybody uses; it never changes with the study's seed."""

SPLIT_FRACTIONS: Final[Mapping[str, float]] = {"train": 0.6, "val": 0.1, "test": 0.3}

_FULL_INK = 16  # cells of a 4 × 4 block


def load_digits_arrays() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Load all real digits from scikit-learn's own files; nothing is downloaded.

    Returns:
        images_NHW: (1797, 8, 8) uint8, 0 paper to 255 full ink; repeat the plane three times for RGB.
        labels_N: (1797,) int64 in 0..9, an index into `CLASS_NAMES`.
    """
    table_N65 = _table()
    images_NHW = np.rint(table_N65[:, :-1].reshape(-1, 8, 8) * (255 / _FULL_INK)).astype(np.uint8)
    return images_NHW, table_N65[:, -1].astype(np.int64)


def _table() -> npt.NDArray[np.float64]:
    """Ink and label of each image, (1797, 65), from scikit-learn's file, since importing scikit-learn takes seconds."""
    package = find_spec("sklearn")
    if package is not None and package.origin:
        table = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if table.exists():
            with gzip.open(table, "rt", encoding="ascii") as file:
                return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits  # a version that keeps the file elsewhere

    return np.column_stack(load_digits(return_X_y=True))


def digits_splits() -> dict[str, npt.NDArray[np.int64]]:
    """The fixed stratified split of the digits: 60 % train, 10 % val, 30 % test.

    Returns:
        "train", "val" and "test" → ascending image indices into `load_digits_arrays()`; disjoint, together all images.
    """
    _, labels_N = load_digits_arrays()
    return stratified_split(labels_N, SPLIT_FRACTIONS, seed=SPLIT_SEED)


def stratified_split(
    labels_N: npt.NDArray[np.int64], fractions: Mapping[str, float], *, seed: int
) -> dict[str, npt.NDArray[np.int64]]:
    """Split indices so that every part holds its share of each class, to within one image.

    Args:
        labels_N: (N,) class indices.
        fractions: name of a part → its share, each above 0, together 1.
        seed: root seed; each class is shuffled by its own generator, so adding a class moves no image of another.

    Returns:
        name of a part → ascending indices into `labels_N`.

    Raises:
        DataError: the shares are not above 0 or do not add up to 1.
    """
    shares = np.array(list(fractions.values()), dtype=np.float64)
    if shares.size == 0 or bool((shares <= 0).any()) or abs(float(shares.sum()) - 1.0) > 1e-9:
        raise DataError("split fractions must each be above 0 and add up to 1", got=dict(fractions))
    parts: dict[str, list[npt.NDArray[np.int64]]] = {name: [] for name in fractions}
    for label in np.unique(labels_N):
        members = numpy_generator(seed, "split", int(label)).permutation(np.flatnonzero(labels_N == label))
        # Round the cumulative shares, not each share, so that every image lands in exactly one part.
        bounds = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
        for name, piece in zip(fractions, np.split(members, bounds), strict=True):
            parts[name].append(piece)
    return {name: np.sort(np.concatenate(pieces or [np.empty(0, np.int64)])) for name, pieces in parts.items()}
