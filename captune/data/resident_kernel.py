"""The kernel of resident views: gather, resample, flip, normalise, cast."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _cubic(x):  # type: ignore[no-untyped-def]
    # Keys' kernel with a = -1/2, as in `captune.data.resampling`.
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return tl.where(x < 1, near, tl.where(x < 2, far, 0.0))


@triton.jit  # type: ignore[untyped-decorator]
def _cut(  # type: ignore[no-untyped-def]
    pixels, starts, sizes, indices, boxes, out, size,
    factor_0, factor_1, factor_2, shift_0, shift_1, shift_2, TAPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    item, y = tl.program_id(0).to(tl.int64), tl.program_id(1)
    image = tl.load(indices + item)
    start = tl.load(starts + image)
    tall, wide = tl.load(sizes + 2 * image), tl.load(sizes + 2 * image + 1)
    box = boxes + 5 * item
    top, left = tl.load(box), tl.load(box + 1)
    height, width = tl.load(box + 2), tl.load(box + 3)
    x = tl.arange(0, BLOCK)
    inside = x < size
    value_0, value_1, value_2 = (
        tl.zeros([BLOCK], tl.float32),
        tl.zeros([BLOCK], tl.float32),
        tl.zeros([BLOCK], tl.float32),
    )
    if TAPS == 1:
        row, column = top + y, left + x
        there = inside & (row >= 0) & (row < tall) & (column >= 0) & (column < wide)
        at = start + (row * wide + column) * 3
        value_0 += tl.load(pixels + at, mask=there, other=0).to(tl.float32)
        value_1 += tl.load(pixels + at + 1, mask=there, other=0).to(tl.float32)
        value_2 += tl.load(pixels + at + 2, mask=there, other=0).to(tl.float32)
    else:
        source_x = tl.where(tl.load(box + 4) != 0, size - 1 - x, x)
        scale_y, scale_x = height.to(tl.float32) / size, width.to(tl.float32) / size
        wider_y, wider_x = tl.maximum(scale_y, 1.0), tl.maximum(scale_x, 1.0)
        middle_y, middle_x = (y + 0.5) * scale_y, (source_x + 0.5) * scale_x
        first_y, first_x = tl.ceil(middle_y - 2 * wider_y - 0.5), tl.ceil(middle_x - 2 * wider_x - 0.5)
        sum_x, sum_y = tl.zeros([BLOCK], tl.float32), 0.0
        for turn_x in tl.static_range(TAPS):
            at_x = first_x + turn_x
            weight_x = _cubic(tl.abs(at_x + 0.5 - middle_x) / wider_x)
            weight_x = tl.where((at_x >= 0) & (at_x < width), weight_x, 0.0)
            sum_x += weight_x
            column = left + tl.minimum(tl.maximum(at_x, 0.0), width - 1.0).to(tl.int64)
            sum_y = 0.0
            for turn_y in tl.static_range(TAPS):
                at_y = first_y + turn_y
                weight_y = _cubic(tl.abs(at_y + 0.5 - middle_y) / wider_y)
                weight_y = tl.where((at_y >= 0) & (at_y < height), weight_y, 0.0)
                sum_y += weight_y
                row = top + tl.minimum(tl.maximum(at_y, 0.0), height - 1.0).to(tl.int64)
                at = start + (row * wide + column) * 3
                weight = weight_x * weight_y
                value_0 += weight * tl.load(pixels + at, mask=inside, other=0).to(tl.float32)
                value_1 += weight * tl.load(pixels + at + 1, mask=inside, other=0).to(tl.float32)
                value_2 += weight * tl.load(pixels + at + 2, mask=inside, other=0).to(tl.float32)
        total = sum_x * sum_y
        # Bicubic overshoots at edges.
        value_0 = tl.minimum(tl.maximum(value_0 / total, 0.0), 255.0)
        value_1 = tl.minimum(tl.maximum(value_1 / total, 0.0), 255.0)
        value_2 = tl.minimum(tl.maximum(value_2 / total, 0.0), 255.0)
    to = out + item * 3 * size * size + y * size + x
    tl.store(to, value_0 * factor_0 + shift_0, mask=inside)
    tl.store(to + size * size, value_1 * factor_1 + shift_1, mask=inside)
    tl.store(to + 2 * size * size, value_2 * factor_2 + shift_2, mask=inside)


def cut(
    pixels: Tensor,
    start_N: Tensor,
    sizes_N2: Tensor,
    indices_B: Tensor,
    boxes_B5: Tensor,
    *,
    size: int,
    factors: Sequence[float],
    shifts: Sequence[float],
    taps: int,
    dtype: torch.dtype,
) -> Tensor:
    """Views (B, 3, S, S) of some images.

    Args:
        pixels: uint8, all images one after another, HWC.
        start_N: where each image begins in `pixels`.
        sizes_N2: height and width of each image.
        indices_B: the images.
        boxes_B5: top, left, height, width, flipped or not.
        size: S.
        factors, shifts: three each; a view is grey level · factor + shift.
        taps: source pixels per axis under the widest kernel; 1 copies boxes of S × S, black outside an image.
        dtype: type of the views.
    """
    out = torch.empty(len(indices_B), 3, size, size, dtype=dtype, device=pixels.device)
    if len(indices_B):
        _cut[(len(indices_B), size)](
            pixels, start_N, sizes_N2, indices_B.contiguous(), boxes_B5.contiguous(), out, size, *factors, *shifts,
            TAPS=taps, BLOCK=triton.next_power_of_2(size),
        )  # fmt: skip
    return out
