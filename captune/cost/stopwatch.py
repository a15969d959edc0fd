"""Measure the time of an algorithm's steps and epochs in the training loop, alone or in a pack."""

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
    """Wraps an algorithm and measures how long the calls of the training loop take.

    Attributes:
        start, end: seconds of each `start_epoch` and `end_epoch`.
        steps: seconds from the beginning of each step to that of the next, optimiser included (an epoch's last step has
            none). In a pack: the mean step of the epoch, divided by the number of trials.
        around: seconds that a pack takes before and after the steps of each epoch, divided in the same way.
    """

    def __init__(self, algorithm: Algorithm, device: torch.device) -> None:
        """Wrap `algorithm`, which computes on `device`."""
        self.algorithm, self.device = algorithm, device
        self.classifier = algorithm.classifier
        self.start: list[float] = []
        self.end: list[float] = []
        self.steps: list[float] = []
        self.around: list[float] = []
        self._step_began = 0.0

    def start_epoch(self, epoch: int) -> None:
        """Call the algorithm's, timed."""
        self.start.append(seconds_of(lambda: self.algorithm.start_epoch(epoch), self.device))

    def batch(self, step: int) -> Batch:
        """Call the algorithm's. The previous step ends here, since a step lasts until the next one begins."""
        synchronize(self.device)
        now = time.perf_counter()
        if step > 0:
            self.steps.append(now - self._step_began)
        self._step_began = now
        return self.algorithm.batch(step)

    def pack_key(self) -> Hashable | None:
        """The algorithm's; None if it cannot be packed."""
        key: Hashable | None = getattr(self.algorithm, "pack_key", lambda: None)()
        return key

    @property
    def moved_in_packs(self) -> list[str]:
        """The algorithm's."""
        algorithm: Any = self.algorithm
        names: list[str] = algorithm.moved_in_packs
        return names

    def plan_epoch(self, epoch: int) -> None:
        """Call the algorithm's, timed."""
        algorithm: Any = self.algorithm
        self.start.append(seconds_of(lambda: algorithm.plan_epoch(epoch), self.device))

    def packed(self, others: Sequence[Stopwatch], stack: LearnedStack) -> PackedSteps:
        """The algorithm's, timed; only this stopwatch, the first of the pack, records the time per trial."""
        algorithm: Any = self.algorithm
        return _TimedSteps(algorithm.packed([other.algorithm for other in others], stack), others)

    def loss(self, batch: Batch) -> tuple[Tensor, Batch]:
        """Call the algorithm's."""
        return self.algorithm.loss(batch)

    def observe(self, seen: Batch) -> None:
        """Call the algorithm's."""
        self.algorithm.observe(seen)

    def moving_state(self) -> list[Tensor]:
        """The algorithm's."""
        return self.algorithm.moving_state()

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Call the algorithm's, timed."""
        synchronize(self.device)
        started = time.perf_counter()
        figures = self.algorithm.end_epoch(epoch)
        synchronize(self.device)
        self.end.append(time.perf_counter() - started)
        return figures

    def predict(self, indices: IntArray) -> Tensor:
        """Call the algorithm's."""
        return self.algorithm.predict(indices)

    def tensors(self) -> dict[str, Tensor]:
        """The algorithm's."""
        return self.algorithm.tensors()

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Call the algorithm's."""
        self.algorithm.load_tensors(tensors)


class _TimedSteps:
    """The steps of a pack, timed; the first stopwatch records the time divided by the number of trials."""

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
        return False  # steps that a GPU replays from a recording would not call these methods

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
