"""CAP: concept alignment, a confusion-aware calibrated margin, pseudolabel reweighting (Wang et al., ICML 2025).

before training   find mismatched classes (the paper's Algorithm 1); fill each class's board of main samples
every epoch       margin M from the last epoch's pseudolabel counts and class similarity
                  class weights w from the same counts (ours)
  every step      L = L_m(labelled) + L_m(main samples) + self-training(pool) + lambda·L_align (ours)
after epochs      e = 0 mod E/10: renew the boards from the epoch's confident predictions

The equations are in captune/equations, whose README.md names the function of each.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from captune.algorithms.common import (
    adapted_classifier,
    at_once,
    full_batches,
    inputs,
    loss_of_images,
    passes,
    predict_features,
    predict_probs,
    predict_strong_probs,
    ragged_feed,
)
from captune.algorithms.configs import CapConfig
from captune.algorithms.main_samples import (
    as_table,
    board_tensors,
    boards_of,
    confident_rows,
    epoch_figures,
    first_boards,
    open_logits,
    prototype_table,
    renewed_boards,
)
from captune.algorithms.packed_cap import PackedCap
from captune.data.paradigms import IntArray
from captune.data.views import Feed, upload
from captune.equations.alignment import alignment_loss, class_prototypes, ema_update
from captune.equations.confusion import class_similarity, soft_confusion
from captune.equations.margin import calibrated_margin
from captune.equations.objective import count_confident, margin_cross_entropy, self_training_loss
from captune.equations.pseudolabels import Leaderboard
from captune.equations.reweighting import class_weights
from captune.seeding import torch_generator
from captune.training.context import Context
from captune.training.packs import LearnedStack
from captune.training.step import Batch, Branch


class Cap:
    """CAP on one cell; see the module's box."""

    def __init__(self, context: Context, config: CapConfig, seed: int) -> None:
        self.context, self.config, self.seed = context, config, seed
        task, device = context.task, context.device
        self.classifier = adapted_classifier(context, config, seed, random_adapters=config.adapter_start == "random")
        self.views = inputs(context, config, originals=config.crop_source == "original")
        self.num_classes = task.num_classes
        self.skips_unconfident = device.type == "cpu"
        self.pseudolabelled_K = context.pseudolabelled_K
        self.boards = first_boards(context, config)
        self._tabled: Leaderboard | None = None
        # Latest main-adapter feature of every image: with `margin_features: remembered` nothing is encoded twice.
        self.memory_MD = context.image_features_MD.clone()
        self.counts_K = torch.zeros(self.num_classes, device=device)
        self.confusion_KK: Tensor | None = None
        self.prototypes_KD, self.present_K = self._board_prototypes()

    def plan_epoch(self, epoch: int) -> None:
        """Which images the epoch's steps read."""
        self.epoch = epoch
        if self._tabled is not self.boards:
            self._tabled = self.boards
            self.main_M2 = as_table(self.boards) if self.config.main_samples else np.zeros((0, 2), np.int64)
        pool_S, self.main_S, self.labelled_S = self._batches(epoch)
        self.pool_SB = self.context.task.pool[np.asarray(pool_S)]

    def start_epoch(self, epoch: int) -> None:
        """Margin, weights and the epoch's batches."""
        self.plan_epoch(epoch)
        self.margin_KK = self._margin()
        self.weights_K = class_weights(
            self.counts_K, strength=self.config.reweighting_strength, pseudolabelled_K=self.pseudolabelled_K
        )
        self.feeds = self._feeds(torch_generator(self.seed, "views", epoch))
        self.seen: list[Batch] = []

    def _batches(self, epoch: int) -> Sequence[IntArray | list[IntArray]]:
        """Positions into the pool, the main samples and the labelled images, for every step."""
        config = self.config
        counts = {
            "pool": len(self.context.task.pool),
            "main": len(self.main_M2),
            "labelled": len(self.context.task.labelled),
        }
        if config.batching == "full":
            return full_batches(self.seed, epoch, tuple(counts.values()), config.batch_size, config.steps_per_epoch)
        # After each renewal of the boards (epochs 0, g, 2g, …) main samples get a new loader.
        renewed = (epoch - 1) // config.epochs_between_renewals * config.epochs_between_renewals + 1 if epoch else 0
        began = {"pool": 0, "main": renewed, "labelled": 0}
        return [
            passes(
                count,
                config,
                (epoch - began[name]) * config.steps_per_epoch,
                lambda number, name=name: torch_generator(self.seed, "batches", name, began[name], number),  # type: ignore[misc]
                drop_last=name == "pool",
            )
            for name, count in counts.items()
        ]

    def _margin(self) -> Tensor:
        if self.config.margin_scale == 0:
            return torch.zeros(self.num_classes, self.num_classes, device=self.context.device)
        similarity_KK = self.confusion_KK
        if self.config.confusion == "similarity" or similarity_KK is None:
            # If all counts are 0 the margin is 0, so the features are not needed.
            anew = self.config.margin_features == "reencoded" and bool(self.counts_K.any())
            prototypes_KD, _ = self._board_prototypes(anew=anew)
            with torch.no_grad():
                text_KD = self.classifier.encode_texts()
            similarity_KK = class_similarity(text_KD, prototypes_KD)
        return calibrated_margin(
            similarity_KK,
            self.counts_K,
            scale=self.config.margin_scale,
            pseudolabelled_K=self.pseudolabelled_K,
            form=self.config.margin_form,
        )

    def _board_prototypes(self, *, anew: bool = False) -> tuple[Tensor, Tensor]:
        """Class means of main samples' features, the latest remembered or encoded anew; seen classes by their first k
        labelled images.
        """
        table_M2 = prototype_table(self.boards, self.context.task, self.config.num_main_samples)
        rows_M, labels_M = torch.as_tensor(table_M2, device=self.context.device).unbind(1)
        features_MD = self._encoded_anew(rows_M) if anew else self.memory_MD[rows_M]
        return class_prototypes(features_MD, labels_M, self.num_classes)

    def _encoded_anew(self, rows_M: Tensor) -> Tensor:
        """Main-adapter features (M, D) of weak views by the model of this moment, an image on several boards once."""
        images_U, places_M = torch.unique(rows_M, return_inverse=True)
        features_UD = predict_features(self.classifier, self.views, images_U.cpu().numpy(), adapter="main")
        return features_UD[places_M]

    def _feeds(self, generator: torch.Generator) -> dict[str, Feed]:
        """What the epoch's steps read: labelled images, then main samples, with their labels; the pool's images."""
        config, labelled, device, views = self.config, self.context.task.labelled, self.context.device, self.views
        steps = list(zip(self.labelled_S, self.main_S, strict=True))
        images_S = [np.concatenate([labelled.indices_N[own], self.main_M2[main, 0]]) for own, main in steps]
        labels_S = [np.concatenate([labelled.labels_N[own], self.main_M2[main, 1]]) for own, main in steps]

        def uploaded(rows_SB: IntArray) -> Feed:
            return upload(rows_SB, device).__getitem__

        feeds = {"pool": uploaded(self.pool_SB), "weak": views.feed(self.pool_SB)}
        if len(images_S[0]):
            feeds |= {
                "images": ragged_feed(images_S, uploaded),
                "labels": ragged_feed(labels_S, uploaded),
                "trusted": ragged_feed(images_S, views.feed),
                # A step only needs its length.
                "labelled": ragged_feed(self.labelled_S, uploaded),
            }
        if config.self_training:
            draws = views.draw(
                self.pool_SB,
                generator,
                flip_probability=config.flip_probability,
                crop_scale_min=config.crop_scale_min,
                feature_dropout=config.feature_dropout,
            )
            feeds |= {
                "strong": views.feed_crops(self.pool_SB, draws),
                "draws": upload(draws, device).__getitem__,
            }
        return feeds

    def batch(self, step: int) -> Batch:
        """What one step reads."""
        fed = {name: feed(step) for name, feed in self.feeds.items()}
        return fed | {"margin": self.margin_KK, "weights": self.weights_K}

    def loss(self, batch: Batch) -> tuple[Tensor, Batch]:
        """The loss L of one step, and the pool's predictions."""
        config, classifier, device = self.config, self.classifier, self.context.device
        scale = classifier.logit_scale
        text, weak = Branch(device), Branch(device)
        with text.run():
            text_KD = classifier.adapt_texts(classifier.encode_texts())
        with weak.run(), torch.no_grad():
            weak_BD = classifier.adapt_images(classifier.encode_images(self.views.weak_of(batch["weak"])), "main")

        @cache
        def weak_logits() -> Tensor:
            text.join(text_KD)
            weak.join(weak_BD)
            with torch.no_grad():
                return open_logits(self.context, config, scale * weak_BD @ text_KD.T)

        # An unconfident image adds exactly nothing to the loss, so its strong view need not be encoded. On a GPU
        # choosing would make the host wait for the device, and the image streams need not wait for each other.
        learned_R = self._confident(weak_logits()) if self.skips_unconfident else slice(None)
        trusted: list[Tensor] = []

        def losses(raw_CD: Tensor, text_KD: Tensor, first: int) -> Tensor:
            loss, trusted_CD = self._losses(batch, weak_logits()[learned_R], raw_CD, text_KD, first)
            trusted.append(trusted_CD)
            return loss

        views = self._views(batch, learned_R)
        if views is None:
            loss = text_KD.sum() * 0.0
        else:
            loss = loss_of_images(classifier, views, text_KD, losses, at_once(classifier, config))
        weak_logits_BK = weak_logits()
        self._remember(batch["pool"], weak_BD)
        if "images" in batch:
            num_labelled, trusted_BD = len(batch.get("labelled", ())), torch.cat(trusted)
            if len(trusted_BD) > num_labelled:
                self._update_prototypes(trusted_BD[num_labelled:], batch["labels"][num_labelled:])
            self._remember(batch["images"], trusted_BD)
        if config.alignment_weight > 0:
            loss = loss + config.alignment_weight * alignment_loss(
                text_KD, self.prototypes_KD, temperature=config.alignment_temperature, present_K=self.present_K
            )
        return loss, self._predictions(weak_logits_BK)

    def _losses(
        self, batch: Batch, weak_logits_RK: Tensor, raw_CD: Tensor, text_KD: Tensor, first: int
    ) -> tuple[Tensor, Tensor]:
        """What some of a step's images add to its loss, and the trusted ones' features after the adapter, detached.

        Args:
            batch: the step.
            weak_logits_RK: of the pool's images whose strong views are encoded.
            raw_CD: features of images `first`, `first` + 1, … of the labelled ones, the main samples, the strong views.
            text_KD: class features.
            first: of these images.
        """
        config, classifier = self.config, self.classifier
        margin_KK, weights_K, scale = batch["margin"], batch["weights"], classifier.logit_scale
        num_labelled, num_trusted = len(batch.get("labelled", ())), len(batch.get("images", ()))
        trusted = slice(first, min(first + len(raw_CD), num_trusted))
        trusted_CD, loss = raw_CD[:0], text_KD.sum() * 0.0
        if trusted.start < trusted.stop:
            trusted_CD = classifier.adapt_images(raw_CD[: trusted.stop - first], "main")
            logits_CK, labels_C = scale * trusted_CD @ text_KD.T, batch["labels"][trusted]
            split = max(0, num_labelled - first)
            if labels_C[:split].numel():
                share = len(labels_C[:split]) / num_labelled
                loss = loss + share * margin_cross_entropy(logits_CK[:split], labels_C[:split], margin_KK)
            if (main_C := labels_C[split:]).numel():
                share = len(main_C) / (num_trusted - num_labelled)
                loss = loss + share * margin_cross_entropy(
                    logits_CK[split:], main_C, margin_KK, weights_B=weights_K[main_C]
                )
        strong_CD = raw_CD[len(trusted_CD) :]
        if config.self_training and len(strong_CD):
            adapted_CD = classifier.adapt_images(strong_CD, "main" if config.shared_adapter else "pseudo")
            begin = max(0, first - num_trusted)
            pool_loss, _, mask_C = self_training_loss(
                weak_logits_RK[begin : begin + len(strong_CD)],
                scale * adapted_CD @ text_KD.T,
                margin_KK,
                threshold=config.confidence_threshold,
                weights_K=weights_K,
            )
            if len(strong_CD) < len(weak_logits_RK):
                whole_R = weak_logits_RK.softmax(-1).amax(-1) > config.confidence_threshold
                pool_loss = pool_loss * mask_C.sum().clamp(min=1) / whole_R.sum().clamp(min=1)
            loss = loss + pool_loss
        return loss, trusted_CD.detach()

    def pack_key(self) -> Hashable | None:
        """What CAPs must share whose steps of this epoch are taken together (`PackedCap`); None: not to be packed."""
        config, context = self.config, self.context
        usual = config.main_samples and config.self_training and not config.shared_adapter and any(self.boards.values())
        evenly = config.batching == "full" and config.micro_batch is None
        if not (config.tuning == "features" and usual and evenly and context.packs):
            return None
        return (
            id(context), config.adapter_hidden, config.batch_size, config.steps_per_epoch, config.confusion,
            config.pseudolabel_classes, config.margin_features,
        )  # fmt: skip

    @property
    def moved_in_packs(self) -> list[str]:
        """Names of the learned tensors that a pack's steps move: all."""
        return [name for name, _ in self.classifier.named_parameters()]

    def packed(self, others: Sequence[Cap], stack: LearnedStack) -> PackedCap:
        """The epoch's steps of CAPs whose keys are equal."""
        return PackedCap(others, stack)

    def _views(self, batch: Batch, learned_R: Tensor | slice) -> Tensor | None:
        """What is encoded with gradients: labelled images, main samples, some strong views; None without any."""
        views = []
        if "trusted" in batch:
            views.append(self.views.weak_of(batch["trusted"]))
        if "strong" in batch:
            views.append(self.views.strong_of(batch["strong"][learned_R], batch["draws"][learned_R]))
        return torch.cat(views) if views else None

    def _confident(self, weak_logits_BK: Tensor) -> Tensor | slice:
        """Rows of confident images; at least one row (of no weight), so that weight decay still applies."""
        rows_R = (weak_logits_BK.softmax(-1).amax(-1) > self.config.confidence_threshold).nonzero()[:, 0]
        return rows_R if len(rows_R) else slice(0, 1)

    def _remember(self, indices_B: Tensor, features_BD: Tensor) -> None:
        self.memory_MD[indices_B] = features_BD.to(self.memory_MD.dtype)

    def _update_prototypes(self, features_BD: Tensor, labels_B: Tensor) -> None:
        if self.config.alignment_weight == 0:
            return
        batch_KD, present_K = class_prototypes(features_BD, labels_B, self.num_classes)
        moved_KD, present_K = ema_update(
            self.prototypes_KD, self.present_K, batch_KD, present_K, momentum=self.config.prototype_momentum
        )
        self.prototypes_KD.copy_(moved_KD)
        self.present_K.copy_(present_K)

    def _predictions(self, weak_logits_BK: Tensor) -> Batch:
        """The step's pool predictions."""
        probs_BK = weak_logits_BK.softmax(-1)
        confidence_B, labels_B = probs_BK.max(-1)
        masks_B = confidence_B > self.config.confidence_threshold
        seen = {"labels": labels_B, "confidences": confidence_B, "masks": masks_B}
        return seen | {"probs": probs_BK} if self.config.confusion == "matrix" else seen

    def observe(self, seen: Batch) -> None:
        """Keep a step's pool predictions, on the device, until the epoch ends."""
        self.seen.append(seen)

    def moving_state(self) -> list[Tensor]:
        """The prototypes' moving averages."""
        return [self.prototypes_KD, self.present_K]

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Counts for the next margin, and every `epochs_between_renewals` new boards."""
        config = self.config
        seen = {name: torch.cat([step[name] for step in self.seen]) for name in self.seen[0]}
        labels_P, masks_P = seen["labels"], seen["masks"]
        counts_K, kept = count_confident(labels_P, masks_P, self.num_classes), config.kept_of_counts(epoch)
        self.counts_K = kept * self.counts_K + (1 - kept) * counts_K
        if config.confusion == "matrix":
            self.confusion_KK = soft_confusion(seen["probs"], labels_P, self.num_classes)
        if config.boards_are_due(epoch):
            self.renew_boards(labels_P.cpu(), seen["confidences"].cpu(), masks_P.cpu())
        return self.figures(counts_K.cpu())

    def figures(self, counts_K: Tensor) -> dict[str, float]:
        """The epoch's figures, of the confident predictions of each class (on the CPU) and the boards as they are."""
        return epoch_figures(counts_K.numpy()[self.context.task.pseudolabelled_K], self.boards)

    def renew_boards(self, labels_P: Tensor, confidences_P: Tensor, masks_P: Tensor) -> None:
        """Renew the boards from the epoch's predictions, which lie on the CPU."""
        rows = confident_rows(labels_P, confidences_P, masks_P, self.pool_SB.reshape(-1))
        self.boards = renewed_boards(self.boards, self.context, self.config, self.epoch, rows)

    def predict(self, indices: IntArray) -> Tensor:
        """Probabilities of the weak views, without adapters unless `inference_adapters`."""
        return predict_probs(self.classifier, self.views, indices, adapters=self.config.inference_adapters)

    def predict_strong(self, indices: IntArray, generator: torch.Generator) -> Tensor:
        """Probabilities of strong views, for the stability criterion."""
        return predict_strong_probs(self.classifier, self.views, indices, generator, self.config)

    def tensors(self) -> dict[str, Tensor]:
        """Boards, counts, prototypes, and the remembered features that boards may still ask for."""
        labelled = self.context.task.labelled.indices_N
        kept_M = torch.unique(torch.as_tensor(np.concatenate([as_table(self.boards)[:, 0], labelled])))
        state = board_tensors(self.boards) | {
            "counts": self.counts_K,
            "prototypes": self.prototypes_KD,
            "present": self.present_K,
            "memory_images": kept_M,
            "memory": self.memory_MD[kept_M.to(self.memory_MD.device)],
        }
        return state if self.confusion_KK is None else state | {"confusion": self.confusion_KK}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Go on from `tensors`."""
        device = self.context.device
        self.boards = boards_of(tensors)
        self.counts_K = tensors["counts"].to(device)
        self.prototypes_KD.copy_(tensors["prototypes"])
        self.present_K.copy_(tensors["present"])
        self.memory_MD[tensors["memory_images"].to(device)] = tensors["memory"].to(device)
        self.confusion_KK = tensors["confusion"].to(device) if "confusion" in tensors else None
