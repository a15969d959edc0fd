"""Class weights against imbalanced pseudolabels (README.md, row § 9)."""

from __future__ import annotations

import torch
from torch import Tensor

from captune.equations.shapes import check_shapes, require


def class_weights(
    counts_K: Tensor,
    *,
    strength: float,
    clip: float = 10.0,
    pseudolabelled_K: Tensor | None = None,
    target_K: Tensor | None = None,
) -> Tensor:
    """Weights that pull the pseudolabels' class shares toward uniform, or toward a prior.

    w_c = (a_c / max(σ_c, 1))^γ clipped to [1/clip, clip], then divided by their mean over the pseudolabelled classes;
    a_c is the count that class should have: the mean of σ (uniform), or Σσ·π_c. Ours; README.md, row § 9.

    Args:
        counts_K: σ, confident predictions by class, at least 0.
        strength: γ at least 0; 0 gives ones.
        clip: at least 1; applied before the mean is set to 1.
        pseudolabelled_K: bool, the classes that count (default all); the others get weight 1.
        target_K: π, the prior to aim at, at least 0, normalised here over the pseudolabelled classes (default uniform).

    Returns:
        Weights [K], float32, positive.

    Raises:
        ValueError: shapes do not fit, or a value is out of range.
    """
    check_shapes(counts_K=counts_K, pseudolabelled_K=pseudolabelled_K, target_K=target_K)
    require(strength >= 0, "0 <= strength", strength=strength)
    require(clip >= 1, "1 <= clip", clip=clip)
    counts_K = counts_K.float()
    require(bool(((counts_K >= 0) & torch.isfinite(counts_K)).all()), "0 <= counts_K < inf", counts_K=counts_K.tolist())
    member_K = torch.ones_like(counts_K) if pseudolabelled_K is None else pseudolabelled_K.to(counts_K)
    target_K = member_K if target_K is None else target_K.to(counts_K) * member_K
    require(bool(((target_K >= 0) & torch.isfinite(target_K)).all()), "0 <= target_K < inf", target_K=target_K.tolist())
    tiny = torch.finfo(torch.float32).tiny
    wanted_K = (counts_K * member_K).sum() * target_K / target_K.sum().clamp(min=tiny)
    weights_K = (wanted_K / counts_K.clamp(min=1)).pow(strength).clamp(1 / clip, clip)
    mean = (weights_K * member_K).sum() / member_K.sum().clamp(min=1)
    return torch.where(member_K > 0, weights_K / mean.clamp(min=tiny), torch.ones_like(weights_K))
