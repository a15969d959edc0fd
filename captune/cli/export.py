"""captune export: an adapted model in a form that others can use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from captune.cli import options
from captune.cli.console import plain_console


@options.with_options("task", only=("backbone", "pretrained"))
def export(
    given: options.Given,
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint.safetensors of an adaptation, or its folder.")],
    out: Annotated[Path, typer.Option(help="An empty or new folder.", metavar="DIR")],
) -> None:
    """Write class weights (K x D, names, logit scale) where the image side is the frozen backbone's, else a bundle.

    Example: captune export adapted/checkpoint.safetensors --out exported
    """
    from captune.adapted import export_adapted, open_adapted

    model = open_adapted(checkpoint, **given.task, device="cpu", images=False)
    files = export_adapted(checkpoint, model, out)
    whose = "the backbone they were made on" if model.backbone is None else model.backbone.name
    what = (
        f"class weights {tuple(model.text_KD.shape)}, to be multiplied with normalised image features of "
        f"{whose} and logit scale {model.logit_scale:.4g}"
        if model.is_linear
        else "a bundle: the image tower is prompted, so open it with `captune predict` or captune.adapted"
    )
    console = plain_console()
    console.print(what, highlight=False)
    for file in files:
        console.print(f"written: {file}", highlight=False, soft_wrap=True)
