"""The Ray Tune trainable: one actor that trains one trial after another, on frozen features several together.

It reports epochs and outcomes, and the driver decides what follows from them. After its process has died, a trial goes
on from its own files alone, so Tune's checkpoints stay off.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Protocol

import ray
from ray.tune import Trainable

from captune.data.build_once import Work, work_done
from captune.errors import CaptuneError, StudyError
from captune.records.layout import EPOCHS, TRIAL_LOCK
from captune.tuning.gpus import require_gpu
from captune.tuning.schedulers import at_rung
from captune.tuning.specs import TrialSpec

SPEC = "spec"
PAYLOAD = "captune"
# A worker whose driver was killed gives its trial up within seconds; a minute covers a slow node.
_LOCK_SECONDS = 60.0
_TRACEBACK_CHARACTERS = 4000


class OpenTrial(Protocol):
    """A trial that trains: `captune.training.trial.TrainingTrial`, or a quick stand-in in tests."""

    num_epochs: int

    @property
    def epoch(self) -> int:
        """Epochs trained so far."""

    def run_epoch(self) -> dict[str, Any]:
        """Train an epoch; returns its record."""

    def finish(self) -> dict[str, Any]:
        """Write what is to be kept; returns the outcome."""


def open_trial(spec: TrialSpec) -> OpenTrial:
    """Open a trial with captune's own training code, on the GPU that Ray gave it, if it gave one.

    Raises:
        StudyError: torch does not see that GPU.
    """
    if ray.get_gpu_ids():
        require_gpu()
    return open_trial_anywhere(spec)


def open_trial_anywhere(spec: TrialSpec) -> OpenTrial:
    """`open_trial` on any device. Training code is imported here, because the driver needs none of it."""
    from captune.algorithms import method_named
    from captune.config import TaskConfig
    from captune.training.memory import reset_peaks
    from captune.training.trial import TrainingTrial, limit_threads

    limit_threads(spec.threads)
    reset_peaks()
    method = method_named(spec.method)
    return TrainingTrial.open(
        TaskConfig.parse(spec.task),
        method.config_class.parse(spec.config),
        algorithm=method,
        seed=spec.seed,
        directory=spec.path,
        role=spec.role,
        select_by=spec.select_by,
    )


class Member:
    """A trial that an actor trains: its spec and, once it is open, its lock, its training and the records to report.

    Attributes:
        spec: what the driver asked for.
        trial: its training; None before it is opened and after it is released.
        ended: whether it has reached its end, has failed or was ended by the driver.
        told: number of epochs that were reported to the driver.
        prepared: images decoded and encoded to open it, as on a node that joined later or whose store was removed.
    """

    def __init__(self, spec: TrialSpec) -> None:
        self.spec = spec
        self.trial: OpenTrial | None = None
        self.ended = False
        self.told = spec.reported
        self.prepared = Work()
        self._rows: dict[int, dict[str, Any]] = {}
        self._lock: IO[str] | None = None

    @property
    def due(self) -> int | None:
        """The next epoch to report; None if every one was reported or the trial is not open."""
        return self.told + 1 if self.trial is not None and self.told < self.trial.num_epochs else None

    def open(self, open_trial: Callable[[TrialSpec], OpenTrial]) -> None:
        """Open the trial, and read the records of epochs that were trained but not reported before a process died."""
        self._lock = _lock(self.spec.path)
        before = work_done()
        self.trial = open_trial(self.spec)
        self.prepared = work_done() - before
        self._rows = {row["epoch"]: row for row in _known_rows(self.spec.path) if row["epoch"] <= self.trial.epoch}

    def take(self, row: dict[str, Any]) -> None:
        """Keep the record of an epoch until it is reported."""
        self._rows[row["epoch"]] = row | _memory()

    def tell(self) -> dict[str, Any]:
        """Count the epoch that is due as reported; returns its record."""
        self.told += 1
        return self._rows.pop(self.told)

    def dropped(self) -> bool:
        """Whether the driver has ended the trial, which it shows by removing the trial's lock file."""
        return self._lock is not None and not (self.spec.path / TRIAL_LOCK).exists()

    def release(self) -> None:
        """Drop the trial and give back its lock."""
        self.trial = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None


class StudyTrainable(Trainable):
    """Trains the trials that its configuration names, together; an actor trains one pack of trials after another.

    It reports a pack epoch by epoch, and within an epoch in the order of the pack. Therefore a pack that was killed and
    continued, perhaps with some of its trials an epoch ahead, reports the same as an uninterrupted one.
    """

    def setup(self, config: dict[str, Any], open_trial: Callable[[TrialSpec], OpenTrial] = open_trial) -> None:
        """Take the first trials."""
        self._open_trial = open_trial
        self._take(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trials."""
        self._release()
        self._take(new_config)
        return True

    def _take(self, config: dict[str, Any]) -> None:
        self._members = [Member(spec) for spec in TrialSpec.pack_from_json(config[SPEC])]

    def step(self) -> dict[str, Any]:
        """Train until there is something to report, and return it; failures are reported, not raised.

        A long epoch is reported by itself. Short ones are gathered for `report_seconds`, but not past an epoch at which
        the scheduler decides. The last epochs are reported together with the outcome.

        Raises:
            RuntimeError: memory ran out for a pack; its trials are then tried again one by one.
        """
        self._report: list[dict[str, Any]] = []
        try:
            self._advance()
        except BaseException:
            self._release()
            raise
        if any("failed" in told for told in self._report):
            _free_memory()
        # Ray's own loggers read these; the driver reads only the payload.
        last: dict[str, Any] = self._report[-1] if self._report else {}
        shown = (last.get("rows") or [{}])[-1] | last.get("outcome", {})
        numbers = {key: value for key, value in shown.items() if isinstance(value, (int, float))}
        payload = json.dumps({"told": self._report, "node": platform.node()})
        return {**numbers, PAYLOAD: payload, "done": all(member.ended for member in self._members)}

    def _advance(self) -> None:
        """Open trials that are not open, and train until there is something to report."""
        began, seconds = time.perf_counter(), self._members[0].spec.report_seconds
        for member in self._members:
            if member.dropped():
                member.ended = True
                member.release()
            elif member.trial is None and not member.ended:
                with self._failing(member):
                    member.open(self._open_trial)
                if member.prepared != Work():
                    self._tell(member, prepared=asdict(member.prepared))
        while (due := min((member.due for member in self._alive if member.due is not None), default=0)) > 0:
            self._train_up_to(due)
            judged = False
            for member in self._alive:
                if member.trial is not None and member.due == due:
                    self._tell(member, rows=[member.tell()])
                    judged = judged or at_rung(due, member.trial.num_epochs)
            if self._finish() or judged or time.perf_counter() - began > seconds:
                return
        self._finish()

    @property
    def _alive(self) -> list[Member]:
        return [member for member in self._members if not member.ended]

    def _train_up_to(self, epoch: int) -> None:
        """Train every member up to this epoch; steps of a pack are taken together."""
        while owing := [m for m in self._alive if m.trial and m.due is not None and m.trial.epoch < epoch >= m.due]:
            trials: list[Any] = [member.trial for member in owing]
            if len(trials) == 1:
                with self._failing(owing[0]):
                    owing[0].take(trials[0].run_epoch())
                continue
            from captune.training.trial import run_epochs_together

            for member, record in zip(owing, run_epochs_together(trials), strict=True):
                with self._failing(member):
                    if isinstance(record, Exception):
                        raise record
                    member.take(record)

    def _finish(self) -> bool:
        """Finish the members whose epochs are all reported; returns whether there were any."""
        through = [member for member in self._alive if member.due is None]
        for member in through:
            with self._failing(member):
                assert member.trial is not None  # for the type checker: it has been opened
                started = time.perf_counter()
                while member.trial.epoch < member.trial.num_epochs:  # reported before, but newer than the checkpoint
                    member.trial.run_epoch()
                outcome = member.trial.finish()
                self._tell(member, outcome={**outcome, "seconds": time.perf_counter() - started})
                member.ended = True
                member.release()
        return bool(through)

    def _tell(self, member: Member, **what: Any) -> None:
        """Add to the report; consecutive records of one trial are one entry."""
        if not self._report or self._report[-1]["key"] != member.spec.key:
            self._report.append({"key": member.spec.key, "rows": []})
        self._report[-1]["rows"] += what.pop("rows", [])
        self._report[-1] |= what

    @contextlib.contextmanager
    def _failing(self, member: Member) -> Iterator[None]:
        """Report an error in the block (a bug, a full disk) as the failure of one trial; the others go on."""
        try:
            yield
        except (CaptuneError, ValueError, TypeError, KeyError, ArithmeticError, RuntimeError, OSError) as error:
            self._tell(member, failed=_failure(error))
            member.ended = True
            member.release()

    def cleanup(self) -> None:
        """Release all trials."""
        self._release()

    def _release(self) -> None:
        for member in self._members:
            member.release()


def _known_rows(directory: Path) -> list[dict[str, Any]]:
    """The records of a trial's epochs, the last of each."""
    path = directory / EPOCHS
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return list({row["epoch"]: row for row in rows}.values())


def _lock(directory: Path) -> IO[str]:
    """Lock a trial's directory against other processes; waits for a dying one to give its lock back.

    Raises:
        StudyError: another process keeps the lock.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = (directory / TRIAL_LOCK).open("w")
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.close()
                raise StudyError(
                    "one process at a time must train a trial",
                    got="another that still holds its lock",
                    where=directory,
                    next_step="End the other process.",
                ) from None
            time.sleep(0.1)


def _memory() -> dict[str, int]:
    """Peak memory in bytes of this process and, if it has a GPU, on the GPU; {} if the trial does not use torch."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    from captune.training.memory import resident_peak_bytes

    figures = {"memory_bytes": resident_peak_bytes()}
    if torch.cuda.is_available():
        # Reserved, not allocated: a recorded step keeps its memory whether or not it runs.
        figures["gpu_memory_bytes"] = int(torch.cuda.max_memory_reserved())
    return figures


def _free_memory() -> None:
    """Free the memory that a failed trial leaves behind, because other trials may share its GPU."""
    if "torch" in sys.modules:
        from captune.training.memory import free_memory

        free_memory()


def _failure(error: BaseException) -> dict[str, str]:
    reason = str(error) if isinstance(error, CaptuneError) else f"{type(error).__name__}: {error}"
    tail = "".join(traceback.format_exception(error))[-_TRACEBACK_CHARACTERS:]
    return {"reason": reason, "traceback": tail.replace(os.path.expanduser("~"), "~")}  # noqa: PTH111
