"""Publish progress outside the driver: Ray's metrics, TensorBoard logs, standings for `captune status ADDRESS`."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray.util.metrics import Gauge

from captune.records import Epoch, Event, Phase, State, Trial
from captune.records.events import Finished
from captune.records.layout import TENSORBOARD
from captune.tuning import ray_internals
from captune.tuning.cell import Cell
from captune.tuning.progress import Standing, standing
from captune.tuning.specs import TrialSpec
from captune.tuning.trainable import PAYLOAD, SPEC

METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "captune_trials": ("trials by state", ("state", "cell")),
    "captune_best_score": ("best selection score so far", ("cell",)),
    "captune_zero_shot": ("selection score of zero-shot", ("cell",)),
    "captune_steps_per_second": ("training steps per second", ("cell", "trial")),
    "captune_images_per_second": ("images per second, all streams", ("cell", "trial")),
    "captune_epoch": ("epochs trained", ("cell", "trial")),
    "captune_pseudolabel_balance": ("normalised entropy of the pseudolabel counts", ("cell", "trial")),
    "captune_gpu_memory_bytes": ("peak memory of the trial's GPU process", ("cell", "trial")),
}
"""Gauges by name: help and labels. Ray shows them as `ray_<name>` on each node's metrics port."""

_TRIAL_METRICS = [name for name, (_, labels) in METRICS.items() if "trial" in labels]
_EVERY_SECONDS = 2.0
_NAMESPACE = "captune"
_KEY = "standings:"


def logger_callbacks(loggers: Sequence[str], cells: Sequence[Cell]) -> list[Any]:
    """Ray's own callbacks for the loggers that are services (MLflow, Weights & Biases)."""
    project = cells[0].name if len(cells) == 1 else "captune"
    callbacks: list[Any] = []
    if "mlflow" in loggers:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        callbacks.append(_readable(MLflowLoggerCallback)(experiment_name=project))
    if "wandb" in loggers:
        from ray.air.integrations.wandb import WandbLoggerCallback

        callbacks.append(_readable(WandbLoggerCallback)(project=project, excludes=[PAYLOAD]))
    return callbacks


def _readable(callback: type[Any]) -> type[Any]:
    """A subclass of one of Ray's callbacks that logs a trial's hyperparameters, not its TrialSpec, and its failure."""

    class Readable(callback):
        def log_trial_start(self, trial: Any) -> None:
            # These callbacks are only used where every worker trains one trial at a time.
            (order,) = TrialSpec.pack_from_json(trial.config[SPEC])
            whole, trial.config = trial.config, order.hyperparameters()
            try:
                super().log_trial_start(trial)
            finally:
                trial.config = whole

        def log_trial_end(self, trial: Any, failed: bool = False) -> None:
            reported = json.loads((trial.last_result or {}).get(PAYLOAD, '{"told": []}'))
            super().log_trial_end(trial, failed or any("failed" in told for told in reported["told"]))

    return Readable


@contextlib.contextmanager
def telemetry(
    cells: Sequence[Cell], *, loggers: Sequence[str] = (), concurrency: int = 1
) -> Iterator[Callable[[], None]]:
    """Publish the progress of studies while the block runs; yields a function to call in every iteration of a loop."""
    publisher = Publisher(cells, concurrency=concurrency)
    boards = [TensorBoard(cell) for cell in cells] if "tensorboard" in loggers else []
    try:
        yield publisher.publish
    finally:
        publisher.publish(now=True)
        for board in boards:
            board.close()


class Publisher:
    """Sets the gauges and writes the standings to Ray's key-value store, at most every two seconds."""

    def __init__(self, cells: Sequence[Cell], *, concurrency: int) -> None:
        self._cells = list(cells)
        self._concurrency = concurrency
        self._gauges = {name: Gauge(name, help_, labels) for name, (help_, labels) in METRICS.items()}
        self._published = 0.0
        self._steps: dict[tuple[str, str], dict[str, float]] = {}
        self._identity = ray.get_runtime_context().get_job_id()
        for cell in cells:
            cell.listeners.append(self._listener(cell))

    def publish(self, now: bool = False) -> None:
        """Publish, unless the last time was less than two seconds ago; with `now`, always."""
        if not now and time.monotonic() - self._published < _EVERY_SECONDS:
            return
        self._published = time.monotonic()
        standings = [standing(cell, concurrency=self._concurrency) for cell in self._cells]
        for cell, how in zip(self._cells, standings, strict=True):
            self._publish_cell(cell, how)
        for (cell_name, trial), values in self._steps.items():
            for name, value in values.items():
                self._gauges[name].set(value, {"cell": cell_name, "trial": trial})
        self._steps.clear()
        # If the cluster is lost, the store is lost too. The study's own error explains that better.
        with contextlib.suppress(Exception):
            told = json.dumps([asdict(how) for how in standings])
            ray_internals.put_value(_KEY + self._identity, told, namespace=_NAMESPACE)

    def _publish_cell(self, cell: Cell, how: Standing) -> None:
        states = Counter(trial.state for trial in cell.trials.values())
        states[State.RUNNING] = len(cell.active)
        for state in (State.RUNNING, State.COMPLETE, State.PRUNED, State.FAILED):
            self._gauges["captune_trials"].set(states[state], {"state": state.value, "cell": cell.name})
        for name, value in (("captune_best_score", how.best), ("captune_zero_shot", how.zero_shot)):
            if value is not None:
                self._gauges[name].set(value, {"cell": cell.name})

    def _listener(self, cell: Cell) -> Callable[[Event, Trial | None], None]:
        def note(event: Event, trial: Trial | None) -> None:
            if trial is None or trial.phase is Phase.REFERENCE:
                return
            if isinstance(event, Epoch):
                self._steps[cell.name, trial.key] = _figures(event, trial)
            elif isinstance(event, Finished):
                self._steps[cell.name, trial.key] = dict.fromkeys(_TRIAL_METRICS, 0.0)

        return note


def _figures(event: Epoch, trial: Trial) -> dict[str, float]:
    figures = {"captune_epoch": float(event.epoch)}
    if event.seconds:
        figures["captune_steps_per_second"] = trial.config.get("steps_per_epoch", 0) / event.seconds
        figures["captune_images_per_second"] = (event.values.get("images") or 0) / event.seconds
    for name, metric in (("balance", "pseudolabel_balance"), ("gpu_memory_bytes", "gpu_memory_bytes")):
        if event.values.get(name) is not None:
            figures[f"captune_{metric}"] = event.values[name]
    return figures


class CurveFile:
    """A TensorBoard event file.

    tensorboardX's own writer has three threads per file and sends every number through a pipe to one of them. With a
    hundred trials at once that is most of a report's cost. This class writes the numbers of an epoch as one record.
    """

    def __init__(self, directory: Path) -> None:
        # Imported here, because it imports protobuf.
        from tensorboardX.event_file_writer import EventsWriter

        directory.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(directory / "events"))
        self._flushed = 0.0

    def write(self, step: int, numbers: dict[str, float], wall_time: float) -> None:
        """Add the numbers of a step."""
        from tensorboardX.proto.event_pb2 import Event as Record
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._file.write_event(Record(wall_time=wall_time, step=step, summary=Summary(value=values)))
        if time.monotonic() - self._flushed > _EVERY_SECONDS:
            self._flushed = time.monotonic()
            self._file.flush()

    def close(self) -> None:
        """Write what is left."""
        self._file.close()


class TensorBoard:
    """Writes every epoch's numbers of a study to `tensorboard/<trial>` in its directory."""

    def __init__(self, cell: Cell) -> None:
        self._root = cell.directory / TENSORBOARD
        self._writers: dict[str, CurveFile] = {}
        cell.listeners.append(self._note)

    def _note(self, event: Event, trial: Trial | None) -> None:
        if trial is None:
            return
        if isinstance(event, Epoch):
            writer = self._writers.get(trial.key)
            if writer is None:
                writer = self._writers[trial.key] = CurveFile(self._root / trial.key)
            values = {"score": event.score, **event.values}
            numbers = {name: float(value) for name, value in values.items() if isinstance(value, (int, float))}
            writer.write(event.epoch, numbers, event.time or time.time())
        elif isinstance(event, Finished) and trial.key in self._writers:
            self._writers.pop(trial.key).close()

    def close(self) -> None:
        """Write what is left."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()


def published_standings() -> list[Standing]:
    """The standings that drivers wrote to the connected cluster's store, those of the latest drivers last."""
    found = sorted(ray_internals.values_of(_KEY, namespace=_NAMESPACE).items())
    return [Standing(**values) for _, text in found for values in json.loads(text)]
