"""Transduction: a Gaussian mixture over frozen features that text holds in place (TransCLIP).

Zanella, Gérin & Ben Ayed, "Boosting Vision-Language Models with Transduction", NeurIPS 2024 (arXiv 2406.01837), with
the weights that its published implementation gives the terms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captune.equations.cosine import unit
from captune.equations.shapes import check_shapes, require

FORMS = ("published", "paper")
# Of the likelihood against the text and the neighbours, and its inverse for labelled images.
LIKELIHOOD_WEIGHT = 1 / 50
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
    likelihood_weight: float = LIKELIHOOD_WEIGHT,
    num_neighbors: int = 3,
    labelled_features_MD: Tensor | None = None,
    labels_M: Tensor | None = None,
    labelled_weight: float = 0.0,
    num_steps: int = 10,
    num_inner: int = 5,
    num_confident: int = 8,
    form: str = "published",
) -> TextGuidedMixture:
    """Fit the mixture by block updates, each in closed form.

    Minimises a likelihood, a Laplacian and a text term (Eq. 2 of the paper) by turns:

    - z_i ∝ ŷ_i^lambda ⊙ exp(beta·log N(v_i; mu, Sigma) + ½ Σ_j (w_ij + w_ji)/n z_j), a few times over, all images at
      once; w_ij is the cosine of image i with each of its n nearest images of the pool, beta the likelihood's weight;
    - mu_k = Σ_i z_ik v_i/N + gamma/beta · Σ_m y_mk v_m/M, normalised;
    - Sigma = diag of the same weighted squares around the means, over their weight.

    mu starts as the mean of each class's images with the highest ŷ, weighted by ŷ, or as the mean of its labelled
    images; Sigma as 1/D. Labelled images keep their z and tie to their nearest images of the pool.

    Args:
        features_ND: image features, normalised here.
        log_text_probs_NK: log ŷ, the zero-shot log-probabilities; -inf rules a class out.
        text_strength: lambda (published: 1 without labels, 0.5 with).
        likelihood_weight: beta (published: 1/50).
        num_neighbors: n, nearest other images that each image is tied to; at most all of them.
        labelled_features_MD, labels_M: labelled images and their classes, if any.
        labelled_weight: gamma, weight of the labelled term.
        num_steps: rounds of all three updates, and a last one of z.
        num_inner: updates of z a round.
        num_confident: images per class, by ŷ, whose mean starts mu (labelled images instead, where a class has some).
        form: with labelled images the published implementation puts their rows of w before the pool's and their rows of
            z behind, and leaves out each one's nearest image as if it were itself; "paper" does neither. Without
            labelled images there is no difference.

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
    require(likelihood_weight > 0, "0 < likelihood_weight", likelihood_weight=likelihood_weight)
    require(labelled_weight >= 0, "0 <= labelled_weight", labelled_weight=labelled_weight)
    require(min(num_neighbors, num_steps) >= 0, "0 <= num_neighbors, num_steps", num_neighbors=num_neighbors)
    require(min(num_inner, num_confident) >= 1, "1 <= num_inner, num_confident", num_inner=num_inner)
    require(form in FORMS, f"form in {FORMS}", form=form)
    features_ND = unit(features_ND)
    num_classes, width = sizes["K"], sizes["D"]
    log_text_NK = log_text_probs_NK.to(features_ND.dtype)
    labelled_MD = features_ND[:0] if labelled_features_MD is None else unit(labelled_features_MD)
    labels_M = torch.zeros(0, dtype=torch.long, device=features_ND.device) if labels_M is None else labels_M
    one_hot_MK = torch.nn.functional.one_hot(labels_M, num_classes).to(features_ND.dtype)
    weight_MK = one_hot_MK * (labelled_weight / likelihood_weight / max(1, len(labels_M)))

    ties_NX = _ties(features_ND, labelled_MD, num_neighbors, form)
    text_NK = text_strength * log_text_NK if text_strength > 0 else torch.zeros_like(log_text_NK)
    z_NK = log_text_NK.exp()
    means_KD = _first_means(features_ND, z_NK, labelled_MD, one_hot_MK, num_confident)
    variances_D = features_ND.new_full((width,), 1 / width)
    for step in range(num_steps + 1):
        weights_KD, bias_K = TextGuidedMixture(z_NK, means_KD, variances_D).linear()
        likelihood_NK = likelihood_weight * (features_ND @ weights_KD.T + bias_K)
        for _ in range(num_inner):
            pull_NK = torch.sparse.mm(ties_NX, torch.cat([z_NK, one_hot_MK]))
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


def _ties(features_ND: Tensor, labelled_MD: Tensor, num_neighbors: int, form: str) -> Tensor:
    """½(w + wᵀ)/n of the pool's images with those and the labelled ones behind them, sparse [N, N + M]."""
    num_images, num_labelled = len(features_ND), len(labelled_MD)
    count = min(num_neighbors, num_images - 1)
    pool = _nearest(features_ND, features_ND, count, leave_out="self")
    shots = _nearest(labelled_MD, features_ND, count, leave_out="first" if form == "published" else "none")
    # Row r of w is read as pool image r, or past them as labelled image r - N, whatever it was made of.
    parts = (shots, pool) if form == "published" else (pool, shots)
    cosines_Rn, columns_Rn = (torch.cat([part[which] for part in parts]) for which in (0, 1))
    rows_Rn = torch.arange(len(columns_Rn), device=features_ND.device)[:, None].expand(-1, count)
    own = slice(0, num_images)
    places_2E = torch.stack(
        [
            torch.cat([rows_Rn[own].flatten(), columns_Rn.flatten()]),
            torch.cat([columns_Rn[own].flatten(), rows_Rn.flatten()]),
        ]
    )
    values_E = torch.cat([cosines_Rn[own].flatten(), cosines_Rn.flatten()]) / max(1, 2 * count)
    size = (num_images, num_images + num_labelled)
    return torch.sparse_coo_tensor(places_2E, values_E, size, check_invariants=False).coalesce()


def _nearest(features_RD: Tensor, pool_ND: Tensor, count: int, *, leave_out: str) -> tuple[Tensor, Tensor]:
    """Cosines and indices, [R, n] each, of the nearest images of the pool, without each row's own or first one."""
    cosines = [features_RD.new_zeros(0, count)]
    indices = [torch.zeros(0, count, dtype=torch.long, device=features_RD.device)]
    for start in range(0, len(features_RD), _CHUNK):
        cosine_CN = features_RD[start : start + _CHUNK] @ pool_ND.T
        rows_C = torch.arange(len(cosine_CN), device=cosine_CN.device)
        if leave_out == "self":
            cosine_CN[rows_C, rows_C + start] = float("-inf")
        first = 1 if leave_out == "first" else 0
        values_Cn, indices_Cn = cosine_CN.topk(count + first, dim=1)
        cosines.append(values_Cn[:, first:])
        indices.append(indices_Cn[:, first:])
    return torch.cat(cosines), torch.cat(indices)


def _first_means(
    features_ND: Tensor, text_NK: Tensor, labelled_MD: Tensor, one_hot_MK: Tensor, num_confident: int
) -> Tensor:
    top_nK = text_NK.topk(min(num_confident, len(text_NK)), dim=0)
    means_KD = unit((features_ND[top_nK.indices] * top_nK.values[:, :, None]).mean(dim=0))
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
