"""Biases by loops over lists."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.reference.losses import Matrix, softmax


def sinkhorn_bias(logits: Matrix, prior: Sequence[float], num_steps: int) -> list[float]:
    bias = [0.0] * len(prior)
    for _ in range(num_steps):
        probs = [softmax([z + b for z, b in zip(row, bias, strict=True)]) for row in logits]
        for k, share in enumerate(prior):
            bias[k] += 0.5 * (math.log(len(logits) * share) - math.log(sum(row[k] for row in probs)))
    return [b - sum(bias) / len(bias) for b in bias]
