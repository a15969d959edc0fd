"""Export an adapted model as class weights, bundle, open_clip folder, ONNX file or Hugging Face folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from captune.adapted.bundle import write_bundle
from captune.adapted.model import AdaptedModel
from captune.adapted.onnx_file import write_onnx
from captune.adapted.open_clip_folder import write_heads, write_open_clip
from captune.errors import CheckpointError, UsageError, did_you_mean


@dataclass(frozen=True)
class Form:
    """A form of export.

    Attributes:
        says: what it is and who opens it.
        frozen_only: whether it needs the image side to be the frozen backbone's.
        images: whether the backbone is needed to write it.
    """

    says: str
    frozen_only: bool = False
    images: bool = True


FORMS = {
    "class-weights": Form(
        "class weights (K x D) on the frozen backbone's image features, with names and logit scale",
        frozen_only=True,
        images=False,
    ),
    "bundle": Form("the checkpoint with its backbone beside it, for captune on any machine"),
    "open_clip": Form("a folder that open_clip opens as a model, with the class weights beside it", frozen_only=True),
    "onnx": Form("one ONNX file from images to class probabilities (needs captune[onnx])"),
    "hf": Form("a folder for the Hugging Face Hub, with a model card"),
}
"""Every form of export by the name `--format` takes."""


def default_form(model: AdaptedModel) -> str:
    """The default form: class weights where they are all that was learned, else a bundle."""
    return "class-weights" if model.is_frozen else "bundle"


def export_adapted(
    model: AdaptedModel, out: Path, *, form: str | None = None, licence: str | None = None
) -> list[Path]:
    """Write a model in a form that other programs or machines can open.

    Args:
        model: as `open_adapted` gives it.
        out: a new or empty folder.
        form: a key of FORMS; `default_form` if None.
        licence: an SPDX identifier of what is exported, for the model card.

    Returns:
        The files and folders written.

    Raises:
        UsageError: `out` holds something already or is a file, no such form, or an extra that is not installed.
        CheckpointError: the model cannot be written in this form, or its backbone is not known.
    """
    form = form or default_form(model)
    if form not in FORMS:
        raise UsageError("--format must name a form", got=f"'{form}'", next_step=did_you_mean(form, FORMS))
    if licence is not None and form != "hf":
        raise UsageError("--licence must come with --format hf, whose model card says it", got=f"--format {form}")
    if out.is_file():
        raise UsageError("--out must be a folder", got="a file", where=out)
    if out.exists() and any(out.iterdir()):
        raise UsageError("--out must be an empty folder", got="files in it", where=out)
    if FORMS[form].frozen_only and not model.is_frozen:
        raise CheckpointError(
            f"--format {form} needs a model whose image side is the frozen backbone's",
            got=model.image_side,
            next_step="Take --format onnx (one file from images to probabilities), bundle or hf.",
        )
    if FORMS[form].images:
        _ = model.image_backbone  # raises before anything is written
    made = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError("--out must be a folder that can be made", got=error.strerror, where=out) from None
    try:
        return _write(model, out, form, licence)
    except BaseException:
        # It was empty: all that is in it now is of this export.
        for path in out.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if made:
            out.rmdir()
        raise


def _write(model: AdaptedModel, out: Path, form: str, licence: str | None) -> list[Path]:
    match form:
        case "class-weights":
            return write_heads(model, out)
        case "open_clip":
            return write_open_clip(model, out)
        case "onnx":
            return write_onnx(model, out)
        case "hf":
            # Imported here: its model card brings scipy, which nothing else that uses a model needs.
            from captune.adapted.hugging_face import write_hugging_face

            return write_hugging_face(model, out, licence)
        case _:
            return write_bundle(model, out)
