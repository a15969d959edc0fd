"""The planner: one Ray Tune searcher and scheduler over any number of studies.

Tune asks for a trial whenever there is room, and passes on what workers report; the planner picks the cell whose turn
it is. For Tune a lost trial is over. The planner submits it again, as a new Tune trial.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError
from ray.tune import Callback, Stopper
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from captune.errors import StudyError
from captune.tuning import ray_internals
from captune.tuning.cell import Cell
from captune.tuning.pack_members import next_pack
from captune.tuning.specs import TrialSpec
from captune.tuning.trainable import PAYLOAD, SPEC

# Without this bound a trial that brings down its node every time would be handed out for ever.
_MOST_PREEMPTIONS = 20


class Planner(Searcher):
    """Hands out the trials of all cells in fair shares.

    Args:
        cells: opened studies.
        threads: CPU threads of a trial.
        packed: whether a worker may train several trials on frozen features together.
        workers: number of workers that train at once.
        gpus: GPUs of a worker; may be a fraction.
        timeout: seconds after which an unfinished trial is ended as failed. Trials that train together have this time
            for each of them, but no more than this between two reports.

    Attributes:
        while_waiting: called when there is no trial to hand out and none runs. Tune then asks again and again for ten
            minutes and does nothing else.
        when_spare: called when a worker is free and there is no trial for it.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        *,
        threads: int = 1,
        gpus: float = 0.0,
        timeout: float | None = None,
        packed: bool = True,
        workers: int = 2,
    ) -> None:
        super().__init__()
        self.cells = list(cells)
        self.interrupted = False
        self.while_waiting: Callable[[], None] = lambda: None
        self.when_spare: Callable[[], None] = lambda: None
        self._threads = threads
        self._gpus = gpus
        self._timeout = timeout
        self._began: dict[str, float] = {}
        self._heard: dict[str, float] = {}
        self._packed = packed
        self._workers = workers
        self._trials: dict[str, tuple[Cell, tuple[str, ...]]] = {}
        self._handed_out = dict.fromkeys((cell.name for cell in cells), 0)

    def interrupt(self) -> None:
        """Hand out nothing more and let Tune end what runs."""
        self.interrupted = True

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Nothing to set: what is searched comes from the cells."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next trial, FINISHED when every cell is, None while all must wait."""
        if self.interrupted:
            return str(Searcher.FINISHED)
        turns = sorted(self.cells, key=lambda cell: (len(cell.active), self._handed_out[cell.name]))
        for cell in turns:
            pack = next_pack(cell, packed=self._packed, workers=self._workers)
            if pack:
                self._handed_out[cell.name] += len(pack)
                self._trials[trial_id] = (cell, tuple(trial.key for trial in pack))
                specs = [cell.spec(trial, threads=self._threads) for trial in pack]
                return {SPEC: TrialSpec.pack_to_json(specs)}
        self.when_spare()
        if all(cell.finished for cell in self.cells):
            return str(Searcher.FINISHED)
        if not self._trials:
            self.while_waiting()
        return None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A trial has ended: by itself, by the scheduler, or because the study was interrupted."""
        cell, keys = self._trials.pop(trial_id, (None, ()))
        if cell is None:
            return
        if result is not None and PAYLOAD in result:
            _deliver(cell, result)
        for key in keys:
            cell.give_back(key)

    def handed_out(self) -> list[str]:
        """The ids of Tune trials that have not ended, in the order in which they were handed out."""
        return list(self._trials)

    def report(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Record what a worker reports; returns whether it should stop, because all its trials have ended.

        The worker itself drops the trials of a pack that have ended.
        """
        cell, keys = self._trials[trial_id]
        self._heard[trial_id] = time.monotonic()
        _deliver(cell, result)
        return all(cell.trials[key].ended for key in keys)

    def started(self, trial_id: str, node: str | None) -> None:
        """A trial was given to an actor."""
        cell, keys = self._trials[trial_id]
        self._began[trial_id] = self._heard[trial_id] = time.monotonic()
        with cell.together():
            for key in keys:
                cell.start(key, node, self._gpus / len(keys))

    def overdue(self) -> dict[str, StudyError]:
        """The ids of Tune trials that have exceeded their time, with the error to end each with."""
        if self._timeout is None:
            return {}
        now = time.monotonic()
        seconds = {
            trial_id: max((now - self._began.get(trial_id, now)) / len(keys), now - self._heard.get(trial_id, now))
            for trial_id, (_, keys) in self._trials.items()
        }
        return {
            trial_id: StudyError(
                f"a trial must end within --trial-timeout ({self._timeout:.0f} s)",
                got=f"{spent:.0f} s so far",
                next_step="A data directory or a GPU that hangs looks like this. Give more time if trials need it.",
            )
            for trial_id, spent in seconds.items()
            if spent > self._timeout
        }

    def lost(self, trial_id: str, error: BaseException | None, node_ip: str | None) -> None:
        """A trial's process is gone."""
        cell, keys = self._trials.pop(trial_id)
        gone = isinstance(error, RayActorError) and (error.preempted or _node_gone(error, node_ip))
        for key in keys:
            if isinstance(error, StudyError):
                cell.fail(key, str(error), node=node_ip)
                continue
            preempted = gone and cell.trials[key].preemptions < _MOST_PREEMPTIONS
            cell.crash(key, _reason(error), node=node_ip, preempted=preempted)

    # Tune saves and restores its searcher. Here all state follows from the journal, so there is nothing to save.

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: all state is in the journal."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: all state is in the journal."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Do nothing: all state is in the journal."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Planner:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (Planner, ((),))


def _deliver(cell: Cell, result: dict[str, Any]) -> None:
    """Tell a cell what a worker reports of its trials."""
    payload = json.loads(result[PAYLOAD])
    with cell.together():
        for told in payload["told"]:
            cell.deliver(told["key"], told | {"node": payload["node"]})


def _node_gone(error: RayActorError, node_ip: str | None) -> bool:
    """Whether the worker was lost together with its node (a preemption) rather than alone (a crash).

    A worker that dies alone is reported dead by its node. One that cannot be reached, without such a report, was lost
    with its node, which Ray itself notices only later.
    """
    if isinstance(error, ActorUnavailableError):
        return True
    if node_ip is not None and not any(
        node["Alive"] and node["NodeManagerAddress"] == node_ip
        for node in ray.nodes()  # type: ignore[no-untyped-call]
    ):
        return True
    text = str(error)
    return "node" in text and ("died" in text or "dead" in text) and "worker process" not in text


def _error_of(trial: Trial) -> BaseException | None:
    """The error that Tune recorded for a trial; its scheduler is only told that there was one."""
    path = trial.pickled_error_file
    if path is None or not Path(path).exists():
        return None
    # Unpickling is safe: Tune has just written the file into this study's own temporary folder.
    error: BaseException = cloudpickle.loads(Path(path).read_bytes())
    return error


def _reason(error: BaseException | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] if error is not None else []
    if not lines:
        return "its process ended"
    if isinstance(error, RayTaskError):
        return lines[-1]  # the last line of a traceback says what happened
    details = [
        line for line in lines[1:] if line.startswith(("The actor", "Worker exit", "The node", "ray.exceptions"))
    ]
    return " ".join([lines[0], *details]).split(" Some common causes")[0]


class StudyScheduler(FIFOScheduler):
    """Passes Tune's events to the planner, and the planner's decisions back.

    Args:
        planner: hands out the trials.
        kept: number of idle workers that are kept; 0 on a cluster that was not started here.
    """

    def __init__(self, planner: Planner, kept: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._planner = planner
        self._kept = kept
        self._controller: Any = None
        # Tune keeps only the errors of processes, so the reason for ending a trial is kept here.
        self._ended: dict[str, StudyError] = {}

    def end_overdue(self) -> None:
        """End the trials that have exceeded their time."""
        for trial_id, error in self._planner.overdue().items():
            trial = None if self._controller is None else self._controller.get_trial(trial_id)
            if trial is not None:
                self._ended[trial_id] = error
                ray_internals.fail_trial(self._controller, trial, error)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """An epoch was reported."""
        stop = self._planner.report(trial.trial_id, result)
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """A trial's actor died or was ended; Tune does not retry, the planner does."""
        error = self._ended.pop(trial.trial_id, None) or _error_of(trial)
        self._planner.lost(trial.trial_id, error, trial.node_ip)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The first pending trial without an actor, else the first pending one.

        Tune gives a free actor to the chosen trial and discards the actor for which that trial was waiting. If the
        oldest trial were always chosen, its actor would be discarded again and again, and with trials shorter than the
        start of a process a second worker would never start.
        """
        self._controller = tune_controller
        pending = {t.trial_id: t for t in tune_controller.get_live_trials() if t.status == Trial.PENDING}
        if pending and self._kept:
            resources = next(iter(pending.values())).placement_group_factory  # the same for all trials
            ray_internals.keep_actors(tune_controller, resources, self._kept)
            self._kept = 0
        waiting = [pending[trial_id] for trial_id in self._planner.handed_out() if trial_id in pending]
        starting = ray_internals.trials_with_an_actor(tune_controller)
        return next((trial for trial in waiting if trial not in starting), waiting[0] if waiting else None)


class StudyCallback(Callback):
    """Notes when a trial is given to an actor, and calls back once per step of Tune's loop."""

    def __init__(self, planner: Planner, on_step: Callable[[], None]) -> None:
        self._planner = planner
        self._on_step = on_step

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks into a file that nobody reads; what this one holds is left out.
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial begins."""
        self._planner.started(trial.trial_id, None)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """An iteration of Tune's loop has ended."""
        self._on_step()


class StopOnInterrupt(Stopper):
    """Ends the experiment once the planner is interrupted."""

    def __init__(self, planner: Planner) -> None:
        self._planner = planner

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never stops a single trial."""
        return False

    def stop_all(self) -> bool:
        """Whether everything should stop."""
        return self._planner.interrupted
