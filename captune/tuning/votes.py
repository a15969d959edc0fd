"""EnsV: a candidate's score is its agreement with the majority vote of all candidates (NeurIPS 2024 D&B).

During the search a score is measured against the votes so far. When the study is closed, every candidate is scored
again, by the votes of all.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors.numpy

from captune.records.layout import PREDICTIONS

# If no pool image is held out (trzsl), the vote is on the validation images, whose labels are not used.
_JUDGED = ("holdout_probs", "validation_probs")


class Votes:
    """Predictions of every candidate on the held-out pool."""

    def __init__(self) -> None:
        self._counts_NK: np.ndarray | None = None
        self._predicted_N: dict[str, np.ndarray] = {}

    def add(self, key: str, directory: Path) -> float | None:
        """Enter a candidate's stored predictions; returns its agreement with the vote, its own vote included.

        None if it has no predictions on held-out images.
        """
        path = directory / PREDICTIONS
        if key not in self._predicted_N:
            if not path.exists():
                return None
            stored = safetensors.numpy.load_file(path)
            probs_NK = next((stored[name] for name in _JUDGED if name in stored and len(stored[name])), None)
            if probs_NK is None:
                return None
            predicted_N = probs_NK.argmax(-1)
            if self._counts_NK is None:
                self._counts_NK = np.zeros(probs_NK.shape, dtype=np.int64)
            self._counts_NK[np.arange(len(predicted_N)), predicted_N] += 1
            self._predicted_N[key] = predicted_N
        return self.agreement(key)

    def agreement(self, key: str) -> float | None:
        """Share of held-out images on which a candidate predicts what most do (ties go to the lowest class)."""
        if self._counts_NK is None or key not in self._predicted_N:
            return None
        return float(np.mean(self._counts_NK.argmax(-1) == self._predicted_N[key]))

    def agreements(self) -> dict[str, float]:
        """The agreement of every candidate."""
        return {key: share for key in self._predicted_N if (share := self.agreement(key)) is not None}
