"""What others show of a study: optuna-dashboard, TensorBoard, MLflow and Weights & Biases."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.tune.logger import LoggerCallback

from captune.errors import UsageError
from captune.records import State
from captune.records.layout import OPTUNA_COPY
from captune.tuning.cluster import connected
from captune.tuning.engine import Allotment, run_cells
from captune.tuning.loggers import check_loggers
from captune.tuning.mirror import KEY
from captune.tuning.telemetry import METRICS, TensorBoard, logger_callbacks, telemetry
from tests.tuning.fakes import FakeTrial
from tests.tuning.simulate import drive, make_cell, outcomes
from tests.tuning.simulate import epochs as scores_of_epochs
from tests.tuning.test_engine import new_cell
from tests.tuning.test_open_study import open_study
from tests.waiting import free_port

# optuna-dashboard


def ask(address: str) -> Any:
    with urllib.request.urlopen(f"http://{address}", timeout=30) as answer:
        return json.load(answer)


@pytest.fixture
def dashboard(tmp_path: Path) -> Iterator[str]:
    """optuna-dashboard over the storage of a study with finished, stopped and failed trials."""
    opened = open_study(tmp_path / "run", trials=14, confirm_top=1, confirm_seeds=1)
    drive(opened.cell, fail="t0003")
    opened.close()
    address = f"127.0.0.1:{free_port()}"
    copy = tmp_path / "run" / OPTUNA_COPY
    command = [sys.executable, "-c", "from optuna_dashboard._cli import main; main()", str(copy)]
    server = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", address.rpartition(":")[2]],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                ask(f"{address}/api/studies")
                break
            except OSError:
                time.sleep(0.1)
        yield address
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow
def test_optuna_dashboard_shows_the_study_with_its_states_values_and_curves(tmp_path: Path, dashboard: str) -> None:
    (summary,) = ask(f"{dashboard}/api/studies")["study_summaries"]
    assert summary["study_name"].startswith("fake-ul-fake-")
    shown = ask(f"{dashboard}/api/studies/{summary['study_id']}")
    assert shown["directions"] == ["maximize"]
    searched = sorted((e for e in outcomes(tmp_path / "run") if e["phase"] == "search"), key=lambda e: e["number"])
    states = {State.COMPLETE: "Complete", State.PRUNED: "Pruned", State.FAILED: "Fail"}
    assert {end["state"] for end in searched} == set(states)
    curves = scores_of_epochs(tmp_path / "run")
    for trial, end in zip(shown["trials"], searched, strict=True):
        attributes = {entry["key"]: entry["value"] for entry in trial["user_attrs"]}
        assert attributes[KEY] == end["key"]
        assert trial["state"] == states[end["state"]]
        assert trial.get("values") == (None if end["state"] == State.FAILED else [end["score"]])
        curve = {entry["step"]: entry["value"] for entry in trial["intermediate_values"]}
        assert curve == {epoch: score for (key, epoch), (score, _) in curves.items() if key == end["key"]}
        if end["state"] == State.PRUNED:
            assert attributes["step"] == str(end["score_epoch"])
        if end["state"] == State.FAILED:
            assert attributes["reason"] == end["reason"]


# TensorBoard


def test_tensorboard_logs_hold_the_numbers_of_every_epoch(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    cell = make_cell(tmp_path)
    board = TensorBoard(cell)
    drive(cell)
    board.close()
    (file,) = (tmp_path / "tensorboard" / "t0000").glob("events.out.*")
    data, at, found = file.read_bytes(), 0, {}
    while at < len(data):
        # A record: length (8 bytes), its checksum (4), the event, its checksum (4).
        length = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + length])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        at += 16 + length
    scores = {epoch: score for (key, epoch), (score, _) in scores_of_epochs(tmp_path).items() if key == "t0000"}
    assert {step: value for (tag, step), value in found.items() if tag == "score"} == pytest.approx(scores)
    assert {"loss", "balance", "learning_rate", "num_confident"} <= {tag for tag, _ in found}


# Ray's metrics


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_gauges_of_a_study_are_served_by_the_nodes_metrics_port(tmp_path: Path) -> None:
    cell = new_cell(tmp_path, "watched-ul-fake", trials=4, confirm_top=0, scheduler="none")
    with connected(None, threads=1, dashboard=False, cpus=1) as cluster:
        (node,) = ray.nodes()
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with telemetry([cell]) as on_step:
            # Slow enough for Ray, which collects every ten seconds, to see a run in the middle.
            assert run_cells(
                [cell], cluster, Allotment(1), open_trial=partial(FakeTrial, pause=1.0), on_step=on_step,
            )  # fmt: skip
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                with urllib.request.urlopen(address, timeout=30) as answer:
                    served = answer.read().decode()
                if re.search(r'^ray_captune_trials\{.*state="COMPLETE".*\} 6\.0$', served, re.MULTILINE):
                    break
                on_step()
                time.sleep(1)
    lines = [line for line in served.splitlines() if line.startswith("ray_captune_")]
    assert all('cell="watched-ul-fake"' in line for line in lines)
    names = {line.partition("{")[0].removeprefix("ray_") for line in lines}
    assert names == METRICS.keys()
    values = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines if "trial=" not in line}
    assert values["ray_captune_zero_shot"] == pytest.approx(0.7)
    best = max(end["score"] for end in outcomes(tmp_path) if end["phase"] == "search")
    assert values["ray_captune_best_score"] == pytest.approx(best)


# Services, through Ray's own callbacks


@pytest.mark.parametrize("name", ["mlflow", "wandb", "tensorboard"])
def test_a_logger_whose_package_is_missing_is_told_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=rf"--logger {name} must find the package .* Run `pip install"):
        check_loggers(f"none,{name}")
    assert check_loggers("none") == ("none",)


class Recorder(LoggerCallback):
    """Stands in for the callback of a service: notes what it was made with and told."""

    made: dict[str, Any]
    told: list[tuple[str, Any]]

    def __init__(self, **made: Any) -> None:
        Recorder.made, Recorder.told = made, []

    def log_trial_start(self, trial: Any) -> None:
        Recorder.told.append((str(trial), dict(trial.config)))

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        Recorder.told.append((str(trial), failed))


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_mlflow_and_wandb_are_told_hyperparameters_scores_and_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr("ray.air.integrations.wandb.WandbLoggerCallback", Recorder)
    cell = new_cell(tmp_path / "run", "logged-ul-fake", trials=3, confirm_top=0, scheduler="none")
    with connected(None, threads=1, dashboard=False, cpus=1) as cluster:
        callbacks = logger_callbacks(("mlflow", "wandb"), [cell])
        assert run_cells(
            [cell], cluster, Allotment(1), open_trial=partial(FakeTrial, fail="t0001"), callbacks=callbacks
        )
    ends = {end["key"]: end for end in outcomes(tmp_path / "run")}

    (experiment,) = mlflow.search_experiments(filter_string="name = 'logged-ul-fake'")
    runs = {run.data.params["key"]: run for run in mlflow.search_runs([experiment.experiment_id], output_format="list")}
    assert runs.keys() == ends.keys()
    for key, run in runs.items():
        assert run.info.run_name == f"logged-ul-fake-{key}"
        assert run.info.status == ("FAILED" if ends[key]["state"] == State.FAILED else "FINISHED")
        assert float(run.data.params["learning_rate"]) == pytest.approx(ends[key]["config"]["learning_rate"])
        if ends[key]["state"] == State.COMPLETE:
            assert run.data.metrics["score"] == pytest.approx(ends[key]["score"])

    assert Recorder.made["project"] == "logged-ul-fake"
    started = dict(entry for entry in Recorder.told if isinstance(entry[1], dict))
    assert started["logged-ul-fake-t0002"]["learning_rate"] == ends["t0002"]["config"]["learning_rate"]
    assert "run" not in started["logged-ul-fake-t0002"], "a worker's order is no hyperparameter"
    assert [name for name, failed in Recorder.told if failed is True] == ["logged-ul-fake-t0001"]
