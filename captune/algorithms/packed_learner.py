"""The step of `Learner` on frozen features for several configurations at once, without a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from captune.algorithms.common import kept_entries
from captune.data.views import upload
from captune.equations.packed import normalised, partial_label_with_gradient, through_normalised
from captune.training.packs import LearnedStack
from captune.training.step import Batch

if TYPE_CHECKING:
    from captune.algorithms.learner import Learner

_LEARNED = "residual_KD"


class PackedLearner:
    """The steps of P learners on the same frozen features, with batches of the same sizes.

    Args:
        learners: they have planned their epochs.
        stack: their learned tensors.
    """

    def __init__(self, learners: Sequence[Learner], stack: LearnedStack) -> None:
        self._stack, self._learners, self._rows = stack, learners, stack.filled(learners)
        first = learners[0]
        self._features_MD, self._scale = first.context.image_features_MD, first.classifier.logit_scale
        frozen_KD = first.classifier.frozen_text_KD
        assert frozen_KD is not None  # for the type checker: a pack has no prompts
        self._frozen_KD = frozen_KD
        self._dropout_P = torch.tensor([each.config.feature_dropout for each in self._rows], device=stack.device)
        sizes = first.labelled_SB.shape[1], first.pseudo_SB.shape[1]
        # The mean over the labelled images and the mean over the pseudolabelled ones, added.
        self._factors_B = torch.cat(
            [torch.full((size,), 1 / max(1, size), device=stack.device) for size in sizes if size]
        )

    def start(self) -> Batch:
        """The images that the epoch's steps read, and which of the known candidates are theirs."""
        device, rows = self._stack.device, self._rows
        images_SPB = np.stack([each.images_SB for each in rows], axis=1)
        chosen = [np.concatenate([each.labelled_SB, each.pseudo_SB], axis=1) for each in rows]
        inputs = {"images": upload(images_SPB, device), "chosen": upload(np.stack(chosen, axis=1), device)}
        if rows[0].config.training_view == "strong":
            inputs["kept"] = kept_entries(rows, images_SPB.shape[2], self._features_MD, self._dropout_P)
        return inputs

    def prepare(self, inputs: Batch) -> Batch:
        """What each step reads, tensors with steps first."""
        size = self._rows[0].labelled_SB.shape[1]
        candidates = [
            torch.cat([each.labelled_NK[chosen_SB[:, :size]], each.candidates_PK[chosen_SB[:, size:]]], dim=1)
            for each, chosen_SB in zip(self._rows, inputs["chosen"].unbind(1), strict=True)
        ]
        return {name: inputs[name] for name in ("images", "kept") if name in inputs} | {
            "candidates": torch.stack(candidates, dim=1)
        }

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

    def end(self, inputs: Batch, seen: Batch) -> Batch:
        """Nothing is kept of a step."""
        return {}

    @property
    def in_fixed_places(self) -> bool:
        """No: the candidates are replaced when there are new pseudolabels."""
        return False

    def figures(self, number: int, told: Batch) -> dict[str, float]:
        """As the learner's own."""
        learner = self._learners[number]
        return learner.end_epoch(learner.epoch)
