"""Transformer blocks run straight from open_clip's parameters: one packed matrix of tokens, attention where it belongs.

In fp32 every tensor is a view of the frozen model's own; in bf16 and fp16 a cast copy is made once per backbone.
The mathematics is open_clip's `ResidualAttentionBlock`; tests hold the two against each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import open_clip.transformer as oc
import torch
from torch import Tensor, nn
from torch.nn import functional as F

# x·sigmoid(1.702x) = silu(1.702x)/1.702: one fused kernel instead of three.
_QUICK = 1.702


@dataclass(frozen=True)
class LeanOptions:
    """How the lean towers compute; the mathematics stays the same.

    Attributes:
        attention: "auto" takes explicit batched matrix products on a CPU in bf16 or fp16, where the backward pass of
            `scaled_dot_product_attention` (SDPA) is the bottleneck, and SDPA elsewhere; or force one.
        residual: dtype of the residual stream beside bf16 or fp16 weights; "fp32" is the more exact one and costs
            a few percent, "same" follows the weights.
        text_chunk: classes at once in a text forward with gradients, each chunk encoded again in the backward pass;
            None takes as many as make 8,192 tokens.
        share_prefix: compute the tokens that all class prompts begin with once; exact under the causal mask. None does
            so on a CPU; on a GPU twice as many small kernels cost more than the tokens.
        fused: additions, prompts and norms of a block in one kernel (`fused.py`), attention on packed rows
            (`attention.py`); None takes them on a GPU in bf16 or fp16, where Triton is installed.
    """

    attention: Literal["auto", "sdpa", "matmul"] = "auto"
    residual: Literal["fp32", "same"] = "fp32"
    text_chunk: int | None = None
    share_prefix: bool | None = None
    fused: bool | None = None


def blocks_refusal(transformer: Any) -> str | None:
    """Why a transformer cannot be run lean, or None."""
    if not isinstance(transformer, oc.Transformer):
        return f"its transformer is a {type(transformer).__name__}, not open_clip's own"
    for block in transformer.resblocks:
        if type(block) is not oc.ResidualAttentionBlock:
            return f"its blocks are of the kind {type(block).__name__} (query/key norms, scaled cosine attention, …)"
        if not isinstance(block.mlp.gelu, (nn.GELU, oc.QuickGELU)):
            return f"its activation is {type(block.mlp.gelu).__name__}, neither GELU nor QuickGELU"
        if not isinstance(block.ln_1, nn.LayerNorm):
            return f"its norm is {type(block.ln_1).__name__}, no LayerNorm"
    return None


@dataclass(frozen=True)
class Norm:
    """A layer norm's weights."""

    weight_W: Tensor
    bias_W: Tensor | None
    eps: float

    @classmethod
    def of(cls, module: nn.Module, device: torch.device, dtype: torch.dtype) -> Norm | None:
        """The norm of a module; None for an identity (towers without ln_pre)."""
        if isinstance(module, nn.Identity):
            return None
        assert isinstance(module, nn.LayerNorm)  # for the type checker: other modules were refused before
        bias = None if module.bias is None else place(module.bias, device, dtype)
        return cls(place(module.weight, device, dtype), bias, module.eps)

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight_W.shape, self.weight_W, self.bias_W, self.eps)


def place(parameter: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The parameter without gradient; the same memory where device and dtype are already right."""
    return parameter.detach().to(device=device, dtype=dtype)


@dataclass(frozen=True)
class _Layer:
    norm_1: Norm
    norm_2: Norm
    qkv_weight: Tensor
    qkv_bias: Tensor | None
    out_weight: Tensor
    out_bias: Tensor | None
    fc_weight: Tensor
    fc_bias: Tensor
    proj_weight: Tensor
    proj_bias: Tensor
    scale_1: Tensor | None
    scale_2: Tensor | None
    activation: Literal["quick", "none", "tanh"]


@dataclass(frozen=True)
class Overwrite:
    """Prompt vectors that stand in the input of a layer in place of its own tokens.

    Attributes:
        vectors_nW: the vectors.
        first, stride, count: they stand in rows first + stride·b + j of the packed tokens, b < count, n ≤ stride.
    """

    vectors_nW: Tensor
    first: int
    stride: int
    count: int

    def __call__(self, x_TW: Tensor) -> Tensor:
        """The packed tokens with the vectors among them."""
        vectors_nW, n, width = self.vectors_nW.to(x_TW.dtype), len(self.vectors_nW), x_TW.shape[1]
        if self.count == 1:
            return torch.cat([x_TW[: self.first], vectors_nW, x_TW[self.first + n :]])
        x_bLW = x_TW.view(self.count, self.stride, width)
        before, after = x_bLW[:, : self.first], x_bLW[:, self.first + n :]
        return torch.cat([before, vectors_nW.expand(self.count, -1, -1), after], dim=1).flatten(0, 1)


class Blocks:
    """The residual blocks of one tower.

    Token-wise work runs on packed rows (T, W), whatever sequences they belong to; only `attend` knows sequences.

    Args:
        transformer: open_clip's, already accepted by `blocks_refusal`.
        device: where to compute.
        dtype: of the weights: fp32 shares memory with the model, bf16 and fp16 are copies.
        options: see `LeanOptions`.
    """

    def __init__(self, transformer: Any, device: torch.device, dtype: torch.dtype, options: LeanOptions):
        self.dtype = dtype
        self.residual_dtype = torch.float32 if options.residual == "fp32" else dtype
        self.width: int = transformer.width
        self.num_heads: int = transformer.resblocks[0].attn.num_heads
        if options.attention == "auto":
            self.explicit = device.type == "cpu" and dtype != torch.float32
        else:
            self.explicit = options.attention == "matmul"
        # The weights are copied for the cast anyway, so multiplying the activation's factor into them costs nothing.
        self._folded = dtype != torch.float32
        self._layers = [self._take(block, device) for block in transformer.resblocks]
        self.fused = options.fused
        if self.fused is None:
            self.fused = device.type == "cuda" and dtype != torch.float32 and find_spec("triton") is not None

    def __len__(self) -> int:
        return len(self._layers)

    def _take(self, block: Any, device: torch.device) -> _Layer:
        attention, mlp = block.attn, block.mlp
        quick = isinstance(mlp.gelu, oc.QuickGELU)
        factor = _QUICK if quick and self._folded else 1.0

        def cast(parameter: Tensor, by: float = 1.0) -> Tensor:
            return place(parameter if by == 1.0 else parameter.detach() * by, device, self.dtype)

        def optional(parameter: Tensor | None) -> Tensor | None:
            return None if parameter is None else cast(parameter)

        norm_1 = Norm.of(block.ln_1, device, self.residual_dtype)
        norm_2 = Norm.of(block.ln_2, device, self.residual_dtype)
        assert norm_1 is not None and norm_2 is not None  # for the type checker
        return _Layer(
            norm_1=norm_1,
            norm_2=norm_2,
            qkv_weight=cast(attention.in_proj_weight),
            qkv_bias=optional(attention.in_proj_bias),
            out_weight=cast(attention.out_proj.weight),
            out_bias=optional(attention.out_proj.bias),
            fc_weight=cast(mlp.c_fc.weight, factor),
            fc_bias=cast(mlp.c_fc.bias, factor),
            proj_weight=cast(mlp.c_proj.weight, 1 / factor),
            proj_bias=cast(mlp.c_proj.bias),
            scale_1=None if isinstance(block.ls_1, nn.Identity) else cast(block.ls_1.gamma),
            scale_2=None if isinstance(block.ls_2, nn.Identity) else cast(block.ls_2.gamma),
            activation="quick" if quick else mlp.gelu.approximate,
        )

    def enter(
        self, index: int, x_TW: Tensor, added_TW: Tensor | None, overwrite: Overwrite | None
    ) -> tuple[Tensor, Tensor]:
        """The stream where a block begins, and its first norm (T, W) in the weights' dtype.

        Args:
            index: of the block.
            x_TW: the residual stream.
            added_TW: what the block before adds to it.
            overwrite: prompts that stand in it from here on.
        """
        return self._merge(self._layers[index].norm_1, x_TW, added_TW, overwrite)

    def _merge(
        self, norm: Norm, x_TW: Tensor, added_TW: Tensor | None, overwrite: Overwrite | None = None
    ) -> tuple[Tensor, Tensor]:
        if self.fused:
            from captune.model.fused import Rows, add_norm

            vectors_nW, rows = None, None
            if overwrite is not None:
                vectors_nW, rows = overwrite.vectors_nW, Rows(overwrite.first, overwrite.stride, overwrite.count)
            return add_norm(x_TW, added_TW, vectors_nW, rows, norm.weight_W, norm.bias_W, norm.eps, self.dtype)
        if added_TW is not None:
            x_TW = x_TW + added_TW
        if overwrite is not None:
            x_TW = overwrite(x_TW)
        return x_TW, norm(x_TW).to(self.dtype)

    def qkv(self, index: int, h_TW: Tensor) -> Tensor:
        """Queries, keys and values side by side (T, 3W) of every token, from the block's first norm."""
        layer = self._layers[index]
        return F.linear(h_TW, layer.qkv_weight, layer.qkv_bias)

    def qkv_of_rows(self, index: int, h_TW: Tensor, h_RW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (R, W) of some rows, keys and values of every token: all that a last layer needs."""
        layer, width = self._layers[index], self.width
        bias = layer.qkv_bias
        q_RW = F.linear(h_RW, layer.qkv_weight[:width], None if bias is None else bias[:width])
        kv = F.linear(h_TW, layer.qkv_weight[width:], None if bias is None else bias[width:])
        k_TW, v_TW = kv.chunk(2, dim=-1)
        return q_RW, k_TW, v_TW

    def heads(self, t_TW: Tensor, num_sequences: int) -> Tensor:
        """Packed rows (B·L, W) as heads (B, H, L, W/H), without a copy."""
        return t_TW.view(num_sequences, -1, self.num_heads, self.width // self.num_heads).transpose(1, 2)

    def self_attend(self, qkv_T3W: Tensor, num_sequences: int, mask_LL: Tensor | None) -> Tensor:
        """Attention within sequences of equal length, packed (T, W); `mask_LL` is None or additive and causal."""
        length = qkv_T3W.shape[0] // num_sequences
        if self.fused:
            from captune.model.attention import packed_attention, suits_packed_attention

            if suits_packed_attention(length, self.width // self.num_heads):
                return packed_attention(qkv_T3W, num_sequences, self.num_heads, causal=mask_LL is not None)
        q, k, v = (self.heads(part, num_sequences) for part in qkv_T3W.chunk(3, dim=-1))
        return self.attend(q, k, v, mask_LL)

    def attend(self, q_BHQd: Tensor, k_BHLd: Tensor, v_BHLd: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of each sequence, packed again (B·Q, W); `mask` is additive and broadcasts to (B, H, Q, L)."""
        if not self.explicit:
            out = F.scaled_dot_product_attention(q_BHQd, k_BHLd, v_BHLd, attn_mask=mask)
        else:
            batch, heads, _, depth = q_BHQd.shape
            q, k, v = (t.reshape(batch * heads, -1, depth) for t in (q_BHQd, k_BHLd, v_BHLd))
            shared = mask is not None and mask.ndim == 2
            bias = mask if mask is not None and shared else q.new_zeros(())
            scores = torch.baddbmm(bias, q, k.transpose(1, 2), beta=float(shared), alpha=depth**-0.5)
            if mask is not None and not shared:
                scores = (scores.view(batch, heads, *scores.shape[1:]) + mask).flatten(0, 1)
            out = torch.bmm(scores.softmax(-1), v).view(batch, heads, -1, depth)
        return out.transpose(1, 2).reshape(-1, self.width)

    def finish(self, index: int, x_TW: Tensor, attended_TW: Tensor) -> tuple[Tensor, Tensor]:
        """The rest of a block: the stream (T, W) with the output projection added, and what the MLP adds to it."""
        layer = self._layers[index]
        added = F.linear(attended_TW, layer.out_weight, layer.out_bias)
        x_TW, h = self._merge(layer.norm_2, x_TW, added if layer.scale_1 is None else added * layer.scale_1)
        if layer.activation != "quick":
            h = F.gelu(F.linear(h, layer.fc_weight, layer.fc_bias), approximate=layer.activation)
            added = F.linear(h, layer.proj_weight, layer.proj_bias)
        elif self._folded:
            h = F.silu(F.linear(h, layer.fc_weight, layer.fc_bias))
            added = F.linear(h, layer.proj_weight, layer.proj_bias)
        else:
            h = F.silu(torch.addmm(layer.fc_bias, h, layer.fc_weight.T, beta=_QUICK, alpha=_QUICK))
            added = torch.addmm(layer.proj_bias, h, layer.proj_weight.T, alpha=1 / _QUICK)
        return x_TW, added if layer.scale_2 is None else added * layer.scale_2
