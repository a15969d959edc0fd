"""Which images are labelled, pooled, validated and tested; and sealed labels, those that training may not see.

All indices count through the dataset's train, val and test images, one after another. A `Task` holds no true label of a
pool, held-out or test image. Those go into `SealedLabels`, which only one module opens, for the report.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np

from captune.config import TaskConfig
from captune.data.catalog import load_dataset
from captune.data.dataset import UNKNOWN, Dataset, IntArray
from captune.data.difficulties import mislabel, present_classes
from captune.data.draws import exponential_pool
from captune.data.roles import PARADIGM_ROLES, BoolArray, Roles, reported_images
from captune.data.tree import name_some
from captune.errors import ConfigError, DataError
from captune.records import Role
from captune.seeding import numpy_generator

__all__ = ["IntArray", "Labelled", "SealedLabels", "Task", "build_task"]

_TELLING_IMAGES = 100
NO_LABELS = "no labels: accuracy is not measured"
"""Said in place of a number that would need labels that nobody has."""


class SealedLabels:
    """True labels of pool, held-out and test images. They cannot be printed, copied or sent to another process."""

    __slots__ = ("__labels",)

    def __init__(self, **labels_N: IntArray) -> None:
        """Seal arrays of labels by name."""
        self.__labels = {name: _frozen(labels) for name, labels in labels_N.items()}

    def reveal(self) -> dict[str, IntArray]:
        """The true labels of "pool", "holdout" and "test", in the task's order; -1 where a label is unknown.

        Only captune.training.evaluation may call this: in a study after the choice, in `captune adapt` after training.
        The `oracle` criterion calls it earlier; it is for research, and its results are stamped.
        """
        return dict(self.__labels)

    def __repr__(self) -> str:
        return "SealedLabels()"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("SealedLabels must stay in the process that sealed them; build the task again instead.")


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images whose labels training may use.

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
        pool: unlabelled images to train on, ascending.
        holdout: unlabelled images kept out of training for selection, ascending; empty for role "report".
        validation: labelled images for selection; empty for role "report".
        test: images that are reported on, ascending.
        pseudolabelled_K: classes that may be pseudolabelled (TRZSL: the unseen ones, pseudo-unseen ones included).
        seen_K: TRZSL: classes that count as seen in the report metric; otherwise none.
        pseudo_unseen_K: TRZSL with role "score": seen classes that are treated as unseen; otherwise none.
        num_measurable: images of `test` with a known label; metrics are over these only.
        notes: what a person should know about the data and about how much they can tell, one sentence each.
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
        """Pool images per class that may be pseudolabelled, if all were equally frequent; at least 1."""
        return max(1, len(self.pool) // max(1, int(self.pseudolabelled_K.sum())))


def without_images(task: Task, unreadable: IntArray) -> Task:
    """The task without the unreadable images, in all roles."""

    def kept(images: IntArray) -> IntArray:
        return _frozen(images[~np.isin(images, unreadable)])

    def kept_labelled(labelled: Labelled) -> Labelled:
        stays_N = ~np.isin(labelled.indices_N, unreadable)
        return Labelled(_frozen(labelled.indices_N[stays_N]), _frozen(labelled.labels_N[stays_N]))

    return replace(
        task,
        labelled=kept_labelled(task.labelled),
        pool=kept(task.pool),
        holdout=kept(task.holdout),
        validation=kept_labelled(task.validation),
        test=kept(task.test),
    )


def build_task(config: TaskConfig, *, role: Role) -> tuple[Task, SealedLabels]:
    """Assign a dataset's images to a paradigm's roles.

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
        ConfigError: the pool is to be unsealed although it is the test set, shots are to be mislabelled although there
            are none, or too few classes are left of an open set.
    """
    dataset = load_dataset(config)
    _check_classes(dataset)
    roles = PARADIGM_ROLES[config.paradigm](dataset, config, role)
    labels_M = dataset.labels_M
    classes = np.flatnonzero(roles.pseudolabelled_K)
    absent = np.setdiff1d(classes, present_classes(classes, config))
    roles.pool = roles.pool[~np.isin(labels_M[roles.pool], absent)]
    pool = _thinned(roles.pool, labels_M, classes, config)
    test = reported_images(dataset, config)
    test = test[~np.isin(labels_M[test], absent)]
    for name, images in (("pool", pool), ("test split", test)):
        if len(images) == 0:
            raise DataError(
                f"the {name} must hold images",
                got="none",
                where=f"{config.dataset}, {config.paradigm}",
                next_step=_EMPTY_HELP[config.paradigm] if name == "pool" else _no_test_help(config),
            )
    holdout = np.empty(0, np.int64)
    if role == Role.SCORE and config.paradigm != "trzsl":
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
    """A note on the smallest gain that few scored images can show: 1.28 standard errors of the difference of two
    accuracies on them, if the predictions differ on a tenth (`captune.decisions.by_criterion.noise_margin`).
    """
    if num_scored >= _TELLING_IMAGES or num_scored == 0:
        return []
    points, telling = (100 * 1.28 * (0.1 / count) ** 0.5 for count in (num_scored, _TELLING_IMAGES))
    return [
        f"the pool holds {num_pool} images and configurations are compared on {num_scored}: gains below about "
        f"{points:.0f} points cannot be told from chance (below {telling:.0f} from {_TELLING_IMAGES} such images on)"
    ]


_EMPTY_HELP = {
    "ul": "ul adapts to training images: mark some as train, or use --paradigm tft, which adapts to the test images.",
    "tft": "tft adapts to test images: add images, or mark some as test. Without labels (--labels none, with "
    "--class-names) it takes all images as they are.",
    "ssl": "Ask for fewer --shots, so that training images are left unlabelled.",
    "trzsl": "No training image is of an unseen class: another --split-seed draws other classes.",
}


def _no_test_help(config: TaskConfig) -> str:
    """What to do without images to report on."""
    if not config.dataset.startswith(("folder:", "csv:")):
        return "Add a test split."
    return (
        "Add images (30 % of each class are set aside as test: none of a class of one image), or mark some as test. "
        "Without labels (--labels none, with --class-names) all images are classified as they are."
    )


def _thinned(pool: IntArray, labels_M: IntArray, classes: IntArray, config: TaskConfig) -> IntArray:
    """The pool, made long-tailed and smaller as asked; ascending."""
    if config.pool_imbalance > 1:
        # Images of unknown class (open set) belong to no class that is thinned, so all of them stay.
        others = pool[labels_M[pool] == UNKNOWN] if config.open_set_fraction else pool[:0]
        known = np.setdiff1d(pool, others)
        known = exponential_pool(known, labels_M[known], classes, config.pool_imbalance, config.split_seed)
        pool = np.concatenate([known, others])
    if config.pool_fraction < 1:
        count = max(1, round(config.pool_fraction * len(pool)))
        pool = numpy_generator(config.split_seed, "pool-fraction").permutation(pool)[:count]
    return np.sort(pool)


def _held_out(pool: IntArray, config: TaskConfig) -> tuple[IntArray, IntArray]:
    """The pool cut at random (seeded) into training pool and held-out images, at least one in each; both ascending."""
    if len(pool) < 2:
        raise DataError("the pool must hold two images, one to be held out", got=len(pool), where=config.dataset)
    count = min(len(pool) - 1, max(1, round(config.holdout_fraction * len(pool))))
    order = numpy_generator(config.split_seed, "holdout").permutation(pool)
    return np.sort(order[count:]), np.sort(order[:count])


def _check_classes(dataset: Dataset) -> None:
    if dataset.num_classes < 2:
        raise DataError("a dataset must have at least two classes", got=dataset.num_classes, where=dataset.key)
    labels_M = dataset.labels_M
    if (labels_M == UNKNOWN).any():  # images without a label are not stratified
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
    """The labelled images and the pool's, for the supervised ceiling; images with an unknown label stay out.

    Raises:
        ConfigError: the pool is the test set, so its labels would be trained on and then tested.
    """
    if config.paradigm == "tft":
        raise ConfigError(
            "unseal_pool must be used where the pool is not the test set",
            got="tft",
            next_step="The ceiling of ul is the one to compare with.",
        )
    return np.union1d(labelled, pool[labels_M[pool] != UNKNOWN])


def _given_labels(roles: Roles, labels_M: IntArray, config: TaskConfig) -> IntArray:
    """The labels that training is given; with `shot_noise`, some labels of labelled and validation images are wrong.

    Raises:
        ConfigError: no image is labelled.
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
