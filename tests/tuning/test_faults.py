"""Kills at random moments, over drivers, workers, nodes and whole clusters; after each, what must hold is checked.

The seed of every series is printed; `CAPTUNE_FAULT_SEED` repeats one.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster as LocalNodes

from captune.records import JOURNAL
from captune.tuning import cluster as cluster_module
from captune.tuning import ray_internals
from tests.journals import journal_lines
from tests.tuning.fakes import study
from tests.tuning.processes import assert_gone, descendants, kill
from tests.tuning.simulate import drive, epochs, make_cell, outcomes
from tests.tuning.test_open_study import assert_mirrors

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")

# A driver whose cluster is gone gives up after a minute; that long a wait shows nothing more.
_IMPATIENT = {"RAY_gcs_rpc_server_reconnect_timeout_s": "10"}


def start(directory: Path, *options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.tuning.drive", str(directory), "--resume", *map(str, options)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ | _IMPATIENT
    )


def processes(below: int, *words: str) -> list[int]:
    """Processes below one whose command line holds one of the words."""
    return [pid for pid, command in descendants(below).items() if any(word in command for word in words)]


def wait_for_events(directory: Path, driver: subprocess.Popen[str], count: int, timeout: float = 240) -> None:
    """Until the driver has added some events, or has ended."""
    journal = directory / JOURNAL
    before = journal.read_bytes().count(b"\n") if journal.exists() else 0
    deadline = time.monotonic() + timeout
    while driver.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"\n") >= before + count:
            return
        assert time.monotonic() < deadline, "a driver must get on with its study"
        time.sleep(0.02)


class Series:
    """A study under strikes: its driver, what is known to have ended, how many strikes hit whom."""

    def __init__(self, directory: Path, draw: random.Random, **options: object) -> None:
        self.directory, self.draw, self.options = directory, draw, options
        self.driver: subprocess.Popen[str] | None = None
        self.ended: dict[str, dict[str, Any]] = {}
        self.hits: Counter[str] = Counter()

    def running(self) -> subprocess.Popen[str]:
        """The driver, started if there is none."""
        if self.driver is None:
            given = [part for name, value in self.options.items() for part in (f"--{name.replace('_', '-')}", value)]
            self.driver = start(self.directory, *given)
        return self.driver

    def wait_for_a_moment(self) -> subprocess.Popen[str]:
        """Let the study go on for a while that nobody can foresee."""
        driver = self.running()
        wait_for_events(self.directory, driver, self.draw.randrange(1, 12))
        time.sleep(self.draw.random() * 0.3)
        return driver

    def hit(self, target: str) -> None:
        """Count a strike and see that the study got over it: nothing is lost, and something new happens."""
        self.hits[target] += 1
        driver = self.driver
        if driver is not None:
            wait_for_events(self.directory, driver, 2)
        self.check()

    def driver_gone(self) -> None:
        """Wait for the end of a driver that was killed, or whose cluster was."""
        assert self.driver is not None
        _, errors = self.driver.communicate(timeout=240)
        assert self.driver.returncode != 0, errors
        self.driver = None

    def check(self) -> None:
        """What must hold at any time: ended runs stay and end once, no number is missing, no epoch has two scores."""
        now = {end["key"]: end for end in outcomes(self.directory)}
        assert {key: now[key] for key in self.ended} == self.ended
        self.ended = now
        epochs(self.directory)
        numbers = [e["number"] for e in journal_lines(self.directory / JOURNAL) if e.get("phase") == "search"]
        assert numbers == list(range(len(numbers)))

    def finish(self) -> None:
        """Let the study come to its end."""
        driver = self.running()
        _, errors = driver.communicate(timeout=600)
        assert driver.returncode == 0, errors
        self.driver = None
        self.check()
        assert_mirrors(self.directory)
        self.assert_little_was_trained_twice()
        print(f"strikes: {dict(self.hits)}")

    def assert_little_was_trained_twice(self) -> None:
        """A strike costs at most the epoch that each running run was in."""
        again = 0
        for path in self.directory.glob("trials/*/epochs.jsonl"):
            trained = [json.loads(line)["epoch"] for line in path.read_text().splitlines()]
            again += len(trained) - len(set(trained))
        assert again <= sum(self.hits.values()) * int(str(self.options["concurrency"]))

    def close(self) -> None:
        if self.driver is not None:
            self.driver.kill()
            self.driver.communicate()


def endure(series: Series, targets: list[str]) -> None:
    """Strike a study on clusters of its own, once for each target (worker, driver, cluster); then let it end."""
    try:
        for target in targets:
            driver = series.wait_for_a_moment()
            assert driver.poll() is None, "the study must be long enough for all strikes"
            # Ray's agents notice a raylet's death late, and hold nothing.
            below = [pid for pid, command in descendants(driver.pid).items() if "agent" not in command.lower()]
            words = {"worker": ("Trainable",), "cluster": ("raylet/raylet", "gcs_server")}.get(target, ())
            victims = processes(driver.pid, *words)
            if not victims:
                # Asked for, or Ray has not come up yet.
                target, victims = "driver", [driver.pid]
            kill([series.draw.choice(victims)] if target == "worker" else victims)
            if target != "worker":
                series.driver_gone()
                assert_gone(below)
            series.hit(target)
        series.finish()
    finally:
        series.close()


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
@pytest.mark.timeout(2400)
def test_one_run_at_a_time_ends_as_if_never_killed(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    series = Series(tmp_path / "run", draw, trials=40, concurrency=1, pause=0.1, max_failures=50)
    endure(series, draw.sample(["driver", "worker", "worker", "cluster"] * 2, k=8))
    assert outcomes(tmp_path / "run") == outcomes(by_hand(tmp_path / "hand", 40))
    assert sum(series.hits.values()) == 8


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_several_runs_at_once_lose_and_repeat_nothing(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    series = Series(tmp_path / "run", draw, trials=100, concurrency=2, pause=0.2, max_failures=50)
    endure(series, draw.sample(["driver", "worker", "cluster", "driver"], k=4))
    assert sum(series.hits.values()) == 4


@pytest.fixture
def nodes() -> Iterator[LocalNodes]:
    """A head that trains nothing, for the drivers, and two nodes that do."""
    cluster_module.ensure_token()
    with ray_internals.on_loopback():
        local = LocalNodes(initialize_head=True, head_node_args={"num_cpus": 0})
        for _ in range(2):
            local.add_node(num_cpus=1)
        local.wait_for_nodes()
        yield local
        ray.shutdown()
        local.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_lasting_cluster_loses_drivers_workers_and_nodes(tmp_path: Path, seed: int, nodes: LocalNodes) -> None:
    draw = random.Random(seed)
    options = {"concurrency": 2, "pause": 0.3, "max_failures": 50, "address": nodes.address}
    series = Series(tmp_path / "run", draw, trials=40, **options)
    try:
        for target in draw.sample(["driver", "worker", "worker", "node", "node"] * 4, k=20):
            driver = series.wait_for_a_moment()
            if driver.poll() == 0:
                # It came to its end between two strikes: it is extended.
                series.finish()
                series.options["trials"] = int(str(series.options["trials"])) + 40
                driver = series.wait_for_a_moment()
            assert driver.poll() is None
            workers = processes(os.getpid(), "Trainable")
            if target == "node":
                nodes.remove_node(draw.choice(sorted(nodes.worker_nodes, key=id)), allow_graceful=False)
                nodes.add_node(num_cpus=1)
            elif target == "worker" and workers:
                kill([draw.choice(workers)])
            else:
                target = "driver"
                driver.kill()
                series.driver_gone()
            series.hit(target)
        series.finish()
    finally:
        series.close()
    events = Counter(event["event"] for event in journal_lines(tmp_path / "run" / JOURNAL))
    print(f"preempted {events['preempted']} times, crashed {events['crashed']} times")
    assert sum(series.hits.values()) == 20
    assert {end["state"] for end in outcomes(tmp_path / "run")} <= {"COMPLETE", "PRUNED"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_driver_is_continued_exactly(tmp_path: Path, seed: int) -> None:
    """The short version: one kill of a driver with one run at a time."""
    endure(Series(tmp_path / "run", random.Random(seed), trials=4, concurrency=1, pause=0.3), ["driver"])
    assert outcomes(tmp_path / "run") == outcomes(by_hand(tmp_path / "hand", 4))
