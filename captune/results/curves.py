"""curves.csv: what a search of n trials can be expected to find."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from captune.decisions.statistics import subset_weights
from captune.records import ZERO_SHOT, Phase, State, StudyRecord
from captune.results.best import reference_metric

NUM_RESAMPLES = 400
EVERY_COUNT_UP_TO = 100
"""Each number of trials up to this one gets a row; beyond it at most COUNTS_BEYOND rows, evenly spaced in log."""
COUNTS_BEYOND = 60
_COLUMNS = (
    "study", "num_trials", "observed_best_score",
    "expected_best_score", "expected_best_score_low", "expected_best_score_high",
    "expected_metric_of_pick", "expected_metric_of_pick_low", "expected_metric_of_pick_high",
    "zero_shot_score", "zero_shot_metric",
)  # fmt: skip
Floats = NDArray[np.float64]


def curves_table(studies: Iterable[StudyRecord]) -> pd.DataFrame:
    """Expected best selection score after n trials, and the expected test metric of the trial with that score.

    The expectation is over which n of the study's N trials were drawn (Dodge et al., EMNLP 2019, without
    replacement). It is exact for a random search. For a guided search it tells what these trials are worth in random
    order; `observed_best_score` keeps the order of their numbers. Bands are 95 % bootstrap intervals over trials. A
    stopped trial counts with its score when it was stopped. Every n up to 100 has a row; between 100 and N there are at
    most 60, so that the time this takes grows with N and not with N².
    """
    return pd.DataFrame([row for study in studies for row in _rows(study)], columns=list(_COLUMNS))


def trial_counts(total: int) -> list[int]:
    """The numbers of trials that get a row of the curve, in ascending order; the last one is `total`."""
    counts = list(range(1, min(total, EVERY_COUNT_UP_TO) + 1))
    if total > EVERY_COUNT_UP_TO:
        beyond = np.geomspace(EVERY_COUNT_UP_TO, total, COUNTS_BEYOND + 1)[1:]
        counts += sorted({min(total, round(float(count))) for count in beyond} - set(counts))
    return counts


def _rows(study: StudyRecord) -> list[dict[str, Any]]:
    trials = [t for t in study.of_phase(Phase.SEARCH) if t.score is not None and (t.scored or t.state == State.PRUNED)]
    if len(trials) < 2:
        return []
    scores_N = np.array([trial.score for trial in trials], dtype=float)
    metrics = [trial.metric if study.sealed_opened else None for trial in trials]
    known = all(metric is not None for metric in metrics)
    metrics_N = np.array(metrics, dtype=float) if known else None
    zero_shot, zero_shot_metric = study.find(ZERO_SHOT), reference_metric(study, ZERO_SHOT)
    counts = trial_counts(len(trials))
    weights_CN = subset_weights(len(trials), counts)
    best_C, pick_C = _expected(weights_CN, scores_N, metrics_N)
    best_low_C, best_high_C, pick_low_C, pick_high_C = _bands(weights_CN, scores_N, metrics_N)
    observed_N = np.maximum.accumulate(scores_N)
    return [
        {
            "study": study.name,
            "num_trials": count,
            "observed_best_score": observed_N[count - 1],
            "expected_best_score": best_C[index],
            "expected_best_score_low": best_low_C[index],
            "expected_best_score_high": best_high_C[index],
            "expected_metric_of_pick": None if pick_C is None else pick_C[index],
            "expected_metric_of_pick_low": None if pick_low_C is None else pick_low_C[index],
            "expected_metric_of_pick_high": None if pick_high_C is None else pick_high_C[index],
            "zero_shot_score": zero_shot.score if zero_shot else None,
            "zero_shot_metric": zero_shot_metric,
        }
        for index, count in enumerate(counts)
    ]


def expected_best(
    scores_N: Floats, metrics_N: Floats | None, counts: Sequence[int] | None = None
) -> tuple[Floats, Floats | None]:
    """Expected best score of n trials, and the expected metric of the trial with that score.

    Args:
        scores_N: selection scores.
        metrics_N: test metrics of the same trials; None if they are not known.
        counts: the numbers of trials n; default: 1 … N.
    """
    return _expected(subset_weights(len(scores_N), counts), scores_N, metrics_N)


def _expected(weights_CN: Floats, scores_N: Floats, metrics_N: Floats | None) -> tuple[Floats, Floats | None]:
    order_N = np.argsort(scores_N, kind="stable")
    return weights_CN @ scores_N[order_N], None if metrics_N is None else weights_CN @ metrics_N[order_N]


def _bands(
    weights_CN: Floats, scores_N: Floats, metrics_N: Floats | None
) -> tuple[Floats, Floats, Floats | None, Floats | None]:
    generator = np.random.default_rng(0)
    best_RC, pick_RC = [], []
    for _ in range(NUM_RESAMPLES):
        drawn_N = generator.integers(len(scores_N), size=len(scores_N))
        sorted_N = drawn_N[np.argsort(scores_N[drawn_N], kind="stable")]
        best_RC.append(weights_CN @ scores_N[sorted_N])
        if metrics_N is not None:
            pick_RC.append(weights_CN @ metrics_N[sorted_N])
    best_low_C, best_high_C = np.quantile(best_RC, [0.025, 0.975], axis=0)
    if metrics_N is None:
        return best_low_C, best_high_C, None, None
    pick_low_C, pick_high_C = np.quantile(pick_RC, [0.025, 0.975], axis=0)
    return best_low_C, best_high_C, pick_low_C, pick_high_C
