"""The step of `Learner` on frozen features for several configurations at once, without a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from captune.equations.packed import normalised, partial_label_with_gradient, through_normalised
from captune.training.packs import LearnedStack
from captune.training.step import Batch

if TYPE_CHECKING:
    from captune.algorithms.learner import Learner

_LEARNED = "residual_KD"


class PackedLearner:
    """An epoch's steps of P learners on the same frozen features, with batches of the same sizes.

    Args:
        learners: they have begun their epochs.
        stack: their learned tensors.

    Attributes:
        moved: the learned tensors that have a gradient: the texts' residual; these methods have no adapters.
    """

    def __init__(self, learners: Sequence[Learner], stack: LearnedStack) -> None:
        self._stack, self.moved = stack, [_LEARNED]
        first, learners = learners[0], stack.filled(learners)
        self._features_MD, self._scale = first.context.image_features_MD, first.classifier.logit_scale
        frozen_KD = first.classifier.frozen_text_KD
        assert frozen_KD is not None  # for the type checker: a pack has no prompts
        self._frozen_KD = frozen_KD
        device = self._features_MD.device
        self._images_SPB = torch.as_tensor(np.stack([each.images_SB for each in learners], axis=1), device=device)
        self._candidates = [each.feeds["candidates"] for each in learners]
        self._kept_SPBD: Tensor | None = None
        if first.draws is not None:
            self._kept_SPBD = torch.stack([_kept(each) for each in learners], dim=1).to(device)
        sizes = first.labelled_SB.shape[1], first.pseudo_SB.shape[1]
        # The mean over the labelled images and the mean over the pseudolabelled ones, added.
        self._factors_B = torch.cat([torch.full((size,), 1 / max(1, size), device=device) for size in sizes])

    def batch(self, number: int) -> Batch:
        """What a step reads."""
        fed = {
            "images": self._images_SPB[number],
            "candidates": torch.stack([feed(number) for feed in self._candidates]),
        }
        return fed if self._kept_SPBD is None else fed | {"kept": self._kept_SPBD[number]}

    def step(self, batch: Batch) -> tuple[Tensor, Batch]:
        """Losses (P,) of one step; the gradients are left in the stack."""
        images_PB = batch["images"]
        text_PKD, length_PK1 = normalised(self._frozen_KD + self._stack.values[_LEARNED])
        view_PBD = self._features_MD.index_select(0, images_PB.reshape(-1)).view(*images_PB.shape, -1)
        if "kept" in batch:
            view_PBD, _ = normalised(view_PBD * batch["kept"])
        logits_PBK = torch.bmm(view_PBD, text_PKD.mT).mul_(self._scale)
        losses_P, by_logits_PBK = partial_label_with_gradient(logits_PBK, batch["candidates"], self._factors_B)
        by_text_PKD = torch.bmm(by_logits_PBK.mul_(self._scale).mT, view_PBD)
        self._stack.gradients[_LEARNED].copy_(through_normalised(by_text_PKD, text_PKD, length_PK1))
        return losses_P, {}

    def moving_state(self) -> list[Tensor]:
        """Nothing moves but what is learned."""
        return []

    def observe(self, seen: Batch) -> None:
        """Nothing is kept of a step."""

    def end(self) -> None:
        """Nothing is kept of a step."""


def _kept(learner: Learner) -> Tensor:
    assert learner.draws is not None  # for the type checker: learners of a pack train on views of one kind
    return learner.draws
