"""Rivals timed in turn, so that a busy minute falls on all of them alike."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from captune.cost.measure import clocks_of


@dataclass(frozen=True)
class Timing:
    """Repeated calls.

    Attributes:
        seconds: of each, by the clock on the wall.
        cpu_seconds: of each, by all threads of this process; on a machine that others use too the steadier number.
    """

    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        """The least disturbed call."""
        return min(self.seconds)

    @property
    def best_cpu(self) -> float:
        """CPU seconds of the cheapest call."""
        return min(self.cpu_seconds)

    def busy(self, device: torch.device) -> float:
        """Seconds the device itself worked: on a CPU its CPU seconds a thread, which neighbours disturb least."""
        return self.best_cpu / torch.get_num_threads() if device.type == "cpu" else self.best

    def over(self, count: int) -> Timing:
        """The timing of one of `count` equal parts of each call."""
        return Timing(tuple(one / count for one in self.seconds), tuple(one / count for one in self.cpu_seconds))

    @property
    def median(self) -> float:
        """The typical call."""
        return statistics.median(self.seconds)

    def as_json(self) -> dict[str, Any]:
        """Minimum, median and all."""
        return {
            "min": self.best,
            "median": self.median,
            "all": list(self.seconds),
            "cpu_min": self.best_cpu,
            "cpu_all": list(self.cpu_seconds),
        }


def alternate(works: Sequence[Callable[[], object]], repeats: int, device: torch.device) -> list[Timing]:
    """Time several calls in turn, again and again, so that a busy minute falls on all of them alike."""
    rounds = [[clocks_of(work, device) for work in works] for _ in range(repeats)]
    timings = []
    for column in zip(*rounds, strict=True):
        wall, cpu = zip(*column, strict=True)
        timings.append(Timing(wall, cpu))
    return timings
