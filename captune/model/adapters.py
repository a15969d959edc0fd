"""Adapters: a small network whose output is added to its input (as in CLIP-Adapter, Gao et al., IJCV 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Adapter(nn.Module):
    """x + r·A(x), normalised, with A(x) = W2·ReLU(W1·x) and biases.

    The last layer starts at zero by default, so that a fresh adapter is the identity. Random initialisation as a linear
    layer's cost 3 to 7 points before the first step at r = 1 on the embedded digits; at the paper's r = 0.01 the two
    are alike.

    Args:
        dim: D.
        hidden: width of the hidden layer.
        residual: r, the weight of A(x).
        generator: of the initial weights.
        zero_last: whether W2 and its bias start at zero.
    """

    def __init__(
        self, dim: int, hidden: int, residual: float, *, generator: torch.Generator, zero_last: bool = True
    ) -> None:
        super().__init__()
        self.residual = residual
        self.down_weight = nn.Parameter(uniform((hidden, dim), dim, generator))
        self.down_bias = nn.Parameter(uniform((hidden,), dim, generator))
        self.up_weight = nn.Parameter(uniform((dim, hidden), hidden, generator))
        self.up_bias = nn.Parameter(uniform((dim,), hidden, generator))
        if zero_last:
            nn.init.zeros_(self.up_weight)
            nn.init.zeros_(self.up_bias)

    def forward(self, features_BD: Tensor) -> Tensor:
        """Adapted features (B, D), normalised, of normalised ones."""
        hidden_BH = F.relu(F.linear(features_BD, self.down_weight, self.down_bias))
        return F.normalize(features_BD + self.residual * F.linear(hidden_BH, self.up_weight, self.up_bias), dim=-1)


def uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> Tensor:
    """U(−1/√fan_in, 1/√fan_in), a linear layer's usual start, from a given generator."""
    return (2 * torch.rand(shape, generator=generator) - 1) / fan_in**0.5
