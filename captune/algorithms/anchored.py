"""Anchored: one Gaussian mixture over all unlabelled features, means and covariance anchored at the text's statistics.

p, S, m   zero-shot probabilities; covariance of the images under p; the text as means, m_k = c + s·S(t_k - t̄)
repeat    mu_k  ← mean of class k's images and of kappa images at m_k
          Sigma ← covariance of images around mu, of the anchors around mu, and of nu images per class spread as S is
          q_ik  ∝ pi_k·exp(lambda·s·v_i·t_k + beta·log N(v_i; mu_k, Sigma)),  pi ← class shares of the pool under q
predict   softmax(lambda·s·v·t + beta·log N(v; mu, Sigma) + rho·log pi), linear in v; rho = ½ where the test images
          are the pool's own, which have its shares, else 0

Solved when it is built: there is nothing to train. It is made for pools that may lack some of the asked-for classes: a
class without images stays at its text, and where images and texts disagree all classes stay near theirs.

After Zanella et al., "Realistic Test-Time Adaptation of Vision-Language Models", CVPR 2025 (arXiv 2501.03729), from the
paper; what is ours stands in captune/equations/statistical_anchor.py.
"""

from __future__ import annotations

import numpy as np
import torch

from captune.algorithms.configs import AnchoredConfig
from captune.algorithms.zero_shot import Untrained
from captune.equations.statistical_anchor import fit_anchored_gaussians
from captune.training.context import Context


class Anchored(Untrained):
    """The anchored mixture on one cell; see the module's box."""

    def __init__(self, context: Context, config: AnchoredConfig, seed: int) -> None:
        self.mixture = fit_anchored_gaussians(
            context.pool_features_PD,
            context.text_features_KD,
            logit_scale=context.logit_scale,
            open_K=context.pseudolabelled_K,
            labelled_features_MD=context.labelled_features_LD,
            labels_M=context.labels_L,
            text_images=config.text_images,
            covariance_images=config.covariance_images,
            likelihood_weight=config.likelihood_weight,
            text_strength=config.text_strength,
            num_steps=config.num_rounds,
        )
        strength = config.prior_strength
        if strength is None:
            strength = 0.5 if np.isin(context.task.pool, context.task.test).all() else 0.0
        bias_K = self.mixture.bias_K
        if strength:
            # A class that may not be pseudolabelled has no share of the pool, so its prior is left as it is.
            bias_K = bias_K + strength * torch.where(context.pseudolabelled_K, self.mixture.prior_K, 1.0).log()
        super().__init__(context, self.mixture.weights_KD / context.logit_scale, bias_K)
