"""The optimiser and its learning rate (README.md, row § 6)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd


def warmup_cosine(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """The factor on the learning rate: j/w while warming up, then ½·(1 + cos(π·(j - w)/(T - w))).

    The very first step has a factor of 0, as published.

    Args:
        step: j, from 0.
        warmup_steps: w, the steps of the warm-up epoch; 0 for none.
        total_steps: T, all steps, warm-up included.

    Returns:
        A factor in [0, 1]; 0 from step T on.

    Raises:
        ValueError: a count is negative, or the warm-up is longer than the training.
    """
    if not (step >= 0 and 0 <= warmup_steps <= total_steps):
        raise ValueError(
            "0 <= step and 0 <= warmup_steps <= total_steps must hold, "
            f"but got (step={step}, warmup_steps={warmup_steps}, total_steps={total_steps})."
        )
    if step < warmup_steps:
        return step / warmup_steps
    if step >= total_steps:
        return 0.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))


@lru_cache(maxsize=256)
def warmup_cosine_epoch(epoch: int, num_steps: int, warmup_epochs: int, num_epochs: int) -> tuple[float, ...]:
    """`warmup_cosine` of every step of an epoch (from 0); trials of one schedule share it."""
    return tuple(
        warmup_cosine(step, warmup_steps=warmup_epochs * num_steps, total_steps=max(1, num_epochs * num_steps))
        for step in range(epoch * num_steps, (epoch + 1) * num_steps)
    )


class Sgd:
    """SGD as published: momentum without Nesterov, decay on everything that is learned, frozen parameters left out.

    It steps by torch's functional form. Making a `torch.optim.Optimizer` imports torch's compiler, 150 MB and seconds
    in every process that trains.

    Args:
        parameters: prompts and adapters; equal settings for all.
        learning_rate: at the peak of the schedule; to be set before a step.
        weight_decay: L2 added to the gradient (so momentum multiplies its effect), at least 0.
        momentum: at least 0, below 1.

    Attributes:
        parameters: those that are learned.
        velocities: their momentum buffers, None before a parameter's first step.

    Raises:
        ValueError: a value is out of range, or nothing is left to learn.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, learning_rate: float, weight_decay: float, momentum: float = 0.9
    ) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        if not self.parameters:
            raise ValueError("1 <= number of learned parameters must hold, but got 0 (are all frozen?).")
        if not (learning_rate >= 0 and weight_decay >= 0 and 0 <= momentum < 1):
            raise ValueError(
                "0 <= learning_rate, 0 <= weight_decay and 0 <= momentum < 1 must hold, "
                f"but got (learning_rate={learning_rate}, weight_decay={weight_decay}, momentum={momentum})."
            )
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.momentum = momentum
        self.velocities: list[Tensor | None] = [None] * len(self.parameters)

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One step; a parameter without a gradient stays as it is, without decay."""
        moved = {index: each.grad for index, each in enumerate(self.parameters) if each.grad is not None}
        if not moved:
            return
        velocities = [self.velocities[index] for index in moved]
        sgd(
            [self.parameters[index] for index in moved], [*moved.values()], velocities,
            lr=self.learning_rate, weight_decay=self.weight_decay, momentum=self.momentum,
            dampening=0.0, nesterov=False, maximize=False,
        )  # fmt: skip
        for index, velocity in zip(moved, velocities, strict=True):
            self.velocities[index] = velocity

    def forget(self) -> None:
        """Reset the momentum."""
        self.velocities = [None] * len(self.parameters)
