"""Harder versions of a dataset: images of unknown classes, asked-for classes without images, wrong labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from captune.config import TaskConfig
from captune.data.dataset import UNKNOWN, Dataset, IntArray, Split
from captune.errors import ConfigError
from captune.seeding import numpy_generator


def hide_classes(dataset: Dataset, task: TaskConfig) -> Dataset:
    """The dataset with some of its classes unknown (open set).

    A seeded `open_set_fraction` of the classes, at least one, is taken out of the class names. Their images stay in the
    pool with the label `UNKNOWN`, are never labelled, and do not count in a report.

    Raises:
        ConfigError: fewer than two classes would be left.
    """
    num_hidden = max(1, round(task.open_set_fraction * dataset.num_classes))
    num_known = dataset.num_classes - num_hidden
    if num_known < 2:
        raise ConfigError(
            "open_set_fraction must leave two classes",
            got=f"{task.open_set_fraction} of {dataset.num_classes} classes",
            where=dataset.key,
            next_step="Lower --open-set-fraction.",
        )
    order = numpy_generator(task.split_seed, "open-set").permutation(dataset.num_classes)
    known = np.sort(order[:num_known])
    # UNKNOWN is -1, so it indexes the last entry.
    renamed = np.full(dataset.num_classes + 1, UNKNOWN, np.int64)
    renamed[known] = np.arange(num_known)

    def part(split: Split) -> Split:
        return replace(split, labels_N=renamed[split.labels_N])

    text_KD = dataset.text_features_KD
    return replace(
        dataset,
        class_names=tuple(dataset.class_names[label] for label in known),
        train=part(dataset.train),
        val=part(dataset.val),
        test=part(dataset.test),
        text_features_KD=None if text_KD is None else text_KD[known],
    )


def present_classes(classes: IntArray, task: TaskConfig) -> IntArray:
    """The classes of which the pool and the test hold images: a seeded `present_fraction`, at least two, ascending.

    The names of the others are still asked for. A smaller fraction keeps some of the classes of a larger one.

    Args:
        classes: those that the pool's images may belong to.
        task: the cell.
    """
    if task.present_fraction == 1:
        return classes
    order = numpy_generator(task.split_seed, "present").permutation(classes)
    return np.sort(order[: max(2, round(task.present_fraction * len(classes)))])


def mislabel(images: IntArray, labels_M: IntArray, classes: IntArray, noise: float, seed: int) -> IntArray:
    """The labels of all images, with a share of the given images' labels each replaced by another class.

    Args:
        images: the labelled ones, of which round(noise · their number) get a wrong label.
        labels_M: true labels of all images.
        classes: those that a wrong label may name, at least two.
        noise: share, in [0, 1).
        seed: root seed; a larger share keeps the wrong labels of a smaller one.
    """
    generator = numpy_generator(seed, "shot-noise")
    order = generator.permutation(len(images))
    # Adding 1…K−1 modulo K gives each of the other classes with equal probability.
    steps = generator.integers(1, len(classes), size=len(images))
    noisy_M = labels_M.copy()
    for position in order[: round(noise * len(images))]:
        image = images[position]
        place = int(np.flatnonzero(classes == labels_M[image])[0])
        noisy_M[image] = classes[(place + steps[position]) % len(classes)]
    return noisy_M
