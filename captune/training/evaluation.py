"""The only module that compares predictions with sealed labels; `captune.studies.seal` says when it may."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch

from captune.config import TaskConfig
from captune.data.paradigms import IntArray, Task, build_task
from captune.errors import RecordError
from captune.metrics import (
    accuracy,
    balance,
    coefficient_of_variation,
    expected_calibration_error,
    harmonic_mean,
    per_class_recall,
)
from captune.records import Role
from captune.records.layout import PREDICTIONS

_NUM_CONFUSED = 10
_NUM_BINS = 10
_NUM_RESAMPLES = 400


def evaluate_trial(config: TaskConfig, role: Role, directory: Path) -> dict[str, Any]:
    """Report metrics of a finished trial from its sealed predictions (fractions in [0, 1]).

    Returns:
        `metric` (accuracy; TRZSL: harmonic mean of seen and unseen accuracy), `accuracy`, `seen_accuracy`,
        `unseen_accuracy` (TRZSL, else None), `per_class_recall` [K], `worst_class_recall`, `ece`, `prediction_balance`,
        `prediction_cv`, `num_test` (images measured on), `num_classified` (those without a label too), and the
        `confused_pairs` [[true class, predicted class, images], ...] with most images. Over the images that have a
        label; where none has one, what needs labels is None and the balance is over all images.

    Raises:
        RecordError: the predictions are missing or of another number of images.
    """
    task, labels_N = _test_truth(config, role)
    path = directory / PREDICTIONS
    if not path.exists():
        raise RecordError("a finished trial must have its predictions", got="none", where=path)
    stored = safetensors.torch.load_file(path)
    probs_NK = stored["test_probs"].float().numpy()
    if "test_images" in stored:  # unreadable images were left out
        labels_N = labels_N[np.isin(task.test, stored["test_images"].numpy())]
    if probs_NK.shape != (len(labels_N), task.num_classes):
        raise RecordError(
            "predictions must be of the test images and classes as they are now",
            got=f"{probs_NK.shape} for {len(labels_N)} images and {task.num_classes} classes",
            where=path,
            next_step="Were files of the dataset changed since this trial? Restore them, or run the study again.",
        )
    known_N = labels_N >= 0
    measured = _metrics(probs_NK[known_N], labels_N[known_N], task) if known_N.any() else _unmeasured(probs_NK)
    return measured | {"num_classified": len(labels_N)}


def oracle_score(config: TaskConfig, role: Role, directory: Path) -> float:
    """The sealed report metric of a finished trial, for the criterion `oracle` alone: research, never a result.

    Called where trials are judged, never where they train: none can learn from it. What it selects is stamped in
    every table, figure and page.
    """
    return float(evaluate_trial(config, role, directory)["metric"])


def _unmeasured(probs_NK: np.ndarray) -> dict[str, Any]:
    """The metrics that need no label, where no image has one."""
    counts_K = np.bincount(probs_NK.argmax(-1), minlength=probs_NK.shape[1])
    nothing = ("metric", "accuracy", "seen_accuracy", "unseen_accuracy", "worst_class_recall", "ece")
    return {
        **dict.fromkeys(nothing),
        "per_class_recall": None,
        "prediction_balance": balance(counts_K),
        "prediction_cv": coefficient_of_variation(counts_K),
        "num_test": 0,
        "confused_pairs": [],
    }


def _metrics(probs_NK: np.ndarray, labels_N: IntArray, task: Task) -> dict[str, Any]:
    predicted_N = probs_NK.argmax(-1)
    recall_K = per_class_recall(predicted_N, labels_N, task.num_classes)
    counts_K = np.bincount(predicted_N, minlength=task.num_classes)
    overall = accuracy(predicted_N, labels_N)
    seen = unseen = None
    metric = overall
    if task.config.paradigm == "trzsl":
        seen_N = task.seen_K[labels_N]
        seen = accuracy(predicted_N[seen_N], labels_N[seen_N])
        unseen = accuracy(predicted_N[~seen_N], labels_N[~seen_N])
        metric = harmonic_mean(seen, unseen)
    present = recall_K[~np.isnan(recall_K)]
    return {
        "metric": metric,
        "accuracy": overall,
        "seen_accuracy": seen,
        "unseen_accuracy": unseen,
        "per_class_recall": recall_K,
        "worst_class_recall": float(present.min()) if len(present) else None,
        "ece": expected_calibration_error(probs_NK.max(-1), predicted_N, labels_N),
        "prediction_balance": balance(counts_K),
        "prediction_cv": coefficient_of_variation(counts_K),
        "num_test": len(labels_N),
        "confused_pairs": _confused_pairs(predicted_N, labels_N, task.num_classes),
    }


def _confused_pairs(predicted_N: IntArray, labels_N: IntArray, num_classes: int) -> list[list[int]]:
    wrong_N = predicted_N != labels_N
    pairs, counts = np.unique(labels_N[wrong_N] * num_classes + predicted_N[wrong_N], return_counts=True)
    most = np.lexsort((pairs, -counts))[:_NUM_CONFUSED]
    return [[int(pairs[at] // num_classes), int(pairs[at] % num_classes), int(counts[at])] for at in most]


@dataclass(frozen=True)
class MeasuredChanges:
    """What a candidate changes on the labelled test images against zero-shot.

    Attributes:
        confusion: (true class, predicted class, images before, images after), mean over the candidate's seeds; pairs
            without an image are left out.
        reliability: (before or after, lower end, upper end, images, mean confidence, accuracy) of each bin of
            confidence that holds an image.
        gain: report metric after (mean over seeds) minus before.
        gain_error: its standard error over the test images, paired; of a harmonic mean by bootstrap.
        examples: (true class, predicted class, index in the dataset, probability) of mistakes after, surest first.
    """

    confusion: list[tuple[int, int, float, float]]
    reliability: list[tuple[str, float, float, float, float, float]]
    gain: float
    gain_error: float
    examples: list[tuple[int, int, int, float]]


def measured_changes(
    config: TaskConfig, role: Role, zero_shot: Path, candidate: Sequence[Path], *, num_examples: int = 200
) -> MeasuredChanges | None:
    """Compare a candidate with zero-shot, image by image; test labels must be open to be read.

    Args:
        config: the cell.
        role: the candidate's trials ran in it.
        zero_shot: directory of the zero-shot trial.
        candidate: directories of the candidate's trials (its seeds).
        num_examples: how many mistakes are kept.

    Returns:
        None where no test image has a label, or one of the trials left no predictions of these images.
    """
    task, labels_N = _test_truth(config, role)
    images_N = task.test
    tables = [safetensors.torch.load_file(path / PREDICTIONS) for path in (zero_shot, *candidate)]
    if "test_images" in tables[0]:
        images_N = tables[0]["test_images"].numpy()
        labels_N = labels_N[np.isin(task.test, images_N)]
    known_N = labels_N >= 0
    probs = [table["test_probs"].float().numpy() for table in tables]
    if not known_N.any() or any(probs_NK.shape != (len(labels_N), task.num_classes) for probs_NK in probs):
        return None
    labels_N, images_N = labels_N[known_N], images_N[known_N]
    before_NK, *after = (probs_NK[known_N] for probs_NK in probs)
    right_SN = np.stack([probs_NK.argmax(-1) == labels_N for probs_NK in after])
    gain, gain_error = _gain(right_SN, before_NK.argmax(-1) == labels_N, labels_N, task)
    mean_NK = np.mean(after, axis=0)
    wrong = np.flatnonzero(mean_NK.argmax(-1) != labels_N)
    wrong = wrong[np.argsort(-mean_NK[wrong].max(-1), kind="stable")][:num_examples]
    return MeasuredChanges(
        confusion=_confusion(labels_N, before_NK, after),
        reliability=[*_bins("before", [before_NK], labels_N), *_bins("after", after, labels_N)],
        gain=gain,
        gain_error=gain_error,
        examples=[
            (int(labels_N[row]), int(mean_NK[row].argmax()), int(images_N[row]), float(mean_NK[row].max()))
            for row in wrong
        ],
    )


def _gain(right_SN: np.ndarray, before_N: np.ndarray, labels_N: IntArray, task: Task) -> tuple[float, float]:
    """The gain of the report metric, and its standard error over images that both predicted."""
    num_images = len(labels_N)
    if task.config.paradigm != "trzsl":
        difference_N = right_SN.mean(0) - before_N
        return float(difference_N.mean()), float(
            difference_N.std(ddof=1) / np.sqrt(num_images)
        ) if num_images > 1 else 0.0
    seen_N = task.seen_K[labels_N]

    def gained(rows: IntArray) -> float:
        seen = seen_N[rows]
        means = [
            harmonic_mean(right_N[rows][seen].mean(), right_N[rows][~seen].mean()) for right_N in (*right_SN, before_N)
        ]
        return float(np.mean(means[:-1]) - means[-1])

    # Drawn within seen and unseen images, so that no resample is without one of them.
    generator = np.random.default_rng(0)
    groups = [np.flatnonzero(seen_N), np.flatnonzero(~seen_N)]
    if not all(len(group) for group in groups):
        return 0.0, 0.0
    drawn = [
        gained(np.concatenate([group[generator.integers(len(group), size=len(group))] for group in groups]))
        for _ in range(_NUM_RESAMPLES)
    ]
    return gained(np.arange(num_images)), float(np.std(drawn, ddof=1))


def _confusion(
    labels_N: IntArray, before_NK: np.ndarray, after: Sequence[np.ndarray]
) -> list[tuple[int, int, float, float]]:
    num_classes = before_NK.shape[1]

    def counted(probs_NK: np.ndarray) -> np.ndarray:
        pairs_N = labels_N * num_classes + probs_NK.argmax(-1)
        return np.bincount(pairs_N, minlength=num_classes**2)

    first_P, second_P = counted(before_NK), np.mean([counted(probs_NK) for probs_NK in after], axis=0)
    return [
        (int(pair // num_classes), int(pair % num_classes), float(first_P[pair]), float(second_P[pair]))
        for pair in np.flatnonzero((first_P > 0) | (second_P > 0))
    ]


def _bins(
    which: str, seeds: Sequence[np.ndarray], labels_N: IntArray
) -> list[tuple[str, float, float, float, float, float]]:
    """Ten bins of equal width over the confidence; all seeds together, counted as images of one."""
    confidence_N = np.concatenate([probs_NK.max(-1) for probs_NK in seeds])
    right_N = np.concatenate([probs_NK.argmax(-1) == labels_N for probs_NK in seeds])
    bin_N = np.minimum((confidence_N * _NUM_BINS).astype(int), _NUM_BINS - 1)
    found = []
    for number in np.unique(bin_N):
        inside_N = bin_N == number
        ends = (number / _NUM_BINS, (number + 1) / _NUM_BINS)
        means = (float(confidence_N[inside_N].mean()), float(right_N[inside_N].mean()))
        found.append((which, *ends, float(inside_N.sum() / len(seeds)), *means))
    return found


def read_predictions(directory: Path) -> IntArray:
    """Predicted class of every test image (N,) of a finished trial."""
    labels_N: IntArray = safetensors.torch.load_file(directory / PREDICTIONS)["test_probs"].argmax(-1).numpy()
    return labels_N


@lru_cache(maxsize=8)
def _test_truth(config: TaskConfig, role: Role) -> tuple[Task, IntArray]:
    task, sealed = build_task(config, role=role)
    return task, sealed.reveal()["test"]
