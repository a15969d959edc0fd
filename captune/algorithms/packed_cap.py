"""CAP's step on frozen features for several configurations at once, without a graph; `Cap.loss` says what it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from captune.equations.packed import (
    Adapted,
    AdapterTensors,
    adapt,
    adapter_gradients,
    alignment_with_gradient,
    cross_entropy_with_gradient,
    input_gradient,
    margin_rows,
    moved_prototypes,
    normalised,
    through_normalised,
)
from captune.training.packs import LearnedStack
from captune.training.step import Batch

if TYPE_CHECKING:
    from captune.algorithms.cap import Cap


class PackedCap:
    """An epoch's steps of P CAP algorithms on the same frozen features, with batches of the same sizes.

    Args:
        caps: they have begun their epochs.
        stack: their learned tensors.

    Attributes:
        moved: the learned tensors that have a gradient: all.
        num_packed: CAPs that are trained.
    """

    def __init__(self, caps: Sequence[Cap], stack: LearnedStack) -> None:
        self._caps, self._stack = stack.filled(caps), stack
        self.moved, self.num_packed = list(stack.values), len(caps)
        first = self._caps[0]
        context = first.context
        self._features_MD, self._scale = context.image_features_MD, first.classifier.logit_scale
        frozen_KD = first.classifier.frozen_text_KD
        assert frozen_KD is not None  # for the type checker: a pack has no prompts
        self._frozen_KD = frozen_KD
        self._closed_K = ~context.pseudolabelled_K if first.config.pseudolabel_classes == "unseen" else None
        self._adapters = {which: _adapter(stack.values, which) for which in ("main", "pseudo", "text")}
        self._gradients = {which: _adapter(stack.gradients, which) for which in ("main", "pseudo", "text")}
        self._hyperparameters()
        self._batches()
        self._seen: list[Batch] = []

    def _hyperparameters(self) -> None:
        def column(name: str) -> Tensor:
            return torch.tensor([getattr(cap.config, name) for cap in self._caps], device=self._features_MD.device)

        self._residual_P11 = column("adapter_residual")[:, None, None]
        self._threshold_P1 = column("confidence_threshold")[:, None]
        self._alignment_P11 = column("alignment_weight")[:, None, None]
        self._temperature_P11 = column("alignment_temperature")[:, None, None]
        self._momentum_P11 = column("prototype_momentum")[:, None, None]
        self._aligned_P = self._alignment_P11[:, 0, 0] > 0
        self._aligns = bool(self._aligned_P.any())
        self._margin_PKK = torch.stack([cap.margin_KK for cap in self._caps]).float()
        self._margin_PKK.diagonal(dim1=1, dim2=2).zero_()
        self._weights_PK = torch.stack([cap.weights_K for cap in self._caps])
        self._prototypes_PKD = torch.stack([cap.prototypes_KD for cap in self._caps])
        self._present_PK = torch.stack([cap.present_K for cap in self._caps])

    def _batches(self) -> None:
        """What the epoch's steps read, as tensors with steps first."""
        first, device = self._caps[0], self._features_MD.device
        self._num_pool, self._num_labelled = first.pool_SB.shape[1], np.shape(first.labelled_S)[1]
        rows = [np.concatenate([cap.pool_SB, np.stack(cap.trusted_S)], axis=1) for cap in self._caps]
        self._rows_SPR = torch.as_tensor(np.stack(rows, axis=1), device=device)
        self._labels_SPT = torch.as_tensor(
            np.stack([np.stack(cap.labels_S) for cap in self._caps], axis=1), device=device
        )
        self._kept_SPBD = torch.stack([cap.draws for cap in self._caps], dim=1).to(device)
        num_main = self._labels_SPT.shape[2] - self._num_labelled
        # Each row's share in the loss: a mean over the labelled images, a weighted one over the main samples.
        main_SPT = torch.stack(
            [weights_K[self._labels_SPT[:, number]] for number, weights_K in enumerate(self._weights_PK)], dim=1
        )
        self._factors_SPT = main_SPT / max(1, num_main)
        self._factors_SPT[:, :, : self._num_labelled] = 1 / max(1, self._num_labelled)

    def batch(self, number: int) -> Batch:
        """What a step reads."""
        return {
            "rows": self._rows_SPR[number], "labels": self._labels_SPT[number], "kept": self._kept_SPBD[number],
            "factors": self._factors_SPT[number],
        }  # fmt: skip

    def step(self, batch: Batch) -> tuple[Tensor, Batch]:
        """Losses (P,) of one step, and the pool's predictions; the gradients are left in the stack."""
        num_pool = self._num_pool
        rows_PR, labels_PT = batch["rows"], batch["labels"]
        images_PRD = self._features_MD.index_select(0, rows_PR.reshape(-1)).view(*rows_PR.shape, -1)
        plain_PKD, length_PK1 = normalised(self._frozen_KD + self._stack.values["residual_KD"])
        text = adapt(plain_PKD, self._adapters["text"], self._residual_P11)
        main = adapt(images_PRD, self._adapters["main"], self._residual_P11)
        strong_PBD, _ = normalised(images_PRD[:, :num_pool] * batch["kept"])
        strong = adapt(strong_PBD, self._adapters["pseudo"], self._residual_P11)
        text_PKD = text.features_PND

        logits_PRK = torch.bmm(main.features_PND, text_PKD.mT).mul_(self._scale)
        seen = self._pseudolabel(logits_PRK[:, :num_pool])
        pseudo_PB, confident_PB = seen["labels"], seen["masks"]
        trusted_PTK = logits_PRK[:, num_pool:] + margin_rows(self._margin_PKK, labels_PT)
        losses_P, trusted_PTK = cross_entropy_with_gradient(trusted_PTK, labels_PT, batch["factors"])
        strong_PBK = torch.bmm(strong.features_PND, text_PKD.mT).mul_(self._scale)
        strong_PBK += margin_rows(self._margin_PKK, pseudo_PB)
        shares_PB = confident_PB * self._weights_PK.gather(1, pseudo_PB)
        shares_PB /= confident_PB.sum(1, keepdim=True).clamp(min=1)
        pool_P, strong_PBK = cross_entropy_with_gradient(strong_PBK, pseudo_PB, shares_PB)
        losses_P = losses_P + pool_P

        trusted = main.rows(num_pool)
        by_text_PKD = torch.bmm(trusted_PTK.mul_(self._scale).mT, trusted.features_PND)
        by_text_PKD = torch.baddbmm(by_text_PKD, strong_PBK.mul_(self._scale).mT, strong.features_PND)
        if self._aligns:
            self._move_prototypes(trusted.features_PND, labels_PT)
            aligned_P, aligned_PKD = alignment_with_gradient(
                text_PKD, self._prototypes_PKD, self._present_PK, self._temperature_P11, self._alignment_P11
            )
            losses_P, by_text_PKD = losses_P + aligned_P, by_text_PKD + aligned_PKD
        self._differentiate("main", torch.bmm(trusted_PTK, text_PKD), trusted, images_PRD[:, num_pool:])
        self._differentiate("pseudo", torch.bmm(strong_PBK, text_PKD), strong, strong_PBD)
        before = self._differentiate("text", by_text_PKD, text, plain_PKD)
        by_plain_PKD = input_gradient(*before, self._adapters["text"])
        self._stack.gradients["residual_KD"].copy_(through_normalised(by_plain_PKD, plain_PKD, length_PK1))
        return losses_P, seen | {"main": main.features_PND}

    def moving_state(self) -> list[Tensor]:
        """The prototypes' moving averages."""
        return [self._prototypes_PKD, self._present_PK]

    def observe(self, seen: Batch) -> None:
        """Keep a step's predictions and features, on the device, until the epoch ends."""
        self._seen.append(seen)

    def _differentiate(self, which: str, by_PND: Tensor, adapted: Adapted, inputs_PND: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of P adapters into the stack, and what their inputs' gradients need."""
        adapters, gradients = self._adapters[which], self._gradients[which]
        return adapter_gradients(by_PND, adapted, inputs_PND, adapters, self._residual_P11, gradients)

    def _pseudolabel(self, weak_PBK: Tensor) -> Batch:
        """The pool images' predicted classes, and which are confident (`masks`)."""
        if self._closed_K is not None:
            weak_PBK = weak_PBK.masked_fill(self._closed_K, float("-inf"))
        probs_PBK = weak_PBK.softmax(-1)
        confidence_PB, labels_PB = probs_PBK.max(-1)
        confident_PB = confidence_PB > self._threshold_P1
        seen = {"labels": labels_PB, "confidences": confidence_PB, "masks": confident_PB}
        if self._caps[0].config.confusion == "matrix":
            seen["probs"] = probs_PBK
        return seen

    def _move_prototypes(self, trusted_PTD: Tensor, labels_PT: Tensor) -> None:
        start = self._num_labelled
        if start == labels_PT.shape[1]:
            return
        moved_PKD, present_PK = moved_prototypes(
            self._prototypes_PKD, self._present_PK, trusted_PTD[:, start:], labels_PT[:, start:], self._momentum_P11
        )
        self._prototypes_PKD.copy_(torch.where(self._aligned_P[:, None, None], moved_PKD, self._prototypes_PKD))
        self._present_PK.copy_(torch.where(self._aligned_P[:, None], present_PK, self._present_PK))

    def end(self) -> None:
        """Give each algorithm its pool's predictions, the last main-adapter feature of every image, its prototypes."""
        device = self._features_MD.device
        seen = {name: torch.stack([step[name] for step in self._seen], dim=1) for name in self._seen[0]}
        features_PSRD, rows_SPR = seen.pop("main"), self._rows_SPR.cpu().numpy()
        for number, cap in enumerate(self._caps[: self.num_packed]):
            cap.observe({name: tensor[number].flatten(0, 1) for name, tensor in seen.items()})
            cap.prototypes_KD.copy_(self._prototypes_PKD[number])
            cap.present_K.copy_(self._present_PK[number])
            rows_N = rows_SPR[:, number].reshape(-1)
            # The last occurrence of an image is the first one in the reversed order.
            images, places = np.unique(rows_N[::-1], return_index=True)
            last = torch.as_tensor(len(rows_N) - 1 - places, device=device)
            cap.memory_MD[torch.as_tensor(images, device=device)] = features_PSRD[number].flatten(0, 1)[last]


def _adapter(tensors: dict[str, Tensor], which: str) -> AdapterTensors:
    return AdapterTensors(
        *(tensors[f"adapters.{which}.{part}"] for part in ("down_weight", "down_bias", "up_weight", "up_bias"))
    )
