"""Lean forward passes of open_clip's two towers, with or without prompts: one path for frozen and prompted features.

What is left out is exact to leave out: text past the longest end-of-text token and repeats of a shared beginning
(causal mask), and in the last layer every row that pooling does not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import open_clip.transformer as oc
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from captune.errors import ModelError
from captune.model.blocks import Blocks, LeanOptions, Norm, Overwrite, blocks_refusal, place

_TOKENS_AT_ONCE = 8192


@dataclass(frozen=True)
class TextPlan:
    """Token ids of K prompts, cut and split once so that a step does not look at them again.

    Attributes:
        shared_P: ids that all prompts begin with, P may be 0.
        own_KS: what follows in each, cut at the longest end-of-text.
        pooled_K: the row of `own_KS` that pooling reads.
    """

    shared_P: Tensor
    own_KS: Tensor
    pooled_K: Tensor


def text_tower_of(model: Any) -> Any:
    """The module that holds the text tower: the model itself (CLIP) or its `text` (CustomTextCLIP)."""
    text = getattr(model, "text", None)
    return text if isinstance(text, nn.Module) else model


def text_refusal(model: Any) -> str | None:
    """Why the text tower cannot be run lean, or None."""
    text = text_tower_of(model)
    if not hasattr(text, "token_embedding") or not hasattr(text, "ln_final"):
        return f"its text tower is a {type(text).__name__}, not open_clip's own"
    if getattr(text, "cls_emb", None) is not None:
        return "its text tower has a class token of its own (CoCa)"
    if _text_pool(text) not in ("argmax", "eos", "last", "first"):
        return f"its text tower pools by '{_text_pool(text)}'"
    if getattr(text, "use_pad_mask", False):
        return "its text tower masks padding"
    return blocks_refusal(text.transformer)


def image_refusal(model: Any) -> str | None:
    """Why the image tower cannot be run lean, or None."""
    visual = model.visual
    if not isinstance(visual, oc.VisionTransformer):
        kind = {"ModifiedResNet": "a ResNet", "TimmModel": "a timm model"}.get(type(visual).__name__)
        return f"its image tower is {kind or type(visual).__name__}, not open_clip's own ViT"
    if visual.attn_pool is not None:
        return "its image tower pools by attention"
    if visual.pool_type not in ("tok", "avg"):
        return f"its image tower pools by '{visual.pool_type}'"
    return blocks_refusal(visual.transformer)


def _text_pool(text: Any) -> str:
    return str(getattr(text, "text_pool_type", getattr(text, "pool_type", "argmax")))


class LeanTextTower:
    """The text tower of a CLIP or CustomTextCLIP.

    Args:
        model: open_clip's model, accepted by `text_refusal`.
        device: where to compute.
        dtype: of the weights.
        options: see `LeanOptions`.
    """

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype, options: LeanOptions) -> None:
        text = text_tower_of(model)
        self.options = options
        self.blocks = Blocks(text.transformer, device, dtype, options)
        residual = self.blocks.residual_dtype
        self.embedding_VW = place(text.token_embedding.weight, device, residual)
        self.position_LW = place(text.positional_embedding, device, residual)
        self.causal = text.attn_mask is not None
        self._pool = _text_pool(text)
        self._eos = getattr(text, "text_eos_id", getattr(text, "eos_id", None))
        # The head works on K rows only: fp32 costs nothing there.
        self._norm = Norm.of(text.ln_final, device, torch.float32)
        projection = text.text_projection
        linear = isinstance(projection, nn.Linear)
        self._projection_DW: Tensor | None = None
        if projection is not None:
            weight = projection.weight if linear else projection.T
            self._projection_DW = place(weight, device, torch.float32)
        bias = projection.bias if linear else None
        self._projection_bias = None if bias is None else place(bias, device, torch.float32)

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return self.blocks.width

    def pooled_positions(self, tokens_KL: Tensor) -> Tensor:
        """The position whose feature stands for each prompt (K,), by open_clip's own rule."""
        if self._pool == "argmax":
            return tokens_KL.argmax(-1)
        if self._pool == "eos":
            return torch.eq(tokens_KL, torch.tensor(self._eos, device=tokens_KL.device)).long().argmax(-1)
        position = tokens_KL.shape[1] - 1 if self._pool == "last" else 0
        return torch.full((len(tokens_KL),), position, device=tokens_KL.device)

    def plan(self, tokens_KL: Tensor, num_context: int = 0) -> TextPlan:
        """Cut prompts and find their shared beginning; reads the tokens, so call it once.

        Args:
            tokens_KL: token ids as the tokenizer pads them.
            num_context: positions 1…num_context will be replaced; they are one part or the other, never both.
        """
        tokens_KL = tokens_KL.to(self.embedding_VW.device)
        pooled_K = self.pooled_positions(tokens_KL)
        if not self.causal:
            return TextPlan(tokens_KL[0, :0], tokens_KL, pooled_K)
        tokens_KL = tokens_KL[:, : int(pooled_K.max()) + 1]
        same_L = torch.eq(tokens_KL, tokens_KL[:1]).all(0)
        shared = int(same_L.long().cumprod(0).sum())
        shared = min(shared, int(pooled_K.min()))
        share = self.options.share_prefix
        if share is None:
            share = tokens_KL.device.type == "cpu"
        if len(tokens_KL) == 1 or shared < 1 + num_context or not share:
            shared = 0
        return TextPlan(tokens_KL[0, :shared], tokens_KL[:, shared:], pooled_K - shared)

    def __call__(self, plan: TextPlan, vectors_JnW: Tensor | None = None) -> Tensor:
        """Normalised features (K, D) fp32.

        Args:
            plan: from `plan`.
            vectors_JnW: prompts: the first n replace the token embeddings at positions 1…n, the others overwrite the
                same positions before blocks 1…J−1 (MaPLe).
        """
        chunk = self._chunk(plan)
        if not (torch.is_grad_enabled() and vectors_JnW is not None and vectors_JnW.requires_grad):
            parts = [self._forward(part, vectors_JnW) for part in _parts(plan, chunk)]
        elif chunk >= len(plan.own_KS):
            parts = [self._forward(plan, vectors_JnW)]
        else:
            parts = [
                checkpoint(self._forward, part, vectors_JnW, use_reentrant=False, preserve_rng_state=False)
                for part in _parts(plan, chunk)
            ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _chunk(self, plan: TextPlan) -> int:
        return self.options.text_chunk or max(1, _TOKENS_AT_ONCE // max(plan.own_KS.shape[1], 1))

    def _forward(self, plan: TextPlan, vectors_JnW: Tensor | None) -> Tensor:
        blocks, (num, length), shared = self.blocks, plan.own_KS.shape, len(plan.shared_P)
        x_TW = self._embed(plan, vectors_JnW)
        whole = shared + length
        mask_LL = None
        if self.causal:
            mask_LL = torch.full((whole, whole), float("-inf"), dtype=blocks.dtype, device=x_TW.device).triu_(1)
        rows_K = shared + torch.arange(num, device=x_TW.device) * length + plan.pooled_K
        added_TW: Tensor | None = None
        for index in range(len(blocks)):
            overwrite = None
            if vectors_JnW is not None and 1 <= index < len(vectors_JnW):
                overwrite = self._overwrite(vectors_JnW[index], num, length, shared)
            x_TW, h_TW = blocks.enter(index, x_TW, added_TW, overwrite)
            if index == len(blocks) - 1:
                q, k, v = blocks.qkv_of_rows(index, h_TW, h_TW[rows_K])
                x_TW = x_TW[rows_K]
                mask = None if mask_LL is None else mask_LL[shared + plan.pooled_K][:, None, None, :]
                attended = blocks.attend(blocks.heads(q, num), *self._keys(k, v, num, shared), mask)
            else:
                qkv = blocks.qkv(index, h_TW)
                if shared:
                    assert mask_LL is not None  # for the type checker: only a causal tower shares
                    q, k, v = qkv.chunk(3, dim=-1)
                    own = blocks.attend(blocks.heads(q[shared:], num), *self._keys(k, v, num, shared), mask_LL[shared:])
                    first_q, first_k, first_v = (blocks.heads(t[:shared], 1) for t in (q, k, v))
                    first = blocks.attend(first_q, first_k, first_v, mask_LL[:shared, :shared])
                    attended = torch.cat([first, own])
                else:
                    attended = blocks.self_attend(qkv, num, mask_LL)
            x_TW, added_TW = blocks.finish(index, x_TW, attended)
        return self._head(x_TW if added_TW is None else x_TW + added_TW)

    def _embed(self, plan: TextPlan, vectors_JnW: Tensor | None) -> Tensor:
        (num, length), shared = plan.own_KS.shape, len(plan.shared_P)
        tokens_T = torch.cat([plan.shared_P, plan.own_KS.reshape(-1)])
        x_TW = self.embedding_VW[tokens_T]
        if vectors_JnW is not None:
            x_TW = self._overwrite(vectors_JnW[0], num, length, shared)(x_TW)
        own_LW = self.position_LW[shared : shared + length]
        return x_TW + torch.cat([self.position_LW[:shared], own_LW.repeat(num, 1)])

    def _overwrite(self, vectors_nW: Tensor, num: int, length: int, shared: int) -> Overwrite:
        """Positions 1…n: once if they are shared, else in every prompt."""
        return Overwrite(vectors_nW, 1, shared, 1) if shared else Overwrite(vectors_nW, 1, length, num)

    def _keys(self, k_TW: Tensor, v_TW: Tensor, num: int, shared: int) -> tuple[Tensor, Tensor]:
        """Keys and values (K, H, P+S, d): the shared ones stand before each prompt's own."""

        def join(t_TW: Tensor) -> Tensor:
            own = self.blocks.heads(t_TW[shared:], num)
            if not shared:
                return own
            first = self.blocks.heads(t_TW[:shared], 1).expand(num, -1, -1, -1)
            return torch.cat([first, own], dim=2)

        return join(k_TW), join(v_TW)

    def _head(self, x_KW: Tensor) -> Tensor:
        x_KW = x_KW.float()
        x_KW = x_KW if self._norm is None else self._norm(x_KW)
        if self._projection_DW is not None:
            x_KW = F.linear(x_KW, self._projection_DW, self._projection_bias)
        return F.normalize(x_KW, dim=-1)


def _parts(plan: TextPlan, chunk: int) -> list[TextPlan]:
    if chunk >= len(plan.own_KS):
        return [plan]
    pairs = zip(torch.split(plan.own_KS, chunk), torch.split(plan.pooled_K, chunk), strict=True)
    return [TextPlan(plan.shared_P, own_kS, pooled_k) for own_kS, pooled_k in pairs]


class LeanImageTower:
    """open_clip's VisionTransformer with a class token; "tok" and "avg" pooling.

    Args:
        model: open_clip's model, accepted by `image_refusal`.
        device: where to compute.
        dtype: of the weights.
        options: see `LeanOptions`.
    """

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype, options: LeanOptions) -> None:
        visual = model.visual
        self.blocks = Blocks(visual.transformer, device, dtype, options)
        residual = self.blocks.residual_dtype
        self._patches_WF = place(visual.conv1.weight.flatten(1), device, dtype)
        self._class_W = place(visual.class_embedding, device, residual)
        self._position_LW = place(visual.positional_embedding, device, residual)
        self._norm_pre = Norm.of(visual.ln_pre, device, residual)
        self._norm_post = Norm.of(visual.ln_post, device, torch.float32)
        proj = visual.proj
        self._projection_DW = None if proj is None else place(proj.T, device, torch.float32)
        self._average = visual.pool_type == "avg"
        self._norm_after_pool = bool(visual.final_ln_after_pool)
        self._size: tuple[int, int] = tuple(visual.image_size)
        self._patch: tuple[int, int] = tuple(visual.patch_size)

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return self.blocks.width

    @property
    def num_values(self) -> int:
        """Numbers of an image in the residual streams of all blocks, prompts left out."""
        return len(self.blocks) * len(self._position_LW) * self.width

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._class_W.device

    def __call__(self, pixels_B3SS: Tensor, vectors_JnW: Tensor | None = None) -> Tensor:
        """Normalised features (B, D) fp32.

        Args:
            pixels_B3SS: normalised pixels.
            vectors_JnW: prompts: the first n are appended to [CLS, patches] before ln_pre, the others overwrite the
                last n tokens before blocks 1…J−1 (MaPLe). Average pooling leaves them out.

        Raises:
            ModelError: pixels of another shape.
        """
        if tuple(pixels_B3SS.shape[1:]) != (3, *self._size):
            raise ModelError(
                f"images must be preprocessed to (B, 3, {self._size[0]}, {self._size[1]})",
                got=tuple(pixels_B3SS.shape),
            )
        blocks, batch = self.blocks, pixels_B3SS.shape[0]
        x_BLW = self._embed(pixels_B3SS)
        num_tokens = x_BLW.shape[1]
        if vectors_JnW is not None:
            x_BLW = self._append(x_BLW, vectors_JnW[0])
        if self._norm_pre is not None:
            x_BLW = self._norm_pre(x_BLW)
        pooled = slice(1, num_tokens) if self._average else slice(0, 1)
        length, x_TW = x_BLW.shape[1], x_BLW.flatten(0, 1)
        added_TW: Tensor | None = None
        for index in range(len(blocks)):
            overwrite = None
            if vectors_JnW is not None and 1 <= index < len(vectors_JnW):
                overwrite = Overwrite(vectors_JnW[index], num_tokens, length, batch)
            x_TW, h_TW = blocks.enter(index, x_TW, added_TW, overwrite)
            if index == len(blocks) - 1:
                # A slice, since the backward pass of an index sorts.
                x_TW, h_RW = (t_TW.view(batch, length, -1)[:, pooled].reshape(-1, self.width) for t_TW in (x_TW, h_TW))
                q, k, v = (blocks.heads(part, batch) for part in blocks.qkv_of_rows(index, h_TW, h_RW))
                attended = blocks.attend(q, k, v, None)
            else:
                attended = blocks.self_attend(blocks.qkv(index, h_TW), batch, None)
            x_TW, added_TW = blocks.finish(index, x_TW, attended)
        if added_TW is not None:
            x_TW = x_TW + added_TW
        return self._head(x_TW.view(batch, -1, self.width))

    def _embed(self, pixels_B3SS: Tensor) -> Tensor:
        """Patches by one matrix product (a convolution whose stride is its size), CLS first, positions added."""
        high, wide = self._patch
        grid = (self._size[0] // high, self._size[1] // wide)
        # A remainder of the image that no patch covers is left out, as the convolution does.
        pixels = pixels_B3SS[..., : grid[0] * high, : grid[1] * wide].to(self._patches_WF.dtype)
        patches_BPF = pixels.reshape(pixels.shape[0], 3, grid[0], high, grid[1], wide)
        patches_BPF = patches_BPF.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        x_BPW = F.linear(patches_BPF, self._patches_WF).to(self._class_W.dtype)
        return torch.cat([self._class_W.expand(x_BPW.shape[0], 1, -1), x_BPW], dim=1) + self._position_LW

    def _append(self, x_BLW: Tensor, vectors_nW: Tensor) -> Tensor:
        return torch.cat([x_BLW, vectors_nW.to(x_BLW.dtype).expand(x_BLW.shape[0], -1, -1)], dim=1)

    def _head(self, x_BRW: Tensor) -> Tensor:
        """Pool, norm (in the tower's order; the same for one row), project, normalise."""
        x_BRW = x_BRW.float()
        if self._norm_post is None:
            x_BW = x_BRW.mean(1)
        elif self._norm_after_pool:
            x_BW = self._norm_post(x_BRW.mean(1))
        else:
            x_BW = self._norm_post(x_BRW).mean(1)
        if self._projection_DW is not None:
            x_BW = F.linear(x_BW, self._projection_DW)
        return F.normalize(x_BW, dim=-1)
