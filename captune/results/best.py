"""What a study chose, how good it turned out on sealed labels, and how far to trust it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, cast

import pandas as pd

from captune.decisions import statistics
from captune.decisions.choosing import Advice, Candidate, Choice, choose, comparison_criterion, known, score_under
from captune.decisions.criteria import ORACLE
from captune.records import BALANCED, ENSEMBLE, ZERO_SHOT, Phase, Role, StudyRecord, Trial
from captune.results.domains import domains_of

__all__ = ["Candidate", "Choice", "best_configs_table", "choose", "flags", "recorded_choice"]
UNDERPOWERED_SEEDS = 3


def report_trials(study: StudyRecord, name: str) -> list[Trial]:
    """The trials that measure a configuration on the test: in the report role where there are any, else in the other.

    For a name of the search (`t0003`) its single trial. Empty before the seal was opened.
    """
    if not study.sealed_opened:
        return []
    own = [trial for trial in study.trials if trial.name == name and trial.metric is not None]
    own = [trial for trial in own if trial.phase != "stress"]
    report = [trial for trial in own if trial.role == Role.REPORT]
    return report or own


def metrics_by_seed(study: StudyRecord, name: str) -> dict[int | None, float]:
    """Report metric of a configuration by seed."""
    return {trial.seed: trial.metric for trial in report_trials(study, name) if trial.metric is not None}


def reference_metric(study: StudyRecord, name: str) -> float | None:
    """Report metric of a reference, once the seal was opened; of its report-role trial where there is one."""
    return statistics.mean([trial.metric for trial in report_trials(study, name) if trial.metric is not None])


def first_name(study: StudyRecord) -> str | None:
    """The name under which the configuration that the search began with was confirmed, else its search trial's key."""
    confirmed = [name for name, trials in study.configurations().items() if any(t.starts_search for t in trials)]
    if confirmed:
        return confirmed[0]
    number = next((trial.number for trial in study.of_phase(Phase.SEARCH) if trial.starts_search), None)
    if number is None:
        return None
    return f"c{number}" if f"c{number}" in study.configurations() else f"t{number:04d}"


def recorded_choice(study: StudyRecord) -> Choice:
    """The choice the study wrote down; for a study that has none yet, the one the rule gives now."""
    if study.choice is None:
        return choose(study)
    fresh, recorded = choose(study), study.choice
    return Choice(
        advice=cast(Advice, recorded.advice or fresh.advice),
        name=recorded.name or _name_of(study, recorded.advice, recorded.config_id) or fresh.name,
        config_id=recorded.config_id,
        config=recorded.config or _config_of(study, recorded.config_id),
        reason=recorded.reason or fresh.reason,
        candidates=fresh.candidates,
    )


def ensemble_config(study: StudyRecord) -> dict[str, Any]:
    """The ensemble of the confirmed configurations as a configuration of `blend`, which trains and averages the same.

    Members and their seeds stand in the order in which they were averaged; those of the report are the ones that
    learned from the whole pool.
    """
    confirmed = [trial for trial in study.complete() if trial.phase is Phase.CONFIRM]
    reported = [trial for trial in confirmed if trial.role is Role.REPORT]
    members: dict[int | None, dict[str, Any]] = {}
    for trial in sorted(reported or confirmed, key=lambda trial: trial.ended_at):
        settings = {"method": trial.method or study.method, "seeds": [], "settings": trial.config}
        members.setdefault(trial.config_id, settings)["seeds"].append(trial.seed)
    first = next(iter(members.values()))["settings"]
    budget = {name: first[name] for name in ("tuning", "epochs", "steps_per_epoch", "batch_size") if name in first}
    return {"method": "blend", **budget, "members": list(members.values())}


def _name_of(study: StudyRecord, advice: str | None, config_id: int | None) -> str | None:
    fixed = {"keep zero-shot": ZERO_SHOT, "adaptation changed nothing": ZERO_SHOT, "use balanced zero-shot": BALANCED,
             "use the ensemble": ENSEMBLE}  # fmt: skip
    return fixed.get(str(advice)) or configuration_name(study, config_id)


def configuration_name(study: StudyRecord, config_id: int | None) -> str | None:
    """`c7` if configuration 7 was confirmed, else its search key, else None."""
    if config_id is None:
        return None
    confirmed = next((t.name for t in study.trials if t.phase == "confirm" and t.config_id == config_id), None)
    searched = next((t.key for t in study.of_phase(Phase.SEARCH) if t.number == config_id), None)
    return confirmed or searched


def _config_of(study: StudyRecord, config_id: int | None) -> dict[str, Any]:
    return next(
        (t.config for t in study.trials if t.config_id == config_id and t.phase != Phase.REFERENCE and t.config), {}
    )


def best_configs_table(studies: Iterable[StudyRecord]) -> pd.DataFrame:
    """One row per study: what was chosen, how good it is, against what; see analysis/README.md for each column."""
    return pd.DataFrame([_best_row(study) for study in studies], columns=list(_BEST_COLUMNS))


_BEST_COLUMNS = (
    "study", "dataset", "paradigm", "method", "select_by", "advice", "configuration", "config_id", "origin",
    "num_trials", "num_seeds", "selection_score", "selection_sd", "zero_shot_selection_score", "metric_name",
    "test_mean", "test_low", "test_high", "test_sd", "zero_shot", "balanced", "ensemble", "default",
    "gain_over_zero_shot", "gain_low", "gain_high", "gain_over_default", "advised_test", "oracle_configuration",
    "oracle_gap", "flags", "reason", "params",
)  # fmt: skip


def _best_row(study: StudyRecord) -> dict[str, Any]:
    choice = recorded_choice(study)
    name = configuration_name(study, choice.config_id)
    trials = [t for t in study.trials if name is not None and t.name == name and t.phase != "stress"]
    params = next((t.params for t in study.of_phase(Phase.SEARCH) if t.number == choice.config_id), None)
    if params is None:
        params = trials[0].params if trials else {}
    candidate = next((c for c in choice.candidates if c.name == name), None)
    values = list(metrics_by_seed(study, name).values()) if name else []
    centre, interval = statistics.mean(values), statistics.t_interval(values, fractions=True)
    zero, first = reference_metric(study, ZERO_SHOT), first_name(study)
    default_mean = statistics.mean(list(metrics_by_seed(study, first).values())) if first else None
    gains = [value - zero for value in values] if zero is not None else []
    gain_interval = statistics.t_interval(gains)
    oracle, oracle_gap = _oracle_gap(study, choice.config_id)
    advised = reference_metric(study, choice.name) if choice.name in (ZERO_SHOT, BALANCED, ENSEMBLE) else centre
    return {
        "study": study.name,
        "dataset": study.dataset,
        "paradigm": study.paradigm,
        "method": study.method,
        "select_by": study.select_by,
        "advice": choice.advice,
        "configuration": name,
        "config_id": choice.config_id,
        "origin": study.origin_of(trials[0]) if trials else None,
        "num_trials": sum(t.finished or t.state == "PRUNED" for t in study.of_phase(Phase.SEARCH)),
        "num_seeds": len(values) or (candidate.num_seeds if candidate else None),
        "selection_score": candidate.mean_score if candidate else None,
        "selection_sd": candidate.sd if candidate else None,
        "zero_shot_selection_score": score_under(study, study.find(ZERO_SHOT), comparison_criterion(study)),
        "metric_name": study.metric_name,
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
        "advised_test": advised,
        "oracle_configuration": oracle,
        "oracle_gap": oracle_gap,
        "flags": " ".join(flags(study, params, values, gains)),
        "reason": choice.reason,
        "params": json.dumps(params, sort_keys=True) if params else None,
    }


def _oracle_gap(study: StudyRecord, config_id: int | None) -> tuple[str | None, float | None]:
    """The search trial that sealed labels would have picked, and what not looking cost: single trials of one role, like
    with like.
    """
    if not study.sealed_opened:
        return None, None
    metrics = {
        t.number: t.metric for t in study.of_phase(Phase.SEARCH) if t.metric is not None and t.state == "COMPLETE"
    }
    if not metrics:
        return None, None
    top = max(metrics, key=lambda number: known(metrics[number]))
    chosen = metrics.get(config_id)
    return f"t{top:04d}", None if chosen is None else known(metrics[top]) - chosen


def flags(study: StudyRecord, params: dict[str, Any], values: Sequence[float], gains: Sequence[float]) -> list[str]:
    """`below_zero_shot`, `maybe_below_zero_shot`, `on_border:<param>`, `underpowered`, `oracle`."""
    found = []
    centre, interval = statistics.mean(gains), statistics.t_interval(gains)
    if centre is not None and centre < 0:
        sure = interval is not None and interval.high < 0
        found.append("below_zero_shot" if sure else "maybe_below_zero_shot")
    found += [f"on_border:{domain.name}" for domain in domains_of(study) if domain.on_border(params.get(domain.name))]
    unsure = (
        interval is not None and interval.low < 0 < interval.high and interval.half_width > statistics.MINIMUM_EFFECT
    )
    if len(values) < UNDERPOWERED_SEEDS or unsure:
        found.append("underpowered")
    return [*found, "oracle"] if study.select_by == ORACLE else found
