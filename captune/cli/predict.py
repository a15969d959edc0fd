"""captune predict: classes and probabilities of images, as CSV; the images sorted into class folders."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from captune.cli import options
from captune.cli.console import plain_console
from captune.cli.study_model import Yes, model_at
from captune.data.labelling import Prediction, check_empty, predictions, predictions_csv, sort_into_folders
from captune.data.tree import printable
from captune.errors import CheckpointError, DataError, UsageError
from captune.plain_text import as_unicode, counted, typed_path
from captune.records import atomic_write
from captune.records.layout import CHECKPOINT, CONFIG, EPOCHS_CSV, METRICS, OF_A_STUDY, PREDICTIONS_CSV

if TYPE_CHECKING:
    from torch import Tensor


@options.with_options("task", only=("backbone", "pretrained"))
def predict(
    given: options.Given,
    checkpoint: Annotated[
        Path,
        typer.Argument(help="checkpoint.safetensors or its folder, what `export` wrote, or the directory of a study."),
    ],
    images: Annotated[
        list[Path], typer.Argument(help="Image files, or folders of them; or one .npz of image_features.")
    ],
    top: Annotated[
        int | None, typer.Option(min=1, help="List that many classes per image, one line each; default: the best two.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="CSV file; default: standard output.", metavar="FILE")] = None,
    copy_to: Annotated[
        Path | None, typer.Option(help="Also sort copies of the images into DIR/<class>/.", metavar="DIR")
    ] = None,
    min_confidence: Annotated[
        float, typer.Option(min=0, max=1, help="With --copy-to: leave out images whose class is less probable.")
    ] = 0.0,
    link: Annotated[bool, typer.Option("--link", help="With --copy-to: symbolic links instead of copies.")] = False,
    yes: Yes = False,
    device: options.Device = "auto",
) -> int:
    """Classify images, or image features that were computed before, with an adapted model.

    Example: captune predict runs/digits-ul-cap photos/ --yes
    Example: captune predict adapted/checkpoint.safetensors photos/ --out predictions.csv
    Example: captune predict adapted features.npz
    """
    if copy_to is None and (link or min_confidence):
        raise UsageError("--link and --min-confidence must come with --copy-to", got="none")
    feature_file = _feature_file(images)
    if feature_file is not None and copy_to is not None:
        raise UsageError("--copy-to must come with image files", got="features", where=feature_file)
    with plain_console(stderr=True).status("Loading PyTorch"):
        from captune.adapted import open_adapted, top_k
        from captune.data.feature_bank import read_image_features
        from captune.data.loose_images import image_files, preprocessed_batches
    notes: list[str] = []
    features_ND = None if feature_file is None else read_image_features(feature_file)
    files = image_files(images, notes) if features_ND is None else []
    if out is not None:
        options.check_writable(out)
        _check_spares(out, checkpoint, images if features_ND is not None else files)
    if copy_to is not None:
        _check_apart(copy_to, images)
    model = open_adapted(model_at(checkpoint, yes=yes, device=device), **given.task, device=device)
    console = plain_console(stderr=True)
    listed: list[tuple[str, int, str, float]] = []
    found: list[Prediction] = []
    broken: list[tuple[Path, str]] = []

    def take(names: list[str], probs_BK: Tensor) -> None:
        found.extend(predictions(names, probs_BK.cpu().numpy(), model.class_names))
        if top is not None:
            for name, best in zip(names, top_k(probs_BK, model.class_names, top), strict=True):
                listed.extend((name, rank, label, value) for rank, (label, value) in enumerate(best, start=1))

    with console.status("Classifying") as shown:
        if features_ND is not None:
            for probs_BK in model.in_parts(features_ND):
                take([str(len(found) + row) for row in range(len(probs_BK))], probs_BK)
        elif model.backbone is None:
            raise CheckpointError(
                "a model of precomputed features must be given features, or the backbone they came from",
                got="images",
                where=checkpoint,
                next_step="Give an .npz with image_features, or name the backbone by --backbone and --pretrained.",
            )
        else:
            frozen = model.backbone
            options.say_notes(console, [*notes, *frozen.notes])
            for batch in preprocessed_batches(files, frozen.preprocessing, frozen.device, broken):
                take([str(path) for path in batch.paths], model.probabilities(batch.pixels_B3SS))
                shown.update(f"{len(found)} of {counted(len(files), 'image')} classified")
    if not found:
        some = "; ".join(f"{printable(path)}: {reason}" for path, reason in broken[:3])
        raise DataError(
            "at least one image must be readable",
            got=f"{counted(len(broken), 'file')} that cannot be read: {some}" + ("; …" if len(broken) > 3 else ""),
        )
    if out is not None or not sys.stdout.isatty():
        _write(predictions_csv(found) if top is None else _ranked_csv(listed), out)
    else:
        _show(found, listed, rows=feature_file is not None)
    if out is not None:
        console.print(f"{counted(len(found), 'image')} classified: {out}", highlight=False, soft_wrap=True)
    if copy_to is not None:
        sorted_in, left_out = sort_into_folders(found, copy_to, min_confidence=min_confidence, link=link)
        words = f"{'links to' if link else 'copies of'} {counted(sorted_in, 'image')} sorted by class in {copy_to}"
        words += f"; {left_out} less probable than {min_confidence:g} left out" if left_out else ""
        console.print(words, highlight=False, soft_wrap=True, markup=False)
    for path, reason in broken:
        console.print(f"not read: {printable(path)}: {reason}", highlight=False, soft_wrap=True, markup=False)
    return 1 if broken else 0


def _feature_file(images: list[Path]) -> Path | None:
    """The file of image features, where one was given in place of images.

    Raises:
        UsageError: one beside other places, or one array in place of the file.
    """
    arrays = [place for place in images if place.suffix.lower() == ".npy" and place.is_file()]
    if arrays:
        raise UsageError(
            "image features must be given as an .npz", got="an .npy", where=arrays[0],
            next_step="Write it by numpy.savez(file, image_features=…).",
        )  # fmt: skip
    files = [place for place in images if place.suffix.lower() == ".npz" and not place.is_dir()]
    if files and len(images) > 1:
        raise UsageError(
            "a file of image features must be given alone", got=f"{len(images)} places", where=files[0],
            next_step="Classify it by a command of its own.",
        )  # fmt: skip
    return files[0] if files else None


def _check_spares(out: Path, checkpoint: Path, read: Sequence[Path]) -> None:
    """Check that the predictions will replace neither what is classified nor a file of the model.

    Raises:
        UsageError: they would.
    """
    if not out.is_file():
        return
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    inside = out.absolute().parent.resolve() == folder.resolve()
    own = out.name in (CHECKPOINT, CONFIG, METRICS, PREDICTIONS_CSV, EPOCHS_CSV, *OF_A_STUDY)
    # An export has files of other names. A folder whose checkpoint was named may be full of the user's own files.
    own = own or (checkpoint.is_dir() and out.suffix.lower() != ".csv")
    if (checkpoint.is_file() and checkpoint.samefile(out)) or (inside and own):
        raise UsageError("--out must not replace a file of the model", got=str(out), next_step="Give another file.")
    # Most files differ in their size already, and only few then have to be looked at twice.
    known = out.stat()
    for file in read:
        with contextlib.suppress(OSError):  # told later, when it is read
            if os.path.samestat(file.stat(), known):
                raise UsageError(
                    "--out must not replace a file that is classified", got=str(out), next_step="Give another file."
                )


def _check_apart(copy_to: Path, images: list[Path]) -> None:
    check_empty(copy_to)
    around = [place for place in images if place.is_dir() and copy_to.resolve().is_relative_to(place.resolve())]
    if around:
        raise UsageError(
            "--copy-to must lie outside the folders of images, or the copies become images of the next command",
            got=str(copy_to),
            where=around[0],
        )


def _ranked_csv(listed: list[tuple[str, int, str, float]]) -> str:
    text = io.StringIO()
    rows = [(as_unicode(name), rank, label, f"{value:.6f}") for name, rank, label, value in listed]
    csv.writer(text, lineterminator="\n").writerows([("image", "rank", "class", "probability"), *rows])
    return text.getvalue()


def _show(found: list[Prediction], listed: list[tuple[str, int, str, float]], *, rows: bool) -> None:
    """Print what the CSV says as a table for a person; `rows`: the images are rows of a feature file."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    image = "row" if rows else "image"
    headings = (image, "rank", "class", "probability") if listed else (image, "class", "", "next class", "")
    for heading in headings:
        words = heading in ("image", "class", "next class")
        table.add_column(heading, overflow="fold", justify="left" if words else "right")
    # Print the common folder once: rows of long paths are hard to read.
    parents = [Path(one.image).absolute().parent for one in found]
    folder = Path.cwd() if rows else Path(os.path.commonpath(parents or [Path.cwd()]))

    def shown(image: str) -> str:
        return image if rows else os.path.relpath(image, folder)

    for name, rank, label, value in listed:
        table.add_row(shown(name), str(rank), label, _percent(value))
    for one in found if not listed else []:
        second = (one.second or "", "" if one.second_probability is None else _percent(one.second_probability))
        table.add_row(shown(one.image), one.label, _percent(one.probability), *second)
    console = plain_console()
    if folder != Path.cwd():
        console.print(f"In {typed_path(folder)}:", highlight=False, soft_wrap=True, markup=False)
    console.print(table)
    console.print("--out FILE.csv writes all digits; so does a pipe.", highlight=False)


def _percent(probability: float) -> str:
    return f"{100 * probability:.1f} %"


def _write(text: str, out: Path | None) -> None:
    if out is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # as in a file, whatever the locale
        sys.stdout.write(text)
        return
    # A pipe or device is written to; a file is replaced when all is written, through a link that leads to it.
    if not out.exists() or out.is_file():
        try:
            atomic_write(out.resolve(), text)
            return
        except OSError as error:
            # A file that may be written may lie in a folder that may not, or be mounted by itself into a container.
            if not out.exists() or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY):
                raise
    with out.open("w", newline="", encoding="utf-8") as file:
        file.write(text)
