"""What open_clip's table of published weights says of an architecture: hub names, preprocessing, models of a shape."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import open_clip
from open_clip.constants import OPENAI_DATASET_MEAN
from open_clip.factory import _MODEL_CONFIGS
from torch import Tensor

# The same weights under the names of transformers' repositories, where open_clip's table has only its own.
_HUB_NAMES = {
    "openai/clip-vit-base-patch32": ("ViT-B-32", "openai"),
    "openai/clip-vit-base-patch16": ("ViT-B-16", "openai"),
    "openai/clip-vit-large-patch14": ("ViT-L-14", "openai"),
    "openai/clip-vit-large-patch14-336": ("ViT-L-14-336", "openai"),
    "facebook/metaclip-b32-400m": ("ViT-B-32", "metaclip_400m"),
    "facebook/metaclip-b32-fullcc2.5b": ("ViT-B-32", "metaclip_fullcc"),
    "facebook/metaclip-b16-400m": ("ViT-B-16", "metaclip_400m"),
    "facebook/metaclip-b16-fullcc2.5b": ("ViT-B-16", "metaclip_fullcc"),
    "facebook/metaclip-l14-400m": ("ViT-L-14", "metaclip_400m"),
    "facebook/metaclip-l14-fullcc2.5b": ("ViT-L-14", "metaclip_fullcc"),
    "facebook/metaclip-h14-fullcc2.5b": ("ViT-H-14", "metaclip_fullcc"),
    "google/siglip-base-patch16-224": ("ViT-B-16-SigLIP", "webli"),
    "google/siglip-base-patch16-256": ("ViT-B-16-SigLIP-256", "webli"),
    "google/siglip-base-patch16-384": ("ViT-B-16-SigLIP-384", "webli"),
    "google/siglip-base-patch16-512": ("ViT-B-16-SigLIP-512", "webli"),
    "google/siglip-large-patch16-256": ("ViT-L-16-SigLIP-256", "webli"),
    "google/siglip-large-patch16-384": ("ViT-L-16-SigLIP-384", "webli"),
    "google/siglip-so400m-patch14-384": ("ViT-SO400M-14-SigLIP-384", "webli"),
    "google/siglip2-base-patch16-224": ("ViT-B-16-SigLIP2", "webli"),
    "google/siglip2-base-patch16-256": ("ViT-B-16-SigLIP2-256", "webli"),
    "google/siglip2-base-patch16-384": ("ViT-B-16-SigLIP2-384", "webli"),
    "google/siglip2-base-patch16-512": ("ViT-B-16-SigLIP2-512", "webli"),
    "google/siglip2-large-patch16-256": ("ViT-L-16-SigLIP2-256", "webli"),
    "google/siglip2-large-patch16-384": ("ViT-L-16-SigLIP2-384", "webli"),
    "google/siglip2-so400m-patch14-224": ("ViT-SO400M-14-SigLIP2", "webli"),
}
_KEYS = ("mean", "std", "interpolation", "resize_mode")


def of_hub_name(name: str) -> tuple[str, str] | None:
    """open_clip's architecture and tag for a repository of the Hub (`openai/clip-vit-base-patch32`), or None."""
    repository = name.removeprefix("hf-hub:").strip("/")
    if repository in _HUB_NAMES:
        return _HUB_NAMES[repository]
    if name.startswith("hf-hub:") or "/" not in repository:
        return None  # a repository of open_clip's form brings its own configuration
    for model, tag in open_clip.list_pretrained():
        address = str(open_clip.get_pretrained_cfg(model, tag).get("hf_hub") or "").rstrip("/")
        if address == repository and not model.endswith("-quickgelu"):
            return model, tag
    return None


def tags_named_in(architecture: str, words: str) -> list[str]:
    """The architecture's tags that a text such as a file's name holds, the longest last."""
    words = words.lower().replace("-", "_")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    found = [tag for tag in tags if re.search(rf"(?<![a-z0-9]){re.escape(tag)}(?![a-z0-9])", words)]
    return sorted(found, key=len)


def published_preprocessing(architecture: str, words: str) -> tuple[dict[str, Any], str | None]:
    """The preprocessing that weights of an architecture take, and a note where the table does not settle it.

    For nearly every architecture all published tags agree. Where they do not, a tag named in `words` decides; without
    one OpenAI's preprocessing is used and a note says so.

    Args:
        architecture: open_clip's name.
        words: the weights' file and folder name.

    Returns:
        What open_clip calls a preprocess_cfg (mean, std, interpolation, resize_mode), empty for its default.
    """
    forms: dict[tuple[Any, ...], list[str]] = {}
    for tag in open_clip.list_pretrained_tags_by_model(architecture):
        config = open_clip.get_pretrained_cfg(architecture, tag)
        form = tuple(tuple(value) if isinstance(value := config.get(key), list) else value for key in _KEYS)
        forms.setdefault(form, []).append(tag)
    if not forms:
        return {}, (
            f"{architecture}: no weights are published for it, so OpenAI's mean, std and bicubic resizing are assumed; "
            "a folder with open_clip_config.json can say otherwise"
        )
    named = tags_named_in(architecture, words)
    agreed = next(iter(forms)) if len(forms) == 1 else None
    chosen = next((form for form, tags in forms.items() if named and named[-1] in tags), agreed)
    if chosen is not None:
        known = {key: value for key, value in zip(_KEYS, chosen, strict=True) if value is not None}
        usual = known.get("mean", OPENAI_DATASET_MEAN) == OPENAI_DATASET_MEAN and known.get("resize_mode") != "squash"
        of = f"its published weights '{named[-1]}'" if agreed is None else "all its published weights"
        return known, None if usual else f"{architecture}: images are prepared as for {of} ({_shown(chosen)})"
    listed = "; ".join(f"{_shown(form)} for {', '.join(tags[:3])}" for form, tags in forms.items())
    return {}, (
        f"{architecture}: published weights differ in preprocessing ({listed}); mean 0.481, 0.458, 0.408 and bicubic "
        "resizing of the shorter side are taken. A tag in the file's name decides"
    )


def _shown(form: tuple[Any, ...]) -> str:
    mean, _, interpolation, resize_mode = form
    return f"mean {', '.join(f'{value:.3g}' for value in mean)}, {interpolation}, {resize_mode}"


def architectures_like(state: Mapping[str, Tensor]) -> list[str]:
    """open_clip's architectures whose plain ViT and text tower have the shapes of these tensors."""
    shapes = {name.removeprefix("text."): tuple(tensor.shape) for name, tensor in state.items()}
    try:
        width, _, patch, _ = shapes["visual.conv1.weight"]
        places, _ = shapes["visual.positional_embedding"]
        embed = shapes["visual.proj"][1]
        words, text_width = shapes["token_embedding.weight"]
        context = shapes["positional_embedding"][0]
    except (KeyError, ValueError, IndexError):
        return []
    found = {
        "embed_dim": embed, "width": width, "patch_size": patch, "image_size": math.isqrt(max(places - 1, 0)) * patch,
        "layers": _blocks(shapes, "visual.transformer.resblocks."), "text_width": text_width, "vocab_size": words,
        "context_length": context, "text_layers": _blocks(shapes, "transformer.resblocks."),
    }  # fmt: skip
    return [
        name
        for name, config in _MODEL_CONFIGS.items()
        if "timm_model_name" not in config["vision_cfg"] and "-quickgelu" not in name and _numbers(config) == found
    ]


def _blocks(shapes: Mapping[str, Any], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)})


def _numbers(config: Mapping[str, Any]) -> dict[str, Any]:
    vision, text = config.get("vision_cfg", {}), config.get("text_cfg", {})
    return {
        "embed_dim": config.get("embed_dim"), "width": vision.get("width", 768),
        "patch_size": vision.get("patch_size", 16), "image_size": vision.get("image_size", 224),
        "layers": vision.get("layers", 12),
        "text_width": text.get("width", 512), "vocab_size": text.get("vocab_size", 49408),
        "context_length": text.get("context_length", 77), "text_layers": text.get("layers", 12),
    }  # fmt: skip
