"""Seeded draws: the published ones, number for number, and our long-tailed pools."""

from __future__ import annotations

import numpy as np

from captune.data.dataset import Dataset, IntArray
from captune.data.tree import name_some
from captune.errors import DataError
from captune.seeding import numpy_generator

_SEEN_SHARE = 0.62
_SHOT_SEED = 0


def seen_classes(num_classes: int, seed: int) -> IntArray:
    """The seen classes of TRZSL, drawn as all published code does: ⌊0.62 K⌋ by NumPy's legacy generator; ascending."""
    size = int(num_classes * _SEEN_SHARE)
    return np.sort(np.random.RandomState(seed).choice(range(num_classes), size=size, replace=False)).astype(np.int64)


def draw_shots(dataset: Dataset, images: IntArray, shots: int, *, as_many_as_there_are: bool = False) -> IntArray:
    """Draw as many labelled images of each class, as published: the legacy generator, seeded 0 again for each class.

    Args:
        dataset: whose labels are used.
        images: to draw from, in the dataset's order.
        shots: images per class.
        as_many_as_there_are: take all images of a class that has fewer, instead of refusing.

    Returns:
        chosen indices, ascending.

    Raises:
        DataError: a class has fewer images than shots.
    """
    labels_N = dataset.labels_M[images]
    if shots == 0:
        return np.empty(0, np.int64)
    counts_K = np.bincount(labels_N[labels_N >= 0], minlength=dataset.num_classes)
    short = [dataset.class_names[label] for label in np.flatnonzero(counts_K < shots)]
    if short and not as_many_as_there_are:
        raise DataError(
            f"every class must have {shots} labelled training images (--shots)",
            got=f"{len(short)} with fewer: {name_some(short)}",
            where=dataset.key,
            next_step="Ask for fewer shots, or label more images.",
        )
    chosen = []
    for label in range(dataset.num_classes):
        members = images[labels_N == label]
        size = min(shots, len(members))
        chosen.append(
            members[np.random.RandomState(_SHOT_SEED).choice(len(members), size=size, replace=False)]
            if size
            else members
        )
    return np.sort(np.concatenate(chosen))


def exponential_pool(pool: IntArray, labels_N: IntArray, classes: IntArray, imbalance: float, seed: int) -> IntArray:
    """A long-tailed part of a pool: class sizes fall exponentially from the largest to the smallest.

    The classes are put in a seeded order. The r-th of C keeps n · R^(-r / (C - 1)) images, at least one. n is the
    largest number for which every class has enough images, so the ratio R holds whatever the pool was like (up to
    rounding and to classes of one image). A class keeps the first images of a seeded order of its own, so the images it
    keeps under two values of R are nested.

    Args:
        pool: image indices.
        labels_N: their true labels, which only sealed labels may hold.
        classes: those that the pool consists of.
        imbalance: R, largest over smallest class, at least 1.
        seed: root seed.

    Returns:
        the images that stay, ascending.

    Raises:
        DataError: unknown labels, or a class without images.
    """
    counts = np.array([(labels_N == label).sum() for label in classes])
    if (labels_N < 0).any() or (counts == 0).any():
        raise DataError(
            "--pool-imbalance must know the label of every pool image and have an image of every class",
            got=f"{int((labels_N < 0).sum())} unknown labels, {int((counts == 0).sum())} classes without images",
        )
    order = numpy_generator(seed, "imbalance").permutation(len(classes))
    shares = imbalance ** (-np.arange(len(classes)) / max(1, len(classes) - 1))
    largest = float((counts[order] / shares).min())
    kept = []
    for rank, position in enumerate(order):
        label = int(classes[position])
        size = max(1, round(largest * shares[rank]))
        members = numpy_generator(seed, "imbalance", label).permutation(pool[labels_N == label])
        kept.append(members[: min(size, len(members))])
    return np.sort(np.concatenate(kept))
