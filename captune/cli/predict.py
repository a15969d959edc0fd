"""captune predict: classes and probabilities of images, as CSV."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from captune.cli import options
from captune.errors import DataError


@options.with_options("task", only=("backbone", "pretrained"))
def predict(
    given: options.Given,
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint.safetensors, its folder, or what `export` wrote.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    top: Annotated[int, typer.Option(min=1, help="Number of classes listed per image.")] = 5,
    out: Annotated[Path | None, typer.Option(help="CSV file; default: standard output.", metavar="FILE")] = None,
    device: options.Device = "auto",
) -> int:
    """Classify images with an adapted model.

    Example: captune predict adapted/checkpoint.safetensors photos/ --top 3
    """
    with Console(stderr=True).status("Loading PyTorch"):
        from captune.adapted import open_adapted, top_k
        from captune.data.loose_images import image_files, preprocessed_batches
    files = image_files(images)
    if out is not None:
        options.check_writable(out)
    model = open_adapted(checkpoint, **given.task, device=device)
    frozen = model.image_backbone
    console = Console(stderr=True)
    options.say_notes(console, frozen.notes)
    rows: list[list[object]] = []
    broken: list[tuple[Path, str]] = []
    for batch in preprocessed_batches(files, frozen.preprocessing, frozen.device, broken):
        probs_BK = model.probabilities(batch.pixels_B3SS)
        for path, best in zip(batch.paths, top_k(probs_BK, model.class_names, top), strict=True):
            rows += [[path, rank, name, f"{value:.6f}"] for rank, (name, value) in enumerate(best, start=1)]
    if not rows:
        raise DataError(
            "at least one image must be readable",
            got=f"{len(broken)} broken files, first {broken[0][0]}: {broken[0][1]}",
        )
    _write(rows, out)
    for path, reason in broken:
        console.print(f"not read: {path}: {reason}", highlight=False, soft_wrap=True, markup=False)
    return 1 if broken else 0


def _write(rows: list[list[object]], out: Path | None) -> None:
    header = ["image", "rank", "class", "probability"]
    if out is None:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerows([header, *rows])
        return
    with out.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
