"""Tables of records: trials.csv, epochs.csv, confirm.csv, and the one function that writes a table to a file.

Row order and every column but `WALL_CLOCK_COLUMNS` depend only on what the journal holds, not on when it was written: a
resumed study gives the same file as an uninterrupted one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from captune.decisions.criteria import ORACLE
from captune.records import ZERO_SHOT, Phase, StudyRecord, Trial, atomic_write, number_or_none
from captune.results.best import recorded_choice
from captune.results.searched import searched_names

WALL_CLOCK_COLUMNS = ("attempts", "preemptions", "seconds", "node", "started")
ORACLE_STAMP = "selected by sealed labels (oracle): research only"
REPORT_COLUMNS = (
    "metric", "accuracy", "seen_accuracy", "unseen_accuracy", "worst_class_recall", "ece", "prediction_balance",
    "prediction_cv", "agreement_zero_shot",
)  # fmt: skip
STRESS_COLUMNS = ("pool_imbalance", "pool_fraction", "present_fraction", "open_set_fraction", "shot_noise")
"""Fields of `TaskConfig` that a stress trial may change."""
_TRIAL_COLUMNS = ("study", "key", "phase", "tuning", "number", "origin", "advised", "promoted_from", "state")
_TRIAL_RESULTS = (
    "score", "score_epoch", "score_over_zero_shot", "balance", "on_pareto_front", "metric_name", "metric",
    "metric_over_zero_shot", "fidelity", "num_epochs", "num_parameters", "reason",
)  # fmt: skip
_YES_NO = {True: "yes", False: "no"}
_NAMES_TAKEN = {*_TRIAL_COLUMNS, "score", "metric", "seconds", "node", "fidelity"}


def trials_table(studies: Iterable[StudyRecord]) -> pd.DataFrame:
    """One row per reference, screening and search trial; fractions in [0, 1], empty if the journal has no number.

    `tuning` says what a trial trained. Scores of screening trials (features) and of search trials (prompts) must not be
    compared.
    """
    studies = list(studies)
    rows = [row for study in studies for row in _trial_rows(study, searched_names(study))]
    own = (*_TRIAL_COLUMNS, *_TRIAL_RESULTS, *WALL_CLOCK_COLUMNS)
    columns = [*_TRIAL_COLUMNS, *setting_columns(own, rows), *_TRIAL_RESULTS, *WALL_CLOCK_COLUMNS]
    return pd.DataFrame(rows, columns=columns)


def setting_cells(params: Mapping[str, Any]) -> dict[str, Any]:
    """Searched settings as cells of a row; lists and dicts become JSON."""
    return {_setting_column(name): _cell(value) for name, value in params.items()}


def setting_columns(own: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The columns of the rows that are not a table's own, in the order in which they first appear."""
    known = set(own)
    return list(dict.fromkeys(name for row in rows for name in row if name not in known))


def _setting_column(parameter: str) -> str:
    # A setting with the name of a column gets a prefix, so that the two stay apart.
    return f"config.{parameter}" if parameter in _NAMES_TAKEN else parameter


def parameter_value(trial: Trial, name: str) -> Any:
    """A searched setting's value: as suggested, else as in the trial's resolved configuration."""
    return trial.params.get(name, trial.config.get(name))


def final_balance(trial: Trial) -> float | None:
    """The balance of the predictions if the trial has one (the study's second objective), else the last epoch's
    pseudolabel balance.

    Normalised entropy: 1 when every class is predicted equally often.
    """
    values = [number_or_none(epoch.values.get("balance")) for epoch in trial.epochs]
    known = [value for value in [*values, trial.prediction_balance] if value is not None]
    return known[-1] if known else None


def _trial_rows(study: StudyRecord, names: Sequence[str]) -> list[dict[str, Any]]:
    zero_shot = study.find(ZERO_SHOT)
    zero_score = zero_shot.score if zero_shot else None
    zero_metric = zero_shot.metric if zero_shot else None
    front, advised = pareto_front(study), recorded_choice(study)
    rows = []
    for trial in [*study.of_phase(Phase.REFERENCE), *study.of_phase(Phase.SCREEN), *study.of_phase(Phase.SEARCH)]:
        searched = trial.phase != Phase.REFERENCE
        metric = trial.metric if study.sealed_opened else None
        row = _common(study, trial) | {
            "score_over_zero_shot": _difference(trial.score, zero_score),
            "balance": final_balance(trial),
            "on_pareto_front": (trial.key in front) if trial.phase == Phase.SEARCH and trial.scored else None,
            "metric_name": study.metric_name if metric is not None else None,
            "metric": metric,
            "metric_over_zero_shot": _difference(metric, zero_metric),
            "num_epochs": len(trial.epochs) if searched else None,
            "tuning": trial.config.get("tuning") if searched else None,
            "promoted_from": trial.promoted_from,
            "advised": trial.name == advised.name or f"c{trial.number}" == advised.name,
        }
        row |= setting_cells({name: parameter_value(trial, name) if searched else None for name in names})
        rows.append(row)
    return rows


def _common(study: StudyRecord, trial: Trial) -> dict[str, Any]:
    return {
        "study": study.name,
        "key": trial.key,
        "phase": trial.phase,
        "number": trial.number,
        "origin": study.origin_of(trial),
        "state": trial.state,
        "score": trial.score,
        "score_epoch": trial.score_epoch,
        "fidelity": trial.fidelity,
        "num_parameters": trial.num_parameters,
        "reason": trial.reason,
        "attempts": trial.attempts,
        "preemptions": trial.preemptions,
        "seconds": trial.seconds,
        "node": trial.node,
        "started": clock(trial.started),
    }


def clock(seconds: float | None) -> str | None:
    """Unix seconds as a date and time in UTC."""
    return None if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, dict)) else value


def pareto_front(study: StudyRecord) -> set[str]:
    """Keys of the complete search trials that no other trial beats in score or balance without losing in the other."""
    points = {
        trial.key: (trial.score, balance)
        for trial in study.of_phase(Phase.SEARCH)
        if trial.scored and trial.score is not None and (balance := final_balance(trial)) is not None
    }
    return {
        key
        for key, (score, balance) in points.items()
        if not any(s >= score and b >= balance and (s, b) != (score, balance) for s, b in points.values())
    }


def epochs_table(studies: Iterable[StudyRecord]) -> pd.DataFrame:
    """One row per finished epoch of any trial that trains; each criterion has a column of its name."""
    rows: list[dict[str, Any]] = []
    criteria: dict[str, None] = {}
    others: dict[str, None] = dict.fromkeys(["loss", "num_confident", "balance", "learning_rate", "images"])
    for study in studies:
        for trial in study.trials:
            for epoch in trial.epochs:
                criteria |= dict.fromkeys(sorted(epoch.scores))
                others |= dict.fromkeys(sorted(epoch.values))
                rows.append(
                    {
                        **{name: _cell(value) for name, value in epoch.values.items()},
                        **epoch.scores,
                        "study": study.name,
                        "key": trial.key,
                        "phase": trial.phase,
                        "epoch": epoch.epoch,
                        "fidelity": epoch.fidelity,
                        "score": epoch.score,
                        "decision": epoch.decision,
                    }
                )
    last = [name for name in ("memory_bytes", "gpu_memory_bytes", "seconds", "node") if name in others]
    first = ["study", "key", "phase", "epoch", "fidelity", "score", *criteria]
    middle = [name for name in others if name not in {*last, *first}]
    return pd.DataFrame(rows, columns=[*first, *middle, "decision", *last])


def confirm_table(studies: Iterable[StudyRecord]) -> pd.DataFrame:
    """One row per confirmation or stress trial (configuration, seed, role); no metrics until test labels are read."""
    rows = []
    for study in studies:
        advised = recorded_choice(study).name
        for trial in [*study.of_phase(Phase.CONFIRM), *study.of_phase(Phase.STRESS)]:
            report = (trial.report or {}) if study.sealed_opened else {}
            rows.append(
                _common(study, trial)
                | {name: report.get(name) for name in REPORT_COLUMNS}
                | {
                    "configuration": trial.name,
                    "config_id": trial.config_id,
                    "seed": trial.seed,
                    "role": trial.role,
                    "advised": trial.name == advised,
                    **{name: trial.task_overrides.get(name) for name in STRESS_COLUMNS},
                    "pseudolabel_balance": final_balance(trial),
                    "metric_name": study.metric_name if report else None,
                }
            )
    columns = ["study", "key", "phase", "configuration", "config_id", "origin", "advised", "seed", "role",
               *STRESS_COLUMNS, "state", "score", "score_epoch", "pseudolabel_balance", "metric_name", *REPORT_COLUMNS,
               "reason", *WALL_CLOCK_COLUMNS]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def write_csv(table: pd.DataFrame, path: Path, studies: Iterable[StudyRecord] = ()) -> Path:
    """Write a table whole or not at all: 8 significant digits, an empty cell for what is not known.

    If one of the studies was selected by test labels, every row carries a warning.
    """
    atomic_write(path, csv_text(table, studies))
    return path


def stamped(table: pd.DataFrame, studies: Iterable[StudyRecord]) -> pd.DataFrame:
    """The table, with a warning in every row if one of its studies was selected by test labels."""
    return table.assign(stamp=ORACLE_STAMP) if any(study.select_by == ORACLE for study in studies) else table


def csv_text(table: pd.DataFrame, studies: Iterable[StudyRecord] = ()) -> str:
    """The text that `write_csv` writes, with yes and no for true and false."""
    clean = stamped(table, studies).replace([np.inf, -np.inf], np.nan)
    for name in clean.select_dtypes("float"):
        # To pandas, counts with gaps are floats; those with more than eight digits would be rounded.
        if len(known := clean[name].dropna()) and (known % 1 == 0).all():
            clean[name] = clean[name].astype("Int64")
    for name in clean.columns[clean.dtypes.isin([np.dtype(bool), np.dtype(object)])]:
        clean[name] = [_YES_NO.get(value, value) if isinstance(value, bool) else value for value in clean[name]]
    return str(clean.to_csv(index=False, float_format="%.8g", lineterminator="\n"))
