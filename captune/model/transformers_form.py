"""The CLIP of Hugging Face's transformers (`CLIPModel`) under open_clip's names.

The same network, written down otherwise: text_model and vision_model instead of transformer and visual, query, key and
value as three matrices instead of one, projections transposed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captune.errors import ModelError

_NAMES = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}
_IN_A_LAYER = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_TOWERS = {"text_model": "transformer.resblocks", "vision_model": "visual.transformer.resblocks"}
_LAYER = re.compile(r"(text_model|vision_model)\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_NUMBERS_ONLY = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_ACTIVATIONS = {"quick_gelu": True, "gelu": False}


def is_transformers(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of transformers' CLIP-like models."""
    return any(name.startswith(("text_model.", "vision_model.")) for name in state)


def from_transformers(state: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], bool | None]:
    """The tensors under open_clip's names, and whether config.json beside the file says QuickGELU (None: no file).

    Args:
        state: tensors of a `CLIPModel`.
        path: the weight file; its folder may hold config.json.

    Raises:
        ModelError: one tower alone, another of transformers' models (SigLIP), or an activation open_clip has not.
    """
    towers = [tower for tower in _TOWERS if any(name.startswith(f"{tower}.") for name in state)]
    if len(towers) < 2 or not set(_TRANSPOSED) <= set(state):
        what = "CLIPModel" if len(towers) == 2 else f"a {towers[0]} alone"
        other = " without text_projection and visual_projection, as SigLIP's are" if len(towers) == 2 else ""
        raise ModelError(
            "weights in transformers' form must be those of a whole CLIPModel",
            got=f"{what}{other}",
            where=path,
            next_step="For SigLIP name open_clip's own weights, as --backbone ViT-B-16-SigLIP --pretrained webli.",
        )
    found: dict[str, Tensor] = {}
    thirds: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if name in _NUMBERS_ONLY:
            continue
        layer = _LAYER.fullmatch(name)
        if name in _NAMES:
            found[_NAMES[name]] = tensor
        elif name in _TRANSPOSED:
            found[_TRANSPOSED[name]] = tensor.T
        elif layer is None:
            raise _unknown(name, path)
        else:
            tower, number, inner, kind = layer.groups()
            block = f"{_TOWERS[tower]}.{number}"
            if inner in _IN_A_LAYER:
                found[f"{block}.{_IN_A_LAYER[inner]}.{kind}"] = tensor
            elif inner in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
                thirds.setdefault((block, kind), {})[inner[len("self_attn.")]] = tensor
            else:
                raise _unknown(name, path)
    for (block, kind), parts in thirds.items():
        if set(parts) != set("qkv"):
            raise _unknown(f"{block} without {', '.join(sorted(set('qkv') - set(parts)))}_proj.{kind}", path)
        found[f"{block}.attn.in_proj_{kind}"] = torch.cat([parts[letter] for letter in "qkv"])
    return found, _quick_gelu(path.parent / "config.json")


def _unknown(name: str, path: Path) -> ModelError:
    return ModelError("weights in transformers' form must be those of a CLIPModel", got=name, where=path)


def _quick_gelu(file: Path) -> bool | None:
    if not file.is_file():
        return None
    try:
        config: Any = json.loads(file.read_text(encoding="utf-8"))
        # transformers prefers the value under …_dict, and takes QuickGELU where neither is given.
        named = {
            str({**(config.get(f"{tower}_config") or {}), **(config.get(f"{tower}_config_dict") or {})}.get(
                "hidden_act", "quick_gelu"
            ))
            for tower in ("text", "vision")
        }  # fmt: skip
    except (OSError, ValueError, AttributeError, TypeError):
        raise ModelError("config.json beside the weights must be transformers' configuration", where=file) from None
    if len(named) > 1 or not named <= set(_ACTIVATIONS):
        raise ModelError("both towers must have GELU, or both QuickGELU", got=" and ".join(sorted(named)), where=file)
    return _ACTIVATIONS[named.pop()]


def preprocessor_config(path: Path) -> dict[str, Any]:
    """What preprocessor_config.json beside a weight file says, as open_clip's preprocess_cfg; empty without one.

    Raises:
        ModelError: it cannot be read, or asks for a resizing that captune has not.
    """
    file = path.parent / "preprocessor_config.json"
    if not file.is_file():
        return {}
    try:
        config: Any = json.loads(file.read_text(encoding="utf-8"))
        mean, std = ([float(value) for value in config[key]] for key in ("image_mean", "image_std"))
        interpolation = _RESAMPLE[int(config.get("resample", 3))]
        cropped = bool(config.get("do_center_crop", True))
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"mean {mean} and std {std}")
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
        raise ModelError(
            "preprocessor_config.json must give image_mean, image_std and bilinear or bicubic resampling",
            got=f"{type(error).__name__}: {error}",
            where=file,
        ) from None
    return {
        "mean": mean,
        "std": std,
        "interpolation": interpolation,
        "resize_mode": "shortest" if cropped else "squash",
    }
