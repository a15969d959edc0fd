"""robustness.csv: how much each configuration varies over seeds, classes, pools and small changes of its settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from captune.decisions import statistics
from captune.records import ENSEMBLE, Phase, Role, State, StudyRecord, Trial, number_or_none
from captune.results.best import recorded_choice, report_trials
from captune.results.surrogate import Surrogate, fit_surrogate
from captune.results.tables import final_balance

IMBALANCES = (1, 10, 50)
POOL_PERCENTS = (25, 50)
OPEN_SET_PERCENTS = NOISE_PERCENTS = (20,)
PRESENT_PERCENTS = (30,)
SENSITIVITY_STEP = 0.2
"""How far a setting is moved to see what that costs, as a share of its range."""

_COLUMNS = (
    "study", "dataset", "paradigm", "method", "configuration", "candidate_method",
    "config_id", "origin", "advised", "num_seeds",
    "metric_name", "mean", "sd", "iqm", "worst_seed", "low", "high", "t_low", "t_high", "choice_score", "share",
    "score_mean", "score_sd", "score_low", "score_high",
    "worst_class_recall", "worst_class_recall_worst_seed", "pseudolabel_balance", "prediction_balance", "prediction_cv",
    "ece", "agreement_zero_shot",
    *(f"imbalance_{ratio}" for ratio in IMBALANCES), *(f"pool_{percent}" for percent in POOL_PERCENTS),
    *(f"present_{percent}" for percent in PRESENT_PERCENTS),
    *(f"open_set_{percent}" for percent in OPEN_SET_PERCENTS), *(f"shot_noise_{percent}" for percent in NOISE_PERCENTS),
)  # fmt: skip


def robustness_table(studies: Iterable[StudyRecord]) -> pd.DataFrame:
    """One row per configuration: the references and the confirmed configurations.

    Before anything is confirmed, the best three search trials and the first one take the place of the latter. Numbers
    are fractions in [0, 1]. `low`/`high` are the 95 % bootstrap interval of the mean metric over seeds; `t_low` and
    `t_high` are Student's. Metric columns are empty until the test labels are read. Columns `sensitivity_<setting>`
    follow.
    """
    rows = [row for study in studies for row in _study_rows(study)]
    sensitivities = dict.fromkeys(name for row in rows for name in row if name.startswith("sensitivity_"))
    return pd.DataFrame(rows, columns=[*_COLUMNS, *sensitivities])


def _study_rows(study: StudyRecord) -> list[dict[str, Any]]:
    choice = recorded_choice(study)
    # If a criterion chose, this would repeat the selection score, which has its own column.
    chosen_by = {row.name: row.mean_score for row in choice.candidates} if choice.weights else {}
    surrogate = fit_surrogate(study)
    groups: dict[str, list[Trial]] = {}
    for trial in study.of_phase(Phase.REFERENCE):
        groups.setdefault(trial.name, []).append(trial)
    groups |= study.configurations() or _unconfirmed(study)
    rows = [_row(study, name, trials, name == choice.name, surrogate) for name, trials in groups.items()]
    return [
        row | {"choice_score": chosen_by.get(row["configuration"]), "share": choice.weights.get(row["configuration"])}
        for row in rows
    ]


def _unconfirmed(study: StudyRecord) -> dict[str, list[Trial]]:
    finished = [trial for trial in study.of_phase(Phase.SEARCH) if trial.scored]
    finished.sort(key=lambda trial: (-(trial.score or 0.0), trial.number or 0))
    kept = [*finished[:3], *(trial for trial in finished[3:] if trial.starts_search)]
    return {trial.key: [trial] for trial in kept}


def _row(
    study: StudyRecord, name: str, trials: Sequence[Trial], advised: bool, surrogate: Surrogate | None
) -> dict[str, Any]:
    reported = report_trials(study, name)
    values = [trial.metric for trial in reported if trial.metric is not None]
    scored = [trial for trial in trials if trial.role == Role.SCORE and trial.state == State.COMPLETE]
    scores = [trial.score for trial in scored if trial.score is not None]
    # A fixed seed rather than a named generator: the interval then depends on the values alone.
    boot = statistics.stratified_bootstrap([values], np.random.default_rng(0))
    spread = statistics.t_interval(values, fractions=True)
    score_spread = statistics.t_interval(scores, fractions=True)
    recalls = _reported(reported, "worst_class_recall")
    row: dict[str, Any] = {
        "study": study.name,
        "dataset": study.dataset,
        "paradigm": study.paradigm,
        "method": study.method,
        "configuration": name,
        "candidate_method": trials[0].method or study.method,
        "config_id": trials[0].config_id,
        "origin": study.origin_of(trials[0]),
        "advised": advised,
        "num_seeds": len(values) or len(scores),
        "metric_name": study.metric_name,
        "mean": statistics.mean(values),
        "sd": statistics.standard_deviation(values),
        "iqm": statistics.interquartile_mean(values),
        "worst_seed": min(values, default=None),
        "low": boot.low if boot else None,
        "high": boot.high if boot else None,
        "t_low": spread.low if spread else None,
        "t_high": spread.high if spread else None,
        "score_mean": statistics.mean(scores),
        "score_sd": statistics.standard_deviation(scores),
        "score_low": score_spread.low if score_spread else None,
        "score_high": score_spread.high if score_spread else None,
        "worst_class_recall": statistics.mean(recalls),
        "worst_class_recall_worst_seed": min(recalls, default=None),
        "pseudolabel_balance": statistics.mean([b for t in trials if (b := final_balance(t)) is not None]),
        **{
            column: statistics.mean(_reported(reported, column))
            for column in ("prediction_balance", "prediction_cv", "ece", "agreement_zero_shot")
        },
    }
    row |= _stress(study, trials[0], values)
    if surrogate is not None and trials[0].phase != Phase.REFERENCE:
        row |= _sensitivities(surrogate, trials[0])
    return row


def _reported(trials: Sequence[Trial], column: str) -> list[float]:
    return [value for trial in trials if (value := number_or_none((trial.report or {}).get(column))) is not None]


def _stress(study: StudyRecord, first: Trial, values: Sequence[float]) -> dict[str, float | None]:
    """Mean metric under each stress.

    Without a stress trial at imbalance 1, the plain values stand for it if the study's own pool is not imbalanced.
    """
    found: dict[str, list[float]] = {}
    for trial in study.of_phase(Phase.STRESS) if study.sealed_opened else []:
        column = _stress_column(trial.task_overrides)
        if first.config_id is not None:
            own = trial.config_id == first.config_id
        else:
            own = first.origin == trial.origin == ENSEMBLE
        if own and column is not None and trial.metric is not None:
            found.setdefault(column, []).append(trial.metric)
    plain = float(study.task.get("pool_imbalance", 1) or 1) == 1
    if "imbalance_1" not in found and plain and found:
        found["imbalance_1"] = list(values)
    return {column: statistics.mean(numbers) for column, numbers in found.items()}


def _stress_column(overrides: dict[str, Any]) -> str | None:
    if "pool_imbalance" in overrides:
        return f"imbalance_{float(overrides['pool_imbalance']):g}"
    if "pool_fraction" in overrides:
        return f"pool_{100 * float(overrides['pool_fraction']):g}"
    columns = {"present_fraction": "present", "open_set_fraction": "open_set", "shot_noise": "shot_noise"}
    for setting, column in columns.items():
        if setting in overrides:
            return f"{column}_{100 * float(overrides[setting]):g}"
    return None


def _sensitivities(surrogate: Surrogate, trial: Trial) -> dict[str, float]:
    """How far the predicted score falls if a setting moves by a fifth of its range (a choice: to any other choice)."""
    unit_P = surrogate.encode(trial)
    here = float(surrogate.predict(unit_P[None])[0])
    falls = {}
    for column, parameter in enumerate(surrogate.parameters):
        if parameter.choices:
            places = [parameter.unit(choice) for choice in parameter.choices]
        else:
            places = [max(0.0, unit_P[column] - SENSITIVITY_STEP), min(1.0, unit_P[column] + SENSITIVITY_STEP)]
        moved_NP = np.repeat(unit_P[None], len(places), axis=0)
        moved_NP[:, column] = places
        falls[f"sensitivity_{parameter.name}"] = max(0.0, here - float(surrogate.predict(moved_NP).min()))
    return falls
