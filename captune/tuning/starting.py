"""Work that is done while Ray and its workers start, so that the first trials need not wait for it."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from captune import interruption
from captune.algorithms import ALGORITHMS
from captune.errors import StudyError
from captune.records import Phase
from captune.records.events import Planned
from captune.records.trial import Trial
from captune.tuning.cell import Cell
from captune.tuning.cluster import Cluster, thread_variables
from captune.tuning.environment import variables
from captune.tuning.gpus import machine_has_gpus
from captune.tuning.specs import TrialSpec
from captune.tuning.trainable import PAYLOAD, SPEC, StudyTrainable, open_trial_anywhere
from captune.tuning.worker_start import words_left

_EVERY_SECONDS = 1.0
_OFTEN_SECONDS, _BEGIN_SECONDS, _IMPORT_SECONDS = 0.1, 20.0, 60.0
# Images times classes. Above this a reference takes seconds and is left to the workers, which run several at once.
_SMALL = 1_000_000
# The most workers that import PyTorch before they have a trial; each takes 300 MB.
_MOST_READY = 8


class Alongside:
    """Runs a function in a thread while the block runs. The block's end waits for it and raises what it raised.

    If the block ends by an exception or a signal, the function is asked to stop and is waited for as well, because a
    process that ends while PyTorch computes in another thread aborts.

    Args:
        work: gets a function that it must call now and then, and that raises once the work should stop.
        patience: seconds without such a call (as on a dead mount) after which the work is not waited for any longer.

    Attributes:
        hangs: whether the work was given up for that reason.
    """

    def __init__(self, work: Callable[[Callable[[], None]], None], *, patience: float | None = None) -> None:
        self._work = work
        self._patience = patience
        self._looked = time.monotonic()
        self.hangs = False
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="captune-preparation", daemon=True)

    def _run(self) -> None:
        try:
            self._work(self._look)
        except BaseException as error:  # raised where it is waited for
            self._error = error

    def _look(self) -> None:
        self._looked = time.monotonic()
        if self._stop.is_set():
            raise StudyError("the preparation of images must come to its end", got="the study is interrupted")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stop.set()
        try:
            while self._thread.is_alive():
                self._thread.join(0.1)
                if kind is None:
                    interruption.check()
                    self._check_steps()
        except KeyboardInterrupt:
            self._stop.set()
            self._thread.join()
            raise
        if kind is None and self._error is not None:
            raise self._error

    def _check_steps(self) -> None:
        silent = time.monotonic() - self._looked
        if self._patience is not None and silent > self._patience:
            self.hangs = True
            raise StudyError(
                f"the preparation of images must make a step within --trial-timeout ({self._patience:.0f} s)",
                got=f"none for {silent:.0f} s",
                next_step="A data directory or a GPU that hangs looks like this. Give more time if it is only slow.",
            )


class DashboardComesUp:
    """Calls a function once when Ray's dashboard is up; nothing waits for it.

    Args:
        cluster: the connected cluster.
        tell: called with the cluster.
    """

    def __init__(self, cluster: Cluster, tell: Callable[[Cluster], None]) -> None:
        self._cluster, self._tell = cluster, tell
        self._expected = cluster.starts_dashboard or cluster.known_dashboard is not None
        self._looked = 0.0

    def look(self) -> None:
        """See whether the dashboard is up; called in every iteration of Ray's loop."""
        if self._expected and time.monotonic() - self._looked > _EVERY_SECONDS:
            self._looked = time.monotonic()
            if self._cluster.dashboard is not None:
                self._expected = False
                self._tell(self._cluster)


def modules_of_trials(cells: Sequence[Cell], *, concurrency: int | None, cpus_per_trial: float | None) -> list[str]:
    """The modules that workers of a private cluster import as they start; none if most workers would not need them.

    Ray starts a worker for each CPU, before it is known how many will have trials.
    """
    cpus = os.cpu_count() or 1
    needed = (concurrency or cpus) >= cpus and (cpus_per_trial or 1) <= 1
    if not needed or cpus > _MOST_READY or machine_has_gpus():  # a worker must get its GPU before it imports
        return []
    methods = {trial.method or "" for cell in cells for trial in cell.trials.values()}
    methods |= {cell.study.method for cell in cells} | {name for cell in cells for name in cell.info.methods}
    modules = {ALGORITHMS[name].module for name in methods if name in ALGORITHMS}
    return [StudyTrainable.__module__, "captune.training.trial", *sorted(modules)]


class ImportedAhead:
    """Imports a module in a thread once `begin` is called; importing it elsewhere then waits only for the rest."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Begin to import, unless that has begun already."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="captune-imports")
            self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(Exception):  # raised again by the import where the module is needed
            importlib.import_module(self._module)


def wait_for_workers(ready: Path, count: int, *, look: Callable[[], None]) -> None:
    """Wait until the workers that Ray starts in advance have imported what trials need, or make no more progress.

    Args:
        ready: folder in which the workers create files.
        count: number of workers to wait for.
        look: called several times per second.
    """
    known, since = words_left(ready), time.monotonic()
    while known[1] < count and time.monotonic() - since < (_IMPORT_SECONDS if known[0] else _BEGIN_SECONDS):
        interruption.check()
        if (now := words_left(ready)) != known:
            known, since = now, time.monotonic()
        look()
        time.sleep(_OFTEN_SECONDS)


def run_references_here(cells: Sequence[Cell], *, threads: int, look: Callable[[], None] = lambda: None) -> None:
    """Run the references of small studies in this process, which has prepared their images.

    References do not train and take milliseconds, so the first scores need not wait for a worker's imports.

    Args:
        cells: the studies.
        threads: CPU threads of a trial.
        look: called after each reference.
    """

    def reference(trial: Trial | Planned) -> bool:
        return trial.phase is Phase.REFERENCE and not (isinstance(trial, Trial) and trial.crashes)

    import torch  # imported here, because it takes seconds and must not delay the start of Ray

    before = torch.get_num_threads()
    with variables(thread_variables(threads)):
        for cell in cells:
            if (cell.info.num_pool + cell.info.num_test) * cell.info.num_classes > _SMALL:
                continue
            while (trial := cell.next_trial(fits=reference)) is not None:
                interruption.check()
                _run_here(cell, trial, threads)
                look()
    torch.set_num_threads(before)


def _run_here(cell: Cell, trial: Trial, threads: int) -> None:
    worker: Any = StudyTrainable.__new__(StudyTrainable)
    cell.start(trial.key, None)
    worker.setup({SPEC: TrialSpec.pack_to_json([cell.spec(trial, threads=threads)])}, open_trial=open_trial_anywhere)
    try:
        while not trial.ended:
            payload = json.loads(worker.step()[PAYLOAD])
            for told in payload["told"]:
                cell.deliver(told["key"], told | {"node": payload["node"]})
    finally:
        worker.cleanup()
