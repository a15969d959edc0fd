"""What runs ask of Ray, and how many fit."""

from __future__ import annotations

import pytest

from captune.errors import UsageError
from captune.tuning.allotment import TRIAL_BYTES, Node, allot

GB = 1e9


def test_all_cores_are_used_and_none_is_fought_over() -> None:
    assert allot([Node(2)]).concurrency == 2
    halves = allot([Node(8)], cpus=2)
    assert (halves.concurrency, halves.threads) == (4, 2)
    assert allot([Node(3), Node(3)], cpus=2).concurrency == 2, "a run does not reach over two nodes"


def test_gpus_bound_the_trials_at_once_and_can_be_shared() -> None:
    assert allot([Node(16, 2)]).concurrency == 2
    quarter = allot([Node(16, 2)], gpus=0.25)
    assert (quarter.concurrency, quarter.resources()) == (8, {"cpu": 1.0, "gpu": 0.25})
    assert allot([Node(16, 2)], gpus=0.4).concurrency == 4, "0.8 of each GPU, not 0.2 of both"
    with pytest.raises(UsageError, match="a trial trains on one, the others would lie idle"):
        allot([Node(16, 2)], gpus=2)
    assert allot([Node(16, 2)], gpus=0).resources() == {"cpu": 1.0}


def test_memory_bounds_the_trials_at_once_on_every_node() -> None:
    wanted = allot([Node(8, 0, 10 * GB), Node(2, 0, 10 * GB)], memory_bytes=3 * GB)
    assert wanted.concurrency == 3 + 2
    assert wanted.resources() == {"cpu": 1.0, "memory": 3 * GB}


def test_memory_is_asked_for_as_measured_or_by_the_rule() -> None:
    nodes = [Node(8, 0, 10 * GB)]
    assert allot(nodes).memory_bytes == TRIAL_BYTES
    assert allot(nodes).concurrency == 8
    measured = allot(nodes, measured_bytes=3_000_000_000)
    assert (measured.memory_bytes, measured.concurrency) == (3_300_000_000, 3)
    assert allot(nodes, measured_bytes=3_000_000_000, memory_bytes=2 * GB).concurrency == 5, "what is said counts"


def test_a_guess_of_memory_keeps_no_study_from_running() -> None:
    small = allot([Node(4, 0, 0.5 * GB)])
    assert (small.concurrency, small.memory_bytes) == (1, 500_000_000)
    assert allot([Node(4)]).resources() == {"cpu": 1.0}, "a cluster that does not know its memory is not asked for it"


def test_a_deterministic_study_runs_one_at_a_time() -> None:
    assert allot([Node(8)], concurrency=4, deterministic=True).concurrency == 1


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"cpus": 4}, "4 CPUs, 0 GPUs per trial, where the largest has 2, 0"),
        ({"gpus": 0.5}, "1 CPUs, 0.5 GPUs per trial"),
        ({"memory_bytes": 9 * GB}, "1 CPUs, 0 GPUs and 9.0 GB per trial, where the largest has 2, 0 and 4.0 GB"),
    ],
)
def test_a_trial_that_does_not_fit_is_refused(asked: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match="a trial must fit into a node of the cluster, but got " + said):
        allot([Node(2, 0, 4 * GB), Node(2, 0, 4 * GB)], **asked)
