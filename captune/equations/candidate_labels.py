"""Candidate pseudolabels: sets of classes instead of single ones (Zhang et al., ICML 2024, arXiv 2406.10502).

An image that could be a lynx or a cat is kept with both names; the loss asks only that the probability lies within.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from captune.equations.cosine import precise
from captune.equations.shapes import check_shapes, require


def candidate_sets(probs_NK: Tensor, *, intra_quantile: float, inter_quantile: float) -> Tensor:
    """The classes each image may be, by two selections that must agree.

    Intra-instance: with tau the alpha-quantile of max_k p_ik over the images, an image's classes by falling p_ik until
    their sum passes tau. Inter-instance: the images whose p_ik is at or above class k's own beta-quantile. A candidate
    is chosen by both. See Zhang et al., ICML 2024, section 3.2.

    Args:
        probs_NK: probabilities of the pool.
        intra_quantile: alpha in [0, 1]; larger keeps more classes per image.
        inter_quantile: beta in [0, 1]; larger keeps fewer images per class.

    Returns:
        bool [N, K]; a row may be empty.

    Raises:
        ValueError: shapes do not fit, the pool is empty, or a quantile is not in [0, 1].
    """
    sizes = check_shapes(probs_NK=probs_NK)
    require(sizes["N"] >= 1 and sizes["K"] >= 1, "1 <= N and 1 <= K", **sizes)
    require(0 <= intra_quantile <= 1, "0 <= intra_quantile <= 1", intra_quantile=intra_quantile)
    require(0 <= inter_quantile <= 1, "0 <= inter_quantile <= 1", inter_quantile=inter_quantile)
    probs_NK = precise(probs_NK.detach())
    values = probs_NK.cpu().numpy()
    enough = float(np.quantile(values.max(axis=1), intra_quantile))
    sorted_NK, order_NK = probs_NK.sort(dim=1, descending=True, stable=True)
    before_NK = sorted_NK.cumsum(dim=1) - sorted_NK
    intra_NK = torch.zeros_like(probs_NK, dtype=torch.bool).scatter(1, order_NK, before_NK <= enough)
    least_K = torch.as_tensor(np.quantile(values, inter_quantile, axis=0).astype(values.dtype), device=probs_NK.device)
    return intra_NK & (probs_NK >= least_K)


def balanced_selection(probs_NK: Tensor, candidates_NK: Tensor, size: int) -> list[int]:
    """At most `size` images per class, each counted under one of its candidates.

    Every image stands first under its most probable candidate; a class with more than `size` keeps the most probable,
    and those turned away try their next candidate, where they may push out less probable ones (deferred acceptance, so
    the outcome does not depend on the order of images or classes). Ties by image index, falling.

    Args:
        probs_NK: probabilities of the pool.
        candidates_NK: bool, from `candidate_sets`.
        size: K, images per class.

    Returns:
        Indices of the selected images, rising.

    Raises:
        ValueError: shapes do not fit or the size is negative.
    """
    check_shapes(probs_NK=probs_NK, candidates_NK=candidates_NK)
    require(size >= 0, "0 <= size", size=size)
    values_NK = precise(probs_NK.detach()).cpu().numpy()
    wishes_NK = np.where(candidates_NK.detach().cpu().numpy().astype(bool), values_NK, -np.inf)
    num_images, num_classes = wishes_NK.shape
    held: list[list[int]] = [[] for _ in range(num_classes)]
    asking = np.arange(num_images)
    while size and asking.size:
        best_A = wishes_NK[asking].argmax(axis=1)
        has_wish_A = wishes_NK[asking, best_A] > -np.inf
        asking, best_A = asking[has_wish_A], best_A[has_wish_A]
        turned_away: list[int] = []
        for label in np.unique(best_A):
            contenders = np.concatenate([np.array(held[label], dtype=np.int64), asking[best_A == label]])
            order = np.lexsort((-contenders, -values_NK[contenders, label]))
            held[label] = contenders[order[:size]].tolist()
            lost = contenders[order[size:]]
            wishes_NK[lost, label] = -np.inf
            turned_away += lost.tolist()
        asking = np.array(sorted(turned_away), dtype=np.int64)
    return sorted(image for images in held for image in images)


def partial_label_loss(logits_BK: Tensor, candidates_BK: Tensor) -> Tensor:
    """-mean_i log Σ_{k in candidates of i} softmax(z_i)_k: the probability must lie within the candidates.

    With one candidate each it is the cross-entropy. The classifier-consistent loss of Feng et al., NeurIPS 2020
    (arXiv 2007.08929), which Zhang et al. use by default.

    Args:
        logits_BK: logits.
        candidates_BK: bool, at least one per row.

    Returns:
        A scalar in nats; 0 for an empty batch.

    Raises:
        ValueError: shapes do not fit.
    """
    sizes = check_shapes(logits_BK=logits_BK, candidates_BK=candidates_BK)
    logits_BK = precise(logits_BK)
    within_BK = logits_BK.masked_fill(~candidates_BK, float("-inf"))
    return (logits_BK.logsumexp(dim=1) - within_BK.logsumexp(dim=1)).sum() / max(1, sizes["B"])
