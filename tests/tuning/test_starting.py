"""Ray as it starts on machines as they are: without a home folder, under load, with a cluster named elsewhere."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray._private.services as services
import torch

from captune.config import TaskConfig
from captune.errors import DataError, StudyError, UsageError
from captune.records import Phase, State
from captune.studies.planning import plan_study
from captune.tuning import cluster, ray_internals, starting, worker_start
from captune.tuning.environment import variables
from captune.tuning.open_study import OpenStudy
from captune.tuning.preparing import Preparation
from captune.tuning.starting import (
    Alongside,
    DashboardComesUp,
    modules_of_trials,
    run_references_here,
    wait_for_workers,
)
from tests.journals import journal_lines
from tests.studies.lives import run_trials, settings
from tests.tuning.fakes import study
from tests.tuning.simulate import make_cell


@pytest.fixture
def own_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The token of a test lies in its own folder."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))


@pytest.mark.parametrize("home", ["/proc/nohome", "/dev/null/home"])
def test_a_home_that_cannot_be_written_names_the_variable_that_helps(
    own_token: None, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("HOME", home)
    with pytest.raises(UsageError, match="RAY_AUTH_TOKEN_PATH") as caught:
        cluster.ensure_token()
    assert home in str(caught.value)


def test_a_node_that_is_slow_to_come_up_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def get_node(*arguments: Any) -> dict[str, str]:
        asked.append(arguments)
        if len(asked) < 4:
            raise RuntimeError("no such node yet")
        return {"node": "here"}

    monkeypatch.setattr(services, "get_node", get_node)
    monkeypatch.delenv(ray_internals._GCS_WAIT, raising=False)
    with ray_internals.patient_start(60.0):
        assert os.environ[ray_internals._GCS_WAIT] == "60"
        assert services.get_node("127.0.0.1:1", "id") == {"node": "here"}
    assert asked == [("127.0.0.1:1", "id")] * 4
    assert services.get_node is get_node
    assert ray_internals._GCS_WAIT not in os.environ


def test_the_wait_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_node(*_: Any) -> None:
        raise RuntimeError("never")

    monkeypatch.setattr(services, "get_node", get_node)
    with ray_internals.patient_start(0.3), pytest.raises(RuntimeError, match="never"):
        services.get_node("127.0.0.1:1", "id")


def test_a_start_that_fails_says_how_long_was_waited(
    own_token: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    told = threading.Event()

    def init(**options: Any) -> None:
        assert options["address"] == "local"  # whatever RAY_ADDRESS says
        told.wait(60)
        raise Exception("The current node timed out during startup. This could happen because …")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(cluster, "_USUAL_START_SECONDS", 0.05)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6399")
    monkeypatch.setattr(cluster, "_say_that_ray_is_slow", lambda _address: told.set())
    with (
        pytest.raises(StudyError, match=r"within 180 s, but got The current node timed out"),
        cluster.connected(None, threads=1),
    ):
        raise AssertionError("not reached")
    assert told.is_set()


def test_variables_are_set_for_a_block_and_then_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTUNE_ONE", "old")
    monkeypatch.delenv("CAPTUNE_TWO", raising=False)
    with variables({"CAPTUNE_ONE": "new", "CAPTUNE_TWO": "new"}):
        assert os.environ["CAPTUNE_ONE"] == os.environ["CAPTUNE_TWO"] == "new"
    assert os.environ["CAPTUNE_ONE"] == "old" and "CAPTUNE_TWO" not in os.environ


def test_what_is_done_alongside_is_waited_for_and_its_error_is_raised() -> None:
    done: list[str] = []

    def slow(look: Callable[[], None]) -> None:
        time.sleep(0.3)
        look()
        done.append("work")

    with Alongside(slow):
        done.append("block")
    assert done == ["block", "work"]

    def broken(look: Callable[[], None]) -> None:
        raise DataError("weights must be readable", got="none")

    with pytest.raises(DataError, match="weights must be readable"), Alongside(broken):
        pass
    with pytest.raises(ValueError, match="of the block"), Alongside(broken):
        raise ValueError("of the block")


def test_what_is_done_alongside_stops_with_the_block_before_the_process_may_end() -> None:
    looked: list[float] = []

    def endless(look: Callable[[], None]) -> None:
        while True:
            look()
            looked.append(time.monotonic())
            time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt), Alongside(endless):
        while not looked:
            time.sleep(0.01)
        raise KeyboardInterrupt
    count = len(looked)
    time.sleep(0.1)
    assert len(looked) == count, "the thread has ended"


def test_a_preparation_that_is_told_to_stop_leaves_nothing_half_made(tmp_path: Path) -> None:
    cell = make_cell(
        tmp_path,
        study(trials=1).model_copy(
            update={"task": TaskConfig(dataset="digits", paradigm="ul", cache_dir=tmp_path / "store")}
        ),
    )
    looks = iter(range(3))

    def look() -> None:
        if next(looks, None) is None:
            raise StudyError("the preparation must come to its end", got="an interrupt")

    with pytest.raises(StudyError, match="an interrupt"):
        Preparation([cell]).prepare_here(look)
    assert not any(event["event"] == "prepared" for event in journal_lines(tmp_path / "journal.jsonl"))
    Preparation([cell]).prepare_here()
    (made,) = (event for event in journal_lines(tmp_path / "journal.jsonl") if event["event"] == "prepared")
    assert made["decoded"] == made["encoded"] == 1797, "every image, as if nothing had been begun"


class Dashboard:
    """A cluster whose dashboard is up when it is asked for the third time."""

    starts_dashboard, known_dashboard, asked = True, None, 0

    @property
    def dashboard(self) -> str | None:
        self.asked += 1
        return "127.0.0.1:8265" if self.asked > 2 else None


def test_a_dashboard_is_told_of_once_when_it_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "_EVERY_SECONDS", 0.0)
    told: list[Any] = []
    shown: Any = Dashboard()
    watch = DashboardComesUp(shown, told.append)
    for _ in range(6):
        watch.look()
    assert told == [shown] and shown.asked == 3
    shown.starts_dashboard, shown.asked = False, 0
    DashboardComesUp(shown, told.append).look()
    assert shown.asked == 0, "nobody asks where none was started"


def test_references_that_run_in_the_driver_are_those_of_a_worker(tmp_path: Path) -> None:
    here, worker = (plan_study(settings("trzsl", trials=1, confirm_top=0), tmp_path / name) for name in "ab")
    opened = OpenStudy(here.directory, here.study, here.info, here.space, durable=False)
    threads = torch.get_num_threads()
    run_references_here([opened.cell], threads=1)
    assert torch.get_num_threads() == threads
    references = [trial for trial in opened.cell.trials.values() if trial.phase is Phase.REFERENCE]
    assert {trial.key for trial in opened.cell.trials.values()} == {key for key, _, _ in here.info.references}
    assert all(trial.state is State.COMPLETE for trial in references)
    assert not opened.cell.active and not opened.cell.waiting
    opened.close()
    run_trials(worker).close()
    outcome = [
        {
            event["key"]: (event["score"], event["scores"])
            for event in journal_lines(plan.directory / "journal.jsonl")
            if event["event"] == "finished"
        }
        for plan in (here, worker)
    ]
    assert outcome[0] == {key: value for key, value in outcome[1].items() if key in outcome[0]}


def test_workers_import_what_trials_need_where_each_of_them_will_have_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = make_cell(tmp_path, study().model_copy(update={"method": "cap"}))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(starting, "machine_has_gpus", lambda: False)
    wanted = ["captune.tuning.trainable", "captune.training.trial", "captune.algorithms.cap"]
    assert modules_of_trials([cell], concurrency=None, cpus_per_trial=None) == wanted
    assert modules_of_trials([cell], concurrency=2, cpus_per_trial=1.0) == wanted
    assert modules_of_trials([cell], concurrency=1, cpus_per_trial=None) == [], "one of two would do so in vain"
    assert modules_of_trials([cell], concurrency=None, cpus_per_trial=2.0) == []
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert modules_of_trials([cell], concurrency=None, cpus_per_trial=None) == []
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(starting, "machine_has_gpus", lambda: True)
    assert modules_of_trials([cell], concurrency=None, cpus_per_trial=None) == []


def test_who_waits_for_workers_that_never_come_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited, looks = [0.0], list[float]()
    clock = {"monotonic": lambda: waited[0], "sleep": lambda seconds: waited.append(waited.pop() + seconds)}
    monkeypatch.setattr(starting, "time", SimpleNamespace(**vars(time) | clock))
    wait_for_workers(tmp_path / "nowhere", 2, look=lambda: looks.append(waited[0]))
    assert len(looks) > 100 and waited[0] == pytest.approx(starting._BEGIN_SECONDS, abs=0.2)
    monkeypatch.setenv(worker_start.MODULES, "fractions,no_such_module")
    monkeypatch.setenv(worker_start.READY, str(tmp_path))
    worker_start.begin()
    assert worker_start.words_left(tmp_path) == (1, 1)
    wait_for_workers(tmp_path, 1, look=lambda: pytest.fail("it is there already"))
    monkeypatch.setenv(worker_start.READY, str(tmp_path / "gone"))
    worker_start.begin()
