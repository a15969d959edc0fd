"""The weighted mean of several models' probabilities or logits."""

from __future__ import annotations

import torch
from torch import Tensor


def blend(groups: list[list[Tensor]], weights: list[float], average: str) -> Tensor:
    """The weighted mean over members of the means over their seeds.

    Args:
        groups: per member, the probabilities (N, K) of each of its seeds.
        weights: a, positive, of any sum.
        average: "probabilities" or "logits".

    Returns:
        Probabilities (N, K).
    """
    share = [weight / sum(weights) for weight in weights]
    if average == "logits":
        # The smallest normal number stands for probabilities that float32 rounds to 0.
        logs = [torch.stack([p.clamp(min=torch.finfo(p.dtype).tiny).log() for p in group]).mean(0) for group in groups]
        return sum(a * log for a, log in zip(share, logs, strict=True)).softmax(-1)  # type: ignore[union-attr]
    # Rounded as a study stores them, so that its ensemble and this are the same numbers.
    means = [torch.stack([p.half().float() for p in group]).mean(0) for group in groups]
    if len(set(weights)) == 1:
        return torch.stack(means).mean(0)
    return torch.stack([a * mean for a, mean in zip(share, means, strict=True)]).sum(0)
