"""best_configs.csv: what each study chose, how good it is on the test labels, and how far to trust it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from captune.decisions import statistics
from captune.decisions.by_criterion import comparison_criterion, score_under
from captune.decisions.choice_record import Choice
from captune.decisions.criteria import ORACLE
from captune.records import BALANCED, ENSEMBLE, ZERO_SHOT, Phase, State, StudyRecord
from captune.results.answer import answer_of
from captune.results.best import configuration_name, first_name, metrics_by_seed, recorded_choice, reference_metric
from captune.results.searched import on_border, searched_parameters
from captune.results.tables import setting_cells, setting_columns

UNDERPOWERED_SEEDS = 3
COLUMNS = (
    "study", "dataset", "paradigm", "method", "select_by", "advice", "advised_candidate", "answer", "reason", "caveat",
    "expected_gain", "expected_low", "expected_high", "risk",
    "next_command", "metric_name", "advised_test", "advised_gain", "advised_gain_low", "advised_gain_high",
    "advised_gain_over", "best_by_test", "regret", "configuration", "config_id", "origin", "num_trials", "num_seeds",
    "selection_score", "selection_sd", "zero_shot_selection_score", "test_mean", "test_low", "test_high", "test_sd",
    "zero_shot", "balanced", "ensemble", "default", "gain_over_zero_shot", "gain_low", "gain_high", "gain_over_default",
    "below_zero_shot", "maybe_below_zero_shot", "on_border", "border_settings", "underpowered", "oracle",
)  # fmt: skip


@dataclass(frozen=True)
class Flags:
    """Warnings about a study's best configuration.

    Attributes:
        below_zero_shot: the interval of its gain over zero-shot lies below zero.
        maybe_below_zero_shot: its mean gain is below zero, but the interval is not or is missing.
        border_settings: settings at an end of their range that could be widened, see `on_border`.
        underpowered: fewer than three seeds, or an interval of the gain that contains zero and is wider than ±1 point.
        oracle: it was selected by test labels.
    """

    below_zero_shot: bool
    maybe_below_zero_shot: bool
    border_settings: tuple[str, ...]
    underpowered: bool
    oracle: bool


def best_configs_table(studies: Iterable[StudyRecord]) -> pd.DataFrame:
    """One row per study: its advice, the answer in words, and its best configuration beside the references.

    The searched settings of the best configuration follow after `COLUMNS`.
    """
    studies = list(studies)
    rows = [_row(study) | setting_cells(_params(study)) for study in studies]
    return pd.DataFrame(rows, columns=[*COLUMNS, *setting_columns(COLUMNS, rows)])


def best_flags(study: StudyRecord) -> Flags:
    """The flags of a study's best configuration."""
    name, zero = configuration_name(study, recorded_choice(study).config_id), reference_metric(study, ZERO_SHOT)
    values = list(metrics_by_seed(study, name).values()) if name else []
    return flags(study, _params(study), values, [value - zero for value in values] if zero is not None else [])


def flags(study: StudyRecord, params: dict[str, Any], values: Sequence[float], gains: Sequence[float]) -> Flags:
    """The flags of a configuration, from its settings and its test metrics and gains over zero-shot, both by seed."""
    centre, interval = statistics.mean(gains), statistics.t_interval(gains)
    below = centre is not None and centre < 0
    surely = below and interval is not None and interval.high < 0
    unsure = (
        interval is not None and interval.low < 0 < interval.high and interval.half_width > statistics.MINIMUM_EFFECT
    )
    return Flags(
        below_zero_shot=surely,
        maybe_below_zero_shot=below and not surely,
        border_settings=tuple(p.name for p in searched_parameters(study) if on_border(p, params.get(p.name))),
        underpowered=len(values) < UNDERPOWERED_SEEDS or unsure,
        oracle=study.select_by == ORACLE,
    )


def _params(study: StudyRecord) -> dict[str, Any]:
    """The searched settings of the best configuration."""
    config_id = recorded_choice(study).config_id
    searched = next((trial.params for trial in study.of_phase(Phase.SEARCH) if trial.number == config_id), None)
    if searched is not None:
        return searched
    name = configuration_name(study, config_id)
    return next((trial.params for trial in study.trials if trial.name == name and trial.phase != Phase.STRESS), {})


def _share(points: float | None) -> float | None:
    return None if points is None else points / 100


def _zero_shot_score(study: StudyRecord, choice: Choice) -> float | None:
    """Zero-shot's score on the scale of the candidates': by predictions if these chose, else by the criterion."""
    if choice.weights:
        return next((one.mean_score for one in choice.candidates if one.name == ZERO_SHOT), None)
    return score_under(study, study.find(ZERO_SHOT), comparison_criterion(study))


def _row(study: StudyRecord) -> dict[str, Any]:
    choice, answer = recorded_choice(study), answer_of(study)
    name = configuration_name(study, choice.config_id)
    own = next((trial for trial in study.trials if name and trial.name == name and trial.phase != Phase.STRESS), None)
    candidate = next((one for one in choice.candidates if one.name == name), None)
    values = list(metrics_by_seed(study, name).values()) if name else []
    centre, interval = statistics.mean(values), statistics.t_interval(values, fractions=True)
    zero, first = reference_metric(study, ZERO_SHOT), first_name(study)
    default_mean = statistics.mean(list(metrics_by_seed(study, first).values())) if first else None
    gains = [value - zero for value in values] if zero is not None else []
    gain_interval, marks = statistics.t_interval(gains), best_flags(study)
    measured = answer.measured
    return {
        "study": study.name,
        "dataset": study.dataset,
        "paradigm": study.paradigm,
        "method": study.method,
        "select_by": study.select_by,
        "advice": choice.advice,
        "advised_candidate": choice.name,
        "answer": answer.sentence,
        "reason": choice.reason,
        "caveat": answer.caveat or None,
        **{f"expected_{name}": _share(choice.expected.get(name)) for name in ("gain", "low", "high")},
        "risk": choice.expected.get("risk"),
        "next_command": answer.command,
        "metric_name": study.metric_name,
        "advised_test": measured.metric if measured else None,
        "advised_gain": measured.gain if measured else None,
        "advised_gain_low": measured.low if measured else None,
        "advised_gain_high": measured.high if measured else None,
        "advised_gain_over": (measured.over or None) if measured else None,
        "best_by_test": answer.best_by_test,
        "regret": answer.regret,
        "configuration": name,
        "config_id": choice.config_id,
        "origin": study.origin_of(own) if own is not None else None,
        "num_trials": sum(t.scored or t.state == State.PRUNED for t in study.of_phase(Phase.SEARCH)),
        "num_seeds": len(values) or (candidate.num_seeds if candidate else None),
        "selection_score": candidate.mean_score if candidate else None,
        "selection_sd": candidate.sd if candidate else None,
        "zero_shot_selection_score": _zero_shot_score(study, choice),
        "test_mean": centre,
        "test_low": interval.low if interval else None,
        "test_high": interval.high if interval else None,
        "test_sd": statistics.standard_deviation(values),
        "zero_shot": zero,
        "balanced": reference_metric(study, BALANCED),
        "ensemble": reference_metric(study, ENSEMBLE),
        "default": default_mean,
        "gain_over_zero_shot": statistics.mean(gains),
        "gain_low": gain_interval.low if gain_interval else None,
        "gain_high": gain_interval.high if gain_interval else None,
        "gain_over_default": centre - default_mean if centre is not None and default_mean is not None else None,
        "below_zero_shot": marks.below_zero_shot,
        "maybe_below_zero_shot": marks.maybe_below_zero_shot,
        "on_border": bool(marks.border_settings),
        "border_settings": " ".join(marks.border_settings) or None,
        "underpowered": marks.underpowered,
        "oracle": marks.oracle,
    }
