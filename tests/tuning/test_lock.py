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
from pathlib import Path
from typing import Any

import pytest

from captune.errors import StudyError
from captune.records import JOURNAL
from captune.records.layout import LOCK
from captune.tuning import lock as lock_module
from captune.tuning.lock import STALE_SECONDS, DriverLock, is_alive, read_lock
from tests.tuning.test_open_study import open_study

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


def elsewhere(directory: Path, heartbeat: float) -> None:
    holder = {"host": "elsewhere", "pid": 1, "boot": "x", "started": "1", "heartbeat": heartbeat}
    (directory / LOCK).write_text(json.dumps(holder))


@pytest.mark.parametrize("beats", [False, True])
def test_a_lock_of_a_host_whose_clock_is_behind_is_watched_before_it_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beats: bool
) -> None:
    monkeypatch.setattr("captune.tuning.lock._WATCH_SECONDS", 0.5)
    elsewhere(tmp_path, time.time() - 3600)
    if beats:
        threading.Timer(0.1, elsewhere, (tmp_path, time.time() - 3590)).start()
        with pytest.raises(StudyError, match="process 1 on elsewhere"):
            DriverLock(tmp_path)
    else:
        DriverLock(tmp_path).release()


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
        time.sleep(1.0)
    except StudyError:
        results.put(False)


def test_of_drivers_that_find_a_stale_lock_together_one_gets_it(tmp_path: Path) -> None:
    stale = {"host": platform.node(), "pid": 2**22 + 1, "boot": "x", "started": "1", "heartbeat": 0}
    (tmp_path / LOCK).write_text(json.dumps(stale))
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_try_lock, args=(str(tmp_path), barrier, results)) for _ in range(3)]
    for process in processes:
        process.start()
    got = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    assert sum(got) == 1
