"""Unit vectors and cosines, in full precision wherever they are called from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def precise(tensor: Tensor) -> Tensor:
    """The tensor in float32, or unchanged if it is float64; from bfloat16 and float16 the conversion is exact."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def unit(features_ND: Tensor) -> Tensor:
    """L2-normalise the last dimension in at least float32; a zero vector stays zero, with a finite gradient."""
    return F.normalize(precise(features_ND), dim=-1)


def cosines(left_ND: Tensor, right_MD: Tensor) -> Tensor:
    """Cosines of every row of one set with every row of another, [N, M], each in [-1, 1] up to rounding.

    Autocast is switched off for the product: bfloat16 is too coarse for cosines that a logit scale of 100 multiplies.
    """
    with torch.autocast(left_ND.device.type, enabled=False):
        return unit(left_ND) @ unit(right_MD).mT
