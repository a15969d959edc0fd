"""selection.csv and criteria.csv: how well each criterion would have chosen without any test label."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from captune.decisions import statistics
from captune.records import ZERO_SHOT, Phase, Role, State, StudyRecord, Trial
from captune.results.best import reference_metric

_COLUMNS = (
    "study", "dataset", "paradigm", "method", "criterion", "selected_by_it", "num_trials", "spearman", "spearman_low",
    "spearman_high", "pick", "num_tied", "pick_metric", "oracle", "oracle_metric", "random_metric", "pick_regret",
    "zero_shot_metric", "gain_over_zero_shot", "gain_over_random",
)  # fmt: skip
_AVERAGED = (
    "spearman", "pick_metric", "oracle_metric", "random_metric", "pick_regret", "zero_shot_metric",
    "gain_over_zero_shot", "gain_over_random",
)  # fmt: skip


def selection_table(studies: Iterable[StudyRecord]) -> pd.DataFrame:
    """One row per study and criterion, over its complete search and confirmation trials.

    Empty until the test labels are read. `pick_regret` is the best trial's test metric minus the picked trial's.
    """
    return pd.DataFrame([row for study in studies for row in _rows(study)], columns=list(_COLUMNS))


def criteria_table(studies: Iterable[StudyRecord]) -> pd.DataFrame:
    """Means of `selection_table` over the studies that have every listed criterion; the best pick comes first.

    Criteria are compared over the same studies only. A criterion that fewer than half of the studies have is not
    listed, so that it does not shrink that set for the others. Empty for fewer than two such studies.
    """
    studies = list(studies)
    nothing = pd.DataFrame(columns=["criterion", "num_studies", *_AVERAGED])
    if len(studies) < 2:
        return nothing
    table = selection_table(studies)
    num_studies = table["study"].nunique()
    having = table.groupby("criterion", sort=False)["study"].nunique()
    listed = [criterion for criterion, count in having.items() if 2 * count >= num_studies]
    table = table[table["criterion"].isin(listed)]
    criteria_of = table.groupby("study", sort=False)["criterion"].nunique()
    common = list(criteria_of[criteria_of == len(listed)].index)
    if len(common) < 2:
        return nothing
    groups = table[table["study"].isin(common)].groupby("criterion", sort=False)
    rows = [
        {"criterion": criterion, "num_studies": len(common)}
        | {name: group[name].astype(float).mean() for name in _AVERAGED}
        for criterion, group in groups
    ]
    averages = pd.DataFrame(rows, columns=["criterion", "num_studies", *_AVERAGED])
    return averages.sort_values("pick_metric", ascending=False, kind="stable", ignore_index=True)


def _rows(study: StudyRecord) -> list[dict[str, Any]]:
    if not study.sealed_opened:
        return []
    trials = [
        t
        for t in study.trials
        if t.phase in (Phase.SEARCH, Phase.CONFIRM) and t.role == Role.SCORE and t.state == State.COMPLETE
    ]
    trials = [t for t in trials if t.metric is not None]
    criteria = dict.fromkeys(name for trial in trials for name in sorted(trial.scores))
    own = study.select_by if study.select_by in criteria else None
    names: list[str] = [*criteria] if own else ["selection score", *criteria]
    return [row for name in names if (row := _row(study, name, trials)) is not None]


def _value(study: StudyRecord, trial: Trial, criterion: str) -> float | None:
    if criterion == "selection score" or criterion == study.select_by:
        return trial.score
    return trial.scores.get(criterion)


def _row(study: StudyRecord, criterion: str, trials: list[Trial]) -> dict[str, Any] | None:
    known = [(t.key, value, t.metric) for t in trials if (value := _value(study, t, criterion)) is not None]
    pairs = [(key, value, metric) for key, value, metric in known if metric is not None]
    if not pairs:
        return None
    values, metrics = [value for _, value, _ in pairs], [metric for _, _, metric in pairs]
    interval = statistics.spearman_interval(values, metrics, np.random.default_rng(0))
    top = [index for index, value in enumerate(values) if value == max(values)]
    # A criterion that ties several trials would pick any of them: its expected metric is their mean.
    pick, pick_metric = pairs[top[0]][0], float(np.mean([metrics[index] for index in top]))
    oracle = int(np.argmax(metrics))
    zero = reference_metric(study, ZERO_SHOT)
    random_metric = float(np.mean(metrics))
    return {
        "study": study.name,
        "dataset": study.dataset,
        "paradigm": study.paradigm,
        "method": study.method,
        "criterion": criterion,
        "selected_by_it": criterion in ("selection score", study.select_by),
        "num_trials": len(pairs),
        "spearman": statistics.spearman(values, metrics),
        "spearman_low": interval.low if interval else None,
        "spearman_high": interval.high if interval else None,
        "pick": pick if len(top) == 1 else None,
        "num_tied": len(top),
        "pick_metric": pick_metric,
        "oracle": pairs[oracle][0],
        "oracle_metric": metrics[oracle],
        "random_metric": random_metric,
        "pick_regret": metrics[oracle] - pick_metric,
        "zero_shot_metric": zero,
        "gain_over_zero_shot": None if zero is None else pick_metric - zero,
        "gain_over_random": pick_metric - random_metric,
    }
