"""Transduction: a Gaussian mixture over frozen features that text holds in place (TransCLIP).

Zanella, Gérin & Ben Ayed, "Boosting Vision-Language Models with Transduction", NeurIPS 2024 (arXiv 2406.01837).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captune.equations.checks import check_shapes, require
from captune.equations.cosine import unit

_CHUNK = 2048
_SMALLEST_VARIANCE = 1e-8


@dataclass(frozen=True)
class TextGuidedMixture:
    """A fitted mixture.

    Attributes:
        assignments_NK: z, probabilities of the images it was fitted on.
        means_KD: mu.
        variances_D: the diagonal of Sigma, which all classes share.
    """

    assignments_NK: Tensor
    means_KD: Tensor
    variances_D: Tensor

    def linear(self) -> tuple[Tensor, Tensor]:
        """Weights [K, D] and bias [K] with v·w_k + b_k = log N(v; mu_k, Sigma) up to a term that all classes share.

        A shared covariance makes the mixture linear: w_k = Sigma⁻¹mu_k, b_k = -½ mu_kᵀ Sigma⁻¹ mu_k.
        """
        weights_KD = self.means_KD / self.variances_D
        return weights_KD, -0.5 * (weights_KD * self.means_KD).sum(dim=1)


def fit_text_guided_mixture(
    features_ND: Tensor,
    log_text_probs_NK: Tensor,
    *,
    text_strength: float = 1.0,
    num_neighbors: int = 3,
    labelled_features_MD: Tensor | None = None,
    labels_M: Tensor | None = None,
    labelled_weight: float = 0.0,
    num_steps: int = 10,
    num_inner: int = 5,
    num_confident: int = 8,
) -> TextGuidedMixture:
    """Fit the mixture by block updates, each in closed form.

    Minimises -1/N Σ_i z_iᵀ log p_i - Σ_ij w_ij z_iᵀz_j + Σ_i KL_lambda(z_i ‖ ŷ_i) (Eq. 2) by turns:

    - z_i ∝ ŷ_i^lambda ⊙ exp(log p_i + Σ_j w_ij z_j), a few times over, with w_ij = max(0, cos) to the nearest images;
    - mu_k = (gamma/M Σ_m y_mk v_m + 1/N Σ_i z_ik v_i) / (gamma/M Σ_m y_mk + 1/N Σ_i z_ik), normalised as in the
      published implementation;
    - Sigma = diag of the same weighted squares around the means, over gamma + 1.

    Args:
        features_ND: image features, normalised here.
        log_text_probs_NK: log ŷ, the zero-shot log-probabilities; -inf rules a class out.
        text_strength: lambda (published: 1 without labels, 0.5 with).
        num_neighbors: images an image is tied to, itself excepted; cut to those there are.
        labelled_features_MD, labels_M: labelled images and their classes, if any.
        labelled_weight: gamma, weight of the labelled term.
        num_steps: rounds of all three updates, and a last one of z.
        num_inner: updates of z a round.
        num_confident: images a class, by ŷ, whose mean starts mu (labelled images instead, where a class has some).

    Raises:
        ValueError: shapes do not fit, there is no image, or a value is out of range.
    """
    sizes = check_shapes(
        features_ND=features_ND,
        log_text_probs_NK=log_text_probs_NK,
        labelled_features_MD=labelled_features_MD,
        labels_M=labels_M,
    )
    require(sizes["N"] >= 1, "1 <= N", N=sizes["N"])
    require(text_strength >= 0, "0 <= text_strength", text_strength=text_strength)
    require(labelled_weight >= 0, "0 <= labelled_weight", labelled_weight=labelled_weight)
    require(min(num_neighbors, num_steps) >= 0, "0 <= num_neighbors, num_steps", num_neighbors=num_neighbors)
    require(min(num_inner, num_confident) >= 1, "1 <= num_inner, num_confident", num_inner=num_inner)
    features_ND = unit(features_ND)
    num_classes, width = sizes["K"], sizes["D"]
    log_text_NK = log_text_probs_NK.to(features_ND.dtype)
    labelled_MD = features_ND[:0] if labelled_features_MD is None else unit(labelled_features_MD)
    labels_M = torch.zeros(0, dtype=torch.long, device=features_ND.device) if labels_M is None else labels_M
    one_hot_MK = torch.nn.functional.one_hot(labels_M, num_classes).to(features_ND.dtype)
    weight_MK = one_hot_MK * (labelled_weight / max(1, len(labels_M)))

    affinity_Nn, neighbors_Nn = _nearest(features_ND, torch.cat([features_ND, labelled_MD]), num_neighbors)
    text_NK = text_strength * log_text_NK if text_strength > 0 else torch.zeros_like(log_text_NK)
    z_NK = log_text_NK.exp()
    means_KD = _first_means(features_ND, z_NK, labelled_MD, one_hot_MK, num_confident)
    variances_D = features_ND.new_full((width,), 1 / width)
    for step in range(num_steps + 1):
        weights_KD, bias_K = TextGuidedMixture(z_NK, means_KD, variances_D).linear()
        likelihood_NK = features_ND @ weights_KD.T + bias_K
        for _ in range(num_inner):
            neighbors_NnK = torch.cat([z_NK, one_hot_MK])[neighbors_Nn]
            pull_NK = (affinity_Nn[:, :, None] * neighbors_NnK).sum(dim=1)
            z_NK = (text_NK + likelihood_NK + pull_NK).softmax(dim=1)
        if step == num_steps:
            break
        weight_NK = z_NK / len(z_NK)
        mass_K1 = (weight_NK.sum(dim=0) + weight_MK.sum(dim=0))[:, None]
        sums_KD = weight_NK.T @ features_ND + weight_MK.T @ labelled_MD
        # A class that nothing is assigned to keeps its mean.
        means_KD = torch.where(mass_K1 > 0, unit(sums_KD), means_KD)
        variances_D = _variances(features_ND, weight_NK, labelled_MD, weight_MK, means_KD)
    return TextGuidedMixture(z_NK, means_KD, variances_D)


def _nearest(features_ND: Tensor, others_OD: Tensor, num_neighbors: int) -> tuple[Tensor, Tensor]:
    """Cosines at least 0 and indices, [N, n] each, of the nearest others; the first N of them are the rows."""
    count = min(num_neighbors, len(others_OD) - 1)
    cosines, indices = [], []
    for start in range(0, len(features_ND), _CHUNK):
        cosine_CO = features_ND[start : start + _CHUNK] @ others_OD.T
        rows_C = torch.arange(len(cosine_CO), device=cosine_CO.device)
        cosine_CO[rows_C, rows_C + start] = float("-inf")
        values_Cn, indices_Cn = cosine_CO.topk(count, dim=1)
        cosines.append(values_Cn.clamp(min=0))
        indices.append(indices_Cn)
    return torch.cat(cosines), torch.cat(indices)


def _first_means(
    features_ND: Tensor, text_NK: Tensor, labelled_MD: Tensor, one_hot_MK: Tensor, num_confident: int
) -> Tensor:
    top_nK = text_NK.topk(min(num_confident, len(text_NK)), dim=0).indices
    means_KD = unit(features_ND[top_nK].mean(dim=0))
    if len(labelled_MD) == 0:
        return means_KD
    return torch.where(one_hot_MK.sum(dim=0)[:, None] > 0, unit(one_hot_MK.T @ labelled_MD), means_KD)


def _variances(
    features_ND: Tensor, weight_NK: Tensor, labelled_MD: Tensor, weight_MK: Tensor, means_KD: Tensor
) -> Tensor:
    """Σ_ik weight_ik (v_i - mu_k)², expanded so that no [N, K, D] is made, over the sum of weights."""
    all_XD = torch.cat([features_ND, labelled_MD])
    weight_XK = torch.cat([weight_NK, weight_MK])
    squares_D = weight_XK.sum(dim=1) @ all_XD.square()
    cross_D = ((weight_XK.T @ all_XD) * means_KD).sum(dim=0)
    means_D = weight_XK.sum(dim=0) @ means_KD.square()
    return ((squares_D - 2 * cross_D + means_D) / weight_XK.sum()).clamp(min=_SMALLEST_VARIANCE)
