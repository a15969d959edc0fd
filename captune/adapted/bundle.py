"""A bundle: a model's file together with its backbone, so that nothing else is needed to open it."""

from __future__ import annotations

from pathlib import Path

from captune.adapted.model import BACKBONE, WEIGHTS, AdaptedModel
from captune.adapted.open_clip_folder import write_names
from captune.errors import CheckpointError
from captune.model.backbone import save_backbone
from captune.records import atomic_write
from captune.records.layout import CHECKPOINT


def write_bundle(model: AdaptedModel, out: Path) -> list[Path]:
    """Write the checkpoint, the backbone and the class names.

    Raises:
        CheckpointError: the model was not opened from a file.
    """
    if model.source is None:
        raise CheckpointError("a model must have been opened from a file to be bundled", got="one made otherwise")
    held = out / (WEIGHTS if model.source.name == WEIGHTS else CHECKPOINT)
    names = write_names(model, out)
    atomic_write(held, model.source.read_bytes())
    save_backbone(model.image_backbone, out / BACKBONE)
    return [held, out / BACKBONE, names]
