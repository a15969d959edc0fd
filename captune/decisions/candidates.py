"""The candidates of a study's choice: which trials they are, what an ensemble of them is, how it is trained again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from captune.decisions.by_criterion import adapted_groups, known
from captune.decisions.choice_record import Choice
from captune.records import ENSEMBLE, REFERENCES, Role, State, StudyRecord, Trial
from captune.records.enums import PART, WHOLE
from captune.records.events import Chosen
from captune.records.trial import trial_key

_MOST_CONFIGURATIONS = 12


def candidate_trials(study: StudyRecord) -> dict[str, list[Trial]]:
    """The finished score trials of every candidate: the references, and the confirmed configurations with their seeds.

    Without confirmation the best search trials are candidates, each by itself. A configuration with fewer than half the
    seeds of the most confirmed one (dropped by the race, or with failed trials) is no candidate.
    """
    references = [study.find(name) for name in REFERENCES]
    found = {one.name: [one] for one in references if one is not None and one.state is State.COMPLETE}
    finished = {
        name: [trial for trial in trials if trial.state is State.COMPLETE]
        for name, trials in adapted_groups(study).items()
    }
    most = max(map(len, finished.values()), default=0)
    # Whole groups, best first, where there are too many to store and compare.
    kept = [
        name for name, trials in finished.items() if trials and (_is_deterministic(trials) or 2 * len(trials) >= most)
    ]
    if len(kept) > _MOST_CONFIGURATIONS:
        best = sorted(kept, key=lambda name: -max(known(trial.score) for trial in finished[name]))
        kept = [name for name in kept if name in best[:_MOST_CONFIGURATIONS]]
    return found | {name: sorted(finished[name], key=lambda trial: trial.seed or 0) for name in kept}


def _is_deterministic(trials: Sequence[Trial]) -> bool:
    """True if nothing is random, so one seed suffices."""
    return all(not trial.num_epochs for trial in trials)


def methods_of(study: StudyRecord, trials: dict[str, list[Trial]]) -> dict[str, str]:
    """Candidate → its method."""
    return {name: group[0].method or study.method for name, group in trials.items()}


def needs_ensemble(shares: dict[str, float], trials: dict[str, list[Trial]]) -> bool:
    """Whether the considered ensemble is anything but a single reference."""
    return len(shares) > 1 or any(trials[name][0].config_id is not None for name in shares)


def even_shares(study: StudyRecord) -> dict[str, float]:
    """Equal shares of the configurations alone: the ensemble that competes where a criterion chooses."""
    return {name: 1.0 for name, group in candidate_trials(study).items() if group[0].config_id is not None}


def advised_shares(study: StudyRecord, choice: Choice | Chosen) -> dict[str, float]:
    """Candidate → its share in what is advised."""
    if choice.name != ENSEMBLE:
        return {str(choice.name): 1.0}
    return choice.weights or even_shares(study)


def ensemble_trials(study: StudyRecord, shares: dict[str, float], role: Role) -> dict[str, list[Trial]]:
    """The trials of an ensemble's members in a role, by candidate; empty where a member has none."""
    score = candidate_trials(study)
    found: dict[str, list[Trial]] = {}
    for name in shares:
        group = score.get(name, [])
        keys = [trial_key(name, trial.seed if trial.config_id is not None else None, role) for trial in group]
        trials = group if role is Role.SCORE else [study.find(key) for key in keys]
        complete = [trial for trial in trials if trial is not None and trial.state is State.COMPLETE]
        if not complete:
            return {}
        found[name] = complete
    return found


def reported_role(study: StudyRecord, shares: dict[str, float]) -> Role:
    """The role of the trials that are measured on the test images."""
    return Role.REPORT if ensemble_trials(study, shares, Role.REPORT) else Role.SCORE


def advised_config(study: StudyRecord, shares: dict[str, float]) -> dict[str, Any]:
    """What is advised as `captune adapt --config` takes it: a reference, or a `blend` of the members and their seeds.

    The blend trains the members on what the study's own trials learned from, and averages them in the same order.
    """
    role = reported_role(study, shares)
    groups = ensemble_trials(study, shares, role)
    learned = WHOLE if role is Role.REPORT else PART
    if not groups:
        return {}
    first = next(iter(groups.values()))[0]
    if not needs_ensemble(shares, groups):
        return {"method": first.method or first.name, "learn_from": learned, **first.config}
    members = [
        {
            "method": group[0].method or study.method,
            "weight": shares[name],
            "seeds": [trial.seed for trial in group] if group[0].config_id is not None else [],
            "settings": group[0].config,
        }
        for name, group in groups.items()
    ]
    settings = next((trial.config for trial in study.trials if trial.config_id is not None and trial.config), {})
    budget: dict[str, Any] = {
        name: settings[name] for name in ("tuning", "epochs", "steps_per_epoch", "batch_size") if name in settings
    }
    return {"method": "blend", "learn_from": learned, **budget, "members": members}
