"""A folder for the Hugging Face Hub: the model where open_clip or captune opens it, and its model card."""

from __future__ import annotations

from pathlib import Path

from captune.adapted.bundle import write_bundle
from captune.adapted.model import AdaptedModel
from captune.adapted.model_card import model_card
from captune.adapted.open_clip_folder import README, write_open_clip


def write_hugging_face(model: AdaptedModel, out: Path, licence: str | None = None) -> list[Path]:
    """Write an open_clip folder where the image side is frozen, else a bundle; in both README.md is the model card."""
    files = write_open_clip(model, out) if model.is_frozen else write_bundle(model, out)
    model_card(model, licence).save(out / README)
    return files if out / README in files else [*files, out / README]
