"""A search has settled when the expected gain of its remaining trials is below the noise of its scores.

Nothing here sees a sealed label: scores are selection scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# With fewer trials neither the noise nor the tail of the scores can be estimated.
LEAST_TRIALS = 16
# Both numbers are estimates: one that is small by chance is seldom small after three trials in a row.
IN_A_ROW = 3
_POINTS = 200


@dataclass(frozen=True)
class Outlook:
    """What a search can still be expected to bring.

    Attributes:
        gain: expected rise of the best score by the trials that are left.
        noise: standard deviation of a score between trials that are as good as equal.
    """

    gain: float
    noise: float

    def sentence(self, num_left: int) -> str:
        """Why the search ends, in words."""
        return (
            f"it has settled: {num_left} more trials are expected to gain {self.gain:.4f}, where scores of like "
            f"configurations differ by {self.noise:.4f}"
        )


def outlook(scores: Sequence[float], places: Sequence[Sequence[float]], num_left: int) -> Outlook | None:
    """What `num_left` more trials can be expected to bring; None while there are too few to tell.

    Args:
        scores: of the trials that have ended, in the order in which they were planned; higher is better.
        places: where each lies in the unit cube of the space.
        num_left: trials that are still to be planned.
    """
    if len(scores) < LEAST_TRIALS:
        return None
    score_N, place_ND = np.asarray(scores, dtype=float), np.asarray(places, dtype=float)
    noise = noise_of_scores(score_N, place_ND)
    # Samplers learn: what the later half brought says more of what is to come than the first guesses.
    recent = score_N[len(score_N) // 2 :]
    return Outlook(expected_gain(recent, float(score_N.max()), num_left), noise)


def settled_outlook(scores: Sequence[float], places: Sequence[Sequence[float]], num_left: int) -> Outlook | None:
    """The outlook of a search that has settled; None of one that has not.

    It has settled when the expected gain of the trials left was below the noise after each of the last three trials.
    """
    found = None
    for back in reversed(range(IN_A_ROW)):
        count = len(scores) - back
        found = outlook(scores[:count], places[:count], num_left + back)
        if found is None or found.gain >= found.noise:
            return None
    return found


def noise_of_scores(score_N: NDArray[np.float64], place_ND: NDArray[np.float64]) -> float:
    """Standard deviation of the scores of trials at nearly the same place.

    Half the mean squared difference to the nearest neighbour is the variance where the scores are flat (Rice, Bandwidth
    choice for nonparametric regression, 1984, for neighbours on a line). Of the better half of the trials, since where
    scores are poor they also vary more, and by the median, since a neighbour may lie across a cliff.
    """
    better = score_N >= np.median(score_N)
    score_M, place_MD = score_N[better], place_ND[better]
    if len(score_M) < 2:
        return 0.0
    distance_MM = np.linalg.norm(place_MD[:, None] - place_MD[None], axis=-1)
    np.fill_diagonal(distance_MM, np.inf)
    squares_M = (score_M - score_M[distance_MM.argmin(axis=1)]) ** 2 / 2
    # The median of a chi-squared variable of one degree of freedom is 0.455 of its mean.
    return math.sqrt(float(np.median(squares_M)) / 0.455)


def expected_gain(score_N: NDArray[np.float64], best: float, num_more: int) -> float:
    """Expected rise of the best score from more trials whose scores are distributed like these.

    ∫ over x > best of 1 - F(x)^m, F the distribution of the scores smoothed by a Gaussian (Silverman's width): the
    expectation of max(0, max of m draws - best).
    """
    if num_more < 1:
        return 0.0
    spread = float(score_N.std())
    width = max(1.06 * spread * len(score_N) ** -0.2, 1e-12)
    end = max(best, float(score_N.max())) + 5 * width
    grid_P = np.linspace(best, end, _POINTS)
    z_PN = (grid_P[:, None] - score_N[None]) / (width * math.sqrt(2))
    below_P = 0.5 * (1 + np.vectorize(math.erf)(z_PN)).mean(axis=1)
    return float(np.trapezoid(1 - below_P**num_more, grid_P))
