"""Which images each paradigm labels, pools and validates on, before the pool is thinned and partly held out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from captune.config import TaskConfig
from captune.data.dataset import UNKNOWN, Dataset, IntArray
from captune.data.draws import draw_shots, seen_classes
from captune.data.tree import name_some
from captune.errors import DataError
from captune.records import Role
from captune.seeding import numpy_generator

BoolArray = npt.NDArray[np.bool_]
_MAX_VALIDATION_SHOTS = 4
_UNSEEN_SHARE = 0.38
_VALIDATION_SHARE = 0.2


@dataclass
class Roles:
    """The images of each role, before the pool is thinned and images are held out."""

    labelled: IntArray
    pool: IntArray
    validation: IntArray
    pseudolabelled_K: BoolArray
    seen_K: BoolArray
    pseudo_unseen_K: BoolArray


def has_labels(config: TaskConfig) -> bool:
    """Whether the cell labels images to train on."""
    return config.paradigm == "trzsl" or (config.paradigm != "ul" and config.num_shots > 0)


def reported_images(dataset: Dataset, config: TaskConfig) -> IntArray:
    """The images whose classes are reported: the test split, and all images that nobody has labelled."""
    if config.open_set_fraction:  # here images of unknown class are of classes that are not asked for
        return dataset.indices("test")
    return np.union1d(dataset.indices("test"), np.flatnonzero(dataset.labels_M == UNKNOWN))


def _unsupervised(dataset: Dataset, config: TaskConfig, role: Role) -> Roles:
    nothing = np.empty(0, np.int64)
    return _roles(dataset, labelled=nothing, pool=_training_images(dataset, config), validation=nothing)


def _semi_supervised(dataset: Dataset, config: TaskConfig, role: Role) -> Roles:
    train, labels_M = _training_images(dataset, config), dataset.labels_M
    in_part = not config.open_set_fraction and bool((labels_M[train] == UNKNOWN).any())
    if in_part and config.shots is None:  # the user's own labels are used
        labelled = train[labels_M[train] != UNKNOWN]
    else:
        labelled = draw_shots(dataset, train, config.num_shots, as_many_as_there_are=in_part)
    if in_part and not len(labelled) and config.num_shots:
        raise DataError(
            "ssl must have labelled training images",
            got="none",
            where=config.dataset,
            next_step="Use --paradigm ul, which needs no label.",
        )
    pool = np.setdiff1d(train, labelled)
    validation = np.empty(0, np.int64)
    if role == Role.SCORE and config.num_shots:
        shots = min(config.num_shots, _MAX_VALIDATION_SHOTS)
        own = dataset.indices("val") if config.protocol == "coop" else np.empty(0, np.int64)
        own = own[labels_M[own] != UNKNOWN]
        # Without validation images of its own, the paradigm labels as many more pool images and takes them out of it.
        validation = draw_shots(dataset, own if len(own) else pool, shots, as_many_as_there_are=True)
        if not len(validation):  # the shots took every labelled image
            validation = _one_in_five(dataset, labelled, config)
            labelled = np.setdiff1d(labelled, validation)
        pool = np.setdiff1d(pool, validation)
    return _roles(dataset, labelled=labelled, pool=pool, validation=validation)


def _transductive_zero_shot(dataset: Dataset, config: TaskConfig, role: Role) -> Roles:
    seen_K = np.zeros(dataset.num_classes, np.bool_)
    seen_K[seen_classes(dataset.num_classes, config.split_seed)] = True
    train = _training_images(dataset, config)
    labels_M = dataset.labels_M
    without = [name for label, name in enumerate(dataset.class_names) if seen_K[label] and label not in labels_M[train]]
    if without:
        raise DataError(
            "every seen class must have a labelled training image",
            got=f"{len(without)} without: {name_some(without)}",
            where=f"{config.dataset}, trzsl",
            next_step="Label an image of each, or use --paradigm ul, which needs no label.",
        )
    pseudo_unseen_K = np.zeros(dataset.num_classes, np.bool_)
    validation = np.empty(0, np.int64)
    if role == Role.SCORE:
        pseudo_unseen_K = _pseudo_unseen(seen_K, config)
        own = dataset.indices("val") if config.protocol == "coop" else np.empty(0, np.int64)
        if not np.isin(np.flatnonzero(seen_K), labels_M[own]).all():
            own = _one_in_five(dataset, train[_has_class(labels_M[train], seen_K)], config)
            train = np.setdiff1d(train, own)
        validation = own[_has_class(labels_M[own], seen_K)]
    labelled_K = seen_K & ~pseudo_unseen_K
    is_labelled = _has_class(labels_M[train], labelled_K)
    return Roles(train[is_labelled], train[~is_labelled], validation, ~labelled_K, seen_K, pseudo_unseen_K)


def _transductive_fine_tuning(dataset: Dataset, config: TaskConfig, role: Role) -> Roles:
    labelled = draw_shots(dataset, _training_images(dataset, config), config.num_shots)
    pool = np.setdiff1d(reported_images(dataset, config), labelled)
    return _roles(dataset, labelled=labelled, pool=pool, validation=np.empty(0, np.int64))


PARADIGM_ROLES: dict[str, Callable[[Dataset, TaskConfig, Role], Roles]] = {
    "ul": _unsupervised,
    "ssl": _semi_supervised,
    "trzsl": _transductive_zero_shot,
    "tft": _transductive_fine_tuning,
}


def _roles(dataset: Dataset, *, labelled: IntArray, pool: IntArray, validation: IntArray) -> Roles:
    """Roles of a paradigm in which every class may be pseudolabelled."""
    no_K = np.zeros(dataset.num_classes, np.bool_)
    return Roles(labelled, pool, validation, ~no_K, no_K, no_K)


def _training_images(dataset: Dataset, config: TaskConfig) -> IntArray:
    """Images that a paradigm may train on: train, and in the paper's protocol val too."""
    return dataset.indices("train", "val") if config.protocol == "paper" else dataset.indices("train")


def _pseudo_unseen(seen_K: BoolArray, config: TaskConfig) -> BoolArray:
    """38 % of the seen classes, at least one, seeded: they stand in for the unseen ones while a study selects."""
    seen = np.flatnonzero(seen_K)
    if len(seen) < 2:
        raise DataError(
            "trzsl must have at least two seen classes to select a configuration",
            got=f"{len(seen)} of {len(seen_K)} classes",
            where=config.dataset,
            next_step="Use ul or ssl for so few classes.",
        )
    generator = numpy_generator(config.split_seed, "pseudo-unseen")
    chosen = generator.choice(seen, size=max(1, int(len(seen) * _UNSEEN_SHARE)), replace=False)
    pseudo_unseen_K = np.zeros(len(seen_K), np.bool_)
    pseudo_unseen_K[chosen] = True
    return pseudo_unseen_K


def _one_in_five(dataset: Dataset, images: IntArray, config: TaskConfig) -> IntArray:
    """A fifth of each class's images (at least one if there are two), seeded."""
    labels_N = dataset.labels_M[images]
    chosen = []
    for label in np.unique(labels_N):
        members = images[labels_N == label]
        count = min(len(members) - 1, max(1, round(_VALIDATION_SHARE * len(members))))
        chosen.append(numpy_generator(config.split_seed, "validation", int(label)).permutation(members)[:count])
    return np.sort(np.concatenate(chosen))


def _has_class(labels_N: IntArray, mask_K: BoolArray) -> BoolArray:
    """Which labels belong to the classes of a mask; unknown labels never do."""
    inside: BoolArray = (labels_N >= 0) & mask_K[labels_N]
    return inside
