"""The only module that compares predictions with sealed labels; `captune.studies.seal` says when it may."""

from __future__ import annotations

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
    if "test_images" in stored:  # unreadable ones were left out
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
    """What can be said of predictions where no image has a label."""
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


def test_predictions(directory: Path) -> IntArray:
    """Predicted class of every test image (N,) of a finished trial."""
    labels_N: IntArray = safetensors.torch.load_file(directory / PREDICTIONS)["test_probs"].argmax(-1).numpy()
    return labels_N


@lru_cache(maxsize=8)
def _test_truth(config: TaskConfig, role: Role) -> tuple[Task, IntArray]:
    task, sealed = build_task(config, role=role)
    return task, sealed.reveal()["test"]
