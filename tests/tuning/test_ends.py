"""Ends on a real Ray: a trial that hangs, a request to stop."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from captune.errors import StudyError
from captune.tuning.allotment import Allotment
from captune.tuning.cluster import connected
from captune.tuning.engine import run_cells
from captune.tuning.stopping import StopRequests, request_stop
from tests.tuning.fakes import FakeTrial
from tests.tuning.processes import assert_gone, descendants, kill
from tests.tuning.test_engine import new_cell

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Hanging(FakeTrial):
    """Hangs in its second epoch where it is t0001, as a read from a dead mount does: it hears no request to end."""

    def run_epoch(self) -> dict[str, Any]:
        if self.spec.key == "t0001" and self.epoch == 1:
            while True:
                time.sleep(3600)
        return super().run_epoch()


def test_a_trial_that_hangs_fails_with_its_reason_and_the_study_goes_on(tmp_path: Path) -> None:
    cell = new_cell(tmp_path / "run", trials=4, confirm_top=0, scheduler="none")
    began = time.monotonic()
    with connected(None, threads=1, dashboard=False, cpus=2) as cluster:
        assert run_cells([cell], cluster, Allotment(2), open_trial=Hanging, trial_timeout=20.0)
    ends = {key: trial.state for key, trial in cell.trials.items()}
    assert ends.pop("t0001") == "FAILED"
    assert set(ends.values()) == {"COMPLETE"}
    assert "a trial must end within --trial-timeout (20 s)" in str(cell.trials["t0001"].reason)
    assert time.monotonic() - began < 300, "its process is ended at once, not asked for ten minutes"


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_process_of_ray_that_dies_ends_the_study_at_once_and_says_how_to_go_on(tmp_path: Path, name: str) -> None:
    """Ray itself tries for minutes to reach it, and the study stands still."""
    cell = new_cell(tmp_path / "run", trials=50, confirm_top=0, scheduler="none")
    killed: list[float] = []

    def kill_ray() -> None:
        while not cell.search:
            time.sleep(0.2)
        killed.append(time.monotonic())
        kill(pid for pid, command in descendants(os.getpid()).items() if command.split()[0].endswith(f"/{name}"))

    killing = threading.Thread(target=kill_ray)
    said = f"got the end of {name}.* Go on with: captune resume {tmp_path / 'run'}"
    with pytest.raises(StudyError, match=said), connected(None, threads=1, dashboard=False, cpus=2) as cluster:
        killing.start()
        below = descendants(os.getpid())
        run_cells([cell], cluster, Allotment(2), open_trial=slow)
    killing.join()
    assert time.monotonic() - killed[0] < 60
    assert_gone(below)


def test_a_request_in_the_directory_ends_a_study_in_order(tmp_path: Path) -> None:
    cell = new_cell(tmp_path / "run", trials=50, confirm_top=0, scheduler="none")
    requests = StopRequests([tmp_path / "run"])

    def ask() -> None:
        while not cell.search:
            time.sleep(0.2)
        request_stop(tmp_path / "run")

    asking = threading.Thread(target=ask)
    with connected(None, threads=1, dashboard=False, cpus=2) as cluster:
        asking.start()
        finished = run_cells([cell], cluster, Allotment(2), open_trial=slow, should_stop=requests.came)
    asking.join()
    assert not finished
    assert not cell.finished and len(cell.search) < 50


def slow(spec: Any) -> FakeTrial:
    return FakeTrial(spec, pause=0.3)
