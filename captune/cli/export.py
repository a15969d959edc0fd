"""captune export: an adapted model in a form that others can use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from captune.cli import options
from captune.cli.console import plain_console
from captune.cli.study_model import Yes, model_at
from captune.errors import UsageError, did_you_mean

_FORMS = ("class-weights", "bundle", "open_clip", "onnx", "hf")


@options.with_options("task", only=("backbone", "pretrained"))
def export(
    given: options.Given,
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint.safetensors, its folder, or a study's directory.")],
    out: Annotated[Path, typer.Option(help="An empty or new folder.", metavar="DIR")],
    form: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="|".join(_FORMS),
            help="class-weights: one (K, D) tensor; bundle: checkpoint and backbone, for captune; open_clip: a folder "
            "that open_clip opens; onnx: one file from images to probabilities (needs captune\\[onnx]); hf: a Hugging "
            "Face folder with a model card. Default: class-weights where they say it all, else bundle.",
        ),
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="With --format hf: licence of the model card, as an SPDX identifier.")
    ] = None,
    yes: Yes = False,
) -> None:  # fmt: skip
    """Write an adapted model for other programs: class weights, open_clip, ONNX, Hugging Face, or a bundle.

    Example: captune export adapted --format onnx --out exported
    """
    if form is not None and form not in _FORMS:
        raise UsageError("--format must name a form", got=f"'{form}'", next_step=did_you_mean(form, _FORMS))
    console = plain_console()
    with plain_console(stderr=True).status("Loading PyTorch"):
        from captune.adapted import open_adapted
        from captune.adapted.exporting import FORMS, default_form, export_adapted
    model = open_adapted(model_at(checkpoint, yes=yes, device="auto"), **given.task, device="cpu")
    chosen = form or default_form(model)
    with plain_console(stderr=True).status(
        "Writing" if chosen != "onnx" else "Tracing the model and checking the file"
    ):
        files = export_adapted(model, out, form=form, licence=licence)
    learned = model.image_side
    console.print(
        "Image side: the frozen backbone's; all that was learned is in the class weights."
        if learned is None
        else f"Image side: {learned}, so class weights alone do not say it.",
        highlight=False,
    )
    console.print(f"{chosen}: {FORMS[chosen].says}.", highlight=False)
    if model.is_linear and chosen == "class-weights":
        whose = "the backbone they were made on" if model.backbone is None else model.backbone.name
        console.print(
            f"Multiply normalised image features of {whose} with class_weights {tuple(model.text_KD.shape)} and logit "
            f"scale {model.logit_scale:.4g}, and add the bias.",
            highlight=False,
        )
    for file in files:
        console.print(f"written: {file}", highlight=False, soft_wrap=True)
