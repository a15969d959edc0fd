"""A Gaussian mixture over frozen features in which each class text counts as kappa images (ours).

kappa is estimated from the data. The text classifier s·v·t_k is the linear discriminant of Gaussians with a shared
covariance Sigma around the means m_k = c + s·Sigma·(t_k - t̄). So text and images estimate the same quantity: a class's
mean starts at its text and moves towards its images the more of them there are. A class with hardly any image keeps its
text classifier.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captune.equations.mixture_parts import class_means, mixture_inputs, shrunk
from captune.equations.shapes import require

_MOST_IMAGES = 1e4


@dataclass(frozen=True)
class AnchoredMixture:
    """A fitted mixture: a linear classifier for even classes, and what the pool's own shares are.

    Attributes:
        weights_KD: w, in logits a unit of feature.
        bias_K: b in logits, with v·w + b the classifier without the pool's prior.
        prior_K: pi, the estimated class shares of the unlabelled images (0 for classes that are ruled out).
        text_images: kappa, the number of images that a class's text counts as.
    """

    weights_KD: Tensor
    bias_K: Tensor
    prior_K: Tensor
    text_images: float


@torch.no_grad()
def fit_anchored_mixture(
    features_ND: Tensor,
    text_features_KD: Tensor,
    *,
    logit_scale: float,
    open_K: Tensor | None = None,
    labelled_features_MD: Tensor | None = None,
    labels_M: Tensor | None = None,
    text_images: float | None = None,
    pool_prior: bool = True,
    shrinkage: float = 0.5,
    num_steps: int = 10,
) -> AnchoredMixture:
    """Fit by expectation maximisation from the zero-shot probabilities.

    With q the assignments (labelled images: their labels), n_k = Σ_i q_ik and c the mean of the class means v̄_k:

    - Sigma: covariance within classes, its off-diagonal part times 1 - shrinkage;
    - 1/kappa = Σ_k n_k·(|v̄_k - m_k|²_Sigma / D - 1/n_k) / Σ_k n_k, empirical Bayes: how far images lie from their texts
      beyond sampling error (Efron & Morris, JASA 70 (1975), for the idea);
    - mu_k = (n_k·v̄_k + kappa·m_k)/(n_k + kappa), w_k = Sigma⁻¹mu_k, b_k = -½·mu_k·w_k plus, in the text's share
      kappa/(n_k + kappa), what makes the discriminant of m_k equal to the text's own logits;
    - q_ik ∝ pi_k·exp(v_i·w_k + b_k), pi_k = (Σ_i q_ik + 1)/(N + K) over the unlabelled images.

    Args:
        features_ND: unlabelled image features, normalised here.
        text_features_KD: class text features, normalised here.
        logit_scale: s.
        open_K: bool, classes an unlabelled image may be of (default all).
        labelled_features_MD, labels_M: labelled images and their classes, if any.
        text_images: kappa, if it is not to be estimated.
        pool_prior: estimate pi; else it stays even.
        shrinkage: share of Sigma's off-diagonal part that is dropped, in (0, 1] (0 may leave it singular).
        num_steps: rounds.

    Raises:
        ValueError: shapes do not fit, there is no image, or a value is out of range.
    """
    require(text_images is None or text_images > 0, "0 < text_images", text_images=text_images)
    given = mixture_inputs(features_ND, text_features_KD, open_K, labelled_features_MD, labels_M, shrinkage, num_steps)
    num_images, open_K = len(given.pool_ND), ~given.closed_K
    text_KD = logit_scale * (given.text_KD - given.text_KD.mean(dim=0))
    q_XK, prior_K = given.assign(given.pool_ND @ text_KD.T), given.even_prior_K
    for _ in range(num_steps):
        weights_KD, bias_K, kappa = _discriminant(given.images_XD, q_XK, text_KD, text_images, shrinkage)
        q_XK = given.assign(given.pool_ND @ weights_KD.T + bias_K + prior_K.log())
        if pool_prior:
            prior_K = (q_XK[:num_images].sum(dim=0) + 1) * open_K / (num_images + open_K.sum())
    weights_KD, bias_K, kappa = _discriminant(given.images_XD, q_XK, text_KD, text_images, shrinkage)
    return AnchoredMixture(weights_KD.float(), bias_K.float(), prior_K.float(), kappa)


def _discriminant(
    all_XD: Tensor, q_XK: Tensor, text_KD: Tensor, text_images: float | None, shrinkage: float
) -> tuple[Tensor, Tensor, float]:
    """w [K, D], b [K] and kappa under some assignments; `text_KD` comes centred and scaled by s."""
    num_images, width = all_XD.shape
    counts_K = q_XK.sum(dim=0)
    means_KD = class_means(all_XD, q_XK)
    centre_D = means_KD.mean(dim=0)
    means_KD = means_KD - centre_D
    centred_XD = all_XD - centre_D
    sigma_DD = (centred_XD.T @ centred_XD - (means_KD * counts_K[:, None]).T @ means_KD) / num_images
    sigma_DD = shrunk(sigma_DD, shrinkage)

    anchors_KD = text_KD @ sigma_DD
    if text_images is None:
        apart_KD = means_KD - anchors_KD
        distance_K = (apart_KD * torch.linalg.solve(sigma_DD, apart_KD.T).T).sum(dim=1) / width
        excess = float((counts_K * (distance_K - 1 / counts_K.clamp(min=1))).sum() / counts_K.sum())
        text_images = 1 / max(excess, 1 / _MOST_IMAGES)
    share_K = text_images / (counts_K + text_images)
    mu_KD = (1 - share_K)[:, None] * means_KD + share_K[:, None] * anchors_KD
    weights_KD = torch.linalg.solve(sigma_DD, mu_KD.T).T
    own_K = 0.5 * (text_KD * anchors_KD).sum(dim=1) + text_KD @ centre_D
    bias_K = -0.5 * (weights_KD * mu_KD).sum(dim=1) + share_K * own_K
    return weights_KD, bias_K - weights_KD @ centre_D, text_images
