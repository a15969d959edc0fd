"""Kills at random moments, over drivers, workers and whole clusters; after each, what must hold is checked.

The seed of every series is printed; `CAPTUNE_FAULT_SEED` repeats one.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from captune.records import JOURNAL, read_journal
from tests.tuning.fakes import study
from tests.tuning.processes import assert_gone, descendants, kill
from tests.tuning.simulate import drive, epochs, make_cell, outcomes
from tests.tuning.test_study import assert_mirrors

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")


def start(directory: Path, *options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.tuning.drive", str(directory), "--resume", *map(str, options)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def strike(driver: subprocess.Popen[str], target: str) -> bool:
    """Kill one of a driver's workers, its cluster, or (asked for, or where there is neither yet) the driver."""
    below = descendants(driver.pid)
    words = {"worker": ("Trainable",), "cluster": ("raylet/raylet", "gcs_server")}.get(target, ())
    victims = [pid for pid, command in below.items() if any(word in command for word in words)]
    kill(victims[:1] if target == "worker" else victims)
    if not victims:
        driver.kill()
    return True


def wait_for_events(directory: Path, driver: subprocess.Popen[str], count: int, timeout: float = 120) -> None:
    """Until the driver has added some events, or has ended."""
    journal = directory / JOURNAL
    before = journal.read_bytes().count(b"\n") if journal.exists() else 0
    deadline = time.monotonic() + timeout
    while driver.poll() is None and time.monotonic() < deadline:
        if journal.exists() and journal.read_bytes().count(b"\n") >= before + count:
            return
        time.sleep(0.02)


def assert_nothing_lost(directory: Path, before: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What had ended is as it was, no run ended twice, no epoch was recorded with two numbers, no number is missing."""
    now = {end["key"]: end for end in outcomes(directory)}
    assert {key: now[key] for key in before} == before
    epochs(directory)
    numbers = [e["number"] for e in read_journal(directory / JOURNAL) if e.get("phase") == "search"]
    assert numbers == list(range(len(numbers)))
    return now


def endure(directory: Path, draw: random.Random, targets: list[str], **options: object) -> int:
    """Run a study, striking once for each target; then let it end. Returns how many strikes hit something."""
    arguments = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    ended: dict[str, dict[str, Any]] = {}
    hits = 0
    for target in targets:
        driver = start(directory, *arguments)
        try:
            wait_for_events(directory, driver, draw.randrange(1, 12))
            time.sleep(draw.random() * 0.3)
            # Ray's agents notice a raylet's death late, and hold nothing.
            below = [pid for pid, command in descendants(driver.pid).items() if "agent" not in command.lower()]
            hits += driver.poll() is None and strike(driver, target)
            if target == "worker":
                # The driver lives on; it gets a moment to recover, then dies as well.
                wait_for_events(directory, driver, 3, timeout=60)
                driver.kill()
        finally:
            if target != "cluster":
                driver.kill()
            driver.communicate(timeout=120)
        assert_gone(below)
        ended = assert_nothing_lost(directory, ended)
    driver = start(directory, *arguments)
    _, errors = driver.communicate(timeout=400)
    assert driver.returncode == 0, errors
    assert_nothing_lost(directory, ended)
    return hits


@pytest.fixture
def seed() -> Iterator[int]:
    chosen = int(os.environ.get("CAPTUNE_FAULT_SEED") or random.SystemRandom().randrange(10**6))
    print(f"CAPTUNE_FAULT_SEED={chosen}")
    yield chosen


def by_hand(directory: Path, trials: int) -> Path:
    directory.mkdir()
    drive(make_cell(directory, study(trials=trials, confirm_top=1, confirm_seeds=1)))
    return directory


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_one_run_at_a_time_ends_as_if_never_killed(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    targets = [draw.choice(["driver", "worker", "cluster"]) for _ in range(12)]
    hits = endure(tmp_path / "run", draw, targets, trials=60, concurrency=1, pause=0.1, max_failures=50)
    assert outcomes(tmp_path / "run") == outcomes(by_hand(tmp_path / "hand", 60))
    assert_mirrors(tmp_path / "run")
    assert hits == 12


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("series", [1, 2])
def test_several_runs_at_once_lose_and_repeat_nothing(tmp_path: Path, seed: int, series: int) -> None:
    draw = random.Random(seed + series)
    targets = [draw.choice(["driver", "worker", "cluster"]) for _ in range(10)]
    hits = endure(tmp_path / "run", draw, targets, trials=100, concurrency=2, pause=0.1, max_failures=50)
    assert_mirrors(tmp_path / "run")
    assert hits == 10


@pytest.mark.timeout(300)
def test_a_killed_driver_is_continued_exactly(tmp_path: Path, seed: int) -> None:
    """The short version: one kill of a driver with one run at a time."""
    assert endure(tmp_path / "run", random.Random(seed), ["driver"], trials=4, concurrency=1, pause=0.05) == 1
    assert outcomes(tmp_path / "run") == outcomes(by_hand(tmp_path / "hand", 4))
    assert_mirrors(tmp_path / "run")
