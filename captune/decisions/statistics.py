"""The statistics of every report, each small, sourced, and honest about too few numbers.

Inputs are sequences of finite floats, one per seed. An interval that cannot be given (one seed, no seed) is None; a
constant sample has an interval of no width. Randomness comes from the generator that is handed in.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Its parts are imported when they are first used: `scipy.stats` takes seconds, and `captune status` needs none of it.
import scipy
from numpy.typing import NDArray

LEVEL = 0.95
MINIMUM_EFFECT = 0.01
"""Smallest difference worth a word (1 point of accuracy): half width of the region of practical equivalence."""
ENOUGH = 0.95
"""Posterior probability from which a verdict is given."""
MINIMUM_PAIRS = 3
"""Fewer paired seeds than this are 'undecided' whatever they say."""
NUM_RESAMPLES = 2000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A confidence interval, bounds included."""

    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the distance of the bounds."""
        return (self.high - self.low) / 2


def mean(values: Sequence[float]) -> float | None:
    """Arithmetic mean, or None of nothing."""
    return float(np.mean(values)) if len(values) else None


def standard_deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation (n − 1), or None of fewer than two; exactly 0 for equal values."""
    if len(values) < 2:
        return None
    return 0.0 if max(values) == min(values) else float(np.std(values, ddof=1))


def interquartile_mean(values: Sequence[float]) -> float | None:
    """Mean of the middle half (Agarwal et al., NeurIPS 2021, "Deep RL at the Edge of the Statistical Precipice").

    As there (SciPy's `trim_mean` at 25 %), ⌊n/4⌋ values are cut from each end: below four values it is the mean.
    """
    return float(scipy.stats.trim_mean(np.asarray(values, dtype=float), 0.25)) if len(values) else None


def t_interval(values: Sequence[float], level: float = LEVEL, *, fractions: bool = False) -> Interval | None:
    """Student's interval of the mean ("The probable error of a mean", 1908): right for few, roughly normal values.

    Args:
        fractions: the values are fractions: bounds are cut to [0, 1] (values beyond show that they are not: no cut).
    """
    spread, centre = standard_deviation(values), mean(values)
    if spread is None or centre is None:
        return None
    half = student_quantile((1 + level) / 2, len(values) - 1) * spread / math.sqrt(len(values))
    if fractions and min(values) >= 0 and max(values) <= 1:
        return Interval(max(0.0, centre - half), min(1.0, centre + half))
    return Interval(centre - half, centre + half)


def proportion_interval(share: float, number: int, level: float = LEVEL) -> Interval:
    """Wilson's interval of a proportion in [0, 1], such as an accuracy, over independent images.

    Args:
        share: successes over number.
        number: at least 1.
        level: of confidence.

    See Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    """
    z2 = normal_quantile(0.5 + level / 2) ** 2
    centre = (share + z2 / (2 * number)) / (1 + z2 / number)
    half = (z2 * (share * (1 - share) / number + z2 / (4 * number**2))) ** 0.5 / (1 + z2 / number)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def student_quantile(level: float, freedom: int) -> float:
    """The one-sided quantile of Student's t."""
    return float(scipy.special.stdtrit(freedom, level))


def normal_quantile(level: float) -> float:
    """The one-sided quantile of the standard normal."""
    return float(scipy.special.ndtri(level))


def pooled_deviation(groups: Sequence[Sequence[float]]) -> tuple[float, int] | None:
    """The standard deviation within groups, pooled, and its degrees of freedom; None where no group has two values.

    √(Σ_g Σ_i (y_gi − ȳ_g)² / Σ_g (n_g − 1)), as in a one-way analysis of variance (Fisher, 1925).
    """
    spreads = [(len(group) - 1, spread) for group in groups if (spread := standard_deviation(group)) is not None]
    freedom = sum(count for count, _ in spreads)
    return (math.sqrt(sum(count * spread**2 for count, spread in spreads) / freedom), freedom) if freedom else None


def stratified_bootstrap(
    strata: Sequence[Sequence[float]],
    generator: np.random.Generator,
    *,
    statistic: str = "mean",
    level: float = LEVEL,
    num_resamples: int = NUM_RESAMPLES,
) -> Interval | None:
    """Percentile interval of a statistic, seeds resampled within each stratum (a cell) alone (Agarwal et al., 2021).

    The mean weighs strata by their values' numbers as they come; `statistic="iqm"` is over all values together. It
    covers too little with few seeds (see the README's figure): below ten values a stratum, `t_interval` is the one to
    read.

    Returns:
        None where no stratum has two values.
    """
    kept = [np.asarray(values, dtype=float) for values in strata if len(values)]
    if not any(len(values) > 1 for values in kept):
        return None
    drawn = np.concatenate(
        [values[generator.integers(len(values), size=(num_resamples, len(values)))] for values in kept], axis=1
    )
    estimates = scipy.stats.trim_mean(drawn, 0.25, axis=1) if statistic == "iqm" else drawn.mean(axis=1)
    tail = (1 - level) / 2
    low, high = np.quantile(estimates, [tail, 1 - tail])
    return Interval(float(low), float(high))


def probability_of_improvement(first: Sequence[float], second: Sequence[float]) -> float | None:
    """P(X > Y) + ½ P(X = Y) over all pairs: the Mann–Whitney statistic (Agarwal et al., 2021, Eq. 3)."""
    if not len(first) or not len(second):
        return None
    differences = np.subtract.outer(np.asarray(first, dtype=float), np.asarray(second, dtype=float))
    return float(np.mean((differences > 0) + 0.5 * (differences == 0)))


def probability_of_improvement_interval(
    first: Sequence[float],
    second: Sequence[float],
    generator: np.random.Generator,
    level: float = LEVEL,
    num_resamples: int = NUM_RESAMPLES,
) -> Interval | None:
    """Bootstrap interval of `probability_of_improvement`, both samples resampled."""
    if len(first) < 2 or len(second) < 2:
        return None
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    a_RN = a[generator.integers(len(a), size=(num_resamples, len(a)))]
    b_RM = b[generator.integers(len(b), size=(num_resamples, len(b)))]
    differences = a_RN[:, :, None] - b_RM[:, None, :]
    estimates = np.mean((differences > 0) + 0.5 * (differences == 0), axis=(1, 2))
    tail = (1 - level) / 2
    low, high = np.quantile(estimates, [tail, 1 - tail])
    return Interval(float(low), float(high))


def wilcoxon_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test (1945) on paired differences; 1 when all are zero, None below two.

    With n pairs it cannot fall below 2 / 2ⁿ: five seeds never reach 0.05, six can.
    """
    if len(differences) < 2:
        return None
    values = np.asarray(differences, dtype=float)
    return 1.0 if not np.any(values) else float(scipy.stats.wilcoxon(values).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment (1979): the i-th smallest of m is multiplied by m − i + 1, made monotone, cut at
    1.
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    running = 0.0
    for rank, (p, index) in enumerate(known):
        running = max(running, min(1.0, (len(known) - rank) * p))
        adjusted[index] = running
    return adjusted


@dataclass(frozen=True)
class RopePosterior:
    """Posterior probabilities that the mean difference is above, inside and below ±effect; they add to 1."""

    better: float
    same: float
    worse: float


def rope_posterior(strata: Sequence[Sequence[float]], effect: float = MINIMUM_EFFECT) -> RopePosterior | None:
    """Bayesian t test with a region of practical equivalence (Benavoli et al., JMLR 18, 2017, Eq. 7 with ρ = 0).

    Under the reference prior the mean difference of one stratum is Student-t with n − 1 degrees of freedom around the
    sample mean with scale s/√n; seeds are independent runs, so the correlation of cross-validation folds is 0. Over
    several strata (cells) it is the average of their means: scale √(Σ s²/n)/C, degrees of freedom by Welch and
    Satterthwaite (1946). The statement is then about these cells, not about cells in general.

    Returns:
        None where a stratum has fewer than two values.
    """
    spreads = [standard_deviation(values) for values in strata]
    if not strata or any(spread is None for spread in spreads):
        return None
    centre = float(np.mean([np.mean(values) for values in strata]))
    variances = [(spread or 0.0) ** 2 / len(values) for spread, values in zip(spreads, strata, strict=True)]
    if sum(variances) == 0:
        return RopePosterior(float(centre > effect), float(abs(centre) <= effect), float(centre < -effect))
    freedom = sum(variances) ** 2 / sum(v**2 / (len(x) - 1) for v, x in zip(variances, strata, strict=True))
    scale = math.sqrt(sum(variances)) / len(strata)
    worse, better = (float(scipy.special.stdtr(freedom, (side * centre - effect) / scale)) for side in (-1, 1))
    return RopePosterior(better, max(0.0, 1 - better - worse), worse)


def verdict(strata: Sequence[Sequence[float]], effect: float = MINIMUM_EFFECT) -> str:
    """'first better', 'second better', 'practically equal', or 'undecided' when seeds are too few or too far apart."""
    posterior = rope_posterior(strata, effect)
    if posterior is None or min(len(differences) for differences in strata) < MINIMUM_PAIRS:
        return "undecided"
    if posterior.better >= ENOUGH:
        return "first better"
    if posterior.worse >= ENOUGH:
        return "second better"
    return "practically equal" if posterior.same >= ENOUGH else "undecided"


def subset_weights(total: int, sizes: Sequence[int] | None = None) -> Floats:
    """One row for each subset size n, over the `total` values in rising order; every row adds to 1.

    An entry is the probability that the i-th smallest value is the largest of n drawn without replacement:
    C(i, n − 1) / C(total, n), i from 0, since that many subsets choose the other n − 1 values below it.

    Args:
        total: number of values.
        sizes: subset sizes, each from 1 to `total`; default: all of them, which takes total² numbers.
    """
    counts = np.arange(1, total + 1) if sizes is None else np.asarray(sizes)
    index_N, size_N1 = np.arange(total), counts[:, None]
    below = np.maximum(index_N - size_N1 + 1, 0)
    gammaln = scipy.special.gammaln
    logarithm = (
        gammaln(index_N + 1) - gammaln(size_N1) - gammaln(below + 1)
        - gammaln(total + 1) + gammaln(size_N1 + 1) + gammaln(total - size_N1 + 1)
    )  # fmt: skip
    return np.where(index_N >= size_N1 - 1, np.exp(logarithm), 0.0)


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation (1904); None below three pairs or when one side is constant."""
    if len(first) < 3 or len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(scipy.stats.spearmanr(first, second).statistic)


def spearman_interval(
    first: Sequence[float],
    second: Sequence[float],
    generator: np.random.Generator,
    level: float = LEVEL,
    num_resamples: int = 1000,
) -> Interval | None:
    """Bootstrap interval of Spearman's correlation, pairs resampled together; None below five pairs."""
    if len(first) < 5 or spearman(first, second) is None:
        return None
    rows_RN = generator.integers(len(first), size=(num_resamples, len(first)))
    a_RN = scipy.stats.rankdata(np.asarray(first, dtype=float)[rows_RN], axis=1)
    b_RN = scipy.stats.rankdata(np.asarray(second, dtype=float)[rows_RN], axis=1)
    a_RN -= a_RN.mean(axis=1, keepdims=True)
    b_RN -= b_RN.mean(axis=1, keepdims=True)
    scale_R = np.sqrt((a_RN**2).sum(axis=1) * (b_RN**2).sum(axis=1))
    estimates_R = (a_RN * b_RN).sum(axis=1)[scale_R > 0] / scale_R[scale_R > 0]
    tail = (1 - level) / 2
    low, high = np.quantile(estimates_R, [tail, 1 - tail])
    return Interval(float(low), float(high))


def pairs_of(names: Sequence[str]) -> list[tuple[str, str]]:
    """Every unordered pair, in the order given."""
    return list(itertools.combinations(names, 2))
