"""What a study chose, and the test metrics of its candidates."""

from __future__ import annotations

from typing import Any, cast

from captune.decisions import statistics
from captune.decisions.choice_record import AdviceWords, Candidate, Choice
from captune.decisions.choosing import choose
from captune.records import BALANCED, ENSEMBLE, ZERO_SHOT, Phase, Role, StudyRecord, Trial

__all__ = ["Candidate", "Choice", "choose", "recorded_choice"]


def report_trials(study: StudyRecord, name: str) -> list[Trial]:
    """The trials that measure a configuration on the test: those of the report role if any, else all.

    A configuration that was only searched (`t0003`) has a single trial. Stress trials do not count. Empty until the
    test labels are read.
    """
    if not study.sealed_opened:
        return []
    own = [trial for trial in study.trials if trial.name == name and trial.metric is not None]
    own = [trial for trial in own if trial.phase != "stress"]
    report = [trial for trial in own if trial.role == Role.REPORT]
    return report or own


def metrics_by_seed(study: StudyRecord, name: str) -> dict[int | None, float]:
    """Test metric of a configuration by seed."""
    return {trial.seed: trial.metric for trial in report_trials(study, name) if trial.metric is not None}


def reference_metric(study: StudyRecord, name: str) -> float | None:
    """Test metric of a reference, the mean over its trials; None until the test labels are read."""
    return statistics.mean([trial.metric for trial in report_trials(study, name) if trial.metric is not None])


def first_name(study: StudyRecord) -> str | None:
    """The name of the configuration that the search began with: its confirmed name, else its search trial's key."""
    confirmed = [name for name, trials in study.configurations().items() if any(t.starts_search for t in trials)]
    if confirmed:
        return confirmed[0]
    number = next((trial.number for trial in study.of_phase(Phase.SEARCH) if trial.starts_search), None)
    if number is None:
        return None
    return f"c{number}" if f"c{number}" in study.configurations() else f"t{number:04d}"


def recorded_choice(study: StudyRecord) -> Choice:
    """The choice that the study recorded; if it has none yet, what the criterion alone would choose now.

    The final choice may differ: when a study closes, it compares its candidates' predictions.
    """
    if study.choice is None:
        return choose(study)
    fresh, recorded = choose(study), study.choice
    return Choice(
        advice=cast(AdviceWords, recorded.advice or fresh.advice),
        name=recorded.name or _name_of(study, recorded.advice, recorded.config_id) or fresh.name,
        config_id=recorded.config_id,
        config=recorded.config or _config_of(study, recorded.config_id),
        reason=recorded.reason or fresh.reason,
        candidates=tuple(Candidate(**row) for row in recorded.candidates) if recorded.weights else fresh.candidates,
        sentence=recorded.sentence,
        weights=recorded.weights,
        expected=recorded.expected,
        advised=recorded.advised,
        learned_from=recorded.learned_from,
    )


def compared_candidate(study: StudyRecord) -> str | None:
    """The candidate that is compared with zero-shot class by class: the advised one.

    If zero-shot itself is advised: the ensemble if the study weighed one, else the best configuration.
    """
    choice = recorded_choice(study)
    if choice.name != ZERO_SHOT:
        return choice.name
    considered = bool(choice.weights) and study.find(ENSEMBLE) is not None
    return ENSEMBLE if considered else configuration_name(study, choice.config_id)


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
