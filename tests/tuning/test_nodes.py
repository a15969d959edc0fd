"""Several raylets on one host: spreading, a node killed mid-run, one added mid-study, one that cannot see the run."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster as LocalNodes

from captune.errors import StudyError
from captune.records import JOURNAL
from captune.records.event import Event
from captune.records.events import Epoch, Finished
from captune.tuning import cluster as cluster_module
from captune.tuning import nodes as nodes_module
from captune.tuning.cluster import connected
from captune.tuning.engine import Allotment, run_cells
from captune.tuning.nodes import check_nodes, on_each_node
from captune.tuning.specs import TrialSpec
from tests.journals import journal_lines
from tests.tuning.fakes import FakeTrial
from tests.tuning.simulate import outcomes
from tests.tuning.test_engine import Interrupted, interrupt_when, new_cell
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def nodes() -> Iterator[LocalNodes]:
    cluster_module.ensure_token()
    local = LocalNodes(initialize_head=True, head_node_args={"num_cpus": 1})
    local.add_node(num_cpus=1)
    local.wait_for_nodes()
    yield local
    ray.shutdown()
    local.shutdown()


class Placed(FakeTrial):
    """Notes which node it runs on, and trains only once the study has used so many, however long they take to start.

    Trials up to the key `until` do not wait. On the node `doomed` it never ends.
    """

    def __init__(self, spec: TrialSpec, *, num_nodes: int = 1, until: str = "", doomed: str = "") -> None:
        super().__init__(spec, pause=0.1)
        self.num_nodes, self.until, self.doomed = num_nodes, until, doomed

    def run_epoch(self) -> dict[str, Any]:
        node = ray.get_runtime_context().get_node_id()
        with (self.spec.path / "nodes.txt").open("a") as file:
            file.write(node + "\n")
        if node == self.doomed:
            time.sleep(3600)
        if self.spec.key > self.until:
            directory = self.spec.path.parents[1]
            with contextlib.suppress(TimeoutError):  # then the test sees that they were too few
                wait_until(lambda: len(set(nodes_used(directory))) >= self.num_nodes, seconds=240)
        return super().run_epoch()


def nodes_used(directory: Path) -> list[str]:
    return [line for path in sorted(directory.glob("trials/*/nodes.txt")) for line in path.read_text().split()]


def test_trials_spread_over_nodes(nodes: LocalNodes, tmp_path: Path) -> None:
    cell = new_cell(tmp_path / "run", trials=6, confirm_top=0, scheduler="none")
    with connected(nodes.address, threads=1) as cluster:
        assert (cluster.cpus, cluster.local) == (2.0, False)
        assert run_cells([cell], cluster, Allotment(2), open_trial=partial(Placed, num_nodes=2))
    assert len(set(nodes_used(tmp_path / "run"))) == 2


def test_a_killed_node_is_preemption_and_its_run_goes_on_elsewhere(nodes: LocalNodes, tmp_path: Path) -> None:
    extra = nodes.add_node(num_cpus=1, resources={"doomed": 1})
    nodes.wait_for_nodes()
    cell = new_cell(tmp_path / "run", trials=6, confirm_top=0, scheduler="none", max_failures=0)
    doomed = extra.node_id
    gone = threading.Event()

    def kill_when_busy() -> None:
        while not gone.is_set():
            if doomed in nodes_used(tmp_path / "run"):
                nodes.remove_node(extra, allow_graceful=False)
                gone.set()
            time.sleep(0.1)

    with connected(nodes.address, threads=1) as cluster:
        watcher = threading.Thread(target=kill_when_busy)
        watcher.start()
        try:
            assert run_cells([cell], cluster, Allotment(3), open_trial=partial(Placed, num_nodes=3, doomed=doomed))
        finally:
            was_killed = gone.is_set()
            gone.set()
            watcher.join()
    assert was_killed
    assert {end["state"] for end in outcomes(tmp_path / "run")} == {"COMPLETE"}, "max_failures is 0: it did not count"
    assert [
        e["event"] for e in journal_lines(tmp_path / "run" / JOURNAL) if e["event"] in ("preempted", "crashed")
    ] == ["preempted"]


def test_a_node_added_mid_study_gets_work(nodes: LocalNodes, tmp_path: Path) -> None:
    cell = new_cell(tmp_path / "run", trials=10, confirm_top=0, scheduler="none")
    added: list[Any] = []

    def add(event: Event, _run: object) -> None:
        if isinstance(event, Finished) and not added:
            added.append(nodes.add_node(num_cpus=1))

    cell.listeners.append(add)
    with connected(nodes.address, threads=1) as cluster:
        assert run_cells([cell], cluster, Allotment(3), open_trial=partial(Placed, num_nodes=3, until="t0001"))
    assert len(set(nodes_used(tmp_path / "run"))) == 3


def test_a_node_that_does_not_see_the_study_is_named_before_the_first_trial(
    nodes: LocalNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All raylets of this host share its disk: one of them is told that its disk is another.
    blind = ray.NodeID.from_random().hex()
    real = nodes_module._probe_node
    node_ids: list[str] = []

    def probe(directories: list[str], token: str) -> str | None:
        if ray.get_runtime_context().get_node_id() == node_ids[0]:
            directories = ["/nowhere/" + blind for _ in directories]
        return real(directories, token)

    monkeypatch.setattr(nodes_module, "_probe_node", probe)
    with connected(nodes.address, threads=1):
        node_ids += [node["NodeID"] for node in ray.nodes() if not node["Resources"].get("node:__internal_head__")]
        with pytest.raises(StudyError) as caught:
            check_nodes([tmp_path])
    message = str(caught.value)
    assert node_ids[0][:8] in message and "does not see /nowhere/" in message
    assert message.count("does not see") == 1, "the node that sees it is not blamed"
    assert not list(tmp_path.glob(".visible*"))


def test_a_node_on_which_a_mount_hangs_is_named_before_the_first_trial(
    nodes: LocalNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = nodes_module._probe_node
    hanging: list[str] = []

    def probe(directories: list[str], token: str) -> str | None:
        if ray.get_runtime_context().get_node_id() == hanging[0]:
            time.sleep(3600)
        return real(directories, token)

    monkeypatch.setattr(nodes_module, "_probe_node", probe)
    monkeypatch.setattr(nodes_module, "_ANSWER_SECONDS", 20.0)
    with connected(nodes.address, threads=1):
        on_each_node(lambda: None)  # starts the processes that answer, which takes longer than 20 s on a busy machine
        hanging += [node["NodeID"] for node in ray.nodes() if not node["Resources"].get("node:__internal_head__")]
        with pytest.raises(StudyError, match=f"{hanging[0][:8]}.: does not answer within 20 s") as caught:
            check_nodes([tmp_path])
    assert str(caught.value).count("does not answer") == 1, "the node that answers is not blamed"


def test_an_interrupted_study_leaves_a_joined_cluster_running(nodes: LocalNodes, tmp_path: Path) -> None:
    cell = new_cell(tmp_path / "run", trials=6, confirm_top=0)
    interrupt_when(cell, lambda event: isinstance(event, Epoch))
    with connected(nodes.address, threads=1) as cluster:
        assert not run_cells([cell], cluster, Allotment(2), open_trial=partial(Interrupted, after="t0002", pause=0.3))
    with connected(nodes.address, threads=1) as cluster:
        assert cluster.cpus == 2.0
    assert os.environ["RAY_AUTH_MODE"] == "token"
