"""A clock on what the loop asks of an algorithm, step by step, taken alone or in a pack."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from captune.cost.measure import seconds_of, synchronize
from captune.data.dataset import IntArray
from captune.training.loop import Algorithm
from captune.training.packs import LearnedStack, PackedSteps
from captune.training.step import Batch


class Stopwatch:
    """An algorithm with a clock on what the loop asks of it.

    Attributes:
        start, end: seconds of each `start_epoch` and `end_epoch`.
        steps: seconds from each step's beginning to the next one's, optimiser included (none for an epoch's last); of
            steps that are taken together an even share of the epoch's mean.
        around: seconds of each epoch around steps that are taken together, shared likewise.
    """

    def __init__(self, algorithm: Algorithm, device: torch.device) -> None:
        """Watch `algorithm` on `device`."""
        self.algorithm, self.device = algorithm, device
        self.classifier = algorithm.classifier
        self.start: list[float] = []
        self.end: list[float] = []
        self.steps: list[float] = []
        self.around: list[float] = []
        self._step_began = 0.0

    def start_epoch(self, epoch: int) -> None:
        """As the algorithm's, timed."""
        self.start.append(seconds_of(lambda: self.algorithm.start_epoch(epoch), self.device))

    def batch(self, step: int) -> Batch:
        """As the algorithm's; a step lasts until the next one begins."""
        synchronize(self.device)
        now = time.perf_counter()
        if step > 0:
            self.steps.append(now - self._step_began)
        self._step_began = now
        return self.algorithm.batch(step)

    def pack_key(self) -> Hashable | None:
        """As the algorithm's; None where it cannot be packed."""
        key: Hashable | None = getattr(self.algorithm, "pack_key", lambda: None)()
        return key

    @property
    def moved_in_packs(self) -> list[str]:
        """As the algorithm's."""
        algorithm: Any = self.algorithm
        names: list[str] = algorithm.moved_in_packs
        return names

    def plan_epoch(self, epoch: int) -> None:
        """As the algorithm's, timed."""
        algorithm: Any = self.algorithm
        self.start.append(seconds_of(lambda: algorithm.plan_epoch(epoch), self.device))

    def packed(self, others: Sequence[Stopwatch], stack: LearnedStack) -> PackedSteps:
        """As the algorithm's, timed: this stopwatch notes the shares of all."""
        algorithm: Any = self.algorithm
        return _TimedSteps(algorithm.packed([other.algorithm for other in others], stack), others)

    def loss(self, batch: Batch) -> tuple[Tensor, Batch]:
        """As the algorithm's."""
        return self.algorithm.loss(batch)

    def observe(self, seen: Batch) -> None:
        """As the algorithm's."""
        self.algorithm.observe(seen)

    def moving_state(self) -> list[Tensor]:
        """As the algorithm's."""
        return self.algorithm.moving_state()

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """As the algorithm's, timed."""
        synchronize(self.device)
        started = time.perf_counter()
        figures = self.algorithm.end_epoch(epoch)
        synchronize(self.device)
        self.end.append(time.perf_counter() - started)
        return figures

    def predict(self, indices: IntArray) -> Tensor:
        """As the algorithm's."""
        return self.algorithm.predict(indices)

    def tensors(self) -> dict[str, Tensor]:
        """As the algorithm's."""
        return self.algorithm.tensors()

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """As the algorithm's."""
        self.algorithm.load_tensors(tensors)


class _TimedSteps:
    """What a pack does, with a clock; the first stopwatch notes the shares of all."""

    def __init__(self, steps: PackedSteps, watches: Sequence[Stopwatch]) -> None:
        self._steps, self._watches, self._watch, self._share = steps, watches, watches[0], 1 / len(watches)
        self._began, self._num_steps = 0.0, 0

    def start(self) -> Batch:
        inputs = Batch()

        def start() -> None:
            inputs.update(self._steps.start())

        self._watch.around.append(self._share * seconds_of(start, self._watch.device))
        return inputs

    @property
    def in_fixed_places(self) -> bool:
        return False  # what a GPU records and replays would not pass by here

    def prepare(self, inputs: Batch) -> Batch:
        started = time.perf_counter()
        read = self._steps.prepare(inputs)
        synchronize(self._watch.device)
        self._began, self._num_steps = time.perf_counter(), len(next(iter(read.values())))
        self._watch.around[-1] += self._share * (self._began - started)
        return read

    def step(self, batch: Batch) -> tuple[Tensor, Batch]:
        return self._steps.step(batch)

    def moving_state(self) -> list[Tensor]:
        return self._steps.moving_state()

    def end(self, inputs: Batch, seen: Batch) -> Batch:
        synchronize(self._watch.device)
        now = time.perf_counter()
        self._watch.steps += [self._share * (now - self._began) / self._num_steps] * self._num_steps
        told = self._steps.end(inputs, seen)
        synchronize(self._watch.device)
        self._watch.around[-1] += self._share * (time.perf_counter() - now)
        return told

    def figures(self, number: int, told: Batch) -> dict[str, float]:
        started = time.perf_counter()
        figures = self._steps.figures(number, told)
        self._watches[number].end.append(time.perf_counter() - started)
        return figures
