"""Attention of many short sequences, from packed rows of queries, keys and values to packed rows (Triton, GPUs).

softmax(q·kᵀ/√d)·v within each sequence. Kernels of libraries are made for long sequences: 52 tokens of ViT-B/32 and
16 of a class prompt leave most of their tiles empty, and their gradients come in three tensors that have to be put
together again. Here a sequence's head is one tile, and nothing is kept for the backward pass. Longer sequences stay
with PyTorch: the same by several tiles was no faster at 259 tokens on an H200.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_TILE = 64


@triton.jit  # type: ignore[untyped-decorator]
def _attend(  # type: ignore[no-untyped-def]
    qkv, out, length, width, scale, CAUSAL: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr
):
    first = tl.program_id(0).to(tl.int64) * length
    row, column = tl.arange(0, BLOCK), tl.arange(0, DEPTH)
    inside = row < length
    at = (first + row)[:, None] * (3 * width) + tl.program_id(1) * DEPTH + column[None, :]
    q = tl.load(qkv + at, mask=inside[:, None], other=0.0)
    k = tl.load(qkv + at + width, mask=inside[:, None], other=0.0)
    v = tl.load(qkv + at + 2 * width, mask=inside[:, None], other=0.0)
    scores = tl.dot(q, tl.trans(k)) * scale
    seen = inside[None, :] & (row[None, :] <= row[:, None]) if CAUSAL else inside[None, :] & (row[:, None] >= 0)
    scores = tl.where(seen, scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    weights = weights / tl.sum(weights, axis=1)[:, None]
    result = tl.dot(weights.to(v.dtype), v)
    to = (first + row)[:, None] * width + tl.program_id(1) * DEPTH + column[None, :]
    tl.store(out + to, result, mask=inside[:, None])


@triton.jit  # type: ignore[untyped-decorator]
def _attend_backward(  # type: ignore[no-untyped-def]
    qkv, dout, dqkv, length, width, scale, CAUSAL: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr
):
    first = tl.program_id(0).to(tl.int64) * length
    row, column = tl.arange(0, BLOCK), tl.arange(0, DEPTH)
    inside = row < length
    at = (first + row)[:, None] * (3 * width) + tl.program_id(1) * DEPTH + column[None, :]
    q = tl.load(qkv + at, mask=inside[:, None], other=0.0)
    k = tl.load(qkv + at + width, mask=inside[:, None], other=0.0)
    v = tl.load(qkv + at + 2 * width, mask=inside[:, None], other=0.0)
    to = (first + row)[:, None] * width + tl.program_id(1) * DEPTH + column[None, :]
    # Rows past the end have no gradient, so that they add nothing to the sums over rows below.
    d = tl.load(dout + to, mask=inside[:, None], other=0.0)
    scores = tl.dot(q, tl.trans(k)) * scale
    seen = inside[None, :] & (row[None, :] <= row[:, None]) if CAUSAL else inside[None, :] & (row[:, None] >= 0)
    scores = tl.where(seen, scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores, axis=1)[:, None])
    weights = weights / tl.sum(weights, axis=1)[:, None]
    dweights = tl.dot(d, tl.trans(v))
    dscores = weights * (dweights - tl.sum(weights * dweights, axis=1)[:, None]) * scale
    dscores = dscores.to(q.dtype)
    tl.store(dqkv + at, tl.dot(dscores, k), mask=inside[:, None])
    tl.store(dqkv + at + width, tl.dot(tl.trans(dscores), q), mask=inside[:, None])
    tl.store(dqkv + at + 2 * width, tl.dot(tl.trans(weights.to(d.dtype)), d), mask=inside[:, None])


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv_T3W: Tensor, num_sequences: int, num_heads: int, causal: bool) -> Tensor:
        qkv_T3W = qkv_T3W.contiguous()
        num_rows, width = qkv_T3W.shape[0], qkv_T3W.shape[1] // 3
        length, depth = num_rows // num_sequences, width // num_heads
        out_TW = torch.empty(num_rows, width, dtype=qkv_T3W.dtype, device=qkv_T3W.device)
        ctx.grid, ctx.sizes = (num_sequences, num_heads), (length, width, depth**-0.5)
        ctx.options = {"CAUSAL": causal, "BLOCK": max(16, triton.next_power_of_2(length)), "DEPTH": depth}
        _attend[ctx.grid](qkv_T3W, out_TW, *ctx.sizes, **ctx.options)
        ctx.save_for_backward(qkv_T3W)
        return out_TW

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (qkv_T3W,) = ctx.saved_tensors
        dqkv_T3W = torch.empty_like(qkv_T3W)
        _attend_backward[ctx.grid](qkv_T3W, gradients[0].contiguous(), dqkv_T3W, *ctx.sizes, **ctx.options)
        return dqkv_T3W, None, None, None


def suits_packed_attention(length: int, depth: int) -> bool:
    """Whether sequences and heads fit one tile: at most 64 tokens, heads of 16, 32 or 64."""
    return length <= _TILE and depth in (16, 32, 64)


def packed_attention(qkv_T3W: Tensor, num_sequences: int, num_heads: int, *, causal: bool) -> Tensor:
    """Attention within each of some sequences of equal length, (T, W).

    Args:
        qkv_T3W: queries, keys and values side by side, sequence after sequence.
        num_sequences: T is a multiple of it.
        num_heads: W is a multiple of it.
        causal: whether a token sees only itself and those before it.
    """
    out_TW: Tensor = _Packed.apply(qkv_T3W, num_sequences, num_heads, causal)
    return out_TW
