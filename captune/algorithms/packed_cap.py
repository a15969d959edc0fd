"""CAP's epochs on frozen features for several configurations at once, without a graph; `Cap` says what they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from captune.algorithms.common import kept_entries
from captune.algorithms.main_samples import prototype_table
from captune.data.views import upload
from captune.equations.confusion import soft_confusion
from captune.equations.packed import (
    Adapted,
    AdapterTensors,
    adapt,
    adapter_gradients,
    alignment_with_gradient,
    calibrated_margins,
    class_means,
    class_similarities,
    class_sums,
    class_weights,
    cross_entropy_with_gradient,
    input_gradient,
    margin_rows,
    move_prototypes,
    normalised,
    through_normalised,
)
from captune.equations.pseudolabels import Leaderboard
from captune.training.packs import LearnedStack, Rows
from captune.training.step import Batch

if TYPE_CHECKING:
    from captune.algorithms.cap import Cap


_CHUNK = 512
"""Main samples whose features are added up at once: always as many, so that a sum does not depend on who is beside."""


class PackedCap:
    """The epochs of P CAP algorithms on the same frozen features, with batches of the same sizes.

    Args:
        caps: they have planned their epochs.
        stack: their learned tensors.

    Attributes:
        num_packed: CAPs that are trained.
    """

    def __init__(self, caps: Sequence[Cap], stack: LearnedStack) -> None:
        self._caps, self._rows, self._stack = list(caps), stack.filled(caps), stack
        self.num_packed = len(caps)
        first = caps[0]
        context = first.context
        self._features_MD, self._scale = context.image_features_MD, first.classifier.logit_scale
        frozen_KD = first.classifier.frozen_text_KD
        assert frozen_KD is not None  # for the type checker: a pack has no prompts
        self._frozen_KD = frozen_KD
        self._open_K = first.pseudolabelled_K
        self._closed_K = ~self._open_K if first.config.pseudolabel_classes == "unseen" else None
        self._adapters = {which: _adapter(stack.values, which) for which in ("main", "pseudo", "text")}
        self._gradients = {which: _adapter(stack.gradients, which) for which in ("main", "pseudo", "text")}
        labelled = context.task.labelled
        self._labelled_L2 = np.stack([labelled.indices_N, labelled.labels_N], axis=1)
        self._num_pool, self._num_labelled = first.pool_SB.shape[1], np.shape(first.labelled_S)[1]
        self._hyperparameters()
        filled = len(self._rows) - len(caps)
        self._memory, *others = (
            Rows(caps, name, rows)
            for name, rows in (("memory_MD", 0), ("counts_K", filled), ("prototypes_KD", filled), ("present_K", filled))
        )
        self._own = [self._memory, *others]
        self._counts_PK, self._prototypes_PKD, self._present_PK = (rows.all for rows in others)
        num_classes = len(self._frozen_KD)
        self._margin_PKK = self._counts_PK.new_zeros(len(self._rows), num_classes, num_classes)
        self._weights_PK = torch.ones_like(self._counts_PK)
        self._tabled: list[Leaderboard] = []
        self._tables_3PM = torch.zeros(3, len(self._rows), 0, dtype=torch.long)
        self._kept: list[float] = []
        self._kept_2P1 = self._counts_PK.new_zeros(2, len(self._rows), 1)

    def _hyperparameters(self) -> None:
        def column(name: str) -> Tensor:
            return torch.tensor([getattr(cap.config, name) for cap in self._rows], device=self._features_MD.device)

        self._residual_P11 = column("adapter_residual")[:, None, None]
        self._threshold_P1 = column("confidence_threshold")[:, None]
        self._alignment_P11 = column("alignment_weight")[:, None, None]
        self._temperature_P11 = column("alignment_temperature")[:, None, None]
        self._momentum_P11 = column("prototype_momentum")[:, None, None]
        self._aligned_P1 = self._alignment_P11[..., 0] > 0
        self._aligns = bool(self._aligned_P1.any())
        self._first_P1 = len(self._frozen_KD) * torch.arange(len(self._rows), device=self._features_MD.device)[:, None]
        self._margin_scale_P1 = column("margin_scale")[:, None]
        self._strength_P1 = column("reweighting_strength")[:, None]
        self._dropout_P = column("feature_dropout")
        published = [cap.config.margin_form == "published" for cap in self._rows]
        self._published_P1 = torch.tensor(published, device=self._features_MD.device)[:, None]

    def start(self) -> Batch:
        """The images and classes that the epoch's steps read, and what class means are taken of."""
        for own in self._own:
            own.take_in()
        # Images and classes of every step: labelled ones, then main samples.
        trusted_PST2 = [
            np.concatenate([self._labelled_L2[cap.labelled_S], cap.main_M2[cap.main_S]], axis=1) for cap in self._caps
        ]
        places = [
            np.concatenate([cap.pool_SB, trusted_ST2[..., 0], trusted_ST2[..., 1]], axis=1)
            for cap, trusted_ST2 in zip(self._caps, trusted_PST2, strict=True)
        ]
        device, kept = self._features_MD.device, [cap.config.kept_of_counts(cap.epoch) for cap in self._rows]
        if kept != self._kept:
            self._kept, shares = kept, np.array([kept, [1 - each for each in kept]], np.float32)
            self._kept_2P1.copy_(upload(shares[..., None], device))
        return {
            "places": upload(np.stack(self._stack.filled(places), axis=1), device),
            "kept": kept_entries(self._rows, self._num_pool, self._features_MD, self._dropout_P),
            "tables": self._tables(),
        }

    def prepare(self, inputs: Batch) -> Batch:
        """Margins and weights; what each step reads, tensors with steps first."""
        self._margin_PKK.copy_(self._margins(inputs["tables"]))
        self._weights_PK.copy_(class_weights(self._counts_PK, self._strength_P1, self._open_K))
        num_trusted = (inputs["places"].shape[2] - self._num_pool) // 2
        rows_SPR, labels_SPT = torch.split(inputs["places"], [self._num_pool + num_trusted, num_trusted], dim=2)
        # Each row's share in the loss: a mean over the labelled images, a weighted one over the main samples.
        num_main = num_trusted - self._num_labelled
        factors_SPT = self._weights_PK.expand(len(labels_SPT), -1, -1).gather(2, labels_SPT) / max(1, num_main)
        factors_SPT[:, :, : self._num_labelled] = 1 / max(1, self._num_labelled)
        return {
            "rows": rows_SPR.contiguous(), "labels": labels_SPT.contiguous(), "factors": factors_SPT,
            "kept": inputs["kept"],
        }  # fmt: skip

    def _margins(self, tables_3PM: Tensor) -> Tensor:
        """M of each CAP (`Cap.start_epoch`)."""
        if not any(cap.config.margin_scale for cap in self._caps):
            return self._margin_PKK
        plain_PKD, _ = normalised(self._frozen_KD + self._stack.values["residual_KD"])
        similarity_PKK = class_similarities(plain_PKD, self._board_prototypes(tables_3PM))
        for number, cap in enumerate(self._rows):
            if cap.confusion_KK is not None:
                similarity_PKK[number] = cap.confusion_KK
        return calibrated_margins(
            similarity_PKK, self._counts_PK, self._margin_scale_P1, self._published_P1, self._open_K
        )

    def _board_prototypes(self, tables_3PM: Tensor) -> Tensor:
        """Class means (P, K, D) of the main samples' features, remembered or encoded anew."""
        num_classes, width = self._frozen_KD.shape
        sums_PKD, counts_PK = torch.zeros_like(self._prototypes_PKD), torch.zeros_like(self._counts_PK)
        for places_PC, images_PC, labels_PC in torch.split(tables_3PM, _CHUNK, dim=2):
            if self._caps[0].config.margin_features == "remembered":
                features_PCD = self._memory.all.view(-1, width).index_select(0, places_PC.reshape(-1))
            else:
                features_PCD = self._features_MD.index_select(0, images_PC.reshape(-1))
            features_PCD = features_PCD.view(*places_PC.shape, width)
            if self._caps[0].config.margin_features == "reencoded":
                features_PCD = adapt(features_PCD, self._adapters["main"], self._residual_P11).features_PND
            sums, counts = class_sums(normalised(features_PCD)[0], labels_PC, num_classes)
            sums_PKD += sums
            counts_PK += counts
        return class_means(sums_PKD, counts_PK)

    def _tables(self) -> Tensor:
        """Places in the memory, images and classes of what class means are taken of, (3, P, M), M whole chunks.

        Where a CAP has fewer, class K fills up. They are made anew where a board has changed.
        """
        boards = [cap.boards for cap in self._caps]
        if len(self._tabled) == len(boards) and all(old is new for old, new in zip(self._tabled, boards, strict=True)):
            return self._tables_3PM
        tables = [prototype_table(cap.boards, cap.context.task, cap.config.num_main_samples) for cap in self._caps]
        num_chunks = max(1, -(-max(map(len, tables)) // _CHUNK))
        table_3PM = np.zeros((3, len(tables), num_chunks * _CHUNK), dtype=np.int64)
        table_3PM[2] = len(self._frozen_KD)
        for number, table_M2 in enumerate(tables):
            table_3PM[1:, number, : len(table_M2)] = table_M2.T
        table_3PM[0] = table_3PM[1] + len(self._features_MD) * np.arange(len(tables))[:, None]
        filled = np.stack(self._stack.filled(list(table_3PM.transpose(1, 0, 2))), axis=1)
        self._tabled, self._tables_3PM = boards, upload(filled, self._features_MD.device)
        return self._tables_3PM

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
        pseudo_PB, confident_PB = seen["labels"], seen["confidences"] > self._threshold_P1
        trusted_PTK = logits_PRK[:, num_pool:] + margin_rows(self._margin_PKK, labels_PT, self._first_P1)
        losses_P, trusted_PTK = cross_entropy_with_gradient(trusted_PTK, labels_PT, batch["factors"])
        strong_PBK = torch.bmm(strong.features_PND, text_PKD.mT).mul_(self._scale)
        strong_PBK += margin_rows(self._margin_PKK, pseudo_PB, self._first_P1)
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
        """The prototypes' moving averages, the counts', and the remembered features."""
        return [row.all for row in self._own]

    @property
    def in_fixed_places(self) -> bool:
        """Whether what `prepare` and `end` read and write stays where it is; soft confusions do not."""
        return self._caps[0].config.confusion != "matrix"

    def _differentiate(self, which: str, by_PND: Tensor, adapted: Adapted, inputs_PND: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of P adapters into the stack, and what their inputs' gradients need."""
        adapters, gradients = self._adapters[which], self._gradients[which]
        return adapter_gradients(by_PND, adapted, inputs_PND, adapters, self._residual_P11, gradients)

    def _pseudolabel(self, weak_PBK: Tensor) -> Batch:
        """The pool images' predicted classes, and how sure they are."""
        if self._closed_K is not None:
            weak_PBK = weak_PBK.masked_fill(self._closed_K, float("-inf"))
        probs_PBK = weak_PBK.softmax(-1)
        confidence_PB, labels_PB = probs_PBK.max(-1)
        seen = {"labels": labels_PB, "confidences": confidence_PB}
        if self._caps[0].config.confusion == "matrix":
            seen["probs"] = probs_PBK
        return seen

    def _move_prototypes(self, trusted_PTD: Tensor, labels_PT: Tensor) -> None:
        start = self._num_labelled
        if start < labels_PT.shape[1]:
            move_prototypes(
                self._prototypes_PKD, self._present_PK, trusted_PTD[:, start:], labels_PT[:, start:],
                self._momentum_P11, self._aligned_P1,
            )  # fmt: skip

    def end(self, inputs: Batch, seen: Batch) -> Batch:
        """Counts of confident predictions; every image's main-adapter feature as its last step left it."""
        labels_PN, confidences_PN = (
            seen[name].transpose(0, 1).reshape(len(self._rows), -1) for name in ("labels", "confidences")
        )
        confident_PN = confidences_PN > self._threshold_P1
        counts_PK = torch.zeros_like(self._counts_PK).scatter_add_(1, labels_PN, confident_PN.to(self._counts_PK.dtype))
        kept_P1, new_P1 = self._kept_2P1
        self._counts_PK.copy_(kept_P1 * self._counts_PK + new_P1 * counts_PK)
        if "probs" in seen:
            for number, cap in enumerate(self._caps):
                probs_NK = seen["probs"][:, number].flatten(0, 1)
                cap.confusion_KK = soft_confusion(probs_NK, labels_PN[number], cap.num_classes)
        self._remember(inputs["rows"][:, : self.num_packed], seen["main"])
        return {"counts": counts_PK, "labels": labels_PN, "confidences": confidences_PN, "masks": confident_PN}

    def _remember(self, rows_SPR: Tensor, features_SPRD: Tensor) -> None:
        num_caps, memory_PMD = self.num_packed, self._memory.all
        rows_PN = rows_SPR.transpose(0, 1).reshape(num_caps, -1)
        # An image that was drawn more than once is remembered as it was the last time.
        order_PN = torch.arange(rows_PN.shape[1], device=rows_PN.device).expand_as(rows_PN)
        last_PM = torch.zeros(memory_PMD.shape[:2], dtype=torch.long, device=rows_PN.device)
        last_PN = last_PM.scatter_reduce_(1, rows_PN, order_PN, "amax").gather(1, rows_PN)
        step_PN = last_PN.div(features_SPRD.shape[2], rounding_mode="floor")
        number_P1 = torch.arange(num_caps, device=rows_PN.device)[:, None]
        memory_PMD[number_P1, rows_PN] = features_SPRD[step_PN, number_P1, last_PN % features_SPRD.shape[2]]

    def figures(self, number: int, told: Batch) -> dict[str, float]:
        """New boards where they are due, and the epoch's figures."""
        cap = self._caps[number]
        if cap.config.boards_are_due(cap.epoch):
            cap.renew_boards(told["labels"][number], told["confidences"][number], told["masks"][number])
        return cap.figures(told["counts"][number])


def _adapter(tensors: dict[str, Tensor], which: str) -> AdapterTensors:
    return AdapterTensors(
        *(tensors[f"adapters.{which}.{part}"] for part in ("down_weight", "down_bias", "up_weight", "up_bias"))
    )
