"""CAP for long-tailed pools too: averaged with a text-anchored mixture, and trusted only where the pool looks even.

CAP's boards and margin assume that the pool holds equally many images of each class. A Gaussian mixture of the frozen
features whose means are anchored at the texts assumes nothing of the kind: it estimates the pool's class shares too.

before training   fit the mixture: logits z_mix, class shares pi of the pool      captune/equations/anchored_mixture.py
                  h <- zero-shot's predicted class shares of the pool
                  d = the mean of ½ Σ_c |pi_c - 1/C| and ½ Σ_c |h_c - 1/C|, in [0, 1]
                  n <- pool images per class, e = enough of them
                  trust a = [1 - clip((d - low)/(high - low), 0, 1)]·clip(2n/e - 1, 0, 1)
                  fit the mixture whose covariance is anchored too: z_anchored   captune/equations/statistical_anchor.py
training          CAP, unchanged
prediction        z = a·[(1 - w)·z_CAP + w·z_mix] + (1 - a)·z_anchored

Where the pool is uneven, small, or lacks classes, the anchored mixture still gains; zero-shot, the fallback of earlier
versions, cannot.

Ours. README.md beside this file says what each part gains, and what else was tried against long tails.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from captune.algorithms.anchored import Anchored
from captune.algorithms.cap import Cap
from captune.algorithms.configs import AnchoredConfig, CapMixtureConfig
from captune.data.paradigms import IntArray
from captune.equations.anchored_mixture import AnchoredMixture, fit_anchored_mixture
from captune.training.context import Context


class CapMixture(Cap):
    """CAP with the mixture and the guard on one cell; see the module's box.

    Attributes:
        mixture: of the frozen features.
        imbalance: d.
        trust: a.
        learned_share: CAP's share of the logits, a·(1 - w).
        frozen_KD, frozen_K: all the rest as class weights and bias on the frozen image features, for s·v·w + b.
    """

    config: CapMixtureConfig

    def __init__(self, context: Context, config: CapMixtureConfig, seed: int) -> None:
        super().__init__(context, config, seed)
        self.mixture = anchored_mixture(context, config.text_images, pool_prior=config.pool_prior)
        self.imbalance = self._imbalance()
        span = max(config.trust_until - config.trust_below, 1e-9)
        self.trust = 1.0 - min(1.0, max(0.0, (self.imbalance - config.trust_below) / span))
        if config.trust_until == 1:
            self.trust = 1.0
        if config.enough_images:
            per_class = len(context.task.pool) / max(1, int(context.pseudolabelled_K.sum()))
            self.trust *= min(1.0, max(0.0, 2 * per_class / config.enough_images - 1))
        self.learned_share = self.trust * (1 - config.mixture_weight)
        mixed = self.trust * config.mixture_weight
        weights_KD = self.mixture.weights_KD / context.logit_scale
        beside_KD, beside_K = context.text_features_KD, torch.zeros_like(self.mixture.bias_K)
        if config.fallback == "anchored" and self.trust < 1:
            fallback = Anchored(context, AnchoredConfig.parse({}), seed)
            beside_KD, beside_K = fallback.weights_KD, fallback.bias_K
        self.frozen_KD = mixed * weights_KD + (1 - self.trust) * beside_KD
        self.frozen_K = mixed * self.mixture.bias_K + (1 - self.trust) * beside_K

    def _imbalance(self) -> float:
        context = self.context
        labels_N = context.pool_logits(context.zero_shot_logits(context.task.pool)).argmax(-1)
        counts_K = torch.bincount(labels_N, minlength=context.task.num_classes)
        distances = {
            "mixture": distance_from_even(context, self.mixture.prior_K),
            "zero_shot": distance_from_even(context, counts_K / len(labels_N)),
        }
        if self.config.imbalance_from == "both":
            return sum(distances.values()) / 2
        return distances[self.config.imbalance_from]

    def predict(self, indices: IntArray) -> Tensor:
        """Probabilities of the weak views, the logits of all three mixed."""
        return self._mixed(super().predict(indices), indices)

    def predict_strong(self, indices: IntArray, generator: torch.Generator) -> Tensor:
        """Probabilities of CAP's strong views, mixed with the frozen features of the weak ones."""
        return self._mixed(super().predict_strong(indices, generator), indices)

    def _mixed(self, probs_NK: Tensor, indices: IntArray) -> Tensor:
        if self.learned_share == 1:
            return probs_NK
        rows = torch.as_tensor(np.array(indices), dtype=torch.long, device=self.context.device)
        frozen_ND = self.context.image_features_MD[rows]
        frozen_NK = self.context.logit_scale * frozen_ND @ self.frozen_KD.T + self.frozen_K
        # The smallest normal number stands for probabilities that float32 rounds to 0.
        adapted_NK = probs_NK.clamp(min=torch.finfo(probs_NK.dtype).tiny).log()
        return (self.learned_share * adapted_NK + frozen_NK).softmax(-1)

    @property
    def frozen_part(self) -> dict[str, Tensor]:
        """What the checkpoint needs beside CAP's own to predict the same."""
        share = torch.tensor(self.learned_share)
        return {"learned_share": share, "frozen_weights": self.frozen_KD, "frozen_bias": self.frozen_K}


def anchored_mixture(context: Context, text_images: float | None, *, pool_prior: bool) -> AnchoredMixture:
    """The mixture of a cell's pool and labelled images."""
    return fit_anchored_mixture(
        context.pool_features_PD,
        context.text_features_KD,
        logit_scale=context.logit_scale,
        open_K=context.pseudolabelled_K,
        labelled_features_MD=context.labelled_features_LD,
        labels_M=context.labels_L,
        text_images=text_images,
        pool_prior=pool_prior,
    )


def distance_from_even(context: Context, shares_K: Tensor) -> float:
    """d: total variation between class shares of the pool and even ones, over the classes it may hold."""
    open_K = context.pseudolabelled_K
    return 0.5 * float((shares_K[open_K] - 1 / int(open_K.sum())).abs().sum())
