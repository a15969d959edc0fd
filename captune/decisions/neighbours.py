"""Agreement of predictions with the nearest images in the frozen features: what no label is needed for."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest_images(features_ND: Tensor, most: int) -> Tensor:
    """The images most like each one by cosine, itself left out, the nearest first.

    Args:
        features_ND: unit image features (N, D).
        most: k; fewer where there are not as many other images.

    Returns:
        Their rows (N, k).
    """
    similarity_NN = features_ND @ features_ND.T
    similarity_NN.fill_diagonal_(float("-inf"))
    return similarity_NN.topk(min(most, max(len(features_ND) - 1, 0)), dim=-1).indices


def neighbour_consistency(predicted_N: Tensor, neighbours_Nk: Tensor, num_classes: int) -> float:
    """How much more often than by chance an image is predicted as its nearest neighbours are (1: always; 0: by chance).

    (o - e) / (1 - e) as Cohen's kappa (Cohen 1960, Eq. 1): o is the share of equal (image, neighbour) predictions, e
    the share for unrelated images with the same class counts, the sum of squared class shares. A model that collapses
    to one class has e = 1 and scores 0.
    """
    if neighbours_Nk.numel() == 0:
        return 0.0
    observed = float((predicted_N[:, None] == predicted_N[neighbours_Nk]).float().mean())
    shares_K = torch.bincount(predicted_N, minlength=num_classes).double() / len(predicted_N)
    expected = float(shares_K.square().sum())
    return (observed - expected) / (1 - expected) if expected < 1 else 0.0


def neighbour_gain_error(
    predicted_N: Tensor, baseline_N: Tensor, neighbours_Nk: Tensor, num_classes: int
) -> float | None:
    """Jackknife standard error, over images, of how much two models on the same images differ in `neighbours`.

    √((N − 1)/N · Σ_i (θ_(i) − θ̄)²), θ_(i) the difference without image i, neither judged nor a neighbour (Efron &
    Stein, The jackknife estimate of variance, 1981, Eq. 1.4). Images share neighbours,
    so their agreements are not independent; therefore whole images are left out, as neighbours too.

    Returns:
        The error, or None of fewer than three images.
    """
    num_images = len(predicted_N)
    if num_images < 3 or neighbours_Nk.numel() == 0:
        return None
    gain_N = jackknife_consistency(predicted_N, neighbours_Nk, num_classes) - jackknife_consistency(
        baseline_N, neighbours_Nk, num_classes
    )
    return float(((num_images - 1) * gain_N.var(correction=0)).sqrt())


def jackknife_consistency(predicted_N: Tensor, neighbours_Nk: Tensor, num_classes: int) -> Tensor:
    """`neighbour_consistency` without each image in turn (N,), double."""
    num_images, num_neighbours = neighbours_Nk.shape
    equal_Nk = (predicted_N[:, None] == predicted_N[neighbours_Nk]).double()
    into = neighbours_Nk.reshape(-1)
    hits_N = equal_Nk.sum(1).index_add(0, into, equal_Nk.reshape(-1))
    pairs_N = num_neighbours + torch.bincount(into, minlength=num_images)
    observed_N = (equal_Nk.sum() - hits_N) / (neighbours_Nk.numel() - pairs_N).clamp(min=1)
    counts_K = torch.bincount(predicted_N, minlength=num_classes).double()
    expected_N = (counts_K.square().sum() - 2 * counts_K[predicted_N] + 1) / (num_images - 1) ** 2
    corrected_N = (observed_N - expected_N) / (1 - expected_N)
    return torch.where(expected_N < 1, corrected_N, 0.0)
