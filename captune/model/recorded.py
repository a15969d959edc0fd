"""The backbone that a checkpoint was made on: found by what its header records, or where the user says it lies."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from captune.errors import CheckpointError
from captune.model.backbone import Backbone, load_backbone
from captune.model.sources import is_published_name


def no_backbone_recorded(where: object) -> CheckpointError:
    """The error for a checkpoint of precomputed features that is to see pixels, whose backbone nobody named."""
    return CheckpointError(
        "a checkpoint made on precomputed features must be given the backbone they came from",
        where=where,
        next_step="Name it by --backbone and --pretrained.",
    )


def recorded_backbone(
    meta: dict[str, Any], name: str | None, pretrained: str | None, device: str, path: Path
) -> Backbone | None:
    """Open the backbone that a checkpoint's header names, or that the user names instead.

    None for a checkpoint of precomputed features where the user names none.

    Args:
        meta: the header.
        name, pretrained: the user's own model and weights, if given.
        device: auto, cpu, cuda.
        path: the checkpoint.

    Raises:
        CheckpointError: other weights than the recorded ones, or a path only the user may name.
    """
    recorded = meta.get("backbone")
    if recorded is None and name is None and pretrained is None:
        return None
    recorded = recorded or [None, None]
    if pretrained is None:
        _refuse_recorded_paths(None if name else recorded[0], recorded[1], path)
        name, pretrained = name or recorded[0], recorded[1]
    elif name is None and recorded[0] is not None and is_published_name(recorded[0]):
        name = recorded[0]
    stretched = bool((meta.get("task") or {}).get("interpolate_positions", False))
    opened = load_backbone(name, pretrained, device=device, interpolate_positions=stretched)
    if meta.get("fingerprint") not in (None, opened.fingerprint):
        raise CheckpointError(
            "the backbone must be the one the checkpoint was made on",
            got=f"weights {opened.fingerprint[:12]} of {opened.name}, not {meta['fingerprint'][:12]} of {recorded[0]}",
            where=path,
            next_step="Name the right ones by --backbone and --pretrained.",
        )
    return opened


def _refuse_recorded_paths(name: str | None, pretrained: str | None, checkpoint: Path) -> None:
    """A checkpoint may come from a stranger: a path in it is opened only if it lies in the checkpoint's own folder."""
    folder = checkpoint.parent.resolve()
    for text in (name, pretrained):
        if text is None or is_published_name(text):
            continue
        place = Path(text.removeprefix("local-dir:")).expanduser()
        if place.resolve().is_relative_to(folder):
            refuse_links_outside(place, folder)
            continue
        options = [
            f"{option} {shlex.quote(value)}"
            for option, value in (("--backbone", name), ("--pretrained", pretrained))
            if value is not None
        ]
        raise CheckpointError(
            "a path that a checkpoint records is opened only where you name it yourself",
            got=text,
            where=checkpoint,
            next_step=f"If that file is yours, add {' '.join(options)}.",
        )


def refuse_links_outside(place: Path, folder: Path) -> None:
    """Refuse a file, or a folder's files, that a link takes out of the bundle `folder`.

    Raises:
        CheckpointError: there is such a link.
    """
    for file in (place, *(place.iterdir() if place.is_dir() else ())):
        if not file.resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(
                "what a bundle holds must lie in its own folder",
                got=f"a link to {file.resolve()}",
                where=file,
                next_step="If that model is yours, name it by --backbone and --pretrained.",
            )
