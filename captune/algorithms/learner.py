"""What the pseudolabel methods other than CAP share: learning from images with sets of candidate classes.

every step   L = CE(labelled) + PL(pseudolabelled),   PL(S, z) = -log Σ_{k in S} softmax(z)_k,
each a mean over its own batch; with one candidate per image, PL is the cross-entropy.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from captune.algorithms.common import (
    adapted_classifier,
    at_once,
    full_batches,
    inputs,
    loss_of_images,
    predict_probs,
    predict_strong_probs,
)
from captune.algorithms.configs import LearnerConfig
from captune.algorithms.packed_learner import PackedLearner
from captune.data.paradigms import IntArray
from captune.data.views import Feed, upload
from captune.equations.candidate_labels import partial_label_loss
from captune.metrics import balance
from captune.seeding import torch_generator
from captune.training.context import Context
from captune.training.packs import LearnedStack
from captune.training.step import Batch


class Learner:
    """A classifier trained on labelled images and on images with candidate classes.

    Attributes:
        images_P: pseudolabelled images; empty for a method without any.
        candidates_PK: bool, their candidates.
    """

    def __init__(self, context: Context, config: LearnerConfig, seed: int) -> None:
        self.context, self.config, self.seed = context, config, seed
        self.classifier = adapted_classifier(context, config, seed)
        self.views = inputs(context, config)
        self.images_P: IntArray = np.zeros(0, dtype=np.int64)
        self.candidates_PK = torch.zeros(0, context.task.num_classes, dtype=torch.bool, device=context.device)
        self.labelled_NK = F.one_hot(context.labels_L, context.task.num_classes).bool()

    def plan_epoch(self, epoch: int) -> None:
        """Which images the epoch's steps read: labelled ones, then pseudolabelled ones."""
        config, counts = self.config, (len(self.images_P), len(self.labelled_NK))
        self.epoch = epoch
        self.pseudo_SB, self.labelled_SB = full_batches(
            self.seed, epoch, counts, config.batch_size, config.steps_per_epoch
        )
        self.images_SB = np.concatenate(
            [self.context.task.labelled.indices_N[self.labelled_SB], self.images_P[self.pseudo_SB]], axis=1
        )

    def start_epoch(self, epoch: int) -> None:
        """The epoch's batches."""
        self.plan_epoch(epoch)
        self.feeds = self._feeds(torch_generator(self.seed, "views", epoch))

    def _feeds(self, generator: torch.Generator) -> dict[str, Feed]:
        """What the epoch's steps read: labelled images, then pseudolabelled ones."""
        config, device, images_SB = self.config, self.context.device, self.images_SB
        if images_SB.size == 0:
            return {}
        labelled_SB, pseudo_SB = upload(self.labelled_SB, device), upload(self.pseudo_SB, device)
        # The feeds do not refer to self: a reference cycle would keep the learner's memory until garbage is collected.
        labelled_NK, candidates_PK = self.labelled_NK, self.candidates_PK
        feeds: dict[str, Feed] = {
            "candidates": lambda step: torch.cat([labelled_NK[labelled_SB[step]], candidates_PK[pseudo_SB[step]]])
        }
        if config.training_view == "weak":
            return feeds | {"images": self.views.feed(images_SB)}
        draws = self.views.draw(
            images_SB,
            generator,
            flip_probability=config.flip_probability,
            crop_scale_min=config.crop_scale_min,
            feature_dropout=config.feature_dropout,
        )
        crops = self.views.feed_crops(images_SB, draws)
        return feeds | {"images": crops, "draws": upload(draws, device).__getitem__}

    def batch(self, step: int) -> Batch:
        """What one step reads."""
        return {name: feed(step) for name, feed in self.feeds.items()}

    def loss(self, batch: Batch) -> tuple[Tensor, Batch]:
        """L of one step."""
        classifier, num_labelled = self.classifier, self.labelled_SB.shape[1]
        text_KD = classifier.encode_texts()
        if not batch:
            return text_KD.sum() * 0.0, {}
        if "draws" in batch:
            view_B = self.views.strong_of(batch["images"], batch["draws"])
        else:
            view_B = self.views.weak_of(batch["images"])
        num_pseudo, candidates_BK = len(view_B) - num_labelled, batch["candidates"]

        def losses(image_CD: Tensor, text_KD: Tensor, first: int) -> Tensor:
            logits_CK, own_CK = classifier.logit_scale * image_CD @ text_KD.T, candidates_BK[first:][: len(image_CD)]
            split = max(0, num_labelled - first)
            trusted = partial_label_loss(logits_CK[:split], own_CK[:split])
            pseudo = partial_label_loss(logits_CK[split:], own_CK[split:])
            # Each is a mean over its own images of the step.
            trusted = trusted * (len(own_CK[:split]) / max(1, num_labelled))
            return trusted + pseudo * (len(own_CK[split:]) / max(1, num_pseudo))

        return loss_of_images(classifier, view_B, text_KD, losses, at_once(classifier, self.config)), {}

    def pack_key(self) -> Hashable | None:
        """What learners must share whose steps of this epoch are taken together (`PackedLearner`); None: not packed."""
        config, context = self.config, self.context
        if not (config.tuning == "features" and config.micro_batch is None and context.packs):
            return None
        pseudolabelled = len(self.images_P) > 0
        return id(context), config.steps_per_epoch, config.batch_size, config.training_view, pseudolabelled

    @property
    def moved_in_packs(self) -> list[str]:
        """Names of the learned tensors that a pack's steps move: the texts' residual; these methods use no adapters."""
        return ["residual_KD"]

    def packed(self, others: Sequence[Learner], stack: LearnedStack) -> PackedLearner:
        """The epoch's steps of learners whose keys are equal."""
        return PackedLearner(others, stack)

    def observe(self, seen: Batch) -> None:
        """Nothing of a step is kept."""

    def moving_state(self) -> list[Tensor]:
        """Nothing moves except what is learned."""
        return []

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """How many images are pseudolabelled, and how evenly."""
        return {"num_confident": len(self.images_P), "balance": self._balance}

    @cached_property
    def _balance(self) -> float:
        return balance(self.candidates_PK.sum(0)[self.context.pseudolabelled_K].cpu().numpy())

    def predict(self, indices: IntArray) -> Tensor:
        """Probabilities of the weak views."""
        return predict_probs(self.classifier, self.views, indices, adapters=False)

    def predict_strong(self, indices: IntArray, generator: torch.Generator) -> Tensor:
        """Probabilities of strong views, for the stability criterion."""
        return predict_strong_probs(self.classifier, self.views, indices, generator, self.config)

    def tensors(self) -> dict[str, Tensor]:
        """The pseudolabels."""
        return {"images": torch.as_tensor(self.images_P.copy()), "candidates": self.candidates_PK}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Go on from `tensors`."""
        self.pseudolabel(tensors["images"].numpy(), tensors["candidates"].to(self.context.device))

    def pseudolabel(self, images_P: IntArray, candidates_PK: Tensor) -> None:
        """Train on these images from now on."""
        self.images_P, self.candidates_PK = images_P, candidates_PK
        self.__dict__.pop("_balance", None)  # of earlier pseudolabels
