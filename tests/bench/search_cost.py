"""What a search costs until it is nearly as good as the best that is known, one way of searching against another.

`python -m tests.bench.search_cost --full DIR … --screened DIR … [--points 0.5] [--csv FILE]` compares studies of
the same seeds. A run's training is a function of its configuration and the study's seed, so all studies of a seed
search the same function: the best known score is the highest of any of them, and a study has come near it with its
first search trial, trained to the end, that scores within so many points. Screening trials cost, and never count as
having come near: they tune something else.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from captune.errors import RecordError
from captune.records import JOURNAL, Phase, StudyRecord, read_journal

FULL, SCREENED = "full", "screened"


@dataclass(frozen=True)
class Trained:
    """A screening or search trial that has ended.

    Attributes:
        tuning: prompts or features.
        epochs: it was trained for.
        seconds: it took, by its journal.
        score: selection score of a search trial that was trained to its end, else None.
    """

    tuning: str
    epochs: int
    seconds: float
    score: float | None


@dataclass(frozen=True)
class SearchCost:
    """What one study paid until it came near the best known score of its seed.

    Attributes:
        way: "full" or "screened".
        seed: the study's.
        best_known, best: highest selection score of any study of the seed, and of this one.
        near: whether it came near; otherwise what it paid is all it had, a lower bound.
        seconds: paid until then, every epoch at the mean price of its kind over all studies compared.
        search_trials, screening_trials: begun until then.
        expected_seconds: mean over all orders of its trials ("full" alone: random trials have no order of their own).
    """

    way: str
    seed: int
    best_known: float
    best: float
    near: bool
    seconds: float
    search_trials: int
    screening_trials: int
    expected_seconds: float | None


def compare(full: Sequence[Path], screened: Sequence[Path], *, points: float = 0.5) -> list[SearchCost]:
    """Two ways of searching, study by study, for the seeds that both have.

    Args:
        full: studies by random search, every trial trained to its end.
        screened: studies with early stopping and a screen.
        points: how near, in percentage points of the selection score.

    Raises:
        RecordError: no seed has studies of both ways, or none of its trials a score.
    """
    studies = {FULL: _by_seed(full), SCREENED: _by_seed(screened)}
    seeds = sorted(studies[FULL].keys() & studies[SCREENED].keys())
    if not seeds:
        raise RecordError(
            "both ways must have studies of one seed",
            got=f"seeds {sorted(studies[FULL])} and {sorted(studies[SCREENED])}",
            next_step="Run both with the same --seed.",
        )
    prices = _seconds_an_epoch([run for way in studies.values() for seed in seeds for run in way[seed]])
    found = []
    for way, by_seed in studies.items():
        for seed in seeds:
            best_known = max(_best(studies[FULL][seed]), _best(studies[SCREENED][seed]))
            found.append(_cost(way, seed, by_seed[seed], best_known, points / 100, prices))
    return found


def ended_trials(directory: Path) -> tuple[int, list[Trained]]:
    """A study's seed and its screening and search trials in the order in which they ended.

    Raises:
        RecordError: no journal, or one without a study.
    """
    record = StudyRecord(directory, read_journal(directory / JOURNAL))
    if not record.num_openings:
        raise RecordError("a study's journal must say which study it is", got="no study_opened", where=directory)
    ended = [trial for trial in record.trials if trial.phase in (Phase.SCREEN, Phase.SEARCH) and trial.ended]
    return int(record.settings["seed"]), [
        Trained(
            tuning=str(trial.config.get("tuning")),
            epochs=trial.num_epochs,
            seconds=trial.seconds or 0.0,
            score=trial.score_at_end if trial.phase is Phase.SEARCH and trial.scored else None,
        )
        for trial in sorted(ended, key=lambda trial: trial.ended_at)
    ]


def _by_seed(directories: Sequence[Path]) -> dict[int, list[Trained]]:
    return dict(ended_trials(directory) for directory in directories)


def _best(trials: Sequence[Trained]) -> float:
    scores = [trial.score for trial in trials if trial.score is not None]
    if not scores:
        raise RecordError("a study must have a search trial that was trained to its end", got="none")
    return max(scores)


def _seconds_an_epoch(trials: Sequence[Trained]) -> dict[str, float]:
    """By what is tuned, opening and final predictions included."""
    prices = {}
    for tuning in {trial.tuning for trial in trials}:
        alike = [trial for trial in trials if trial.tuning == tuning]
        prices[tuning] = sum(trial.seconds for trial in alike) / max(1, sum(trial.epochs for trial in alike))
    return prices


def _cost(
    way: str, seed: int, trials: Sequence[Trained], best_known: float, within: float, prices: dict[str, float]
) -> SearchCost:
    def is_near(trial: Trained) -> bool:
        return trial.score is not None and trial.score >= best_known - within

    near = any(is_near(trial) for trial in trials)
    until = next((at for at, trial in enumerate(trials) if is_near(trial)), len(trials) - 1) + 1
    seconds = [trial.epochs * prices[trial.tuning] for trial in trials]
    expected = None
    if way == FULL:
        # The first of h hits among n in random order is met, on average, with draw (n + 1) / (h + 1).
        hits = sum(is_near(trial) for trial in trials)
        expected = min((len(trials) + 1) / (hits + 1), len(trials)) * mean(seconds)
    screening = sum(trial.tuning == "features" for trial in trials[:until]) if way == SCREENED else 0
    return SearchCost(
        way=way,
        seed=seed,
        best_known=best_known,
        best=_best(trials),
        near=near,
        seconds=sum(seconds[:until]),
        search_trials=until - screening,
        screening_trials=screening,
        expected_seconds=expected,
    )


def summary(costs: Sequence[SearchCost]) -> dict[str, Any]:
    """Means over the seeds: seconds of both ways and their ratio; against random search in any order as well."""
    full = [cost for cost in costs if cost.way == FULL]
    screened = [cost for cost in costs if cost.way == SCREENED]
    paid = mean(cost.seconds for cost in screened)
    expected = mean(cost.expected_seconds or 0.0 for cost in full)
    return {
        "seeds": len(full),
        "full_seconds": mean(cost.seconds for cost in full),
        "full_expected_seconds": expected,
        "screened_seconds": paid,
        "ratio": paid / mean(cost.seconds for cost in full),
        "ratio_expected": paid / expected,
        "full_near": sum(cost.near for cost in full),
        "screened_near": sum(cost.near for cost in screened),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare studies on disk, print one line each and the means."""
    parser = argparse.ArgumentParser(description="Compute until a search is near the best known configuration.")
    parser.add_argument("--full", type=Path, nargs="+", required=True, help="studies by random search at full budget")
    parser.add_argument("--screened", type=Path, nargs="+", required=True, help="studies with --screen features")
    parser.add_argument("--points", type=float, default=0.5, help="how near, in points of the selection score")
    parser.add_argument("--csv", type=Path, help="also write one row a study")
    given = parser.parse_args(arguments)
    costs = compare(given.full, given.screened, points=given.points)
    for cost in costs:
        print(
            f"{cost.way:8} seed {cost.seed}: best {cost.best:.4f} of {cost.best_known:.4f}; "
            f"{'near' if cost.near else 'NOT near'} after {cost.seconds:.0f} s "
            f"({cost.screening_trials} screening, {cost.search_trials} search trials)"
        )
    told = summary(costs)
    print(
        f"mean of {told['seeds']}: {told['screened_seconds']:.0f} s screened, {told['full_seconds']:.0f} s full "
        f"({told['full_expected_seconds']:.0f} s over all orders): {told['ratio']:.2f} ({told['ratio_expected']:.2f})"
    )
    if given.csv is not None:
        with given.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(asdict(costs[0])))
            writer.writeheader()
            writer.writerows(asdict(cost) for cost in costs)


if __name__ == "__main__":
    main()
