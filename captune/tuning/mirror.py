"""A copy of the search in an Optuna storage, for optuna-dashboard and for teams that read a database.

One way only: the journal is the truth, the mirror follows. It is written by a thread of its own, so a slow database
never holds up the study, and brought into line with the journal whenever a study starts; a mirror that fails is
reported once and the study goes on.
"""

from __future__ import annotations

import queue
import re
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import TrialState

from captune.errors import UsageError
from captune.records import COMPLETE, PRUNED, RUNNING, SEARCH
from captune.space import Space
from captune.tuning import optuna_internals
from captune.tuning.runs import Run
from captune.tuning.samplers import OPTUNA_STATES, distributions

MIRROR = "optuna.journal"
KEY = "captune_key"
HIDDEN = "…"


def open_storage(directory: Path, storage: str | None) -> BaseStorage:
    """The storage of a mirror: a journal file in the run's directory, or a database by its address.

    Raises:
        UsageError: the database cannot be opened.
    """
    if storage is None:
        path = str(directory / MIRROR)
        return JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path)))
    try:
        return optuna.storages.RDBStorage(storage)
    except Exception as error:  # the database drivers have no common base
        reason = str(error).splitlines()[0].replace(storage, without_password(storage))
        raise UsageError(
            "--storage must be the address of a database",
            got=f"'{without_password(storage)}': {reason}",
            next_step="For example sqlite:///FILE, postgresql://USER@HOST/NAME; leave it out for a file in the run.",
        ) from None


def without_password(address: str) -> str:
    """A database's address as it may be shown and recorded."""
    address = re.sub(r"([?&](?:password|passwd|sslpassword)=)[^&]*", rf"\1{HIDDEN}", address)
    head, separator, tail = address.rpartition("@")
    if not separator:
        return address
    scheme, slashes, user = head.rpartition("//")
    name, colon, _ = user.partition(":")
    return f"{scheme}{slashes}{name}{colon and ':' + HIDDEN}@{tail}"


class Mirror:
    """Follows one study's search trials into an Optuna storage.

    Args:
        open_storage: opens it (in the mirror's thread).
        study_name: of the study there.
        space: the search space.
        phase: whose runs are followed.
        num_objectives: 1, or 2 with pseudolabel balance.
        on_trouble: called once with a message when the storage fails.
    """

    def __init__(
        self,
        open_storage: Callable[[], BaseStorage],
        study_name: str,
        space: Space,
        *,
        phase: str = SEARCH,
        num_objectives: int = 1,
        on_trouble: Callable[[str], None] = lambda _message: None,
    ) -> None:
        self._open_storage = open_storage
        self._study_name = study_name
        self._space = space
        self._phase = phase
        self._distributions = distributions(space)
        self._directions = [StudyDirection.MAXIMIZE] * num_objectives
        self._on_trouble = on_trouble
        self._orders: queue.SimpleQueue[tuple[str, tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._study: optuna.Study | None = None
        self._ids: dict[str, int] = {}
        self._thread: threading.Thread | None = None

    def start(self, runs: list[Run], scores: dict[str, dict[int, float]]) -> None:
        """Bring the storage into line with the journal, then follow.

        Args:
            runs: the search trials the journal knows, in order.
            scores: their scores by epoch.
        """
        # Copies: the thread works on them while the runs go on to change.
        self._orders.put(("reconcile", ([replace(run) for run in runs], scores)))
        self._thread = threading.Thread(target=self._work, name="captune-mirror", daemon=True)
        self._thread.start()

    def on_event(self, event: dict[str, Any], run: Run | None) -> None:
        """Follow an event of the journal."""
        if run is None or run.phase != self._phase:
            return
        if event["event"] == "planned":
            self._orders.put(("create", (run,)))
        elif event["event"] == "epoch" and event.get("score") is not None:
            self._orders.put(("report", (run.key, event["epoch"], event["score"])))
        elif event["event"] == "finished":
            self._orders.put(("finish", (run.key, _Outcome(run, event.get("prediction_balance")))))

    def close(self) -> None:
        """Write what is still to be written."""
        if self._thread is not None:
            self._orders.put(None)
            self._thread.join(timeout=60)
            self._thread = None

    def _work(self) -> None:
        try:
            while (order := self._orders.get()) is not None:
                name, arguments = order
                getattr(self, "_" + name)(*arguments)
        except Exception as error:  # whatever a database driver raises: the mirror is a convenience
            self._on_trouble(f"The Optuna storage is no longer written ({type(error).__name__}: {error}).")

    def _reconcile(self, runs: list[Run], scores: dict[str, dict[int, float]]) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(
            storage=self._open_storage(), study_name=self._study_name, directions=self._directions, load_if_exists=True
        )
        self._study = study
        there = {trial.user_attrs.get(KEY): trial for trial in study.get_trials(deepcopy=False)}
        for run in runs:
            trial = there.get(run.key)
            if trial is None:
                self._create(run)
            else:
                self._ids[run.key] = optuna_internals.identity(trial)
                if trial.state.is_finished():
                    continue
            known = trial.intermediate_values if trial is not None else {}
            for epoch, score in scores.get(run.key, {}).items():
                if known.get(epoch) != score:
                    self._report(run.key, epoch, score)
            if run.state != RUNNING:
                self._finish(run.key, _Outcome(run, None))

    def _create(self, run: Run) -> None:
        study = self._opened()
        trial = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=self._space.clip(run.params),
            distributions={name: d for name, d in self._distributions.items() if name in run.params},
            user_attrs={KEY: run.key, "phase": run.phase, "config_id": run.config_id, "origin": run.origin},
        )
        self._ids[run.key] = optuna_internals.add_trial(study, trial)

    def _report(self, key: str, epoch: int, score: float) -> None:
        if len(self._directions) == 1:
            optuna_internals.set_intermediate_value(self._opened(), self._ids[key], epoch, score)

    def _finish(self, key: str, outcome: _Outcome) -> None:
        attributes = {"reason": outcome.reason, "node": outcome.node, "step": outcome.epoch, "seconds": outcome.seconds}
        single = len(self._directions) == 1
        state = OPTUNA_STATES[outcome.state]
        if state == TrialState.PRUNED and not single:
            state = TrialState.FAIL
        values = None
        if outcome.state in (COMPLETE, PRUNED) and outcome.score is not None:
            values = [outcome.score] if single else [outcome.score, outcome.balance or 0.0]
        with warnings.catch_warnings(action="ignore"):
            optuna_internals.finish_trial(
                self._opened(), self._ids[key], state, values if state != TrialState.FAIL else None,
                {name: value for name, value in attributes.items() if value is not None},
            )  # fmt: skip

    def _opened(self) -> optuna.Study:
        if self._study is None:
            raise ValueError("a mirror must be reconciled before it follows")
        return self._study


class _Outcome:
    """The end of a run, copied: the thread writes it later than the run goes on to change."""

    def __init__(self, run: Run, balance: float | None) -> None:
        self.state, self.score, self.epoch = run.state, run.score, run.score_epoch
        self.reason, self.node, self.seconds = run.reason, run.node, run.seconds
        self.balance = balance
