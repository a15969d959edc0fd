"""Decode and encode each dataset once on every node that runs trials, while trials of other datasets train.

A cell's trials wait until every such node is ready for it. A node that joins later is prepared by its first trial.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from captune.config import TaskConfig
from captune.data.build_once import Work, work_done
from captune.data.catalog import images_of
from captune.errors import CaptuneError
from captune.records.events import Prepared
from captune.tuning.allotment import Allotment, Node
from captune.tuning.cell import Cell
from captune.tuning.nodes import node_name, show_gpus_of_this_node
from captune.tuning.starting import Alongside

_EVERY_SECONDS = 0.25
_WAITING = "preparing images"


class Preparation:
    """Makes nodes decode and encode the images of the cells; a cell's trials begin once its images are ready.

    Cells with the same images and backbone are prepared together, small datasets first.

    Args:
        cells: opened studies.
        tell: called with a message about each node that is left out.
        patience: seconds without a step after which a node is left out.

    Attributes:
        groups: the cells that share images and backbone.
    """

    def __init__(
        self, cells: Sequence[Cell], tell: Callable[[str], None] = lambda _text: None, *, patience: float | None = None
    ) -> None:
        self._tell, self._patience = tell, patience
        self.groups: list[list[Cell]] = []
        by_images: dict[TaskConfig, list[Cell]] = {}
        for cell in cells:
            if cell.finished:
                continue
            group = by_images.setdefault(images_of(cell.study.task), [])
            if not group:
                self.groups.append(group)
            group.append(cell)
        self.groups.sort(key=lambda group: group[0].info.num_pool + group[0].info.num_test)
        self._pending: dict[Any, tuple[int, str]] = {}
        self._answers: dict[int, dict[str, Made]] = {}
        self._makers: list[Any] = []
        self._looked = 0.0

    def prepare_here(self, look: Callable[[], None] = lambda: None) -> None:
        """Prepare everything in this process. If no other node has to be prepared, this saves starting a process.

        Args:
            look: called for every few images; what it raises ends the preparation.

        Raises:
            CaptuneError: data or weights cannot be used.
        """
        for group in self.groups:
            made = prepare_this_process(group[0].study.task.model_dump(mode="json"), look)
            look()
            _note(group[0], platform.node(), made)

    def begin(self, allotment: Allotment) -> None:
        """Start to prepare on every node that has room for a trial; `look` collects the results."""
        nodes = [
            node
            for node in ray.nodes()  # type: ignore[no-untyped-call]
            if node["Alive"] and allotment.room_on(Node.of(node["Resources"])) > 0
        ]
        tasks = [group[0].study.task.model_dump(mode="json") for group in self.groups]
        for group in self.groups:
            for cell in group:
                cell.unprepared = _WAITING
        maker: Any = ray.remote(num_cpus=0)(NodePreparer)
        for node in nodes:
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            actor: Any = maker.options(scheduling_strategy=where).remote(bool(allotment.gpus), self._patience)
            self._makers.append(actor)
            for number, task in enumerate(tasks):
                self._pending[actor.prepare.remote(task)] = (number, node_name(node))

    def look(self) -> None:
        """Collect what nodes have prepared; called in every iteration of Ray's loop."""
        if not self._pending or time.monotonic() - self._looked < _EVERY_SECONDS:
            return
        self._looked = time.monotonic()
        ready, _ = ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0)
        for reference in ready:
            number, node = self._pending.pop(reference)
            try:
                made: Made = ray.get(reference)
            except RayError as error:
                made = Made(refused=f"does not answer: {str(error).strip().splitlines()[0]}", silent=True)
            self._answers.setdefault(number, {})[node] = made
            if not any(number == other for other, _ in self._pending.values()):
                self._settle(self.groups[number], self._answers[number])
        if not self._pending:
            self.close()

    def close(self) -> None:
        """End the processes that prepare, which frees their memory and GPUs."""
        self._pending.clear()
        for actor in self._makers:
            with contextlib.suppress(RayError):
                ray.kill(actor)
        self._makers.clear()

    def _settle(self, group: Sequence[Cell], answers: dict[str, Made]) -> None:
        """Let the cells of a group begin, now that all nodes have answered, or record why they cannot."""
        refused = {node: made.refused for node, made in answers.items() if made.refused is not None}
        # A node that is silent runs no trials and is left out. If no other node is ready, it is an error of the cells.
        if any(made.refused is None for made in answers.values()):
            for node in [node for node in refused if answers[node].silent]:
                names = ", ".join(cell.name for cell in group)
                self._tell(f"{names}: the images are not ready on {node}, which is done without: {refused.pop(node)}")
        for cell in group:
            cell.unprepared = None
            if refused:
                cell.unable = "\n  ".join(f"{node}: {why}" for node, why in refused.items())
        if not refused:
            for node, made in answers.items():
                _note(group[0], node, made)


@dataclass(frozen=True)
class Made:
    """What a node did for a dataset and backbone.

    Attributes:
        work: images decoded and encoded.
        seconds: how long it took.
        refused: why it could not; None if it could.
        silent: whether the reason is that it does not answer or hangs.
    """

    work: Work = field(default_factory=Work)
    seconds: float = 0.0
    refused: str | None = None
    silent: bool = False


class NodePreparer:
    """Prepares one dataset and backbone after another on its node; a backbone is opened once for all.

    Args:
        gpus: whether trials use the node's GPUs.
        patience: seconds without a step after which a dataset is given up.
    """

    def __init__(self, gpus: bool, patience: float | None = None) -> None:
        self._patience = patience
        if gpus:
            show_gpus_of_this_node()

    def prepare(self, task: dict[str, Any]) -> Made:
        """Prepare this node for a cell."""
        made: list[Made] = []
        working = Alongside(lambda look: made.append(prepare_this_process(task, look)), patience=self._patience)
        try:
            with working:
                pass
            return made[0]
        except CaptuneError as error:
            return Made(refused=str(error), silent=working.hangs)
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
            # Other trials fill the GPU. The first trial of this dataset will prepare it on its own share of the GPU.
            return Made()


def prepare_this_process(task: dict[str, Any], look: Callable[[], None] = lambda: None) -> Made:
    """Prepare the node of this process for a cell, calling `look` for every few images.

    Raises:
        CaptuneError: data or weights are missing or cannot be used.
    """
    from captune.training.context import prepare_node

    began, worked = time.perf_counter(), work_done()
    prepare_node(TaskConfig.parse(task), progress=lambda _done, _all: look())
    return Made(work_done() - worked, time.perf_counter() - began)


def _note(cell: Cell, node: str, made: Made) -> None:
    if made.work != Work():
        cell.write(Prepared(node=node, seconds=made.seconds, **asdict(made.work)))
