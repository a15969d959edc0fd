"""The Ray Tune trainable: one actor that trains trial after trial.

It reports epochs and an outcome; what they mean is decided by the driver. A trial's own files are the only thing it
needs to go on after its process died, so Tune's checkpoints stay off.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Protocol

import ray
from ray.tune import Trainable

from captune.data.build_once import Work, work_done
from captune.errors import CaptuneError, StudyError
from captune.records.layout import EPOCHS
from captune.tuning.gpus import require_gpu
from captune.tuning.schedulers import at_rung
from captune.tuning.specs import TrialSpec

SPEC = "spec"
PAYLOAD = "captune"
# An orphan of a killed driver lets go within seconds; a minute covers a slow node.
_LOCK_SECONDS = 60.0
_TRACEBACK_CHARACTERS = 4000


class OpenTrial(Protocol):
    """A trial that trains: `captune.training.trial.TrainingTrial`, or a quick stand-in in tests."""

    num_epochs: int

    @property
    def epoch(self) -> int:
        """Epochs trained so far."""

    def run_epoch(self) -> dict[str, Any]:
        """Train an epoch; its record."""

    def finish(self) -> dict[str, Any]:
        """Write what is to be kept; the outcome."""


def open_trial(spec: TrialSpec) -> OpenTrial:
    """Open a trial by captune's own training code, on the GPU that Ray gave it where it gave one.

    Raises:
        StudyError: torch does not see that GPU.
    """
    if ray.get_gpu_ids():
        require_gpu()
    return open_trial_anywhere(spec)


def open_trial_anywhere(spec: TrialSpec) -> OpenTrial:
    """The same, on whatever there is (training code is imported here: the driver needs none of it)."""
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


class StudyTrainable(Trainable):
    """Trains the trial its configuration names; an actor is used for one trial after another."""

    def setup(self, config: dict[str, Any], open_trial: Callable[[TrialSpec], OpenTrial] = open_trial) -> None:
        """Take the first trial."""
        self._open_trial = open_trial
        self._take(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial."""
        self._release()
        self._take(new_config)
        return True

    def _take(self, config: dict[str, Any]) -> None:
        self._spec = TrialSpec.from_json(config[SPEC])
        self._trial: OpenTrial | None = None
        self._made = Work()
        self._lock: IO[str] | None = None

    def step(self) -> dict[str, Any]:
        """Train until there is something to report, and report it; failures are reported, not raised.

        That is one epoch where epochs take long; short ones come together, as often as a person can follow, and always
        up to where the scheduler decides. The last come with the outcome.
        """
        rows: list[dict[str, Any]] = []
        payload: dict[str, Any] = {"rows": rows, "node": platform.node()}
        try:
            payload["outcome"] = self._advance(rows)
        except (CaptuneError, ValueError, TypeError, KeyError, ArithmeticError, RuntimeError, OSError) as error:
            # A bug or a full disk ends this trial with its reason; a study of others goes on.
            payload["failed"] = _failure(error)
        if self._made != Work():
            # A node that joined later, or whose store was removed: what it made is counted as well.
            payload["prepared"], self._made = asdict(self._made), Work()
        done = bool(payload.get("outcome") or payload.get("failed"))
        if done:
            self._release()
        if "failed" in payload:
            _free_memory()
        # For Ray's own loggers; the driver reads the payload alone.
        shown = (rows[-1] if rows else {}) | (payload.get("outcome") or {})
        numbers = {key: value for key, value in shown.items() if isinstance(value, (int, float))}
        return {**numbers, PAYLOAD: json.dumps(payload), "done": done}

    def _advance(self, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
        """Open the trial or train on, adding records to `rows`; the outcome once it has ended."""
        began = time.perf_counter()
        trial = self._trial
        if trial is None:
            self._lock = _lock(self._spec.path)
            worked = work_done()
            trial = self._trial = self._open_trial(self._spec)
            self._made = work_done() - worked
            # Epochs that were trained but not reported when a process died: their records lie in the trial's directory.
            rows += [row for row in _known_rows(self._spec.path) if self._spec.reported < row["epoch"] <= trial.epoch]
            if rows and trial.epoch < trial.num_epochs:
                return None
        while trial.epoch < trial.num_epochs:
            rows.append(trial.run_epoch() | _memory())
            judged = at_rung(trial.epoch, trial.num_epochs)
            if trial.epoch < trial.num_epochs and (judged or time.perf_counter() - began > self._spec.report_seconds):
                return None
        started = time.perf_counter()
        outcome = trial.finish()
        return {**outcome, "seconds": time.perf_counter() - started}

    def cleanup(self) -> None:
        """Let go of the trial."""
        self._release()

    def _release(self) -> None:
        self._trial = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _known_rows(directory: Path) -> list[dict[str, Any]]:
    """The records of a trial's epochs, the last of each."""
    path = directory / EPOCHS
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return list({row["epoch"]: row for row in rows}.values())


def _lock(directory: Path) -> IO[str]:
    """Keep other processes out of a trial's directory, waiting for a dying one.

    Raises:
        StudyError: another process keeps it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = (directory / ".lock").open("w")
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
    """Peak memory of the trial's process while it ran, and of its GPU, where it has one."""
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
    """Give back what a failed trial leaves, where it trained: others share the GPU."""
    if "torch" in sys.modules:
        from captune.training.memory import free_memory

        free_memory()


def _failure(error: BaseException) -> dict[str, str]:
    reason = str(error) if isinstance(error, CaptuneError) else f"{type(error).__name__}: {error}"
    tail = "".join(traceback.format_exception(error))[-_TRACEBACK_CHARACTERS:]
    return {"reason": reason, "traceback": tail.replace(os.path.expanduser("~"), "~")}  # noqa: PTH111
