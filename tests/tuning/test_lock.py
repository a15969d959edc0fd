"""One driver per study: the lock, its heartbeat, and who may take it over."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from captune.cli.main import main
from captune.errors import StudyError
from captune.records import JOURNAL, Journal
from captune.records.events import Chosen, SealOpened
from captune.records.layout import LOCK, PAGE, STOP
from captune.tuning import lock as lock_module
from captune.tuning.lock import HEARTBEAT_SECONDS, STALE_SECONDS, DriverLock, drivers_of, is_alive, read_lock
from captune.tuning.stopping import StopRequests, request_stop
from tests.tuning.test_open_study import open_study, run_study

# The lock


def test_a_second_driver_is_refused_and_told_who_runs_it(tmp_path: Path) -> None:
    opened = open_study(tmp_path / "run", trials=2)
    with pytest.raises(StudyError, match=f"process {os.getpid()} on {platform.node()}"):
        open_study(tmp_path / "run", trials=2, resume=True)
    opened.close()
    open_study(tmp_path / "run", trials=2, resume=True).close()


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from captune.tuning.lock import DriverLock; "
    code += "DriverLock(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    holder = read_lock(tmp_path)
    assert holder is not None and not is_alive(holder)
    DriverLock(tmp_path).release()


def test_a_lock_of_another_host_counts_by_its_heartbeat() -> None:
    holder = {"host": "elsewhere", "pid": 1, "boot": "x", "started": "1"}
    assert is_alive({**holder, "heartbeat": time.time() - STALE_SECONDS / 2})
    assert not is_alive({**holder, "heartbeat": time.time() - STALE_SECONDS - 1})
    assert not is_alive({**holder, "heartbeat": time.time() + STALE_SECONDS + 9}), "its clock says nothing"


def elsewhere(directory: Path, heartbeat: float) -> None:
    holder = {"host": "elsewhere", "pid": 1, "boot": "x", "started": "1", "heartbeat": heartbeat}
    # Whole at once, as a driver writes it: another thread may be reading.
    written = directory / "written"
    written.write_text(json.dumps(holder))
    written.replace(directory / LOCK)


class Watch:
    """The clock of whoever watches locks: a pause passes at once, and after `HEARTBEAT_SECONDS` of them a driver beats.

    Attributes:
        seconds: for how long locks were watched.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, beat: Callable[[], None] = lambda: None) -> None:
        self.seconds, self._beat = 0.0, beat
        clock = SimpleNamespace(**vars(time) | {"monotonic": lambda: self.seconds, "sleep": self._pass})
        monkeypatch.setattr(lock_module, "time", clock)

    def _pass(self, seconds: float) -> None:
        before, self.seconds = self.seconds, self.seconds + seconds
        if before < HEARTBEAT_SECONDS <= self.seconds:
            self._beat()


@pytest.mark.parametrize("ahead", [-3600, 3600])
def test_a_lock_of_a_host_whose_clock_differs_is_watched_before_it_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    elsewhere(tmp_path, time.time() + ahead)
    watch = Watch(monkeypatch, lambda: elsewhere(tmp_path, time.time() + ahead + 10))
    with pytest.raises(StudyError, match="process 1 on elsewhere"):
        DriverLock(tmp_path)
    assert HEARTBEAT_SECONDS <= watch.seconds < lock_module._WATCH_SECONDS, "it is refused once it is known"
    watch = Watch(monkeypatch)
    DriverLock(tmp_path).release()
    assert watch.seconds >= lock_module._WATCH_SECONDS > HEARTBEAT_SECONDS


def test_who_runs_studies_is_seen_across_clocks_and_all_are_watched_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("beats", "fresh", "dead", "free")
    beats, fresh, dead, _ = studies = [tmp_path / name for name in names]
    for directory in studies:
        directory.mkdir()
    elsewhere(beats, time.time() - 3600)
    elsewhere(fresh, time.time() - 1)
    elsewhere(dead, time.time() - 3600)
    watch = Watch(monkeypatch, lambda: elsewhere(beats, time.time() - 3590))
    found = drivers_of(studies)
    assert watch.seconds < 1.1 * lock_module._WATCH_SECONDS, "not one after another"
    assert [name for name, at in zip(names, studies, strict=True) if found[at] is not None] == ["beats", "fresh"]


def test_stop_reaches_a_driver_on_a_host_whose_clock_is_an_hour_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("captune.tuning.lock._WATCH_SECONDS", 10.0)
    open_study(tmp_path / "run", trials=2).close()
    requests = StopRequests([tmp_path / "run"])

    def drive() -> None:
        while not requests.came():
            elsewhere(tmp_path / "run", time.time() - 3600)
            time.sleep(0.05)
        (tmp_path / "run" / LOCK).unlink()

    elsewhere(tmp_path / "run", time.time() - 3600)
    driver = threading.Thread(target=drive)
    driver.start()
    try:
        with pytest.raises(SystemExit) as caught:
            main(["stop", str(tmp_path / "run")])
    finally:
        request_stop(tmp_path / "run")
        driver.join()
    said = capsys.readouterr().out
    assert caught.value.code == 0 and "run on elsewhere: stopped." in said, said


def test_a_study_that_finishes_while_it_is_asked_to_stop_is_not_said_to_need_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was "stopped", to be continued, and the request stayed in its directory."""
    run_study(tmp_path / "run", trials=2, confirm_top=0)
    with Journal(tmp_path / "run" / JOURNAL) as journal:
        journal.append(Chosen(advice="keep zero-shot", name="zero_shot"))
        journal.append(SealOpened())
    (tmp_path / "run" / PAGE).write_text("the page")
    lock = DriverLock(tmp_path / "run")
    ends = threading.Timer(0.5, lock.release)
    ends.start()
    with pytest.raises(SystemExit) as caught:
        main(["stop", str(tmp_path / "run")])
    ends.join()
    said = capsys.readouterr().out
    assert caught.value.code == 0 and "it had come to its end" in said and "Continue" not in said
    assert not (tmp_path / "run" / STOP).exists()


def test_a_driver_that_slept_while_another_took_over_writes_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_study(tmp_path / "run", trials=4, confirm_top=0)
    assert opened.cell.next_trial() is not None
    elsewhere(tmp_path / "run", time.time())
    before = (tmp_path / "run" / JOURNAL).read_bytes()
    real = lock_module._clock
    monkeypatch.setattr("captune.tuning.lock._clock", lambda: real() + STALE_SECONDS)
    with pytest.raises(StudyError, match="another that took this one over"):
        opened.cell.start("zero_shot", "node")
    assert (tmp_path / "run" / JOURNAL).read_bytes() == before
    opened.close()
    holder = read_lock(tmp_path / "run")
    assert holder is not None and holder["host"] == "elsewhere", "its lock is left to the other"


def test_a_process_number_used_again_does_not_keep_a_lock(tmp_path: Path) -> None:
    lock = DriverLock(tmp_path)
    holder = read_lock(tmp_path)
    assert holder is not None and is_alive(holder)
    assert not is_alive({**holder, "started": "1"})
    assert not is_alive({**holder, "boot": "before the power cut"})
    lock.release()
    assert read_lock(tmp_path) is None


def _try_lock(directory: str, barrier: Any, results: Any) -> None:
    barrier.wait()
    try:
        DriverLock(Path(directory))
        results.put(True)
    except StudyError:
        results.put(False)
    barrier.wait()  # the lock of one that has ended may be taken


def test_of_drivers_that_find_a_stale_lock_together_one_gets_it(tmp_path: Path) -> None:
    stale = {"host": platform.node(), "pid": 2**22 + 1, "boot": "x", "started": "1", "heartbeat": 0}
    (tmp_path / LOCK).write_text(json.dumps(stale))
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_try_lock, args=(str(tmp_path), barrier, results)) for _ in range(3)]
    for process in processes:
        process.start()
    got = [results.get(timeout=100) for _ in processes]
    for process in processes:
        process.join()
    assert sum(got) == 1
