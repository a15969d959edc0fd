"""THE loop: steps, epochs, the learning rate, and the state from which both go on bit for bit.

An algorithm says what a step's loss is; optimiser, schedule, checkpoints and scores are shared by all methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from captune.config import TrialConfig
from captune.data.paradigms import IntArray
from captune.errors import TrainingFailed
from captune.model.classifier import Classifier
from captune.training.checkpoint import prefixed, without_prefix
from captune.training.context import Context
from captune.training.optim import Sgd, warmup_cosine
from captune.training.step import Batch, batches_of, step_of


class Algorithm(Protocol):
    """What a method tells the loop. All tensors on the context's device."""

    @property
    def classifier(self) -> Classifier | None:
        """What is learned; None for a method without training."""

    def start_epoch(self, epoch: int) -> None:
        """Prepare epoch `epoch` (from 0): margins, weights, the epoch's batches."""

    def batch(self, step: int) -> Batch:
        """What a step of this epoch reads, as tensors on the device whose shapes all its steps share."""

    def loss(self, batch: Batch) -> tuple[Tensor, Batch]:
        """The scalar loss of a step with its graph, and what to keep of the step.

        A function of the batch and of tensors that keep their places: it never waits for the device, and changes
        what it changes in place, so that a GPU can replay it (`captune.training.step`).
        """

    def observe(self, seen: Batch) -> None:
        """Keep what `loss` gave until the epoch ends."""

    def moving_state(self) -> list[Tensor]:
        """Tensors that `loss` moves on in place, each call further than the last."""

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Take stock (main samples, counts) and return the epoch's figures."""

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


@dataclass(frozen=True)
class Part:
    """An algorithm within another, with its own configuration and number of epochs."""

    algorithm: Algorithm
    config: TrialConfig
    num_epochs: int


class Training(Protocol):
    """What trains a trial's algorithm: a `Loop`, or several of them."""

    @property
    def epoch(self) -> int:
        """Epochs trained so far."""

    def run_epoch(self) -> dict[str, float]:
        """Train the next epoch and return its figures."""

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
        self._device = parameters[0].device if parameters else torch.device("cpu")
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
        optimizer = self._optimizer
        if optimizer is None:
            raise ValueError("run_epoch must be called on a method that trains")
        if self.epoch % self.epochs_per_round == 0:
            optimizer.forget()
        self.algorithm.start_epoch(self.epoch)
        steps = self.config.steps_per_epoch
        total: Tensor | float = 0.0
        for step, batch in enumerate(batches_of(self.algorithm, steps, self._device)):
            optimizer.learning_rate = self.learning_rate(self.epoch * steps + step)
            loss, seen = self._step(batch)
            optimizer.step()  # leaves parameters without a gradient alone
            self.algorithm.observe(seen)
            total = total + loss
        mean_loss = float(total) / steps
        self._check_finite(mean_loss)
        figures = self.algorithm.end_epoch(self.epoch)
        self.epoch += 1
        return {"loss": mean_loss, "learning_rate": optimizer.learning_rate, **figures}

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


class Loops:
    """Trains the parts of an algorithm one behind another, each by a loop of its own."""

    def __init__(self, parts: list[Part], *, recorded: bool = True) -> None:
        self._loops = [Loop(part.algorithm, part.config, part.num_epochs, recorded=recorded) for part in parts]

    @property
    def epoch(self) -> int:
        """Epochs trained so far, of all parts."""
        return sum(loop.epoch for loop in self._loops)

    def run_epoch(self) -> dict[str, float]:
        """Train the next epoch of the first part that is not done, and return its figures.

        Raises:
            TrainingFailed: the loss or a learned tensor is not finite.
        """
        return next(loop for loop in self._loops if loop.epoch < loop.num_epochs).run_epoch()

    def state(self) -> dict[str, Tensor]:
        """The state of every part that trains; the others are solved when they are built."""
        tensors: dict[str, Tensor] = {}
        for number, loop in enumerate(self._loops):
            if loop.num_epochs:
                tensors |= prefixed(f"part{number}", loop.state())
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from a saved state."""
        for number, loop in enumerate(self._loops):
            if loop.num_epochs:
                loop.load_state(without_prefix(f"part{number}", tensors))


def training_of(algorithm: Algorithm, config: TrialConfig, num_epochs: int, *, recorded: bool = True) -> Training:
    """What trains an algorithm: loops for its `parts` where it is made of others, else one loop."""
    parts: list[Part] | None = getattr(algorithm, "parts", None)
    if parts is None:
        return Loop(algorithm, config, num_epochs, recorded=recorded)
    return Loops(parts, recorded=recorded)


def final_tensors(algorithm: Algorithm) -> dict[str, Tensor]:
    """What a checkpoint must hold to predict as an algorithm does now (its class texts and settings apart)."""
    classifier = algorithm.classifier
    if classifier is None:
        tensors = prefixed("algorithm", algorithm.tensors())
    else:
        tensors = prefixed("learned", classifier.learned_state())
    # What predictions mix in from the frozen features, where a method does.
    return tensors | prefixed("algorithm", getattr(algorithm, "frozen_part", {}))


def num_parameters(algorithm: Algorithm) -> int:
    """Learned numbers, of all parts."""
    parts: list[Part] | None = getattr(algorithm, "parts", None)
    if parts is not None:
        return sum(num_parameters(part.algorithm) for part in parts)
    classifier = algorithm.classifier
    return 0 if classifier is None else sum(parameter.numel() for parameter in classifier.parameters())


def batches(indices: IntArray, *, batch_size: int, num_steps: int, generator: torch.Generator) -> IntArray:
    """Positions into `indices` for one epoch, (num_steps, batch_size): seeded permutations end to end.

    Every element is drawn once before any is drawn again, as a shuffling loader that restarts would.
    """
    needed = batch_size * num_steps
    rounds = -(-needed // len(indices))
    order = torch.cat([torch.randperm(len(indices), generator=generator) for _ in range(rounds)])[:needed]
    return order.reshape(num_steps, batch_size).numpy()
