"""Run directories as a study would leave them, from a small simulator with a known best configuration."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from captune.decisions.choosing import choose
from captune.records import SCHEMA_VERSION, Journal, State, StudyRecord, read_journal
from tests.journals import append

SPACE = {
    "learning_rate": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True},
    "margin_scale": {"type": "float", "low": 0.0, "high": 16.0},
    "num_main_samples": {"type": "int", "low": 1, "high": 16},
    "leaderboard": {"type": "choice", "choices": ["published", "exclusive"]},
}
ZERO_SHOT = 0.70
NUM_CLASSES = 4


def quality(params: dict[str, Any]) -> float:
    """True accuracy: best 0.80 at learning rate 1e-2, k = 4; the margin hardly matters."""
    away = (math.log10(params["learning_rate"]) + 2) ** 2 / 4 + ((params["num_main_samples"] - 4) / 12) ** 2
    return 0.80 - 0.15 * away - 0.001 * params["margin_scale"] + 0.005 * (params["leaderboard"] == "exclusive")


class FakeStudy:
    """Writes one run's journal with the public `Journal`; every number follows from the seed."""

    def __init__(self, directory: Path, *, seed: int = 0, paradigm: str = "ul", method: str = "cap",
                 select_by: str = "agree-balanced", noise: float = 0.012, dataset: str = "digits",
                 shift: float = 0.0, start: float = 1_000_000.0) -> None:  # fmt: skip
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.noise, self.shift = directory, noise, shift
        self.generator = np.random.default_rng(seed)
        self.journal = Journal(directory / "journal.jsonl", durable=False)
        self.clock = start
        self.configs: dict[int, dict[str, Any]] = {}
        self.metric_of: dict[str, float] = {}
        self.metric_name = "harmonic_mean" if paradigm == "trzsl" else "accuracy"
        study = {"task": {"dataset": dataset, "paradigm": paradigm, "holdout_fraction": 0.2}, "method": method,
                 "seed": seed, "trials": 12, "confirm_top": 3, "confirm_seeds": 3}  # fmt: skip
        self.write("study_opened", schema=SCHEMA_VERSION, study=study, space=SPACE, versions={"captune": "0.1.0"},
                   git="0" * 40, host="testhost", metric_name=self.metric_name, num_classes=NUM_CLASSES,
                   class_names=["zero", "one", "two", "three"], num_pool=1000, num_test=540, select_by=select_by,
                   criterion_help="agreement with half-Sinkhorn zero-shot")  # fmt: skip

    def write(self, event: str, **fields: Any) -> None:
        self.clock += 1.0
        append(self.journal, event, time=self.clock, **fields)

    def plan(self, key: str, phase: str, *, number: int | None = None, config_id: int | None = None,
             origin: str = "sampler", params: dict[str, Any] | None = None, seed: int | None = None,
             role: str = "score", task_overrides: dict[str, Any] | None = None) -> None:  # fmt: skip
        params = params or {}
        config = {"epochs": 4, "batch_size": 32, **params} if params else {}
        self.write("planned", key=key, phase=phase, number=number, config_id=config_id, origin=origin, params=params,
                   config=config, seed=seed, role=role, task_overrides=task_overrides or {})  # fmt: skip

    def references(self, *, zero_shot: float = 0.85, balanced: float = 1.0, balanced_metric: float = 0.715) -> None:
        for key, score, agree, metric in (
            ("zero_shot", zero_shot, 1.0, ZERO_SHOT + self.shift),
            ("balanced", balanced, 0.86, balanced_metric + self.shift),
        ):
            self.plan(key, "reference", origin="reference", seed=0)
            self.write("started", key=key, node="node-a", attempt=1)
            self.metric_of[key] = metric
            self.write("finished", key=key, state=State.COMPLETE, score=score, score_epoch=0, fidelity=1.0, seconds=0.5,
                       scores={"agree-balanced": score, "agree-zero-shot": agree, "infomax": 1.0}, node="node-a",
                       reason=None, traceback=None, num_parameters=0)  # fmt: skip

    def sample(self) -> dict[str, Any]:
        g = self.generator
        return {
            "learning_rate": float(10 ** g.uniform(-4, -1)),
            "margin_scale": float(g.uniform(0, 16)),
            "num_main_samples": int(g.integers(1, 17)),
            "leaderboard": str(g.choice(["published", "exclusive"])),
        }

    def train(self, key: str, params: dict[str, Any], *, stop: bool = False, offset: float = 0.0) -> None:
        """Epochs and an end for a planned key."""
        true = quality(params) + self.shift + offset
        metric = true + self.generator.normal(0, self.noise)
        score = min(0.999, 0.85 + (true - ZERO_SHOT - self.shift) + self.generator.normal(0, self.noise))
        self.write("started", key=key, node="node-a", attempt=1)
        last = 1 if stop else 4
        for epoch in range(1, last + 1):
            value = 0.85 + (score - 0.85) * epoch / 4
            self.write("epoch", key=key, epoch=epoch, fidelity=epoch / 4, score=value,
                       scores={"agree-balanced": value, "agree-zero-shot": 0.9, "infomax": 2 - value},
                       loss=2.0 / epoch, num_confident=10 * epoch, balance=0.9 + 0.02 * epoch, learning_rate=0.01,
                       seconds=0.4, images=480, decision="stop" if epoch == last else "continue")  # fmt: skip
        final = 0.85 + (score - 0.85) * last / 4
        self.metric_of[key] = metric
        self.write("finished", key=key, state=State.PRUNED if stop else State.COMPLETE, score=final, score_epoch=last,
                   scores={"agree-balanced": final, "agree-zero-shot": 0.9, "infomax": 2 - final},
                   fidelity=last / 4, seconds=1.7, node="node-a", reason="stopped by asha at epoch 1" if stop else None,
                   traceback=None, num_parameters=1234)  # fmt: skip

    def search(self, num_trials: int = 12, *, stop_every: int = 0, fail: int | None = None) -> None:
        for number in range(num_trials):
            key = f"t{number:04d}"
            paper = number == 0
            params = self.sample()
            if paper:
                params = {
                    "learning_rate": 0.01,
                    "margin_scale": 12.0,
                    "num_main_samples": 16,
                    "leaderboard": "published",
                }
            self.configs[number] = params
            self.plan(key, "search", number=number, config_id=number, origin="paper" if paper else "sampler",
                      params=params, seed=0)  # fmt: skip
            if number == fail:
                self.write("started", key=key, node="node-a", attempt=1)
                self.write("finished", key=key, state=State.FAILED, score=None, score_epoch=None, scores={},
                           fidelity=0.25, seconds=0.3, node="node-a", reason="loss became NaN in epoch 1",
                           traceback="…", num_parameters=None)  # fmt: skip
                continue
            self.train(key, params, stop=bool(stop_every) and number % stop_every == stop_every - 1)
        self.write("phase", name="search", detail={"trials": num_trials})

    def confirm(self, config_ids: list[int], seeds: int = 3) -> None:
        for config_id in config_ids:
            for seed in range(1, seeds + 1):
                key = f"c{config_id}-s{seed}"
                self.plan(key, "confirm", config_id=config_id, origin="paper" if config_id == 0 else "sampler",
                          params=self.configs[config_id], seed=seed)  # fmt: skip
                self.train(key, self.configs[config_id])
        self.write("phase", name="confirm", detail={"configurations": config_ids})

    def stress(self, config_id: int) -> None:
        for name, overrides, loss in (
            ("imbalance10", {"pool_imbalance": 10.0}, -0.02),
            ("imbalance50", {"pool_imbalance": 50.0}, -0.05),
            ("pool25", {"pool_fraction": 0.25}, -0.03),
            ("pool50", {"pool_fraction": 0.5}, -0.01),
        ):
            key = f"x{config_id}-{name}-s1"
            self.plan(
                key, "stress", config_id=config_id, params=self.configs[config_id], seed=1, task_overrides=overrides
            )
            self.train(key, self.configs[config_id], offset=loss)

    def choice(self, **fields: Any) -> None:
        self.write("choice", **fields)

    def choose(self) -> None:
        """Choose by the rule."""
        record = StudyRecord(self.directory, read_journal(self.directory / "journal.jsonl"))
        self.clock += 1.0
        self.journal.append(replace(choose(record).as_event(), time=self.clock))

    def open_seal(self) -> None:
        self.write("phase", name="sealed_opened", detail={})
        for key, metric in self.metric_of.items():
            recall = np.clip([metric + 0.1, metric, metric - 0.2, metric + 0.1], 0, 1)
            wrong = 40 if key in ("zero_shot", "balanced") else 15
            self.write("report", key=key, metrics={
                "metric": metric, "accuracy": metric, "seen_accuracy": None, "unseen_accuracy": None,
                "per_class_recall": recall, "worst_class_recall": float(recall.min()), "ece": 0.05,
                "prediction_balance": 0.97, "prediction_cv": 0.2, "agreement_zero_shot": 0.85,
                "confused_pairs": [["two", "three", wrong], ["zero", "one", 5]]})  # fmt: skip

    def best_of_search(self, count: int = 3) -> list[int]:
        return sorted(self.configs, key=lambda number: -self.metric_of.get(f"t{number:04d}", 0.0))[:count]

    def close(self) -> Path:
        self.journal.close()
        return self.directory


def whole_study(directory: Path, *, trials: int = 12, **options: Any) -> Path:
    """A study with everything: references, stopped and failed trials, confirmation, stress, the seal opened."""
    study = FakeStudy(directory, **options)
    study.references()
    study.search(trials, stop_every=5, fail=6)
    study.confirm(sorted({0, *study.best_of_search()}))
    study.stress(study.best_of_search(1)[0])
    study.choose()
    study.open_seal()
    return study.close()
