"""A run of milliseconds with the files and the manners of a real one: checkpoint, epoch records, resume."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any

from captune.config import StudyConfig, TaskConfig, TrialConfig
from captune.errors import TrainingFailed
from captune.tuning.specs import CellInfo, TrialSpec
from tests.waiting import wait_until

SPACE = """
method: fake
parameters:
  learning_rate: {type: float, low: 0.001, high: 0.1, log: true}
  weight_decay: {type: float, low: 0.0001, high: 0.1, log: true, role: nuisance}
  epochs: {type: int, unit: budget, low: 0.5, high: 1.5}
"""


class FakeTrial:
    """A smooth function of the configuration, known at every epoch; an epoch takes `pause` and says `seconds`."""

    def __init__(self, spec: TrialSpec, *, pause: float = 0.0, fail: str = "", seconds: float | None = None) -> None:
        self.spec = spec
        self.seconds = pause if seconds is None else seconds
        self.pause, self.fail = pause, fail
        self.num_epochs = 0 if spec.method in ("zero_shot", "balanced") else int(spec.config["epochs"])
        self.state = spec.path / "resume.json"
        spec.path.mkdir(parents=True, exist_ok=True)
        self.epoch = json.loads(self.state.read_text())["epoch"] if self.state.exists() else 0
        with (spec.path / "opened.txt").open("a") as file:
            file.write(f"{os.getpid()} {self.epoch}\n")

    def score(self, epoch: int) -> float:
        rate = math.log10(self.spec.config["learning_rate"])
        decay = math.log10(self.spec.config["weight_decay"])
        noise = math.sin(1000 * rate + self.spec.seed) / 100
        return 0.9 - 0.1 * (rate + 1.7) ** 2 - 0.02 * (decay + 3) ** 2 + noise - 0.2 / (epoch + 1)

    def run_epoch(self) -> dict[str, Any]:
        if self.fail and self.spec.key.startswith(self.fail):
            raise TrainingFailed("the loss must stay finite", got="nan")
        if self.pause:
            time.sleep(self.pause)
        self.epoch += 1
        score = self.score(self.epoch)
        row = {
            "epoch": self.epoch, "fidelity": self.epoch / self.num_epochs, "score": score, "scores": {"fake": score},
            "loss": 1 - score, "num_confident": 10, "balance": 0.9, "learning_rate": 0.1,
            "seconds": self.seconds, "images": 64,
        }  # fmt: skip
        with (self.spec.path / "epochs.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        # Whole or not at all, as a checkpoint; but without the fsync, which would be all that is measured.
        part = self.state.with_suffix(".part")
        part.write_text(json.dumps({"epoch": self.epoch}))
        part.replace(self.state)
        return row

    def finish(self) -> dict[str, Any]:
        score = self.score(self.num_epochs) if self.num_epochs else 0.7
        return {"score": score, "scores": {"fake": score}, "num_parameters": 3, "prediction_balance": 0.9}


def opened_by(directory: Path) -> list[str]:
    """The process of each opening of a trial of a study."""
    opened = sorted(directory.glob("trials/*/opened.txt"))
    return [line.split()[0] for file in opened for line in file.read_text().splitlines()]


class Gathering(FakeTrial):
    """Trains only once processes of its study have opened trials, however long they take to start."""

    def __init__(self, spec: TrialSpec, *, processes: int, pause: float = 0.0) -> None:
        super().__init__(spec, pause=pause)
        self.processes = processes

    def run_epoch(self) -> dict[str, Any]:
        study_directory = self.spec.path.parents[1]
        with contextlib.suppress(TimeoutError):  # then the test sees that they were too few
            wait_until(lambda: len(set(opened_by(study_directory))) >= self.processes, seconds=120)
        return super().run_epoch()


def open_fake(spec: TrialSpec) -> FakeTrial:
    return FakeTrial(spec)


def open_slow(spec: TrialSpec) -> FakeTrial:
    return FakeTrial(spec, pause=0.05)


def study(**settings: Any) -> StudyConfig:
    return StudyConfig(task=TaskConfig(dataset="fake", paradigm="ul"), method="fake", **settings)


def info(name: str = "fake-ul-fake", epochs: int = 4, **changes: Any) -> CellInfo:
    base = TrialConfig(epochs=epochs, weight_decay=0.01)
    facts: dict[str, Any] = {
        "name": name, "base": base, "references": (("zero_shot", "zero_shot", base), ("balanced", "balanced", base)),
        "num_classes": 2, "class_names": ("a", "b"), "num_pool": 100, "num_scored": 20, "num_test": 50,
        "class_size": 50,
        "metric_name": "accuracy", "criterion": "fake", "criterion_help": "a smooth function",
    }  # fmt: skip
    return CellInfo(**{**facts, **changes})


def space_path(directory: Path) -> Path:
    path = directory / "space.yaml"
    path.write_text(SPACE)
    return path
