"""Class biases that balance the predictions on a pool.

All of them work on log-probabilities, since logits at CLIP's scale of 100 leave many classes below what float32 can
hold.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captune.equations.cosine import precise
from captune.equations.shapes import check_shapes, require

# Shares below this are raised to it before a logarithm: a class of prior 0 gets a very low bias, not minus infinity.
SMALLEST_SHARE = 1e-12


def sinkhorn_bias(
    logits_NK: Tensor, *, num_steps: int = 1000, tol: float = 1e-4, prior_K: Tensor | None = None
) -> Tensor:
    """Class biases b under which the pool's summed probabilities match a prior: Σ_i softmax_k(z_i + b) = N·π_k.

    Fixed point b ← b + ½·(log(N·π_k) - logsumexp_i log_softmax(z_i + b)_k). Sinkhorn & Knopp, Pacific J. Math. 21
    (1967); for self-labelling see Asano et al., ICLR 2020 (arXiv 1911.05371).

    Args:
        logits_NK: logits of the pool, at the scale the probabilities are to have.
        num_steps: most steps; the bias after the last is returned even if it has not settled.
        tol: stop once no class's log-mass is further than this from its target.
        prior_K: π, at least 0, normalised here (default uniform).

    Returns:
        b [K] in logits, with mean 0 (a constant added to all classes changes nothing).

    Raises:
        ValueError: shapes do not fit, the pool is empty, or a value is out of range.
    """
    sizes = check_shapes(logits_NK=logits_NK, prior_K=prior_K)
    require(sizes["N"] >= 1, "1 <= N", N=sizes["N"])
    require(num_steps >= 0, "0 <= num_steps", num_steps=num_steps)
    require(tol >= 0, "0 <= tol", tol=tol)
    logits_NK = precise(logits_NK.detach())
    target_K = math.log(sizes["N"]) + _prior(prior_K, logits_NK).clamp(min=SMALLEST_SHARE).log()
    bias_K = torch.zeros_like(target_K)
    for _ in range(num_steps):
        gap_K = target_K - (logits_NK + bias_K).log_softmax(dim=1).logsumexp(dim=0)
        if float(gap_K.abs().max()) <= tol:
            break
        bias_K = bias_K + gap_K / 2
    return bias_K - bias_K.mean()


def half_sinkhorn(logits_NK: Tensor, *, strength: float = 0.5) -> Tensor:
    """z + ½·b with b from `sinkhorn_bias`: halfway to a balanced pool, which hedges against pools that are not.

    Returns:
        Logits [N, K].

    Raises:
        ValueError: as `sinkhorn_bias`.
    """
    return precise(logits_NK) + strength * sinkhorn_bias(logits_NK)


def logit_adjustment_bias(logits_NK: Tensor, strength: float = 0.5) -> Tensor:
    """b_k = -strength·log(mean_i softmax(z_i)_k): lower the classes the model predicts too readily.

    Menon et al., "Long-tail learning via logit adjustment", ICLR 2021 (arXiv 2007.07314), Eq. 9, with the pool's mean
    prediction in place of the training prior.

    Args:
        logits_NK: logits of the pool.
        strength: 1 is the full adjustment, 0 none.

    Returns:
        b [K] in logits, to be added.

    Raises:
        ValueError: shapes do not fit or the pool is empty.
    """
    sizes = check_shapes(logits_NK=logits_NK)
    require(sizes["N"] >= 1, "1 <= N", N=sizes["N"])
    log_mass_K = precise(logits_NK.detach()).log_softmax(dim=1).logsumexp(dim=0)
    return -strength * (log_mass_K - math.log(sizes["N"]))


def _prior(prior_K: Tensor | None, like: Tensor) -> Tensor:
    """A normalised prior on the device of another tensor, uniform over its last dimension when none is given."""
    if prior_K is None:
        num_classes = like.shape[-1]
        return torch.full((num_classes,), 1 / num_classes, device=like.device, dtype=precise(like).dtype)
    prior_K = precise(prior_K.detach()).to(like.device)
    require(
        bool(((prior_K >= 0) & torch.isfinite(prior_K)).all()) and float(prior_K.sum()) > 0,
        "0 <= prior_K < inf and 0 < sum(prior_K)",
        prior_K=prior_K.tolist(),
    )
    return prior_K / prior_K.sum()
