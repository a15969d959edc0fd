"""A Gaussian mixture over frozen features whose means and covariance are both anchored at the text's statistics.

After Zanella, Fuchs, De Vleeschouwer & Ben Ayed, "Realistic Test-Time Adaptation of Vision-Language Models", CVPR 2025
(arXiv 2501.03729), which adds alpha·Σ_k KL(N(m_k, S_k) ‖ N(mu_k, Sigma_k)) to a mixture's objective: a class with few
images stays at what the text says of it, and so does a pool that holds few of the classes. The idea is theirs; the form
is ours. Their anchors are the text features themselves. Ours are the Gaussians whose linear discriminant is the text
classifier, m_k = c + s·S(t_k - t̄): image and text features lie in different parts of the sphere, and so no class is
far from the images only because its anchor is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captune.equations.mixture_parts import class_means, mixture_inputs, shrunk
from captune.equations.shapes import require

# Images added to every class's share of the pool: a class without any keeps a small one.
_PSEUDOCOUNT = 0.1


@dataclass(frozen=True)
class AnchoredGaussians:
    """A fitted mixture, which is a linear classifier: its logits are v·w + b.

    Attributes:
        weights_KD: w, in logits a unit of feature, the text's own share included.
        bias_K: b, in logits.
        prior_K: pi, the estimated class shares of the unlabelled images; they are left out of w and b.
        counts_K: n, how many images (labelled ones included) each class was estimated from.
    """

    weights_KD: Tensor
    bias_K: Tensor
    prior_K: Tensor
    counts_K: Tensor


@torch.no_grad()
def fit_anchored_gaussians(
    features_ND: Tensor,
    text_features_KD: Tensor,
    *,
    logit_scale: float,
    open_K: Tensor | None = None,
    labelled_features_MD: Tensor | None = None,
    labels_M: Tensor | None = None,
    text_images: float = 8.0,
    covariance_images: float = 1.0,
    likelihood_weight: float = 0.15,
    text_strength: float = 1.0,
    shrinkage: float = 0.5,
    num_steps: int = 10,
) -> AnchoredGaussians:
    """Fit by expectation maximisation from the zero-shot probabilities.

    First, with p the zero-shot probabilities (labelled images: their labels), v̄_k the class means under p, and c the
    mean of those: S = R(covariance of the images around their v̄_k), m_k = c + s·S(t_k - t̄), where R multiplies what
    is off the diagonal by 1 - shrinkage. Then, by turns, with q the assignments and n_k = Σ_i q_ik:

    - mu_k = (n_k·v̄_k + kappa·m_k)/(n_k + kappa);
    - Sigma = (R(Σ_ik q_ik (v_i - mu_k)(v_i - mu_k)ᵀ) + kappa·Σ_k (m_k - mu_k)(m_k - mu_k)ᵀ + nu·K·S)/(N + K + nu·K);
    - q_ik ∝ pi_k·exp(lambda·s·v_i·t_k + beta·log N(v_i; mu_k, Sigma));
    - pi_k ∝ Σ_i q_ik + 0.1 over the unlabelled images.

    mu and Sigma are where the likelihood and the anchors balance: each class's text stands for kappa images at m_k, and
    for nu images spread as S is. (Without R they are the exact maximum under a normal-inverse-Wishart prior, which the
    paper's KL term is when kappa = nu.) A class of which there is no image has mu_k = m_k. Where images lie far from
    their texts Sigma is wide, and the classifier stays near the text's.

    Args:
        features_ND: unlabelled image features, normalised here.
        text_features_KD: class text features, normalised here.
        logit_scale: s.
        open_K: bool, classes an unlabelled image may be of (default all).
        labelled_features_MD, labels_M: labelled images and their classes, if any.
        text_images: kappa, images that a class's text counts for in its mean.
        covariance_images: nu, images that it counts for in the covariance.
        likelihood_weight: beta. A density over hundreds of dimensions is much surer than it is right; beta makes it as
            sure as the text is.
        text_strength: lambda.
        shrinkage: share of the covariances' off-diagonal part that is dropped, in (0, 1] (0 may leave them singular).
        num_steps: rounds.

    Raises:
        ValueError: shapes do not fit, there is no image, or a value is out of range.
    """
    require(text_images > 0, "0 < text_images", text_images=text_images)
    require(covariance_images >= 0, "0 <= covariance_images", covariance_images=covariance_images)
    require(likelihood_weight >= 0, "0 <= likelihood_weight", likelihood_weight=likelihood_weight)
    require(text_strength >= 0, "0 <= text_strength", text_strength=text_strength)
    given = mixture_inputs(features_ND, text_features_KD, open_K, labelled_features_MD, labels_M, shrinkage, num_steps)
    num_images, num_classes = len(given.pool_ND), len(given.text_KD)
    text_KD = logit_scale * given.text_KD
    text_NK = text_strength * given.pool_ND @ text_KD.T
    q_XK = given.assign(given.pool_ND @ text_KD.T)
    centre_D = class_means(given.images_XD, q_XK).mean(dim=0)
    images_XD, texts_KD = given.images_XD - centre_D, text_KD - text_KD.mean(dim=0)
    scatter_DD = _scatter(images_XD, q_XK, class_means(images_XD, q_XK))
    anchor_DD = shrunk(scatter_DD, shrinkage) / len(images_XD)
    anchors_KD = texts_KD @ anchor_DD

    prior_K = given.even_prior_K
    for _ in range(num_steps):
        counts_K = q_XK.sum(dim=0)
        share_K = (text_images / (counts_K + text_images))[:, None]
        mu_KD = (1 - share_K) * class_means(images_XD, q_XK) + share_K * anchors_KD
        apart_KD = anchors_KD - mu_KD
        sigma_DD = shrunk(_scatter(images_XD, q_XK, mu_KD), shrinkage)
        sigma_DD = sigma_DD + text_images * apart_KD.T @ apart_KD + covariance_images * num_classes * anchor_DD
        sigma_DD = sigma_DD / (len(images_XD) + num_classes + covariance_images * num_classes)
        density_KD = torch.linalg.solve(sigma_DD, mu_KD.T).T
        density_K = -0.5 * (density_KD * mu_KD).sum(dim=1)
        logits_NK = text_NK + likelihood_weight * (images_XD[:num_images] @ density_KD.T + density_K)
        q_XK = given.assign(logits_NK + prior_K.log())
        prior_K = (q_XK[:num_images].sum(dim=0) + _PSEUDOCOUNT) * ~given.closed_K
        prior_K = prior_K / prior_K.sum()
    weights_KD = text_strength * text_KD + likelihood_weight * density_KD
    bias_K = likelihood_weight * (density_K - density_KD @ centre_D)
    return AnchoredGaussians(weights_KD.float(), bias_K.float(), prior_K.float(), q_XK.sum(dim=0).float())


def _scatter(images_XD: Tensor, q_XK: Tensor, centres_KD: Tensor) -> Tensor:
    """Σ_ik q_ik (v_i - c_k)(v_i - c_k)ᵀ, expanded so that no [X, K, D] is made."""
    cross_DD = (q_XK.T @ images_XD).T @ centres_KD
    own_DD = (centres_KD * q_XK.sum(dim=0)[:, None]).T @ centres_KD
    return images_XD.T @ images_XD - cross_DD - cross_DD.T + own_DD
