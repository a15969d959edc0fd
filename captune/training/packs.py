"""Packs: trials on frozen features that train together, their learned tensors side by side.

A step on frozen features is thousands of tiny operations' worth of calls; taken for P trials at once it costs hardly
more calls than for one (`captune.equations.packed`). Everything between steps (batches, margins, boards, scores) stays
with each trial's own algorithm, and a trial's numbers do not depend on which others stand beside it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from captune.training.optim import Sgd


class PackedSteps(Protocol):
    """The steps of an epoch of several algorithms at once."""

    @property
    def moved(self) -> Sequence[str]:
        """Names of the learned tensors that have a gradient; the others stay as they are, without decay."""

    def step(self, number: int) -> Tensor:
        """Losses (P,) of one step; the gradients are left in the stack."""

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

    The models' own parameters become views of it, so that everything else sees what is learned as ever.

    Attributes:
        values: by name, (P, …).
        gradients: by name, (P, …); whoever takes a step writes them.
    """

    def __init__(self, models: Sequence[nn.Module], optimizers: Sequence[Sgd]) -> None:
        """Move the models' tensors, and their momenta, into one stack."""
        self._optimizers = list(optimizers)
        parameters = [dict(model.named_parameters()) for model in models]
        self._places = {name: place for place, name in enumerate(parameters[0])}
        self.values: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        # For every model its parameters, gradients and momenta by name: views made once, not at every step.
        self._views: list[dict[str, tuple[Tensor, Tensor, Tensor]]] = [{} for _ in models]
        for name, place in self._places.items():
            self.values[name] = torch.stack([own[name].detach() for own in parameters])
            self.gradients[name] = torch.zeros_like(self.values[name])
            # A model that has not moved yet starts from a momentum of 0, which gives what a first step gives.
            known = [optimizer.velocities[place] for optimizer in optimizers]
            zeros = torch.zeros_like(self.values[name][0])
            momenta = torch.stack([zeros if each is None else each for each in known])
            for number, own in enumerate(parameters):
                own[name].data = self.values[name][number]
                own[name].grad = None
                self._views[number][name] = own[name], self.gradients[name][number], momenta[number]

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

    def hand_back(self, moved: Sequence[str]) -> None:
        """Leave the momenta of the tensors that moved with the models' optimisers."""
        for optimizer, views in zip(self._optimizers, self._views, strict=True):
            for name in moved:
                optimizer.velocities[self._places[name]] = views[name][2]
