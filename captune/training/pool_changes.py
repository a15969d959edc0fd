"""What a candidate changes in the pool against zero-shot, from stored predictions; no label is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch

from captune.config import TaskConfig
from captune.data.paradigms import IntArray
from captune.records import Role
from captune.records.layout import PREDICTIONS
from captune.training.context import open_context

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PoolChanges:
    """Predictions of zero-shot (before) and of a candidate (after) on the same unlabelled images.

    Attributes:
        images_N: indices of the images in the dataset.
        before_N: classes that zero-shot predicts.
        after_N: classes that the candidate predicts (mean of the probabilities over its seeds).
        probability_N: the candidate's probability of its class.
        num_classes: K.
    """

    images_N: IntArray
    before_N: IntArray
    after_N: IntArray
    probability_N: Floats
    num_classes: int

    def shares(self) -> tuple[Floats, Floats]:
        """Share of the images that are predicted as each class [K], before and after."""
        counts = [np.bincount(labels_N, minlength=self.num_classes) for labels_N in (self.before_N, self.after_N)]
        before_K, after_K = ((count_K / len(self.images_N)).astype(np.float32) for count_K in counts)
        return before_K, after_K

    def most_changed(self, count: int) -> list[int]:
        """The classes whose share changed most, most first; only those that changed."""
        before_K, after_K = self.shares()
        change_K = np.abs(after_K - before_K)
        order = np.argsort(-change_K, kind="stable")[:count]
        return [int(label) for label in order if change_K[label] > 0]

    def moved(self, label: int) -> IntArray:
        """Rows of the images that came to a class or left it, surest first."""
        moved_N = (self.before_N != self.after_N) & ((self.before_N == label) | (self.after_N == label))
        rows = np.flatnonzero(moved_N)
        return rows[np.argsort(-self.probability_N[rows], kind="stable")]


def pool_changes(config: TaskConfig, zero_shot: Path, candidate: Sequence[Path]) -> PoolChanges | None:
    """Predictions of zero-shot and of a candidate on the pool's held-out images.

    Args:
        config: the cell.
        zero_shot: directory of the zero-shot trial.
        candidate: directories of the candidate's score trials (its seeds).

    Returns:
        None where one of them left no predictions of these images.
    """
    task = open_context(config, Role.SCORE).task
    images, num_classes = task.holdout, task.num_classes
    tables = [_holdout_probs(path, (len(images), num_classes)) for path in (zero_shot, *candidate)]
    known = [table for table in tables if table is not None]
    if not len(images) or len(tables) < 2 or len(known) < len(tables):
        return None
    probability_N, after_N = torch.stack(known[1:]).mean(0).max(-1)
    return PoolChanges(images, known[0].argmax(-1).numpy(), after_N.numpy(), probability_N.numpy(), num_classes)


def _holdout_probs(directory: Path, shape: tuple[int, int]) -> torch.Tensor | None:
    path = directory / PREDICTIONS
    probs = safetensors.torch.load_file(path).get("holdout_probs") if path.exists() else None
    return probs.float() if probs is not None and tuple(probs.shape) == shape else None
