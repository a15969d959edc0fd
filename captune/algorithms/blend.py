"""Blend: several methods on one cell, and the mean of what they say.

members   methods, each with its settings, seeds and weight a_m (equal by default, summing to 1)
train     all members side by side, each by itself with its own optimiser and schedule
predict   average: probabilities   p(v) = Σ_m a_m·mean over m's seeds of p_m(v)
          average: logits          p(v) ∝ exp(Σ_m a_m·mean over m's seeds of log p_m(v))

Unlike methods err on different images, and no label is needed to average them. The first form is what a study's
ensemble is, to the last digit. The second, where all members are linear in frozen image features, is linear itself:
it can be exported as one set of class weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captune.algorithms import member_config, method_named
from captune.algorithms.configs import BlendConfig, Member
from captune.config import TrialConfig
from captune.data.paradigms import IntArray
from captune.equations.averaging import blend
from captune.training.checkpoint import prefixed
from captune.training.context import Context
from captune.training.loop import Algorithm, final_tensors
from captune.training.parts import Part


@dataclass(frozen=True)
class Trained:
    """A member with one of its seeds.

    Attributes:
        member: which.
        config: its whole configuration.
        algorithm: it, at work.
        num_epochs: how long it trains.
    """

    member: Member
    config: TrialConfig
    algorithm: Algorithm
    num_epochs: int


class Blend:
    """A blend on one cell; see the module's box."""

    classifier = None

    def __init__(self, context: Context, config: BlendConfig, seed: int) -> None:
        self.context, self.config = context, config
        self.trained = [
            Trained(member, own, method.build(context, own, number), method.num_epochs(own))
            for member in config.members
            for method, own in [(method_named(member.method), member_config(config, member, context.task.config))]
            for number in member.seeds or (seed,)
        ]

    @property
    def parts(self) -> list[Part]:
        """What is trained side by side."""
        return [Part(one.algorithm, one.config, one.num_epochs) for one in self.trained]

    def predict(self, indices: IntArray) -> Tensor:
        """Probabilities (N, K)."""
        return self._blended([(one.member, one.algorithm.predict(indices)) for one in self.trained])

    def predict_strong(self, indices: IntArray, generator: torch.Generator) -> Tensor:
        """The same of strong views; a member without such views says what it says of the images."""
        said = []
        for one in self.trained:
            strong = getattr(one.algorithm, "predict_strong", None)
            probs_NK = one.algorithm.predict(indices) if strong is None else strong(indices, generator)
            said.append((one.member, probs_NK))
        return self._blended(said)

    def _blended(self, said: list[tuple[Member, Tensor]]) -> Tensor:
        groups = [[probs for member, probs in said if member is own] for own in self.config.members]
        return blend(groups, [member.weight for member in self.config.members], self.config.average)

    def tensors(self) -> dict[str, Tensor]:
        """What every member leaves in a checkpoint."""
        tensors: dict[str, Tensor] = {}
        for number, one in enumerate(self.trained):
            tensors |= prefixed(f"member{number}", final_tensors(one.algorithm))
        return tensors

    @property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint's header says of the members, in the order of their tensors."""
        groups = list(self.config.members)
        return {
            "members": [
                {
                    "method": one.member.method,
                    "config": one.config.model_dump(mode="json"),
                    "group": next(at for at, member in enumerate(groups) if member is one.member),
                }
                for one in self.trained
            ]
        }
