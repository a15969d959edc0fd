"""How many trials run at once and how many form a pack, by what a trial needs and what the nodes have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from captune.errors import UsageError
from captune.training.pack_sizes import most_in_memory

# Memory of a trial on frozen features, process and libraries included (measured: captune/tuning/README.md).
TRIAL_BYTES = 1_250_000_000
# Later trials may need more than a measured peak, and a process on a GPU also holds the driver's context and libraries.
_MARGIN = 1.1
_GB = 1e9
# In larger packs a step is bound by arithmetic and memory, no longer by overhead (analysis/measurements/packs.md).
MOST_PACKED = 8
# Random trials before a sampler's model takes over. With Optuna's ten, a study of twelve would hardly search.
STARTUP_TRIALS = 6
_LARGEST_WIDTH = 1024
# Packs save four times and more up to this width of features, whatever the number of classes, and less than three times
# at 512: there a step is arithmetic and memory (analysis/measurements/packs.md).
_CHEAP_WIDTH = 256
PACKED_TRIALS, PACKED_SEEDS = 48, 6
"""Search trials and confirmation seeds of a study whose trials are cheap in packs. On digits they take half as long
again as 12 and 3; 96 and 10 take twice as long and find nothing better (analysis/measurements/budget.md)."""


@dataclass(frozen=True)
class Node:
    """A machine of a cluster: its CPUs and GPUs, and the memory that trials may have (0 where unknown)."""

    cpus: float
    gpus: float = 0.0
    memory_bytes: float = 0.0

    @classmethod
    def of(cls, resources: Mapping[str, float]) -> Node:
        """A node with the resources that Ray reports for it."""
        return cls(resources.get("CPU", 0.0), resources.get("GPU", 0.0), resources.get("memory", 0.0))


@dataclass(frozen=True)
class Allotment:
    """The resources that trials get.

    Attributes:
        concurrency: trials at once, over all studies.
        cpus, gpus: of one trial; with less than one GPU, trials share it.
        memory_bytes: of one trial, or None.
    """

    concurrency: int
    cpus: float = 1.0
    gpus: float = 0.0
    memory_bytes: int | None = None

    @property
    def threads(self) -> int:
        """CPU threads of a trial."""
        return max(1, int(self.cpus))

    def resources(self) -> dict[str, float]:
        """What a trial asks of Ray, by Ray's names."""
        wanted: dict[str, float] = {"cpu": self.cpus, "gpu": self.gpus}
        if self.memory_bytes is not None:
            wanted["memory"] = self.memory_bytes
        return {name: amount for name, amount in wanted.items() if amount}

    def room_on(self, node: Node) -> int:
        """Trials that fit on a node at once."""
        room = math.floor(node.cpus / self.cpus + 1e-9)
        if self.gpus:
            # A share of a GPU must lie on one GPU.
            on_one = math.floor(1 / self.gpus + 1e-9)
            room = min(room, int(node.gpus) * on_one if on_one else math.floor(node.gpus / self.gpus + 1e-9))
        if self.memory_bytes and node.memory_bytes:
            room = min(room, math.floor(node.memory_bytes / self.memory_bytes))
        return room


def allot(
    nodes: Sequence[Node],
    *,
    concurrency: int | None = None,
    cpus: float | None = None,
    gpus: float | None = None,
    memory_bytes: float | None = None,
    measured_bytes: int = 0,
    deterministic: bool = False,
) -> Allotment:
    """How many trials run at once, and the CPUs, GPUs and memory of each. Uses the nodes fully without oversubscribing.

    Args:
        nodes: of the cluster.
        concurrency: trials at once; None: as many as fit.
        cpus: of a trial; None: one.
        gpus: of a trial; None: a whole one if the cluster has any, else none.
        memory_bytes: of a trial. None: what trials of these studies were measured to need and at least TRIAL_BYTES, but
            no more than a node has, because a guess must not keep a study from running.
        measured_bytes: the most a trial of these studies was measured to need before.
        deterministic: one trial at a time.

    Raises:
        UsageError: a trial asks for more than any node has, or for more than one GPU, which it could not use.
    """
    cpus = cpus or 1.0
    refuse_several_gpus(gpus)
    if gpus is None:
        gpus = min(1.0, sum(node.gpus for node in nodes))
    if memory_bytes is not None:
        memory: int | None = int(memory_bytes)
    else:
        guess = max(TRIAL_BYTES, int(_MARGIN * measured_bytes))
        memory = min([guess, *(int(node.memory_bytes) for node in nodes if node.memory_bytes)])
        memory = memory if any(node.memory_bytes for node in nodes) else None
    one = Allotment(1, cpus=cpus, gpus=gpus, memory_bytes=memory)
    room = sum(one.room_on(node) for node in nodes)
    if room < 1:
        best = max(nodes, key=lambda node: (node.gpus, node.cpus, node.memory_bytes))
        asked = f"{cpus:g} CPUs, {gpus:g} GPUs" + (f" and {memory_bytes / _GB:.1f} GB" if memory_bytes else "")
        there = f"{best.cpus:g}, {best.gpus:g}" + (f" and {best.memory_bytes / _GB:.1f} GB" if memory_bytes else "")
        raise UsageError(
            "a trial must fit into a node of the cluster",
            got=f"{asked} per trial, where the largest has {there}",
            next_step="Lower --cpus-per-trial, --gpus-per-trial or --memory-per-trial.",
        )
    at_once = 1 if deterministic else concurrency or room
    return Allotment(at_once, cpus=cpus, gpus=gpus, memory_bytes=memory)


def refuse_several_gpus(gpus: float | None) -> None:
    """Check that a trial asks for no more than it can use.

    Raises:
        UsageError: it asks for more than one GPU.
    """
    if gpus is not None and gpus > 1:
        raise UsageError(
            "a trial must ask for one GPU at most, or a part of one",
            got=f"--gpus-per-trial {gpus:g}: a trial trains on one, the others would lie idle",
            next_step="Leave it out for one GPU per trial. If a backbone is too large for one, "
            "--micro-batch 8 lowers the memory of a step with the same gradients, and --precision bf16 saves more.",
        )


def most_packed(num_images: int, width: int | None) -> int:
    """The most trials that one worker trains together; fewer if the features are large.

    Args:
        num_images: of the dataset.
        width: of its features; None if it is not known before a model is opened.
    """
    return min(MOST_PACKED, most_in_memory(num_images, width or _LARGEST_WIDTH))


def cheap_in_packs(num_images: int, width: int | None) -> bool:
    """Whether packs make trials on frozen features so cheap that a study affords several times as many.

    Args:
        num_images: of the dataset.
        width: of its features; None if it is not known before a model is opened.
    """
    return most_packed(num_images, width) > 1 and (width or _LARGEST_WIDTH) <= _CHEAP_WIDTH


def block_size(num_trials: int, most: int, *, workers: int = 2, rounds: int = 1) -> int:
    """Size of equal blocks of trials, such that every worker gets the same number of blocks, at least `rounds`.

    Args:
        num_trials: number of trials to divide into blocks.
        most: the most trials in a block.
        workers: number of workers that take blocks at once.
        rounds: the least number of blocks per worker, if there are enough trials.
    """
    rounds = max(rounds, math.ceil(num_trials / (workers * most)))
    return max(1, math.ceil(num_trials / (workers * rounds)))


def search_block(num_trials: int, most: int, *, workers: int) -> int:
    """Length of the blocks in which the trials of a search (or screen) are proposed and trained.

    Every worker gets at least two blocks, so that the sampler knows the results of the first when it proposes the
    second. Only a search too short for the sampler to learn from is proposed all at once.
    """
    return block_size(num_trials, most, workers=workers, rounds=1 if num_trials <= STARTUP_TRIALS else 2)
