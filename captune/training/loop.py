"""The training loop: steps, epochs, the learning rate, and the state from which training resumes bit for bit.

An algorithm says what a step's loss is; optimiser, schedule, checkpoints and scores are shared by all methods.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from captune.config import TrialConfig
from captune.data.paradigms import IntArray
from captune.errors import TrainingFailed
from captune.model.classifier import Classifier
from captune.training.checkpoint import prefixed, without_prefix
from captune.training.context import Context
from captune.training.memory import is_out_of_memory
from captune.training.optim import Sgd, warmup_cosine_epoch
from captune.training.pack_sizes import MOST_AT_ONCE, SIZE_ON_A_GPU
from captune.training.packs import Pack
from captune.training.step import Batch, batches_of, step_of


class Algorithm(Protocol):
    """What the loop asks of a method. All tensors lie on the context's device."""

    @property
    def classifier(self) -> Classifier | None:
        """What is learned; None for a method without training."""

    def start_epoch(self, epoch: int) -> None:
        """Prepare epoch `epoch` (from 0): margins, weights, the epoch's batches."""

    def batch(self, step: int) -> Batch:
        """A step's input: tensors on the device, of equal shapes for every step of the epoch."""

    def loss(self, batch: Batch) -> tuple[Tensor, Batch]:
        """The scalar loss of a step with its graph, and what to keep of the step.

        A function of the batch and of tensors that keep their places: it never waits for the device, and changes
        what it changes in place, so that a GPU can replay it (`captune.training.step`).
        """

    def observe(self, seen: Batch) -> None:
        """Keep what `loss` returned beside the loss, until the epoch ends."""

    def moving_state(self) -> list[Tensor]:
        """Tensors that `loss` updates in place at every call."""

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Update what changes once per epoch (main samples, counts), and return the epoch's figures."""

    def predict(self, indices: IntArray) -> Tensor:
        """Class probabilities (N, K) fp32 of some images by the adapted model."""

    def tensors(self) -> dict[str, Tensor]:
        """State beyond the learned parameters, enough to go on after `end_epoch`."""

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take up the state that `tensors` gave."""


class AlgorithmSpec(Protocol):
    """A row of `captune.algorithms.ALGORITHMS`."""

    @property
    def name(self) -> str:
        """Its key."""

    @property
    def config_class(self) -> type[TrialConfig]:
        """The method's configuration."""

    def build(self, context: Context, config: TrialConfig, seed: int) -> Algorithm:
        """A fresh algorithm before its first epoch."""

    def num_epochs(self, config: TrialConfig) -> int:
        """Epochs to train; 0 for methods without training."""


class Training(Protocol):
    """What trains a trial's algorithm: a `Loop`, or several of them."""

    @property
    def epoch(self) -> int:
        """Epochs trained so far."""

    @property
    def due(self) -> Sequence[Loop]:
        """The loops that train in the next epoch, side by side."""

    def figures(self, each: Sequence[dict[str, float]]) -> dict[str, float]:
        """The figures of an epoch from those of the loops that were due."""

    def state(self) -> dict[str, Tensor]:
        """Everything that the next epoch depends on."""

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from a saved state."""


class Loop:
    """Trains one algorithm epoch by epoch.

    SGD with momentum, one group: prompts and adapters have equal settings, as in CAP. An algorithm with an attribute
    `epochs_per_round` learns afresh after so many epochs: optimiser and schedule start again with it. On a GPU steps
    are recorded as a CUDA graph unless `recorded` is off.
    """

    def __init__(self, algorithm: Algorithm, config: TrialConfig, num_epochs: int, *, recorded: bool = True) -> None:
        self.algorithm = algorithm
        self.config = config
        self.num_epochs = num_epochs
        self.epochs_per_round: int = getattr(algorithm, "epochs_per_round", num_epochs)
        self.epoch = 0
        self.pack: Pack | None = None
        classifier = algorithm.classifier
        parameters = [] if classifier is None else list(classifier.parameters())
        self.device = parameters[0].device if parameters else torch.device("cpu")
        self._step = step_of(algorithm, parameters, recorded=recorded)
        self._optimizer = (
            Sgd(
                classifier.parameters(),
                learning_rate=config.learning_rate,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
            )
            if classifier is not None and num_epochs > 0
            else None
        )

    @property
    def due(self) -> Sequence[Loop]:
        """Itself."""
        return [self]

    def figures(self, each: Sequence[dict[str, float]]) -> dict[str, float]:
        """Its own."""
        (own,) = each
        return own

    def run_epoch(self) -> dict[str, float]:
        """Train the next epoch and return its figures.

        Raises:
            TrainingFailed: the loss or a learned tensor is not finite.
        """
        (outcome,) = train_together([self])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    @property
    def optimizer(self) -> Sgd:
        """What moves the learned tensors.

        Raises:
            ValueError: the method does not train.
        """
        if self._optimizer is None:
            raise ValueError("run_epoch must be called on a method that trains")
        return self._optimizer

    def start_epoch(self) -> None:
        """Prepare the next epoch."""
        self._forget_after_a_round()
        self.algorithm.start_epoch(self.epoch)

    def plan_epoch(self) -> None:
        """Prepare the next epoch as far as a pack does not (`captune.training.packs.Packable`)."""
        self._forget_after_a_round()
        self.algorithm.plan_epoch(self.epoch)  # type: ignore[attr-defined]

    def _forget_after_a_round(self) -> None:
        if self.epoch % self.epochs_per_round == 0:
            self.optimizer.forget()

    def rates(self) -> list[float]:
        """The learning rates of this epoch's steps."""
        steps = self.config.steps_per_epoch
        factors = warmup_cosine_epoch(
            self.epoch % self.epochs_per_round, steps, self.config.warmup_epochs, self.epochs_per_round
        )
        return [self.config.learning_rate * factor for factor in factors]

    def take_steps(self) -> Tensor:
        """The epoch's steps, one by one by autograd; the sum of their losses."""
        total, rates = torch.zeros((), device=self.device), self.rates()
        for rate, batch in zip(rates, batches_of(self.algorithm, len(rates), self.device), strict=True):
            self.optimizer.learning_rate = rate
            loss, seen = self._step(batch)
            self.optimizer.step()  # parameters without a gradient stay as they are
            self.algorithm.observe(seen)
            total = total + loss
        return total

    def pack_key(self) -> Hashable | None:
        """What loops must share whose steps of this epoch are taken together; None where it takes its own."""
        key: Hashable | None = getattr(self.algorithm, "pack_key", lambda: None)()
        return None if key is None else (type(self.algorithm), key)

    def end_epoch(self, total: float, *, finite: bool, figures: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Take stock of an epoch, and return its figures.

        Args:
            total: the sum of its losses.
            finite: whether all that is learned is.
            figures: ends the epoch of the algorithm.

        Raises:
            TrainingFailed: the loss or a learned tensor is not finite.
        """
        mean_loss = total / self.config.steps_per_epoch
        if not (finite and np.isfinite(mean_loss)):
            raise TrainingFailed(
                "the loss and every learned tensor must stay finite",
                got=f"a loss of {mean_loss}",
                where=f"epoch {self.epoch + 1} of {self.num_epochs}",
                next_step="Lower learning_rate or adapter_residual.",
            )
        own = figures()
        self.epoch += 1
        return {"loss": mean_loss, "learning_rate": self.optimizer.learning_rate, **own}

    def run_alone(self) -> dict[str, float]:
        """An epoch by autograd."""
        self.start_epoch()
        total = float(self.take_steps())
        parameters = [] if self.algorithm.classifier is None else list(self.algorithm.classifier.parameters())
        finite = all(bool(torch.isfinite(parameter).all()) for parameter in parameters)
        return self.end_epoch(total, finite=finite, figures=partial(self.algorithm.end_epoch, self.epoch))

    def state(self) -> dict[str, Tensor]:
        """Everything that the next epoch depends on."""
        tensors = {"loop.epoch": torch.tensor(self.epoch)}
        classifier = self.algorithm.classifier
        if classifier is not None and self._optimizer is not None:
            tensors |= prefixed("learned", classifier.learned_state())
            for index, velocity in enumerate(self._optimizer.velocities):
                if velocity is not None:
                    tensors[f"momentum.{index}"] = velocity
        return tensors | prefixed("algorithm", self.algorithm.tensors())

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from a saved state."""
        self.epoch = int(tensors["loop.epoch"])
        classifier = self.algorithm.classifier
        if classifier is not None and self._optimizer is not None:
            classifier.load_learned_state(without_prefix("learned", tensors))
            momentum = without_prefix("momentum", tensors)
            for index, parameter in enumerate(self._optimizer.parameters):
                if str(index) in momentum:
                    self._optimizer.velocities[index] = momentum[str(index)].to(parameter.device, parameter.dtype)
        self.algorithm.load_tensors(without_prefix("algorithm", tensors))


def train_together(trainings: Sequence[Training]) -> list[dict[str, float] | Exception]:
    """Train the next epoch of several trainings; steps that can be packed are taken together.

    Returns:
        The figures of each, or what ended it; the others go on.

    Raises:
        RuntimeError: memory ran out, for all of them.
    """
    due = [training.due for training in trainings]
    trained = iter(_train_loops([loop for loops in due for loop in loops]))
    outcomes: list[dict[str, float] | Exception] = []
    for training, loops in zip(trainings, due, strict=True):
        figures: list[dict[str, float]] = []
        failed: Exception | None = None
        for outcome in itertools.islice(trained, len(loops)):
            if isinstance(outcome, Exception):
                failed = failed or outcome
            else:
                figures.append(outcome)
        outcomes.append(failed or training.figures(figures))
    return outcomes


def _train_loops(loops: Sequence[Loop]) -> list[dict[str, float] | Exception]:
    outcomes: list[dict[str, float] | Exception] = [{} for _ in loops]
    groups: dict[Hashable, list[int]] = {}
    for number, loop in enumerate(loops):
        with _noted(outcomes, number):
            if loop.pack_key() is None:
                outcomes[number] = loop.run_alone()
            else:
                loop.plan_epoch()
                groups.setdefault(loop.pack_key(), []).append(number)
    running: list[tuple[Pack, list[int], list[float]]] = []
    try:
        for key, together in groups.items():
            on_gpu = loops[together[0]].device.type == "cuda"
            most = SIZE_ON_A_GPU if on_gpu else MOST_AT_ONCE
            for start in range(0, len(together), most):
                numbers = together[start : start + most]
                pack = _pack_of([loops[number] for number in numbers], key)
                rates_SP = np.array([loops[number].rates() for number in numbers]).T
                pack.run(rates_SP)
                running.append((pack, numbers, rates_SP[-1].tolist()))
                if not on_gpu:
                    _end_together(loops, outcomes, *running.pop())
    finally:
        # On a GPU packs run side by side while the host prepares others; they are waited for whatever happens.
        for each in running:
            _end_together(loops, outcomes, *each)
    return outcomes


def _pack_of(loops: Sequence[Loop], key: Hashable) -> Pack:
    """The pack in which these loops trained their last epoch, or a new one."""
    algorithms: list[Any] = [loop.algorithm for loop in loops]
    pack = loops[0].pack
    if pack is None or not pack.is_of(algorithms, key):
        pack = Pack(algorithms, [loop.optimizer for loop in loops], key)
    for loop in loops:
        loop.pack = pack
    return pack


def _end_together(
    loops: Sequence[Loop],
    outcomes: list[dict[str, float] | Exception],
    pack: Pack,
    numbers: Sequence[int],
    rates: Sequence[float],
) -> None:
    for place, (number, rate, (total, finite)) in enumerate(zip(numbers, rates, pack.outcome(), strict=True)):
        loops[number].optimizer.learning_rate = rate
        with _noted(outcomes, number):
            figures = partial(pack.figures, place)
            outcomes[number] = loops[number].end_epoch(total, finite=finite, figures=figures)


@contextmanager
def _noted(outcomes: list[dict[str, float] | Exception], number: int) -> Iterator[None]:
    """An error that ends one loop is its outcome; a lack of memory ends all loops."""
    try:
        yield
    except Exception as error:
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        outcomes[number] = error


def final_tensors(algorithm: Algorithm) -> dict[str, Tensor]:
    """What a checkpoint must hold to predict as an algorithm does now (its class texts and settings apart)."""
    classifier = algorithm.classifier
    if classifier is None:
        tensors = prefixed("algorithm", algorithm.tensors())
    else:
        tensors = prefixed("learned", classifier.learned_state())
    # What predictions mix in from the frozen features, where a method does.
    return tensors | prefixed("algorithm", getattr(algorithm, "frozen_part", {}))


def batches(indices: IntArray, *, batch_size: int, num_steps: int, generator: torch.Generator) -> IntArray:
    """Positions into `indices` for one epoch, (num_steps, batch_size): seeded permutations end to end.

    Every element is drawn once before any is drawn again, as a shuffling loader that restarts would.
    """
    needed = batch_size * num_steps
    rounds = -(-needed // len(indices))
    order = torch.cat([torch.randperm(len(indices), generator=generator) for _ in range(rounds)])[:needed]
    return order.reshape(num_steps, batch_size).numpy()
