"""selection.csv: how well each criterion, chosen blind, would have chosen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from captune.decisions import statistics
from captune.records import BALANCED, ZERO_SHOT, Phase, Role, State, StudyRecord, Trial
from captune.results.best import reference_metric

MEAN_OF_STUDIES = "mean of studies"
_COLUMNS = (
    "study", "dataset", "paradigm", "method", "criterion", "selected_by_it", "num_trials", "spearman", "spearman_low",
    "spearman_high", "pick", "pick_metric", "oracle", "oracle_metric", "random_metric", "regret", "oracle_gap",
    "zero_shot_metric", "gain_over_zero_shot", "gain_over_random",
)  # fmt: skip
_AVERAGED = (
    "spearman", "pick_metric", "oracle_metric", "random_metric", "regret", "oracle_gap", "zero_shot_metric",
    "gain_over_zero_shot", "gain_over_random",
)  # fmt: skip


def selection_table(studies: Iterable[StudyRecord]) -> pd.DataFrame:
    """One row per study and criterion, over its complete search and confirmation trials; with several studies also
    the means.

    Nothing before the seal was opened. `regret` is the best trial's sealed metric minus the picked trial's;
    `oracle_gap` the same with zero-shot and balanced zero-shot among what the oracle may take.
    """
    studies = list(studies)
    rows = [row for study in studies for row in _rows(study)]
    table = pd.DataFrame(rows, columns=list(_COLUMNS))
    if table["study"].nunique() < 2:
        return table
    means: list[dict[str, Any]] = []
    for criterion, group in table.groupby("criterion", sort=False):
        averages = {name: float(group[name].astype(float).mean()) for name in _AVERAGED}
        means.append(
            {"study": MEAN_OF_STUDIES, "criterion": criterion, "num_trials": group["num_trials"].sum(), **averages}
        )
    means.sort(key=lambda row: row["pick_metric"], reverse=True)
    return pd.DataFrame([*rows, *means], columns=list(_COLUMNS))


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
    # A criterion that cannot tell trials apart picks any of them: its expected metric is their mean.
    pick, pick_metric = pairs[top[0]][0], float(np.mean([metrics[index] for index in top]))
    oracle = int(np.argmax(metrics))
    zero = reference_metric(study, ZERO_SHOT)
    frozen = [level for name in (ZERO_SHOT, BALANCED) if (level := reference_metric(study, name)) is not None]
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
        "pick": pick if len(top) == 1 else f"any of {len(top)}",
        "pick_metric": pick_metric,
        "oracle": pairs[oracle][0],
        "oracle_metric": metrics[oracle],
        "random_metric": random_metric,
        "regret": metrics[oracle] - pick_metric,
        "oracle_gap": max([*frozen, metrics[oracle]]) - pick_metric,
        "zero_shot_metric": zero,
        "gain_over_zero_shot": None if zero is None else pick_metric - zero,
        "gain_over_random": pick_metric - random_metric,
    }
