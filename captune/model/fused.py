"""One kernel where a block has many: add to the residual stream, put prompts in, normalise, cast (Triton, GPUs).

y = x + added, with prompt vectors in the rows they overwrite;  h = LayerNorm(y) in the weights' dtype.

Between the matrix products of a block eager PyTorch reads and writes the fp32 residual stream four times forward and
more backward; on a large GPU that takes as long as the products do. The backward kernel gives the gradient of x (with
the one that came down the stream), its copy for `added` and the rows of the prompts in one go. Sums run in a fixed
order, so a step repeats bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The rows that prompt vectors overwrite: first + stride·b + j for b < count and each vector j."""

    first: int
    stride: int
    count: int


@triton.jit  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    x, added, vectors, weight, bias, y, h, mean, rstd, first, stride, count, num, width, eps,
    HAS_ADDED: tl.constexpr, HAS_VECTORS: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    at = row * width + column
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_ADDED:
        value += tl.load(added + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_VECTORS:
        past = row - first
        turn = past // stride
        which = past - turn * stride
        replaced = (past >= 0) & (which < num) & (turn < count)
        vector = tl.load(vectors + which * width + column, mask=inside & replaced, other=0.0).to(tl.float32)
        value = tl.where(replaced, vector, value)
    # Normalise what is stored, also where the stream is in 16 bits.
    value = value.to(y.dtype.element_ty).to(tl.float32)
    tl.store(y + at, value, mask=inside)
    middle = tl.sum(value, axis=0) / width
    centred = tl.where(inside, value - middle, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / width + eps)
    out = centred * scale * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_BIAS:
        out += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(h + at, out, mask=inside)
    tl.store(mean + row, middle)
    tl.store(rstd + row, scale)


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    dy, dh, y, weight, mean, rstd, dx, dadded, drows, first, stride, count, num, width,
    HAS_ADDED: tl.constexpr, HAS_VECTORS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    at = row * width + column
    scale = tl.load(rstd + row)
    normal = (tl.load(y + at, mask=inside, other=0.0).to(tl.float32) - tl.load(mean + row)) * scale
    normal = tl.where(inside, normal, 0.0)
    slope = tl.load(dh + at, mask=inside, other=0.0).to(tl.float32)
    slope *= tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    along = tl.sum(slope * normal, axis=0) / width
    total = (slope - normal * along - tl.sum(slope, axis=0) / width) * scale
    total += tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_VECTORS:
        past = row - first
        turn = past // stride
        which = past - turn * stride
        replaced = (past >= 0) & (which < num) & (turn < count)
        tl.store(drows + (turn * num + which) * width + column, total, mask=inside & replaced)
        total = tl.where(replaced, 0.0, total)
    tl.store(dx + at, total, mask=inside)
    if HAS_ADDED:
        tl.store(dadded + at, total, mask=inside)


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TW: Tensor,
        added_TW: Tensor | None,
        vectors_nW: Tensor | None,
        rows: Rows | None,
        weight_W: Tensor,
        bias_W: Tensor | None,
        eps: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        x_TW = x_TW.contiguous()
        (num_rows, width), device = x_TW.shape, x_TW.device
        y_TW, h_TW = torch.empty_like(x_TW), torch.empty(x_TW.shape, dtype=dtype, device=device)
        mean_T, rstd_T = (torch.empty(num_rows, dtype=torch.float32, device=device) for _ in range(2))
        num = 0 if vectors_nW is None else len(vectors_nW)
        rows = rows or Rows(0, 1, 0)
        if num_rows:
            _forward[(num_rows,)](
                x_TW, x_TW if added_TW is None else added_TW.contiguous(),
                x_TW if vectors_nW is None else vectors_nW.contiguous(),
                weight_W, weight_W if bias_W is None else bias_W, y_TW, h_TW, mean_T, rstd_T,
                rows.first, rows.stride, rows.count, num, width, eps,
                HAS_ADDED=added_TW is not None, HAS_VECTORS=num > 0, HAS_BIAS=bias_W is not None,
                BLOCK=triton.next_power_of_2(width),
            )  # fmt: skip
        ctx.save_for_backward(y_TW, mean_T, rstd_T, weight_W)
        ctx.rows, ctx.num, ctx.added_dtype = rows, num, None if added_TW is None else added_TW.dtype
        ctx.vectors_dtype = None if vectors_nW is None else vectors_nW.dtype
        return y_TW, h_TW

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        dy_TW, dh_TW = (gradient.contiguous() for gradient in gradients)
        y_TW, mean_T, rstd_T, weight_W = ctx.saved_tensors
        (num_rows, width), rows, num = y_TW.shape, ctx.rows, ctx.num
        dx_TW = torch.empty_like(y_TW)
        dadded_TW = None if ctx.added_dtype is None else torch.empty_like(y_TW, dtype=ctx.added_dtype)
        drows_RW = torch.empty(rows.count * num, width, dtype=torch.float32, device=y_TW.device) if num else None
        if num_rows:
            _backward[(num_rows,)](
                dy_TW, dh_TW, y_TW, weight_W, mean_T, rstd_T, dx_TW,
                dx_TW if dadded_TW is None else dadded_TW, dx_TW if drows_RW is None else drows_RW,
                rows.first, rows.stride, rows.count, num, width,
                HAS_ADDED=dadded_TW is not None, HAS_VECTORS=drows_RW is not None,
                BLOCK=triton.next_power_of_2(width),
            )  # fmt: skip
        dvectors_nW = None
        if drows_RW is not None:
            dvectors_nW = drows_RW.view(rows.count, num, width).sum(0).to(ctx.vectors_dtype)
        return dx_TW, dadded_TW, dvectors_nW, None, None, None, None, None


def add_norm(
    x_TW: Tensor,
    added_TW: Tensor | None,
    vectors_nW: Tensor | None,
    rows: Rows | None,
    weight_W: Tensor,
    bias_W: Tensor | None,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The residual stream after an addition, and its layer norm.

    Args:
        x_TW: the stream.
        added_TW: what is added to it, in any floating dtype; None adds nothing.
        vectors_nW: prompt vectors that stand in `rows` instead; None for none.
        rows: where they stand.
        weight_W, bias_W, eps: of the norm, whose weights are frozen.
        dtype: of the normalised rows.

    Returns:
        y_TW in the stream's dtype, h_TW in `dtype`.
    """
    y_TW, h_TW = _AddNorm.apply(x_TW, added_TW, vectors_nW, rows, weight_W, bias_W, eps, dtype)
    return y_TW, h_TW
