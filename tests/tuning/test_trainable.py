"""The actor's reports: short epochs come together, long ones one by one, and never past a decision."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from captune.tuning.schedulers import Halving, at_rung
from captune.tuning.specs import TrialSpec
from captune.tuning.trainable import PAYLOAD, SPEC, StudyTrainable
from tests.tuning.fakes import FakeTrial, info


def actor(directory: Path, *, epochs: int, report_seconds: float = 600.0, **manners: Any) -> StudyTrainable:
    spec = TrialSpec(
        cell="fake", key="t0001", directory=str(directory), method="fake", task={}, seed=0, role="score",
        config=info(epochs=epochs).base.model_dump(mode="json"), select_by="auto", reported=0, attempt=1, threads=1,
        report_seconds=report_seconds,
    )  # fmt: skip
    trainable = StudyTrainable.__new__(StudyTrainable)
    trainable.setup({SPEC: TrialSpec.pack_to_json([spec])}, open_trial=partial(FakeTrial, **manners))
    return trainable


def reports(trainable: StudyTrainable) -> list[dict[str, Any]]:
    """Every report of a run up to its end."""
    found = []
    while not found or not found[-1]["done"]:
        result = trainable.step()
        (told,) = json.loads(result[PAYLOAD])["told"]
        found.append(told | {"done": result["done"]})
    return found


def test_short_epochs_are_reported_together_up_to_each_rung_and_the_last_with_the_outcome(tmp_path: Path) -> None:
    found = reports(actor(tmp_path, epochs=20))
    assert [[row["epoch"] for row in report["rows"]] for report in found] == [
        [1, 2, 3, 4, 5], [6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16, 17, 18, 19, 20],
    ]  # fmt: skip
    assert ["outcome" in report for report in found] == [False, False, True]


def test_long_epochs_are_reported_one_by_one(tmp_path: Path) -> None:
    found = reports(actor(tmp_path, epochs=4, pause=0.11, report_seconds=0.1))
    assert [[row["epoch"] for row in report["rows"]] for report in found] == [[1], [2], [3], [4]]


def test_where_many_trials_run_each_gathers_its_epochs_for_longer(tmp_path: Path) -> None:
    found = reports(actor(tmp_path, epochs=4, pause=0.11, report_seconds=60.0))
    assert [[row["epoch"] for row in report["rows"]] for report in found] == [[1], [2], [3, 4]], "rungs come at once"


def test_epochs_before_a_failure_are_reported_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train = FakeTrial.run_epoch

    def fails_at_three(run: FakeTrial) -> dict[str, Any]:
        if run.epoch == 2:
            raise RuntimeError("the loss must stay finite")
        return train(run)

    monkeypatch.setattr(FakeTrial, "run_epoch", fails_at_three)
    (report,) = reports(actor(tmp_path, epochs=20))
    assert [row["epoch"] for row in report["rows"]] == [1, 2]
    assert "must stay finite" in report["failed"]["reason"]


@pytest.mark.parametrize("num_epochs", range(1, 31))
def test_a_report_ends_wherever_a_trial_may_be_stopped(num_epochs: int) -> None:
    halving = Halving()
    for epoch in range(1, num_epochs + 1):
        before = len(halving._passed), dict(halving._passed)
        halving.enter("run", epoch / num_epochs, 0.5)
        assert at_rung(epoch, num_epochs) == (before != (len(halving._passed), halving._passed))
