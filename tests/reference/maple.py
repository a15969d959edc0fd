"""MaPLe written out: full-length texts, open_clip's own blocks one after another, prompts overwritten between them.

Slow and plain on purpose: the oracle for the lean towers. Every prompt is a full sequence, every row goes through every
layer, pooling picks at the end.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def maple_text(model: Any, tokens_KL: Tensor, vectors_JnW: Tensor | None) -> Tensor:
    """Normalised text features (K, D); vectors overwrite positions 1…n."""
    text = model.text if hasattr(model, "text") else model
    x = text.token_embedding(tokens_KL)
    num = 0 if vectors_JnW is None else vectors_JnW.shape[1]
    if vectors_JnW is not None:
        x = torch.cat([x[:, :1], vectors_JnW[0].expand(len(x), -1, -1), x[:, 1 + num :]], dim=1)
    x = x + text.positional_embedding
    for layer, block in enumerate(text.transformer.resblocks):
        if vectors_JnW is not None and 1 <= layer < len(vectors_JnW):
            x = torch.cat([x[:, :1], vectors_JnW[layer].expand(len(x), -1, -1), x[:, 1 + num :]], dim=1)
        x = block(x, attn_mask=text.attn_mask)
    x = text.ln_final(x)
    rows = []
    pool = getattr(text, "text_pool_type", None) or text.pool_type
    eos = getattr(text, "text_eos_id", None) or getattr(text, "eos_id", None)
    for row, tokens_L in zip(x, tokens_KL.tolist(), strict=True):
        position = {
            "argmax": tokens_L.index(max(tokens_L)),
            "eos": tokens_L.index(eos) if eos in tokens_L else 0,
            "last": len(tokens_L) - 1,
            "first": 0,
        }[pool]
        rows.append(row[position])
    x = torch.stack(rows)
    if isinstance(text.text_projection, nn.Linear):
        x = text.text_projection(x)
    elif text.text_projection is not None:
        x = x @ text.text_projection
    return F.normalize(x, dim=-1)


def maple_image(model: Any, pixels_B3SS: Tensor, vectors_JnW: Tensor | None) -> Tensor:
    """Normalised image features (B, D); vectors stand behind the patches and are left out of average pooling."""
    visual = model.visual
    x = visual.conv1(pixels_B3SS).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    num_tokens = x.shape[1]
    if vectors_JnW is not None:
        x = torch.cat([x, vectors_JnW[0].expand(len(x), -1, -1)], dim=1)
    x = visual.ln_pre(x)
    for layer, block in enumerate(visual.transformer.resblocks):
        if vectors_JnW is not None and 1 <= layer < len(vectors_JnW):
            x = torch.cat([x[:, :num_tokens], vectors_JnW[layer].expand(len(x), -1, -1)], dim=1)
        x = block(x)
    x = x[:, :num_tokens]
    if visual.final_ln_after_pool:
        x = x[:, 0] if visual.pool_type == "tok" else x[:, 1:].mean(dim=1)
        x = visual.ln_post(x)
    else:
        x = visual.ln_post(x)
        x = x[:, 0] if visual.pool_type == "tok" else x[:, 1:].mean(dim=1)
    return F.normalize(x @ visual.proj, dim=-1)
