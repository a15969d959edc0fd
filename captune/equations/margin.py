"""The confusion-aware calibrated margin (README.md, row § 7)."""

from __future__ import annotations

import torch
from torch import Tensor

from captune.equations.cosine import precise
from captune.equations.shapes import check_shapes, require

FORMS = ("published", "paper")

# Rows of cosines that differ by no more than this are constant up to float32 rounding.
CONSTANT_ROW = 1e-6


def calibrated_margin(
    similarity_KK: Tensor,
    counts_K: Tensor,
    *,
    scale: float,
    pseudolabelled_K: Tensor | None = None,
    form: str = "published",
) -> Tensor:
    """Margins that hold back classes with many pseudolabels from taking images of similar classes with few.

    With σ_c the confident predictions of class c in the last epoch:

    - published: r_c = σ_c/max σ, Δ = (max r - min r)·m, M_ij = (1 - r_i)/(1 + r_i)·Δ·S_ij;
    - paper: δ_c = 1 - σ_c/max σ, Δ = max δ, M_ij = m·Δ·δ_i·S_ij.

    A class that is never pseudolabelled (TRZSL's seen ones) has r = 1 (δ = 0); the maximum of σ is over all K classes.
    See Wang et al., ICML 2025 (arXiv 2505.02056), and README.md, row § 7.

    Args:
        similarity_KK: S, cosines or a confusion in [0, 1].
        counts_K: σ, at least 0; integers or an average of them.
        scale: m, in logits.
        pseudolabelled_K: bool, the classes that may be pseudolabelled (default all).
        form: "published" or "paper".

    Returns:
        M [K, K] in logits, its diagonal as the formula gives it (the loss ignores it). M is 0 where there is nothing to
        calibrate by: all counts equal or zero, a single class, a row of S that is constant. Never NaN.

    Raises:
        ValueError: shapes do not fit, a count is negative or not finite, S is not finite, scale is negative, or the
            form is unknown.
    """
    check_shapes(similarity_KK=similarity_KK, counts_K=counts_K, pseudolabelled_K=pseudolabelled_K)
    require(form in FORMS, f"form in {FORMS}", form=form)
    require(scale >= 0, "0 <= scale", scale=scale)
    similarity_KK = precise(similarity_KK)
    counts_K = counts_K.to(similarity_KK)
    require(bool(torch.isfinite(similarity_KK).all()), "finite similarity_KK", similarity_KK=similarity_KK)
    require(bool(((counts_K >= 0) & torch.isfinite(counts_K)).all()), "0 <= counts_K < inf", counts_K=counts_K.tolist())

    most = counts_K.max() if counts_K.numel() else counts_K.new_zeros(())
    share_K = counts_K / most.clamp(min=torch.finfo(counts_K.dtype).tiny)
    if pseudolabelled_K is not None:
        share_K = torch.where(pseudolabelled_K.to(share_K.device).bool(), share_K, torch.ones_like(share_K))
    if form == "published":
        row_K = (1 - share_K) / (1 + share_K) * (share_K.max() - share_K.min()) * scale
    else:
        row_K = (1 - share_K) * (1 - share_K).max() * scale
    constant_K = similarity_KK.amax(dim=1) - similarity_KK.amin(dim=1) <= CONSTANT_ROW
    row_K = torch.where(constant_K | (most == 0), torch.zeros_like(row_K), row_K)
    return row_K[:, None] * similarity_KK
