"""After the search: which configurations are confirmed over fresh seeds, and which drop out of the race."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# With fewer finished trials, neighbours lie too far apart to say anything of a place.
_PLATEAU_TRIALS = 20
RACE_AFTER = 3
_RACE_LEVEL = 0.95


@dataclass(frozen=True)
class Scored:
    """A finished search trial: its number, selection score and place in the unit cube."""

    number: int
    score: float
    place: tuple[float, ...]


def configurations_to_confirm(finished: Sequence[Scored], top: int) -> dict[int, str]:
    """The configurations to confirm, by search number, and why: the best `top`, the first, the plateau's.

    Equal places count once (the first of them); ties go to the lower number. Number 0, the first, is the method's
    default configuration or, under `--preset paper`, the published one; journals call it "paper" in both cases.
    """
    if top == 0:
        return {}
    ranked = sorted(finished, key=lambda trial: (-trial.score, trial.number))
    chosen: dict[int, str] = {}
    places: set[tuple[float, ...]] = set()
    for trial in ranked:
        if len(chosen) < top and trial.place not in places:
            chosen[trial.number] = "paper" if trial.number == 0 else "top"
            places.add(trial.place)
    if any(trial.number == 0 for trial in finished):
        chosen.setdefault(0, "paper")
    plateau = plateau_pick(finished)
    if plateau is not None:
        chosen.setdefault(plateau, "plateau")
    return chosen


def num_confirmed(num_trials: int, top: int, num_methods: int = 0) -> int:
    """How many configurations of a search are confirmed at most: `configurations_to_confirm` before it has ended.

    Args:
        num_trials: of the whole search.
        top: how many of the best are asked for.
        num_methods: in a study over several methods, how many: the best of each is confirmed.
    """
    if not top:
        return 0
    most = num_methods or top + 1 + (num_trials >= _PLATEAU_TRIALS)
    return min(most, num_trials)


def best_of_each(finished: Sequence[Scored], methods: Mapping[int, str]) -> dict[int, str]:
    """The best configuration of each method, by search number, and why: a study over methods confirms all of these.

    An ensemble gains from methods that err on different images, so the second configuration of the best method is worth
    less than the first of another method.
    """
    chosen: dict[str, int] = {}
    for trial in sorted(finished, key=lambda trial: (-trial.score, trial.number)):
        chosen.setdefault(methods[trial.number], trial.number)
    return dict.fromkeys(chosen.values(), "top")


def plateau_pick(finished: Sequence[Scored]) -> int | None:
    """The trial whose neighbourhood is best: the highest lower quartile of the scores of its nearest neighbours.

    A score that only holds at one point of the space is luck; one that holds around it is a plateau. Neighbours are the
    nearest fifth of the trials (at least 4, itself included) in the unit cube. None with fewer than 20 trials.
    """
    if len(finished) < _PLATEAU_TRIALS:
        return None
    size = max(4, len(finished) // 5)

    def lower_quartile(trial: Scored) -> float:
        near = sorted(finished, key=lambda other: (math.dist(trial.place, other.place), other.number))[:size]
        return sorted(other.score for other in near)[size // 4]

    return max(finished, key=lambda trial: (lower_quartile(trial), trial.score, -trial.number)).number


def losers(scores: Mapping[int, Mapping[int, float | None]], *, seeds: Sequence[int], keep: int = 0) -> set[int]:
    """Configurations that clearly lose to the leader on the same seeds.

    A configuration loses when the upper end of the one-sided 95 % interval of its mean paired difference to the leader
    is below zero (Student's t), or when one of its trials failed.

    Args:
        scores: selection score by configuration and seed (None: failed).
        seeds: the seeds that were used for all.
        keep: the configuration that never drops out (the first).
    """
    whole: dict[int, list[float]] = {}
    for config, by_seed in scores.items():
        known = [value for value in (by_seed.get(seed) for seed in seeds) if value is not None]
        if len(known) == len(seeds):
            whole[config] = known
    broken = {config for config in scores if config not in whole}
    if not whole or len(seeds) < 2:
        return broken - {keep}
    leader = max(whole, key=lambda config: (sum(whole[config]), -config))
    # Imported here, and not from scipy.stats, whose import takes seconds: who only reads a study needs neither.
    from scipy.special import stdtrit

    quantile = float(stdtrit(len(seeds) - 1, _RACE_LEVEL))
    lost = set(broken)
    for config, values in whole.items():
        differences = [a - b for a, b in zip(values, whole[leader], strict=True)]
        mean = sum(differences) / len(differences)
        variance = sum((d - mean) ** 2 for d in differences) / (len(differences) - 1)
        if mean + quantile * math.sqrt(variance / len(differences)) < 0:
            lost.add(config)
    return lost - {keep}
