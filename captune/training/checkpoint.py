"""Checkpoints: one safetensors file, tensors and a JSON header, written whole or not at all.

No pickle anywhere: a checkpoint from a stranger can hold wrong numbers, never code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from captune.errors import CheckpointError, did_you_mean_path
from captune.records import atomic_write

FORMAT = 1
_KEY = "captune"


def save_checkpoint(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write tensors and a JSON-able header atomically (a reader sees the old file or the new one, never a part)."""
    header = {_KEY: json.dumps({"format": FORMAT, **meta}, ensure_ascii=False)}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    atomic_write(path, safetensors.torch.save(plain, metadata=header))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and header of a checkpoint.

    Raises:
        CheckpointError: the file is missing, damaged, or not captune's.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except FileNotFoundError:
        raise CheckpointError(
            "a checkpoint must exist", got="no such file", where=path, next_step=did_you_mean_path(path)
        ) from None
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError("a checkpoint must be a whole safetensors file", got=str(error), where=path) from None
    if header is None:
        raise CheckpointError(
            "a checkpoint must carry captune's header",
            got="a safetensors file without it",
            where=path,
            next_step="Give the checkpoint.safetensors that `captune adapt` or a trial wrote.",
        )
    meta = json.loads(header)
    if meta.get("format") != FORMAT:
        raise CheckpointError(f"a checkpoint's format must be {FORMAT}", got=meta.get("format"), where=path)
    return tensors, meta


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under `prefix.name`."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that stand under `prefix.`, by their own names."""
    return {
        name.removeprefix(prefix + "."): tensor for name, tensor in tensors.items() if name.startswith(prefix + ".")
    }
