"""The training loop: steps, epochs, the learning rate, and the state from which training resumes bit for bit.

An algorithm says what a step's loss is; optimiser, schedule, checkpoints and scores are shared by all methods.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
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
from captune.training.optim import Sgd, warmup_cosine
from captune.training.pack_sizes import MOST_AT_ONCE, SIZE_ON_A_GPU
from captune.training.packs import LearnedStack, PackedSteps, StepOfAll
from captune.training.step import Batch, GraphStep, batches_of, step_of


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

    def learning_rate(self, step: int) -> float:
        """Peak learning rate times the schedule at a global step (from 0)."""
        steps = self.config.steps_per_epoch
        round_steps = max(self.epochs_per_round * steps, 1)
        factor = warmup_cosine(
            step % round_steps, warmup_steps=self.config.warmup_epochs * steps, total_steps=round_steps
        )
        return self.config.learning_rate * factor

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
        if self.epoch % self.epochs_per_round == 0:
            self.optimizer.forget()
        self.algorithm.start_epoch(self.epoch)

    def approach(self, step: int) -> None:
        """Set the learning rate of a step of this epoch."""
        self.optimizer.learning_rate = self.learning_rate(self.epoch * self.config.steps_per_epoch + step)

    def take_steps(self) -> Tensor:
        """The epoch's steps, one by one by autograd; the sum of their losses."""
        total = torch.zeros((), device=self.device)
        for step, batch in enumerate(batches_of(self.algorithm, self.config.steps_per_epoch, self.device)):
            self.approach(step)
            loss, seen = self._step(batch)
            self.optimizer.step()  # parameters without a gradient stay as they are
            self.algorithm.observe(seen)
            total = total + loss
        return total

    def pack_key(self) -> Hashable | None:
        """What loops must share whose steps of this epoch are taken together; None where it takes its own."""
        key: Hashable | None = getattr(self.algorithm, "pack_key", lambda: None)()
        return None if key is None else (type(self.algorithm), key)

    def end_epoch(self, total: Tensor) -> dict[str, float]:
        """Take stock of an epoch whose losses add up to `total`, and return its figures.

        Raises:
            TrainingFailed: the loss or a learned tensor is not finite.
        """
        mean_loss = float(total) / self.config.steps_per_epoch
        self._check_finite(mean_loss)
        figures = self.algorithm.end_epoch(self.epoch)
        self.epoch += 1
        return {"loss": mean_loss, "learning_rate": self.optimizer.learning_rate, **figures}

    def _check_finite(self, loss: float) -> None:
        classifier = self.algorithm.classifier
        parameters = [] if classifier is None else list(classifier.parameters())
        if np.isfinite(loss) and all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
            return
        raise TrainingFailed(
            "the loss and every learned tensor must stay finite",
            got=f"a loss of {loss}",
            where=f"epoch {self.epoch + 1} of {self.num_epochs}",
            next_step="Lower learning_rate or adapter_residual.",
        )

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
            loop.start_epoch()
            key = loop.pack_key()
            groups.setdefault(("alone", number) if key is None else key, []).append(number)
    for key, together in groups.items():
        if key == ("alone", together[0]):
            with _noted(outcomes, together[0]):
                loop = loops[together[0]]
                outcomes[together[0]] = loop.end_epoch(loop.take_steps())
            continue
        most = SIZE_ON_A_GPU if loops[together[0]].device.type == "cuda" else MOST_AT_ONCE
        for start in range(0, len(together), most):
            numbers = together[start : start + most]
            totals_P = _take_steps_together([loops[number] for number in numbers])
            for number, total in zip(numbers, totals_P, strict=True):
                with _noted(outcomes, number):
                    outcomes[number] = loops[number].end_epoch(total)
    return outcomes


@torch.no_grad()
def _take_steps_together(loops: Sequence[Loop]) -> Tensor:
    """An epoch's steps of loops whose algorithms can be packed; the sums of their losses (P,)."""
    algorithms: list[Any] = [loop.algorithm for loop in loops]
    stack = LearnedStack([each.classifier for each in algorithms], [loop.optimizer for loop in loops])
    steps: PackedSteps = algorithms[0].packed(algorithms, stack)
    num_steps = loops[0].config.steps_per_epoch
    if stack.device.type == "cuda":
        totals_P = _recorded_steps(loops, steps, stack, num_steps)
    else:
        totals_P = _steps_one_by_one(loops, steps, stack, num_steps)
    stack.hand_back(steps.moved)
    steps.end()
    return totals_P


def _recorded_steps(loops: Sequence[Loop], steps: PackedSteps, stack: LearnedStack, num_steps: int) -> Tensor:
    """On a GPU: a step of all is recorded once per epoch and replayed; optimisers are a part of it."""
    rates_SP = [
        stack.filled([loop.learning_rate(loop.epoch * num_steps + step) for loop in loops]) for step in range(num_steps)
    ]
    together = StepOfAll(steps, stack, torch.tensor(rates_SP, device=stack.device))
    take, totals_P = GraphStep(together, []), torch.zeros(len(rates_SP[0]), device=stack.device)
    for step in range(num_steps):
        losses_P, seen = take(together.batch(step))
        steps.observe(seen)
        totals_P += losses_P
    for loop in loops:
        loop.approach(num_steps - 1)
    return totals_P[: len(loops)].cpu()


def _steps_one_by_one(loops: Sequence[Loop], steps: PackedSteps, stack: LearnedStack, num_steps: int) -> Tensor:
    totals_P = torch.zeros(len(loops))
    # With several threads a product of one differs from one of several in its last bit; and it gains nothing here.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for step in range(num_steps):
            for loop in loops:
                loop.approach(step)
            losses_P, seen = steps.step(steps.batch(step))
            stack.descend(steps.moved)
            steps.observe(seen)
            totals_P = totals_P + losses_P
    finally:
        torch.set_num_threads(num_threads)
    return totals_P


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
