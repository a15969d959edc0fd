"""Early stopping: asynchronous successive halving on a trial's share of its own budget.

Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020, Algorithm 2, in its stopping form. The
rule is a pure function of the scores that came to a rung, in the order of the journal, so replaying the journal
rebuilds it; Ray's own scheduler forgets its rungs on restore.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Two thirds of the warm-up's noise lie behind a quarter of the budget; before that, scores say little.
RUNGS = (0.25, 0.5)
REDUCTION = 2
# With fewer trials a rung's quantile is mostly chance.
MIN_TRIALS = 4


def at_rung(epoch: int, num_epochs: int) -> bool:
    """Whether a trial is compared after this epoch (from 1): it has just come to a rung."""
    return any(epoch >= rung * num_epochs - 1e-9 > epoch - 1 for rung in RUNGS)


class Halving:
    """The rungs of one cell.

    Args:
        rungs: shares of a trial's budget at which it is compared, rising.
        reduction: one of this many trials goes on.
    """

    def __init__(self, rungs: Sequence[float] = RUNGS, reduction: int = REDUCTION) -> None:
        self.rungs = tuple(rungs)
        self.reduction = reduction
        self._scores: list[list[float]] = [[] for _ in self.rungs]
        self._passed: dict[str, int] = {}

    def should_stop(self, key: str, fidelity: float, score: float | None) -> bool:
        """Whether a trial should stop: its score is below the (1 − 1/reduction) quantile of those at its rung.

        A rung judges once four trials have come to it; a trial without a score is never stopped.
        """
        rung = self._reached(key, fidelity)
        if rung is None or score is None:
            return False
        others = self._scores[rung]
        return len(others) >= MIN_TRIALS and score < float(np.quantile(others, 1 - 1 / self.reduction))

    def enter(self, key: str, fidelity: float, score: float | None) -> None:
        """Enter a trial's score in the highest rung it has come to and not been entered in (higher is better)."""
        rung = self._reached(key, fidelity)
        if rung is not None and score is not None:
            self._passed[key] = rung
            self._scores[rung].append(score)

    def _reached(self, key: str, fidelity: float) -> int | None:
        passed = self._passed.get(key, -1)
        reached = [i for i, rung in enumerate(self.rungs) if i > passed and fidelity >= rung - 1e-9]
        return max(reached, default=None)
