"""A copy of the search in an Optuna storage, for optuna-dashboard and for teams that read a database.

The copy follows the journal; nothing in the copy ever changes the study. A separate thread writes it, so that a slow
database never delays the study. Whenever a study starts, the copy is completed from the journal. If writing fails, that
is reported once and the study goes on.
"""

from __future__ import annotations

import itertools
import queue
import re
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import TrialState

from captune.errors import UsageError
from captune.records import Epoch, Event, Phase, State, Trial
from captune.records.events import Finished, Planned
from captune.records.layout import OPTUNA_COPY
from captune.space import Space
from captune.tuning import optuna_internals
from captune.tuning.samplers import OPTUNA_STATES, distributions

KEY = "captune_key"
HIDDEN = "…"


def open_storage(directory: Path, storage: str | None) -> BaseStorage:
    """The storage of a mirror: a journal file in the study's directory, or the database at the address `storage`.

    Raises:
        UsageError: the database cannot be opened.
    """
    if storage is None:
        path = str(directory / OPTUNA_COPY)
        return JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path)))
    try:
        return optuna.storages.RDBStorage(storage)
    except Exception as error:  # the database drivers have no common base
        reason = str(error).splitlines()[0].replace(storage, without_password(storage))
        raise UsageError(
            "--storage must be the address of a database",
            got=f"'{without_password(storage)}': {reason}",
            next_step="For example sqlite:///FILE, postgresql://USER@HOST/NAME; by default a file of the study.",
        ) from None


def without_password(address: str) -> str:
    """A database's address with its password hidden, so that it may be shown and recorded."""
    address = re.sub(r"([?&](?:password|passwd|sslpassword)=)[^&]*", rf"\1{HIDDEN}", address)
    head, separator, tail = address.rpartition("@")
    if not separator:
        return address
    scheme, slashes, user = head.rpartition("//")
    name, colon, _ = user.partition(":")
    return f"{scheme}{slashes}{name}{colon and ':' + HIDDEN}@{tail}"


_GATHER_SECONDS = 2.0


class Mirror:
    """Follows one study's search trials into an Optuna storage.

    Args:
        open_storage: opens the storage; called in the mirror's thread.
        study_name: name of the Optuna study.
        space: the search space.
        phase: whose trials are followed.
        num_objectives: 1, or 2 with pseudolabel balance.
        on_trouble: called once with a message when the storage fails.
    """

    def __init__(
        self,
        open_storage: Callable[[], BaseStorage],
        study_name: str,
        space: Space,
        *,
        phase: Phase = Phase.SEARCH,
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
        self._ended: set[str] = set()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def start(self, trials: list[Trial]) -> None:
        """Make the storage agree with the journal, then follow it.

        Args:
            trials: the search trials the journal knows, in order.
        """
        # The thread gets copies, because the trials change while it works.
        copies = [replace(trial, epoch_events=dict(trial.epoch_events)) for trial in trials]
        self._orders.put(("reconcile", (copies,)))
        self._thread = threading.Thread(target=self._work, name="captune-mirror", daemon=True)
        self._thread.start()

    def on_event(self, event: Event, trial: Trial | None) -> None:
        """Follow an event of the journal."""
        if trial is None or trial.phase is not self._phase:
            return
        if isinstance(event, Planned):
            self._orders.put(("create", (replace(trial),)))
        elif isinstance(event, Epoch) and event.score is not None:
            self._orders.put(("report", (trial.key, event.epoch, event.score)))
        elif isinstance(event, Finished):
            self._orders.put(("finish", (replace(trial),)))

    def close(self) -> None:
        """Write what is still to be written."""
        if self._thread is not None:
            self._closing.set()
            self._orders.put(None)
            self._thread.join(timeout=60)
            self._thread = None

    def _work(self) -> None:
        try:
            ended = False
            while not ended:
                orders, ended = self._next_orders()
                # Reports are written together: there may be a hundred per second, and a write takes milliseconds.
                for together, some in itertools.groupby(orders, lambda order: order[0] == "report"):
                    if together:
                        self._report([arguments for _, arguments in some])
                    else:
                        for name, arguments in some:
                            getattr(self, "_" + name)(*arguments)
        except Exception as error:  # of any database driver: a study must go on without its copy
            self._on_trouble(f"The Optuna storage is no longer written ({type(error).__name__}: {error}).")

    def _next_orders(self) -> tuple[list[tuple[str, tuple[Any, ...]]], bool]:
        """The orders that have come in, and whether no more will follow; waits a while to gather reports."""
        orders = [self._orders.get()]
        if orders[0] is not None and orders[0][0] == "report":
            self._closing.wait(_GATHER_SECONDS)
        while not self._orders.empty():
            orders.append(self._orders.get())
        known = [order for order in orders if order is not None]
        return known, len(known) < len(orders)

    def _reconcile(self, trials: list[Trial]) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(
            storage=self._open_storage(), study_name=self._study_name, directions=self._directions, load_if_exists=True
        )
        self._study = study
        there = {copy.user_attrs.get(KEY): copy for copy in study.get_trials(deepcopy=False)}
        for trial in trials:
            copy = there.get(trial.key)
            if copy is None:
                self._create(trial)
            else:
                self._ids[trial.key] = optuna_internals.identity(copy)
                if copy.state.is_finished():
                    self._ended.add(trial.key)
                    continue
            known = copy.intermediate_values if copy is not None else {}
            self._report(
                [
                    (trial.key, epoch.epoch, epoch.score)
                    for epoch in trial.epochs
                    if epoch.score is not None and known.get(epoch.epoch) != epoch.score
                ]
            )
            if trial.ended:
                self._finish(trial)

    def _create(self, trial: Trial) -> None:
        copy = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            params=self._space.clip(trial.params),
            distributions={name: d for name, d in self._distributions.items() if name in trial.params},
            user_attrs={
                KEY: trial.key, "phase": trial.phase.value, "config_id": trial.config_id, "origin": trial.origin,
            },
        )  # fmt: skip
        self._ids[trial.key] = optuna_internals.add_trial(self._opened(), copy)

    def _report(self, reports: Sequence[tuple[Any, ...]]) -> None:
        """Enter scores: key, epoch and score of each."""
        if len(self._directions) == 1:
            values = [(self._ids[key], epoch, score) for key, epoch, score in reports if key not in self._ended]
            optuna_internals.set_intermediate_values(self._opened(), values)

    def _finish(self, trial: Trial) -> None:
        if trial.key in self._ended:
            return  # it had failed and was tried again; an Optuna trial ends once
        self._ended.add(trial.key)
        attributes = {"reason": trial.reason, "node": trial.node, "step": trial.score_epoch, "seconds": trial.seconds}
        single = len(self._directions) == 1
        state = OPTUNA_STATES[trial.state]
        if state == TrialState.PRUNED and not single:
            state = TrialState.FAIL
        values = None
        if trial.state in (State.COMPLETE, State.PRUNED) and trial.score_at_end is not None:
            values = [trial.score_at_end] if single else [trial.score_at_end, trial.prediction_balance or 0.0]
        with warnings.catch_warnings(action="ignore"):
            optuna_internals.finish_trial(
                self._opened(), self._ids[trial.key], state, values if state != TrialState.FAIL else None,
                {name: value for name, value in attributes.items() if value is not None},
            )  # fmt: skip

    def _opened(self) -> optuna.Study:
        if self._study is None:
            raise ValueError("a mirror must be reconciled before it follows")
        return self._study
