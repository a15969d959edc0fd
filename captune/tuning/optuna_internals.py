"""What captune uses of Optuna that is not public. No other module uses a private name of Optuna.

Run on Optuna 4.2.0 and 5.0.0, the ends of what pyproject.toml allows (tests/tuning/test_versions.py). The public ways
do not suffice: `Study.add_trial` does not return the number of the trial that it adds, and `Trial.report` works only on
trials that were asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import FrozenTrial, TrialState


def add_trial(study: optuna.Study, template: FrozenTrial) -> int:
    """Add a trial; returns its identity in the storage, which the functions below take as `trial_id`."""
    return int(study._storage.create_new_trial(study._study_id, template_trial=template))


def identity(trial: FrozenTrial | optuna.Trial) -> int:
    """A trial's identity in its storage."""
    return int(trial._trial_id)


def set_intermediate_value(study: optuna.Study, trial_id: int, step: int, value: float) -> None:
    """Enter an intermediate value of a running trial."""
    study._storage.set_trial_intermediate_value(trial_id, step, value)


def set_intermediate_values(study: optuna.Study, values: Sequence[tuple[int, int, float]]) -> None:
    """Enter intermediate values of running trials: identity, step and value of each.

    They are added to a journal in one write, for which Optuna has no public function. One by one, each would lock,
    open, write and sync the file.
    """
    storage = study._storage
    if not isinstance(storage, JournalStorage):
        for value in values:
            set_intermediate_value(study, *value)
    elif values:
        order = {
            "op_code": int(JournalOperation.SET_TRIAL_INTERMEDIATE_VALUE),
            "worker_id": storage._replay_result.worker_id,
        }
        with storage._thread_lock:
            storage._backend.append_logs(
                [
                    order | {"trial_id": identity, "step": step, "intermediate_value": value}
                    for identity, step, value in values
                ]
            )
            storage._sync_with_backend()


def finish_trial(
    study: optuna.Study, trial_id: int, state: TrialState, values: Sequence[float] | None, attributes: dict[str, Any]
) -> None:
    """Enter a trial's final state and values, and `attributes` as its user attributes."""
    for name, value in attributes.items():
        study._storage.set_trial_user_attr(trial_id, name, value)
    study._storage.set_trial_state_values(trial_id, state, values)
