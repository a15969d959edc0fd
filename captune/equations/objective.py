"""The losses of a step (README.md, row § 6): margin cross-entropy and self-training.

Nothing here looks at a value on the host: no `.item()`, no boolean indexing, so a step on an accelerator never waits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from captune.equations.cosine import precise
from captune.equations.shapes import check_shapes, require


def margin_cross_entropy(
    logits_BK: Tensor, labels_B: Tensor, margin_KK: Tensor, *, weights_B: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy after raising every other class's logit by its margin over the label's.

    L = 1/B · Σ_i w_i · CE(z_i + M[y_i] with M[y_i, y_i] = 0, y_i). See Wang et al., ICML 2025, README.md, row § 6.

    Args:
        logits_BK: logits, cosines times the logit scale.
        labels_B: class indices, long.
        margin_KK: in logits; row = label, column = other class. Its diagonal is ignored. Zeros give plain
            cross-entropy.
        weights_B: factors on each sample's loss (default 1). The sum is divided by B, not by the sum of weights.

    Returns:
        A scalar in nats; 0 for an empty batch.

    Raises:
        ValueError: shapes do not fit.
    """
    sizes = check_shapes(logits_BK=logits_BK, labels_B=labels_B, margin_KK=margin_KK, weights_B=weights_B)
    losses_B = _losses(logits_BK, labels_B, margin_KK)
    if weights_B is not None:
        losses_B = losses_B * weights_B.to(losses_B.dtype)
    return losses_B.sum() / max(1, sizes["B"])


def self_training_loss(
    weak_logits_BK: Tensor,
    strong_logits_BK: Tensor,
    margin_KK: Tensor,
    *,
    threshold: float,
    weights_K: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fit the strong view to the weak view's confident predictions.

    L = Σ_i 1[max p_i > tau]·w[ŷ_i]·L_m(ŷ_i, z_i^strong) / max(1, Σ_i 1[max p_i > tau]), with p and ŷ from the weak
    view, without gradient. See FixMatch (Sohn et al., NeurIPS 2020, Eq. 4), which divides by the batch instead and has
    no margin; README.md, row § 6.

    Args:
        weak_logits_BK: logits of the weak view; no gradient flows into them.
        strong_logits_BK: logits of the strong view.
        margin_KK: as in `margin_cross_entropy`.
        threshold: tau, a probability; only strictly larger confidences count.
        weights_K: factors on the loss by pseudolabel (default 1). The count below the line is unweighted.

    Returns:
        The scalar loss in nats (0 if nothing is confident), the pseudolabels [B] (long) of all images, and the mask [B]
        (bool) of the confident ones.

    Raises:
        ValueError: shapes do not fit, or the threshold is not in [0, 1].
    """
    check_shapes(
        weak_logits_BK=weak_logits_BK, strong_logits_BK=strong_logits_BK, margin_KK=margin_KK, weights_K=weights_K
    )
    require(0 <= threshold <= 1, "0 <= threshold <= 1", threshold=threshold)
    confidence_B, labels_B = precise(weak_logits_BK.detach()).softmax(dim=-1).max(dim=-1)
    mask_B = confidence_B > threshold
    losses_B = _losses(strong_logits_BK, labels_B, margin_KK)
    if weights_K is not None:
        losses_B = losses_B * weights_K.to(losses_B.dtype)[labels_B]
    # where, not a product: an unconfident image with a loss of infinity must not make 0·inf.
    kept_B = torch.where(mask_B, losses_B, torch.zeros_like(losses_B))
    return kept_B.sum() / mask_B.sum().clamp(min=1), labels_B, mask_B


def count_confident(labels_B: Tensor, mask_B: Tensor, num_classes: int) -> Tensor:
    """σ: how often each class was confidently predicted, [K] float; add over an epoch's batches (README.md, row § 7).

    Raises:
        ValueError: shapes do not fit.
    """
    check_shapes(labels_B=labels_B, mask_B=mask_B)
    counts_K = torch.zeros(num_classes, device=labels_B.device)
    return counts_K.index_add(0, labels_B, mask_B.to(counts_K.dtype))


def _losses(logits_BK: Tensor, labels_B: Tensor, margin_KK: Tensor) -> Tensor:
    logits_BK = precise(logits_BK)
    raised_BK = margin_KK.to(logits_BK.dtype)[labels_B].scatter(1, labels_B[:, None], 0.0)
    return F.cross_entropy(logits_BK + raised_BK, labels_B, reduction="none")
