"""Packs: trials on frozen features that train together, their learned tensors side by side.

A step on frozen features makes thousands of tiny calls, and P trials at once need hardly more than one
(`captune.equations.packed`). Everything between steps (batches, margins, boards, scores) stays
with each trial's own algorithm, and a trial's numbers do not depend on which others stand beside it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from captune.training.optim import Sgd
from captune.training.pack_sizes import SIZE_ON_A_GPU
from captune.training.step import Batch

_T = TypeVar("_T")


class PackedSteps(Protocol):
    """The steps of an epoch of several algorithms at once; tensors of a step have P entries."""

    @property
    def moved(self) -> Sequence[str]:
        """Names of the learned tensors that have a gradient; the others stay as they are, without decay."""

    def batch(self, number: int) -> Batch:
        """A step's input: tensors on the device, of equal shapes for every step."""

    def step(self, batch: Batch) -> tuple[Tensor, Batch]:
        """Losses (P,) of one step, and what to keep of it; the gradients are left in the stack.

        As an algorithm's `loss`, it never waits for the device and changes in place what it changes.
        """

    def moving_state(self) -> list[Tensor]:
        """Tensors that `step` updates in place, apart from the gradients."""

    def observe(self, seen: Batch) -> None:
        """Keep what `step` returned beside the losses, until the epoch ends."""

    def end(self) -> None:
        """Hand each algorithm what it would have observed in these steps."""


class Packable(Protocol):
    """An algorithm whose steps can be taken together with others'."""

    @property
    def classifier(self) -> nn.Module:
        """What is learned."""

    def pack_key(self) -> Hashable | None:
        """What algorithms must have in common for the epoch they have begun; None where a step is not to be packed."""

    def packed(self, others: Sequence[Any], stack: LearnedStack) -> PackedSteps:
        """The epoch's steps of `others` (itself among them), whose keys are equal."""


class LearnedStack:
    """Learned tensors of P models of one shape side by side, with their gradients and momenta.

    The models' own parameters become views of it, so that all other code reads and writes them as before.

    Attributes:
        device: where they lie.
        num_models: those that are learned; rows behind them are copies of the last, whose results are not used.
        values: by name, (P, …), P at least `num_models`.
        gradients: by name, (P, …); whoever takes a step writes them.
        momenta: by name, (P, …).
    """

    def __init__(self, models: Sequence[nn.Module], optimizers: Sequence[Sgd]) -> None:
        """Move the models' tensors, and their momenta, into one stack."""
        self._optimizers, self.num_models = list(optimizers), len(models)
        self.device = device = next(models[0].parameters()).device
        self._decay_P, self._momentum_P = (
            torch.tensor([getattr(each, name) for each in self.filled(optimizers)], device=device)
            for name in ("weight_decay", "momentum")
        )
        parameters = [dict(model.named_parameters()) for model in models]
        self._places = {name: place for place, name in enumerate(parameters[0])}
        self.values: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self.momenta: dict[str, Tensor] = {}
        # For every model its parameters, gradients and momenta by name: views made once, not at every step.
        self._views: list[dict[str, tuple[Tensor, Tensor, Tensor]]] = [{} for _ in models]
        for name, place in self._places.items():
            self.values[name] = torch.stack([own[name].detach() for own in self.filled(parameters)])
            self.gradients[name] = torch.zeros_like(self.values[name])
            # A model that has not moved yet starts from a momentum of 0, which gives what a first step gives.
            known = [optimizer.velocities[place] for optimizer in self.filled(optimizers)]
            zeros = torch.zeros_like(self.values[name][0])
            self.momenta[name] = torch.stack([zeros if each is None else each for each in known])
            for number, own in enumerate(parameters):
                own[name].data = self.values[name][number]
                own[name].grad = None
                self._views[number][name] = own[name], self.gradients[name][number], self.momenta[name][number]

    def filled(self, each: Sequence[_T]) -> list[_T]:
        """What the rows of the stack have: that of each model, and of the last one again where rows are filled up."""
        missing = SIZE_ON_A_GPU - len(each) if self.device.type == "cuda" else 0
        return [*each, *[each[-1]] * missing]

    @torch.no_grad()
    def descend(self, moved: Sequence[str]) -> None:
        """One step of each model's own SGD on the learned tensors of these names, from `gradients`."""
        for optimizer, views in zip(self._optimizers, self._views, strict=True):
            parameters, gradients, momenta = zip(*(views[name] for name in moved), strict=True)
            torch._fused_sgd_(
                parameters, gradients, momenta,
                weight_decay=optimizer.weight_decay, momentum=optimizer.momentum, lr=optimizer.learning_rate,
                dampening=0.0, nesterov=False, maximize=False, is_first_step=False,
            )  # fmt: skip

    @torch.no_grad()
    def descend_at(self, moved: Sequence[str], rates_P: Tensor) -> None:
        """The same at learning rates (P,) that lie on the device, all models at once: for a GPU's recorded steps."""
        for name in moved:
            value, gradient, momentum = self.values[name], self.gradients[name], self.momenta[name]
            decay, kept, rate = (
                each.view(-1, *[1] * (value.dim() - 1)) for each in (self._decay_P, self._momentum_P, rates_P)
            )
            momentum.mul_(kept).add_(gradient).addcmul_(value, decay)
            value.addcmul_(momentum, rate, value=-1)

    def hand_back(self, moved: Sequence[str]) -> None:
        """Leave the momenta of the tensors that moved with the models' optimisers."""
        for optimizer, views in zip(self._optimizers, self._views, strict=True):
            for name in moved:
                optimizer.velocities[self._places[name]] = views[name][2]


class StepOfAll:
    """A step of a pack, optimisers included, in the form in which a GPU records it (`captune.training.step`).

    Args:
        steps: of the epoch.
        stack: what they move.
        rates_SP: each model's learning rate at each step, on the device.
    """

    def __init__(self, steps: PackedSteps, stack: LearnedStack, rates_SP: Tensor) -> None:
        self._steps, self._stack, self._rates_SP = steps, stack, rates_SP

    def batch(self, step: int) -> Batch:
        """What the step reads."""
        return self._steps.batch(step) | {"rates": self._rates_SP[step]}

    def loss(self, batch: Batch) -> tuple[Tensor, Batch]:
        """Losses (P,) before the step, which is then taken, and what to keep of it."""
        losses_P, seen = self._steps.step(batch)
        self._stack.descend_at(self._steps.moved, batch["rates"])
        return losses_P, seen

    def moving_state(self) -> list[Tensor]:
        """Everything that a step changes for good."""
        learned = [tensors[name] for tensors in (self._stack.values, self._stack.momenta) for name in self._steps.moved]
        return learned + self._steps.moving_state()
