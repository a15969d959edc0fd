"""Load weights into a model: every tensor has its place, or an error names the one that does not fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
from torch import Tensor, nn

from captune.errors import ModelError
from captune.model.published_weights import architectures_like
from captune.plain_text import counted, on_one_line

# CLIP trains the logarithm of its logit scale and bounds it at ln 100 = 4.6; SigLIP's is 4.8.
_LARGEST_USUAL = 5.5
_LARGEST_LOGARITHM = 8.0
_LARGEST_SCALE = 1000.0
_SMALLEST_LOGARITHM = 1.0
_POSITIONS = ("visual.positional_embedding", "positional_embedding", "text.positional_embedding")
# Share of the tensors up to which those that do not fit are the file's fault and not the architecture's.
_FEW = 0.1
# Computed from the architecture, not learned; some versions of the libraries saved them all the same.
_DERIVED = ("attn_mask", "position_ids", "relative_position_index")


def fit(
    model: nn.Module, state: dict[str, Tensor], *, name: str, where: Path, interpolate_positions: bool = False
) -> list[str]:
    """Load tensors under open_clip's names into an open_clip model, strictly.

    Args:
        model: as built from its configuration.
        state: name → tensor.
        name: what the model is called.
        where: the file, for messages.
        interpolate_positions: resize position embeddings of another length instead of refusing them.

    Returns:
        What was decided on the way, in sentences.

    Raises:
        ModelError: tensors that are missing, left over or of other shapes; whole numbers for weights; a logit scale
            that cannot be one.
    """
    state = convert_state_dict(model, dict(state))
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    notes = _with_logit_scale(model, state, where)
    wanted = model.state_dict()
    notes += _with_positions(model, state, wanted, name, where, interpolate_positions)
    for key in [key for key in state if key not in wanted and key.endswith(_DERIVED)]:
        del state[key]
    problems = _problems(state, wanted)
    if problems:
        raise ModelError(
            f"the weights must fit {name}",
            got=f"{counted(len(problems), 'problem')}, first: {problems[0]}",
            where=where,
            next_step=_what_to_do(state, wanted, len(problems)),
        )
    _refuse_whole_numbers(state, wanted, where)
    _refuse_too_large(state, wanted, where)
    model.load_state_dict(state, strict=True)
    return notes


def _what_to_do(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], num_problems: int) -> str:
    """The next step: another architecture, or where nearly all fit, another file."""
    fitting = sum(key in wanted and wanted[key].shape == tensor.shape for key, tensor in state.items())
    like = architectures_like(state)
    if not like and num_problems < _FEW * len(wanted):
        return (
            f"{fitting} of {len(wanted)} tensors fit, so this is the architecture, and the file was changed or is not "
            "whole: save the state_dict() of the whole model again, or take the file anew from where it came from."
        )
    shapes = f"These have its shapes: {', '.join(like)}." if like else f"The file holds {_some(list(state))}."
    return f"Name the architecture they were trained with by --backbone. {shapes}"


def _refuse_whole_numbers(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: Path) -> None:
    """Loading would turn them into floats in silence, and complex numbers into their real parts."""
    whole = [
        key
        for key, tensor in wanted.items()
        if tensor.is_floating_point()
        and not state[key].is_floating_point()
        and (state[key].dim() or _is_odd(state[key]))
    ]
    if whole:
        kinds = ", ".join(sorted({str(state[key].dtype).removeprefix("torch.") for key in whole}))
        raise ModelError(
            "weights must be floating-point numbers",
            got=f"{kinds} in {len(whole)} of {len(wanted)} tensors: {_some(whole)}",
            where=where,
            next_step="They were rounded or stored in a form of their own: take the file they were made from.",
        )


def _refuse_too_large(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: Path) -> None:
    """Loading would turn 64-bit numbers beyond those of the model into infinity."""
    large = [
        key
        for key, tensor in wanted.items()
        if state[key].dtype == torch.float64 and not bool(torch.isfinite(state[key].to(tensor.dtype)).all())
    ]
    if large:
        raise ModelError(
            "weights must be finite in 32 bits",
            got=f"larger numbers in {len(large)} of {len(wanted)} tensors: {_some(large)}",
            where=where,
            next_step="No training gives such numbers: take the file anew from where it came from.",
        )


def _is_odd(tensor: Tensor) -> bool:
    """Whether the tensor's numbers are no plain numbers: True and False, or complex."""
    return tensor.dtype == torch.bool or tensor.is_complex()


def _problems(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    shapes = [
        f"{on_one_line(key)} has shape {tuple(state[key].shape)}, not {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in state and state[key].shape != tensor.shape
    ]
    missing = [f"{key} is missing" for key in wanted if key not in state]
    unexpected = [f"{on_one_line(key)} has no place" for key in state if key not in wanted]
    return [*shapes, *missing, *unexpected]


def _with_logit_scale(model: nn.Module, state: dict[str, Tensor], where: Path) -> list[str]:
    for key in ("logit_scale", "logit_bias"):
        target = getattr(model, key, None)
        if target is None:
            continue
        if key not in state and key == "logit_bias":
            state[key] = torch.zeros_like(target)
        elif key in state and state[key].numel() == 1:
            state[key] = state[key].reshape(target.shape)
    scale = state.get("logit_scale")
    if scale is None or scale.numel() != 1 or _is_odd(scale):
        return []
    value = float(scale.detach())
    if _LARGEST_LOGARITHM < value <= _LARGEST_SCALE:
        state["logit_scale"] = torch.full_like(scale, math.log(value), dtype=torch.float32)
        return [
            f"{where.name}: logit_scale is {value:.4g}, which was saved exponentiated (CLIP's is the logarithm, at "
            f"most ln 100 = 4.6): its logarithm {math.log(value):.4f} is used"
        ]
    if value > _LARGEST_SCALE:
        raise ModelError(
            "logit_scale must be the logarithm of the scale (CLIP's is at most ln 100 = 4.6)",
            got=f"{value:.4g}, so a scale of exp({value:.4g})",
            where=where,
            next_step="Save it as CLIP does, or as the scale itself if that is at most 1000.",
        )
    if value > _LARGEST_USUAL:
        return [
            f"{where.name}: logit_scale is {value:.4g}, a scale of {math.exp(value):.3g}, where CLIP's is 100: nearly "
            "every probability will be 0 or 1. Was it saved as the logarithm?"
        ]
    if value < _SMALLEST_LOGARITHM:
        return [
            f"{where.name}: logit_scale is {value:.4g}, a scale of {math.exp(value):.3g}, where CLIP's is 100: every "
            "probability will be nearly the same. Was a temperature saved in its place?"
        ]
    return []


def _with_positions(
    model: nn.Module,
    state: dict[str, Tensor],
    wanted: Mapping[str, Tensor],
    name: str,
    where: Path,
    interpolate: bool,
) -> list[str]:
    notes = []
    for key in _POSITIONS:
        if key not in state or key not in wanted or state[key].ndim != 2:
            continue
        (has, width), (takes, other_width) = state[key].shape, wanted[key].shape
        if has == takes or width != other_width:
            continue
        what = "image" if key.startswith("visual") else "text"
        if not interpolate or (what == "image" and math.isqrt(has - 1) ** 2 != has - 1):
            raise _other_positions(state, key, has, takes, what, name, where)
        notes.append(f"{where.name}: position embeddings of the {what} tower interpolated, {has} to {takes}")
    if notes:
        for key in _POSITIONS:
            if key in state:
                state[key] = state[key].float()  # 16-bit numbers cannot be interpolated on a CPU
        resize_pos_embed(state, model)
        resize_text_pos_embed(state, model)
    return notes


def _other_positions(
    state: Mapping[str, Tensor], key: str, has: int, takes: int, what: str, name: str, where: Path
) -> ModelError:
    like = architectures_like(state)
    if like:
        better = f"Name the right one: --backbone {like[0]}. "
    elif what == "text":
        better = (
            f"Weights for texts of {has} tokens (Long-CLIP's are 248) need a model folder whose open_clip_config.json "
            f"says context_length {has}. "
        )
    else:
        better = "Another resolution needs the architecture of that resolution. "
    return ModelError(
        f"the position embeddings must be those of {name}",
        got=f"{has} places of the {what} tower ({key}), where it has {takes}",
        where=where,
        next_step=f"{better}Or --interpolate-positions stretches them, which no longer gives the published accuracy.",
    )


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(map(on_one_line, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
