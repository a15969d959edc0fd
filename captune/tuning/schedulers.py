"""Early stopping: asynchronous successive halving on a trial's share of its own budget.

Li et al., A System for Massively Parallel Hyperparameter Tuning, MLSys 2020, Algorithm 2, in its stopping form. The
rule is a pure function of the scores that reached a rung, in the order of the journal, so replaying the journal
rebuilds its state. Ray's own scheduler forgets its rungs on restore.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# After a quarter of the budget two thirds of the early epochs' noise is over; before that, scores say little.
RUNGS = (0.25, 0.5)
REDUCTION = 2
# With fewer trials a rung's quantile is mostly chance.
MIN_TRIALS = 4


def at_rung(epoch: int, num_epochs: int) -> bool:
    """Whether a trial reaches a rung with this epoch (counted from 1), at which it is compared."""
    return any(epoch >= rung * num_epochs - 1e-9 > epoch - 1 for rung in RUNGS)


class Halving:
    """The rungs of one cell.

    Args:
        rungs: shares of a trial's budget at which it is compared, in increasing order.
        reduction: one of this many trials goes on.
    """

    def __init__(self, rungs: Sequence[float] = RUNGS, reduction: int = REDUCTION) -> None:
        self.rungs = tuple(rungs)
        self.reduction = reduction
        self._scores: list[list[float]] = [[] for _ in self.rungs]
        self._passed: dict[str, int] = {}

    def should_stop(self, key: str, fidelity: float, score: float | None) -> bool:
        """Whether a trial should stop: its score is below the (1 − 1/reduction) quantile of those at its rung.

        A rung stops no trial before MIN_TRIALS others have reached it. A trial without a score is never stopped.
        """
        rung = self._reached(key, fidelity)
        if rung is None or score is None:
            return False
        others = self._scores[rung]
        return len(others) >= MIN_TRIALS and score < float(np.quantile(others, 1 - 1 / self.reduction))

    def enter(self, key: str, fidelity: float, score: float | None) -> None:
        """Enter a trial's score (higher is better) in the highest rung that it has newly reached, if any."""
        rung = self._reached(key, fidelity)
        if rung is not None and score is not None:
            self._passed[key] = rung
            self._scores[rung].append(score)

    def _reached(self, key: str, fidelity: float) -> int | None:
        passed = self._passed.get(key, -1)
        reached = [i for i, rung in enumerate(self.rungs) if i > passed and fidelity >= rung - 1e-9]
        return max(reached, default=None)
