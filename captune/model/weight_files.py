"""Read weight files as people have them: without pickle, without wrappers and prefixes; others are refused by name."""

from __future__ import annotations

import contextlib
import json
import pickletools
import re
import shlex
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor

from captune.errors import ModelError
from captune.model.sources import INDEX_SUFFIX
from captune.model.torchscript import is_torchscript, read_torchscript
from captune.model.transformers_form import from_transformers, is_transformers, preprocessor_config

# Names under which training code saves the weights, in the order in which they are tried.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "module", "clip", "weights", "params", "state_dict_ema",
             "model_ema", "ema")  # fmt: skip
_DEPTH = 3
# Every CLIP has exactly one logit scale, so the prefix of its name is the prefix of all its tensors.
_ANCHOR = "logit_scale"
# Kind of file, a name that its tensors have, what to do with it.
_PARTS = (
    ("LoRA", r"(^|[._])lora([._]|$)|hada_w", "Merge it into the model it was trained on, and save that model whole."),
    (
        "prompt",
        r"prompt|(^|\.)ctx|token_(prefix|suffix)",
        "Learned prompts alone open nothing: captune learns its own.",
    ),
    ("adapter", r"adapter", "An adapter alone opens nothing: name the CLIP it was trained on; captune learns its own."),
)
_POINTER = b"version https://git-lfs"
_OTHER_KINDS = {
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
    b"%PDF": "a PDF",
    b"\x1f\x8b": "a gzip archive",
    b"\x93NUMPY": "a NumPy array",
}
# The number that files of torch.save before 1.6 begin with.
_OLD_FORM = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
_SAFE = "Fetch it again, or save the model's state_dict as safetensors. Pickled objects are never run."


@dataclass
class WeightFile:
    """Tensors of a file under open_clip's names.

    Attributes:
        state: name → tensor, on the CPU.
        form: how the file was made.
        quick_gelu: what the files beside it say of the activation; None where nothing does.
        preprocessing: what they say of the images, as open_clip's preprocess_cfg.
        notes: what was used and what was ignored, in sentences.
    """

    state: dict[str, Tensor]
    form: Literal["torchscript", "transformers", "tensors"] = "tensors"
    quick_gelu: bool | None = None
    preprocessing: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_weights(path: Path) -> WeightFile:
    """Tensors of a file of safetensors or PyTorch, whatever it is called, or of a .index.json and its parts; nothing in
    them is run.

    Raises:
        ModelError: a damaged file, one that holds more than tensors and plain values or no CLIP, NaN or infinities.
    """
    check_weight_file(path)
    script = not path.name.endswith(INDEX_SUFFIX) and not _is_safetensors(path) and is_torchscript(path)
    content = _opened(path, script=script)
    notes: list[str] = []
    tensors = _unwrapped(content, path, notes)
    _refuse_views_larger_than_their_storage(tensors, path)
    _refuse_parts_of_a_model(tensors, path)
    tensors = _without_prefix(tensors, path, notes)
    _refuse_quantised(tensors, path)
    _refuse_not_finite(tensors, path)
    if script:
        return WeightFile(tensors, "torchscript", notes=notes)
    if is_transformers(tensors):
        state, quick_gelu = from_transformers(tensors, path)
        return WeightFile(state, "transformers", quick_gelu, preprocessor_config(path), notes)
    return WeightFile(tensors, notes=notes)


def check_weight_file(path: Path) -> None:
    """Check by its first bytes that a file may hold weights.

    Raises:
        ModelError: it is empty, or a picture, a text, a web page or a file of another kind.
    """
    with path.open("rb") as file:
        head = file.read(256)
    if head.startswith(_POINTER):
        raise ModelError(
            "a weight file must hold the weights",
            got="a Git LFS pointer, a text file that stands for them",
            where=path,
            next_step=f"Fetch them: git lfs pull --include {shlex.quote(path.name)}",
        )
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise ModelError(
            "a weight file must hold the weights",
            got="a web page, as a download without permission leaves it",
            where=path,
            next_step="Download the file itself, signed in where its page asks for that.",
        )
    if not head:
        raise ModelError("a weight file must be whole", got="an empty file", where=path, next_step="Fetch it again.")
    if not path.name.endswith(INDEX_SUFFIX) and not _is_safetensors(path) and not head.startswith((b"PK", b"\x80")):
        kind = next((kind for start, kind in _OTHER_KINDS.items() if head.startswith(start)), None)
        raise ModelError(
            "a weight file must hold tensors as PyTorch saves them",
            got=kind or ("a text" if _is_text(head) else "a file of another kind"),
            where=path,
            next_step="Is it the right file? Weights are .safetensors, .pt, .pth or .bin files of many megabytes.",
        )


def _is_safetensors(path: Path) -> bool:
    """Decided by the file's content (the length of a JSON header, then the header); by its name if that is damaged."""
    with path.open("rb") as file:
        head = file.read(9)
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8:
        return True
    return path.suffix == ".safetensors" and not head.startswith((b"PK\3\4", b"\x80"))


def _is_text(head: bytes) -> bool:
    try:
        return head[:200].decode("utf-8").replace("\n", " ").replace("\r", " ").replace("\t", " ").isprintable()
    except UnicodeDecodeError:
        return False


def _opened(path: Path, *, script: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if path.name.endswith(INDEX_SUFFIX):
                return _parts(path)
            if _is_safetensors(path):
                return dict(safetensors.torch.load_file(path))
            if script:
                return read_torchscript(path)
            with path.open("rb") as file:  # by its path torch would go by its name
                return torch.load(file, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except Exception as error:  # torch and safetensors raise a dozen kinds; each means that the file cannot be read
        objects = _objects_in(path)
        raise ModelError(
            "a weight file must be whole and hold nothing but tensors",
            got=f"objects of {', '.join(objects)}" if objects else _first_line(error),
            where=path,
            next_step=_save_anew(path) if objects and _by_torch(path) else _SAFE,
        ) from None


def _objects_in(path: Path) -> list[str]:
    """The names in a PyTorch file that would have to be run to read it; empty if that is not what is wrong with it."""
    if _is_safetensors(path):
        return []
    try:
        if zipfile.is_zipfile(path):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))[:5]
        return sorted(_globals_of(path))[:5]
    except Exception:  # not a pickle that can be walked
        return []


def _globals_of(path: Path) -> set[str]:
    """What bare pickles, one after another, would import beside tensors; read from their opcodes, nothing is run."""
    found, strings = set(), [""]
    with path.open("rb") as file, contextlib.suppress(ValueError):  # the bytes behind the last pickle are not a pickle
        while file.peek(1):
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name in ("GLOBAL", "INST"):
                    found.add(str(argument).replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL":
                    found.add(".".join(strings[-2:]))
                elif isinstance(argument, str):
                    strings.append(argument)
    return {name for name in found if not name.startswith("torch.") and name != "collections.OrderedDict"}


def _by_torch(path: Path) -> bool:
    """Whether torch.save wrote it, in its present or its old form: a bare pickle is nothing that torch.load reads."""
    if zipfile.is_zipfile(path):
        return True
    with path.open("rb") as file:
        return _OLD_FORM in file.read(32)


def _save_anew(path: Path) -> str:
    target = f"{path.stem}-tensors.pt"
    keys = ", ".join(f"'{key}'" for key in _WRAPPERS[:4])
    code = (
        f"import torch; d = torch.load({str(path)!r}, map_location='cpu', weights_only=False); "
        f"d = next((d[k] for k in ({keys}) if k in d), d); "
        f"torch.save({{k: v for k, v in d.items() if torch.is_tensor(v)}}, {target!r})"
    )
    return (
        "captune never runs pickled objects. If you trust whoever made the file, save its tensors anew: "
        f"python -c {shlex.quote(code)}"
    )


def _parts(index: Path) -> dict[str, Tensor]:
    """The tensors of all files that a `.index.json` of the Hub names; they lie beside it."""
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    state: dict[str, Tensor] = {}
    for name in names:
        if Path(name).name != name or name.endswith(INDEX_SUFFIX):
            raise ValueError(f"a part that does not lie beside the index: {name!r}")
        part = index.parent / name
        check_weight_file(part)
        state |= _opened(part, script=False)
    return state


def _is_state(value: object) -> bool:
    return isinstance(value, Mapping) and any(isinstance(entry, Tensor) for entry in value.values())


def _unwrapped(content: Any, path: Path, notes: list[str]) -> dict[str, Tensor]:
    """The dict of tensors in what training code saved: itself, or what lies under one of the usual names."""
    for _ in range(_DEPTH):
        if not isinstance(content, Mapping):
            break
        inside = [name for name in _WRAPPERS if isinstance(content.get(name), Mapping)]
        states = [name for name in inside if _is_state(content[name])]
        if not inside and not _is_state(content):  # under a name of its own, if there is only one
            inside = states = [name for name in content if _is_state(content[name])]
            inside = inside if len(inside) == 1 else []
        if not inside:
            break
        taken = (states or inside)[0]
        if len(states) > 1:
            notes.append(f"{path.name}: the weights under '{taken}' are taken, not those under '{states[1]}'")
        content = content[taken]
    if not _is_state(content):
        keys = ", ".join(f"'{key}'" for key in list(content)[:8]) if isinstance(content, Mapping) else ""
        raise ModelError(
            "a weight file must hold a state_dict",
            got=f"{type(content).__name__} with {keys or 'nothing in it'}" if keys else type(content).__name__,
            where=path,
            next_step=f"Save the state_dict itself, or under {', '.join(repr(name) for name in _WRAPPERS[:4])}.",
        )
    beside = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if beside:
        notes.append(f"{path.name}: what stands beside the tensors is left alone: {_some(beside)}")
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def _refuse_parts_of_a_model(tensors: dict[str, Tensor], path: Path) -> None:
    """Refuse files of what was learned beside a CLIP (LoRA, prompts, adapters) or of one tower."""
    whole = any(name.endswith((_ANCHOR, "token_embedding.weight")) for name in tensors)
    for kind, pattern, next_step in _PARTS:
        names = [name for name in tensors if re.search(pattern, name)]
        if names and (kind == "LoRA" or not whole):
            raise ModelError(
                "a weight file must hold a whole CLIP",
                got=f"a {kind} file: {_some(names)}",
                where=path,
                next_step=next_step,
            )


def _without_prefix(tensors: dict[str, Tensor], path: Path, notes: list[str]) -> dict[str, Tensor]:
    """The CLIP's tensors by their own names, where training code put a prefix (`module.`, `clip_model.`) before all."""
    prefixes = {name.removesuffix(_ANCHOR) for name in tensors if name == _ANCHOR or name.endswith(f".{_ANCHOR}")}
    if len(prefixes) > 1:
        raise ModelError(
            "a weight file must hold one CLIP",
            got=f"{len(prefixes)}, under {_some(sorted(prefixes))}",
            where=path,
            next_step="Save one of them by itself.",
        )
    prefix = next(iter(prefixes), _shared_prefix(tensors))
    if not prefix:
        return tensors
    others = [name for name in tensors if not name.startswith(prefix)]
    if others:
        notes.append(
            f"{path.name}: tensors that do not belong to the CLIP under '{prefix}' are left alone: {_some(others)}"
        )
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _shared_prefix(tensors: Mapping[str, Tensor]) -> str:
    """`module.` and its like before every name, where no logit scale tells."""
    prefix = ""
    while True:
        first = {name.removeprefix(prefix).split(".")[0] for name in tensors}
        if len(first) != 1 or not first & {"module", "model", "_orig_mod", "clip", "clip_model", "net", "backbone"}:
            return prefix
        prefix += f"{first.pop()}."


def _refuse_views_larger_than_their_storage(tensors: dict[str, Tensor], path: Path) -> None:
    """With stride 0 a few bytes can be declared a tensor of any size, and reading it would take that much memory."""
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise ModelError(
                "weights must be plain tensors", got=f"{name}: {tensor.layout} on {tensor.device}", where=path
            )
        if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            raise ModelError(
                "a tensor must be as large as the file says",
                got=f"{name} of shape {tuple(tensor.shape)} over {tensor.untyped_storage().nbytes()} bytes",
                where=path,
            )


def _refuse_quantised(tensors: dict[str, Tensor], path: Path) -> None:
    """Whole numbers and floats of one byte mean something only with scales, which are not read. Larger whole numbers
    are mostly indices that older versions of a model saved: `fit` knows which have a place.
    """
    wrong = {
        name: tensor
        for name, tensor in tensors.items()
        if tensor.dim() > 1
        and tensor.itemsize == 1
        and tensor.dtype != torch.bool
        and not name.endswith(("_ids", "_index", "_mask"))
    }
    if wrong:
        kinds = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in wrong.values()}))
        raise ModelError(
            "weights must be floating-point numbers of 16 bits or more",
            got=f"{kinds} in {len(wrong)} of {len(tensors)} tensors: {_some(list(wrong))}",
            where=path,
            next_step="Such a file is quantised: take the one it was made from.",
        )


def _refuse_not_finite(tensors: dict[str, Tensor], path: Path) -> None:
    wrong = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if wrong:
        raise ModelError(
            "weights must be finite",
            got=f"NaN or infinity in {len(wrong)} of {len(tensors)} tensors: {_some(wrong)}",
            where=path,
            next_step="The training they come from diverged, or the file is damaged: take an earlier checkpoint.",
        )


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    # The extremes of float32 need no second copy of the tensor; NaN passes through both.
    low, high = tensor.aminmax()
    return bool(low.isfinite() and high.isfinite())


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    if lines and "weights_only" in lines[0]:  # torch's advice to load the file unsafely
        return "a pickle that is no plain tensors"
    return (lines[0] if lines else type(error).__name__)[:200]
