"""Who is labelled, pooled, validated and tested (METHOD 10), and the seal on every label that training may not see.

All indices count through the dataset's train, val and test images, one behind another. A `Task` holds no true label of
a pool, held-out or test image; those go into `SealedLabels`, which one module opens, for the report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NoReturn

import numpy as np
import numpy.typing as npt

from captune.config import TaskConfig
from captune.data.catalog import load_dataset
from captune.data.dataset import UNKNOWN, Dataset, IntArray
from captune.data.difficulties import mislabel
from captune.data.draws import draw_shots, exponential_pool, seen_classes
from captune.data.tree import name_some
from captune.errors import ConfigError, DataError
from captune.seeding import numpy_generator

__all__ = ["IntArray", "Labelled", "SealedLabels", "Task", "build_task"]

BoolArray = npt.NDArray[np.bool_]
Role = Literal["score", "report"]
_MAX_VALIDATION_SHOTS = 4
_UNSEEN_SHARE = 0.38
_VALIDATION_SHARE = 0.2
_TELLING_IMAGES = 100
NO_LABELS = "no labels: accuracy is not measured"
"""What is said where a number would need labels that nobody has."""


class SealedLabels:
    """True labels of pool, held-out and test images. They cannot be printed, copied or sent to another process."""

    __slots__ = ("__labels",)

    def __init__(self, **labels_N: IntArray) -> None:
        """Seal arrays of labels by name."""
        self.__labels = {name: _frozen(labels) for name, labels in labels_N.items()}

    def reveal(self) -> dict[str, IntArray]:
        """The true labels of "pool", "holdout" and "test", in the task's order, -1 where nobody knows.

        For captune.training.evaluation alone, after everything is chosen.
        """
        return dict(self.__labels)

    def __repr__(self) -> str:
        return "SealedLabels()"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("SealedLabels must stay in the process that sealed them; build the task again instead.")


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images whose labels the paradigm owns.

    Attributes:
        indices_N: images.
        labels_N: their classes.
    """

    indices_N: IntArray
    labels_N: IntArray

    def __len__(self) -> int:
        return len(self.indices_N)


@dataclass(frozen=True, eq=False)
class Task:
    """A cell as training may see it. Every array is read-only.

    Attributes:
        config: what was asked for.
        dataset: the dataset's key.
        class_names: K names in label order.
        template: prompt with one `{}`.
        labelled: labelled training images.
        pool: unlabelled images to train on, rising.
        holdout: unlabelled images kept out of training for selection, rising; empty for role "report".
        validation: labelled images for selection; empty for role "report".
        test: images that are reported on, rising.
        pseudolabelled_K: classes that may be pseudolabelled (TRZSL: the unseen ones, pseudo-unseen ones included).
        seen_K: TRZSL: classes that count as seen in the report metric; otherwise none.
        pseudo_unseen_K: TRZSL with role "score": seen classes that are treated as unseen; otherwise none.
        num_measurable: images of `test` whose label somebody has written down; only over these can a metric be.
        notes: what a person should know of the data and of how much they can tell, one sentence each.
    """

    config: TaskConfig
    dataset: str
    class_names: tuple[str, ...]
    template: str
    labelled: Labelled
    pool: IntArray
    holdout: IntArray
    validation: Labelled
    test: IntArray
    pseudolabelled_K: BoolArray
    seen_K: BoolArray
    pseudo_unseen_K: BoolArray
    num_measurable: int
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def estimated_class_size(self) -> int:
        """Pool images a pseudolabelled class, were they equally many; at least 1."""
        return max(1, len(self.pool) // max(1, int(self.pseudolabelled_K.sum())))


def build_task(config: TaskConfig, *, role: Role) -> tuple[Task, SealedLabels]:
    """Deal a dataset's images to a paradigm's roles.

    Args:
        config: dataset, paradigm, shots, seeds, imbalance.
        role: "score" for trials of a search (part of the pool is held out, TRZSL holds out pseudo-unseen classes);
            "report" for what is reported (the whole pool, nothing held out).

    Returns:
        the task without its sealed labels, and the sealed labels in the same order.

    Raises:
        DataError: missing or broken data, one class only, a class without images, too few labelled images, an empty
            pool or test split.
        UsageError: an unknown dataset.
        ConfigError: the pool is to be unsealed where it is the test set, shots are to be mislabelled where there are
            none, or too few classes are left of an open set.
    """
    dataset = load_dataset(config)
    _check_classes(dataset)
    roles = _PARADIGMS[config.paradigm](dataset, config, role)
    labels_M = dataset.labels_M
    pool = _thinned(roles.pool, labels_M, np.flatnonzero(roles.pseudolabelled_K), config)
    test = _reported(dataset, config)
    for name, images in (("pool", pool), ("test split", test)):
        if len(images) == 0:
            raise DataError(
                f"the {name} must hold images",
                got="none",
                where=f"{config.dataset}, {config.paradigm}",
                next_step=_EMPTY_HELP.get(config.paradigm) if name == "pool" else "Add a test split.",
            )
    holdout = np.empty(0, np.int64)
    if role == "score" and config.paradigm != "trzsl":
        pool, holdout = _held_out(pool, config)
    labelled = _unsealed(roles.labelled, pool, labels_M, config) if config.unseal_pool else roles.labelled
    given_M = _given_labels(roles, labels_M, config)
    num_measurable = int((labels_M[test] != UNKNOWN).sum())
    num_scored = len(holdout) or len(roles.validation)
    notes = [*dataset.notes, *_label_notes(num_measurable, len(test), config)]
    if role == "score":
        notes += _size_notes(len(pool) + len(holdout), num_scored)
    task = Task(
        config=config,
        dataset=config.dataset,
        class_names=dataset.class_names,
        template=dataset.template,
        labelled=_labelled(labelled, given_M),
        pool=_frozen(pool),
        holdout=_frozen(holdout),
        validation=_labelled(roles.validation, given_M),
        test=_frozen(test),
        pseudolabelled_K=_frozen_mask(roles.pseudolabelled_K),
        seen_K=_frozen_mask(roles.seen_K),
        pseudo_unseen_K=_frozen_mask(roles.pseudo_unseen_K),
        num_measurable=num_measurable,
        notes=tuple(notes),
    )
    return task, SealedLabels(pool=labels_M[pool], holdout=labels_M[holdout], test=labels_M[test])


def _label_notes(num_measurable: int, num_reported: int, config: TaskConfig) -> list[str]:
    if config.open_set_fraction or num_measurable == num_reported:
        return []
    if num_measurable == 0:
        return [f"{NO_LABELS}. The {num_reported} images are classified all the same, see predictions.csv"]
    return [f"test metrics are over the {num_measurable} of {num_reported} classified images that have a label"]


def _size_notes(num_pool: int, num_scored: int) -> list[str]:
    """How small a gain the scored images can show: 1.28 standard errors of a difference of two shares of them, where
    the two predict otherwise on a tenth (`captune.results.choice.noise_margin`).
    """
    if num_scored >= _TELLING_IMAGES or num_scored == 0:
        return []
    points, telling = (100 * 1.28 * (0.1 / count) ** 0.5 for count in (num_scored, _TELLING_IMAGES))
    return [
        f"the pool holds {num_pool} images and configurations are compared on {num_scored}: gains below about "
        f"{points:.0f} points cannot be told from chance (below {telling:.0f} from {_TELLING_IMAGES} such images on)"
    ]


_EMPTY_HELP = {
    "ssl": "Ask for fewer --shots, so that training images are left unlabelled.",
    "trzsl": "No training image is of an unseen class: another --split-seed draws other classes.",
}


@dataclass
class _Roles:
    """Who is who, before the pool is thinned and held out."""

    labelled: IntArray
    pool: IntArray
    validation: IntArray
    pseudolabelled_K: BoolArray
    seen_K: BoolArray
    pseudo_unseen_K: BoolArray


def _reported(dataset: Dataset, config: TaskConfig) -> IntArray:
    """The images a person wants to know the classes of: the test split, and training images nobody has labelled."""
    if config.open_set_fraction:  # those are of classes that nobody asks for
        return dataset.indices("test")
    return np.union1d(dataset.indices("test"), np.flatnonzero(dataset.labels_M == UNKNOWN))


def _unsupervised(dataset: Dataset, config: TaskConfig, role: Role) -> _Roles:
    nothing = np.empty(0, np.int64)
    return _roles(dataset, labelled=nothing, pool=_training_images(dataset, config), validation=nothing)


def _semi_supervised(dataset: Dataset, config: TaskConfig, role: Role) -> _Roles:
    train, labels_M = _training_images(dataset, config), dataset.labels_M
    in_part = not config.open_set_fraction and bool((labels_M[train] == UNKNOWN).any())
    if in_part and config.shots is None:  # what somebody took the pains to label is used
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
    if role == "score" and config.num_shots:
        shots = min(config.num_shots, _MAX_VALIDATION_SHOTS)
        own = dataset.indices("val") if config.protocol == "coop" else np.empty(0, np.int64)
        own = own[labels_M[own] != UNKNOWN]
        # Without validation images of its own the paradigm labels as many more of the pool, which then leave it.
        validation = draw_shots(dataset, own if len(own) else pool, shots, as_many_as_there_are=True)
        if not len(validation):  # every label there is was taken
            validation = _one_in_five(dataset, labelled, config)
            labelled = np.setdiff1d(labelled, validation)
        pool = np.setdiff1d(pool, validation)
    return _roles(dataset, labelled=labelled, pool=pool, validation=validation)


def _transductive_zero_shot(dataset: Dataset, config: TaskConfig, role: Role) -> _Roles:
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
        )
    pseudo_unseen_K = np.zeros(dataset.num_classes, np.bool_)
    validation = np.empty(0, np.int64)
    if role == "score":
        pseudo_unseen_K = _pseudo_unseen(seen_K, config)
        own = dataset.indices("val") if config.protocol == "coop" else np.empty(0, np.int64)
        if not np.isin(np.flatnonzero(seen_K), labels_M[own]).all():
            own = _one_in_five(dataset, train[_has_class(labels_M[train], seen_K)], config)
            train = np.setdiff1d(train, own)
        validation = own[_has_class(labels_M[own], seen_K)]
    labelled_K = seen_K & ~pseudo_unseen_K
    is_labelled = _has_class(labels_M[train], labelled_K)
    return _Roles(train[is_labelled], train[~is_labelled], validation, ~labelled_K, seen_K, pseudo_unseen_K)


def _transductive_fine_tuning(dataset: Dataset, config: TaskConfig, role: Role) -> _Roles:
    labelled = draw_shots(dataset, _training_images(dataset, config), config.num_shots)
    pool = np.setdiff1d(_reported(dataset, config), labelled)
    return _roles(dataset, labelled=labelled, pool=pool, validation=np.empty(0, np.int64))


_PARADIGMS: dict[str, Callable[[Dataset, TaskConfig, Role], _Roles]] = {
    "ul": _unsupervised,
    "ssl": _semi_supervised,
    "trzsl": _transductive_zero_shot,
    "tft": _transductive_fine_tuning,
}


def _roles(dataset: Dataset, *, labelled: IntArray, pool: IntArray, validation: IntArray) -> _Roles:
    """Roles of a paradigm in which every class may be pseudolabelled."""
    no_K = np.zeros(dataset.num_classes, np.bool_)
    return _Roles(labelled, pool, validation, ~no_K, no_K, no_K)


def _training_images(dataset: Dataset, config: TaskConfig) -> IntArray:
    """Images that a paradigm may train on: train, and in the paper's protocol val too."""
    return dataset.indices("train", "val") if config.protocol == "paper" else dataset.indices("train")


def _pseudo_unseen(seen_K: BoolArray, config: TaskConfig) -> BoolArray:
    """38 % of the seen classes, at least one, seeded: they stand for the unseen ones while a study selects."""
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
    """A fifth of each class's images (at least one where there are two), seeded."""
    labels_N = dataset.labels_M[images]
    chosen = []
    for label in np.unique(labels_N):
        members = images[labels_N == label]
        count = min(len(members) - 1, max(1, round(_VALIDATION_SHARE * len(members))))
        chosen.append(numpy_generator(config.split_seed, "validation", int(label)).permutation(members)[:count])
    return np.sort(np.concatenate(chosen))


def _thinned(pool: IntArray, labels_M: IntArray, classes: IntArray, config: TaskConfig) -> IntArray:
    """The pool made long-tailed and smaller as asked; rising."""
    if config.pool_imbalance > 1:
        # An open set's unknown images are in no class that could be thinned: all of them stay.
        others = pool[labels_M[pool] == UNKNOWN] if config.open_set_fraction else pool[:0]
        known = np.setdiff1d(pool, others)
        known = exponential_pool(known, labels_M[known], classes, config.pool_imbalance, config.split_seed)
        pool = np.concatenate([known, others])
    if config.pool_fraction < 1:
        count = max(1, round(config.pool_fraction * len(pool)))
        pool = numpy_generator(config.split_seed, "pool-fraction").permutation(pool)[:count]
    return np.sort(pool)


def _held_out(pool: IntArray, config: TaskConfig) -> tuple[IntArray, IntArray]:
    """The pool cut into training pool and held-out images, seeded, at least one in each; both rising."""
    if len(pool) < 2:
        raise DataError("the pool must hold two images, one to be held out", got=len(pool), where=config.dataset)
    count = min(len(pool) - 1, max(1, round(config.holdout_fraction * len(pool))))
    order = numpy_generator(config.split_seed, "holdout").permutation(pool)
    return np.sort(order[count:]), np.sort(order[:count])


def _check_classes(dataset: Dataset) -> None:
    if dataset.num_classes < 2:
        raise DataError("a dataset must have at least two classes", got=dataset.num_classes, where=dataset.key)
    labels_M = dataset.labels_M
    if (labels_M == UNKNOWN).any():  # who knows what those images are
        return
    empty = [dataset.class_names[label] for label in np.setdiff1d(np.arange(dataset.num_classes), labels_M)]
    if empty:
        raise DataError(
            "every class must have an image",
            got=f"{len(empty)} without: {name_some(empty)}",
            where=dataset.key,
            next_step="Remove these classes, or add images.",
        )


def _unsealed(labelled: IntArray, pool: IntArray, labels_M: IntArray, config: TaskConfig) -> IntArray:
    """Labelled images and the pool's, for the supervised ceiling; images nobody knows the label of stay out.

    Raises:
        ConfigError: the pool is the test set, whose labels would be learned and then asked for.
    """
    if config.paradigm == "tft":
        raise ConfigError(
            "unseal_pool must be used where the pool is not the test set",
            got="tft",
            next_step="The ceiling of ul is the one to compare with.",
        )
    return np.union1d(labelled, pool[labels_M[pool] != UNKNOWN])


def _given_labels(roles: _Roles, labels_M: IntArray, config: TaskConfig) -> IntArray:
    """Labels as the paradigm's owner wrote them: with `shot_noise` some of the labelled and validation images' wrong.

    Raises:
        ConfigError: there is no labelled image to be wrong about.
    """
    if config.shot_noise == 0:
        return labels_M
    if len(roles.labelled) == 0:
        raise ConfigError(
            "shot_noise must be used where images are labelled",
            got=f"{config.paradigm} without labelled images",
            where="task: shot_noise",
            next_step="Use ssl, trzsl, or tft with --shots.",
        )
    noisy_M = labels_M
    for images in (roles.labelled, roles.validation):
        classes = np.unique(labels_M[images])
        if len(classes) > 1:
            noisy_M = mislabel(images, noisy_M, classes, config.shot_noise, config.split_seed)
    return noisy_M


def _has_class(labels_N: IntArray, mask_K: BoolArray) -> BoolArray:
    """Which labels belong to the classes of a mask; unknown labels never do."""
    inside: BoolArray = (labels_N >= 0) & mask_K[labels_N]
    return inside


def _labelled(indices: IntArray, labels_M: IntArray) -> Labelled:
    return Labelled(_frozen(indices), _frozen(labels_M[indices]))


def _frozen(values: IntArray) -> IntArray:
    copy = np.array(values, dtype=np.int64)
    copy.flags.writeable = False
    return copy


def _frozen_mask(values_K: BoolArray) -> BoolArray:
    copy = np.array(values_K, dtype=np.bool_)
    copy.flags.writeable = False
    return copy
