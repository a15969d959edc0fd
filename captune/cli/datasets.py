"""captune datasets: what is on disk, what is broken, what can be fetched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from captune.cli import options
from captune.cli.console import labelled, plain_console, say
from captune.config import TaskConfig
from captune.data.catalog import DATASETS, load_dataset
from captune.data.catalog import data_root as default_data_root
from captune.data.download import DOWNLOADS, download
from captune.data.duplicates import nearest_across
from captune.data.labelling import image_names
from captune.data.overrides import NamesMissing
from captune.data.survey import Status, broken_images, survey
from captune.data.tree import printable
from captune.errors import UsageError
from captune.records import Role

_CHECKED = (
    "data_root", "cache_dir", "protocol", "class_names", "labels", "pass_over", "image_column", "label_column",
    "split_column", "allow_duplicates", "pixels", "follow_links", "backbone", "pretrained",
)  # fmt: skip


@options.with_options("task", only=_CHECKED)
def datasets(
    given: options.Given,
    check: Annotated[str | None, typer.Option(help="Read every image of a dataset and list the broken ones.")] = None,
    duplicates: Annotated[
        bool,
        typer.Option("--duplicates", help="With --check: also find test images that nearly equal a training one."),
    ] = False,
    fetch: Annotated[str | None, typer.Option("--download", help=f"Fetch a dataset: {', '.join(DOWNLOADS)}.")] = None,
) -> int:
    """List every dataset: found or not, where, layout, classes, images of each split, licence, how to get it.

    Example: captune datasets --data-root ~/data
    """
    data_root, protocol = given.task.get("data_root"), given.task.get("protocol", "coop")
    console = plain_console()
    if check is not None and fetch is not None:
        raise UsageError("--check and --download must be used one at a time")
    if duplicates and check is None:
        raise UsageError("--duplicates must come with --check", got="none")
    if fetch is not None:
        return _download(console, fetch, _root(data_root))
    if check is not None:
        task = TaskConfig.parse({"dataset": check, "paradigm": "ul", **given.task}, where=options.COMMAND_LINE)
        task = _with_names(task)
        return max(_check(console, task), _near_duplicates(console, task) if duplicates else 0)
    return _list(console, data_root, protocol)


def _task(key: str, root: Path | None, protocol: str) -> TaskConfig:
    return TaskConfig.parse(
        {"dataset": key, "paradigm": "ul", "data_root": _root(root), "protocol": protocol}, where=options.COMMAND_LINE
    )


def _root(given: Path | None) -> Path:
    return default_data_root() if given is None else given.expanduser().absolute()


def _list(console: Console, root: Path | None, protocol: str) -> int:
    with console.status("reading split files"):
        statuses = [survey(_task(key, root, protocol)) for key in DATASETS]
    table = Table("dataset", "found", "layout", "classes", "train/val/test", "licence", box=None, pad_edge=False)
    for status in statuses:
        table.add_row(*_cells(status))
    console.print(f"data root: {printable(_root(root))}", highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    console.print()
    for status in statuses:
        if status.row.key == "digits":
            text = status.row.how_to_get
        elif status.dataset is not None:
            text = f"at {printable(status.dataset.source)}"
        elif status.problem is not None:
            text = f"broken: {status.problem}"
        else:
            text = status.row.how_to_get
            if status.row.key in DOWNLOADS:
                text += f" Or: captune datasets --download {status.row.key}"
        say(console, labelled(status.row.key, text, "bold"))
    console.print(
        "\nYour own: folder:DIR (class folders, or images alone with --class-names), csv:FILE (path, label, split), "
        "features:FILE.npz.",
        highlight=False,
    )
    return 1 if any(status.problem is not None for status in statuses) else 0


def _cells(status: Status) -> tuple[str, ...]:
    dataset, row = status.dataset, status.row
    licence = row.licence.split(" (")[0]
    if dataset is None:
        return row.key, "broken" if status.problem else "no", "", str(row.num_classes), "", licence
    counts = "/".join(str(len(split)) for split in (dataset.train, dataset.val, dataset.test))
    return row.key, "yes", dataset.layout, str(dataset.num_classes), counts, licence


def _with_names(task: TaskConfig) -> TaskConfig:
    """The same cell; with placeholder class names if its images have no labels, since checking images needs none."""
    try:
        load_dataset(task)
    except NamesMissing:
        return task.model_copy(update={"class_names": "unnamed,other"})
    return task


def _near_duplicates(console: Console, task: TaskConfig) -> int:
    """Show the test images that are nearest to a training image by the backbone's features; always returns 0."""
    from captune.training.context import open_context

    dataset = load_dataset(task)
    if not len(dataset.test):
        console.print("no test split: there is nothing that a training image could give away", highlight=False)
        return 0
    features_MD = open_context(task, Role.REPORT).image_features_MD.cpu().numpy()
    train, test = dataset.indices("train", "val"), dataset.indices("test")
    count, pairs = nearest_across(features_MD[train], features_MD[test])
    console.print(
        f"{count} of {len(test)} test images are nearly a training image (cosine of the frozen features at least 0.99)"
        + ("; the closest pairs:" if pairs else ""),
        highlight=False,
    )
    named = [(image_names(dataset, train[[row]])[0], image_names(dataset, test[[at]])[0], c) for row, at, c in pairs]
    for trained, tested, cosine in named:
        line = f"  {cosine:.4f} {printable(tested)} (test), {printable(trained)}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 0


def _check(console: Console, task: TaskConfig) -> int:
    dataset = load_dataset(task)
    options.say_notes(console, dataset.notes)
    if not dataset.paths:
        console.print(f"{task.dataset}: {dataset.num_images} images in memory, nothing to read", highlight=False)
        return 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        item = bar.add_task(f"reading {escape(task.dataset)}", total=len(dataset.paths))
        broken = broken_images(dataset, progress=lambda done, _total: bar.update(item, completed=done))
    for path, reason in broken:
        console.print(f"{printable(path)}: {reason}", highlight=False, markup=False, soft_wrap=True)
    read = len(dataset.paths) - len(broken)
    say(console, f"{task.dataset}: {read} of {len(dataset.paths)} images readable, {len(broken)} broken")
    return 1 if broken else 0


def _download(console: Console, key: str, root: Path) -> int:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        item = bar.add_task(key, total=None)

        def show(name: str, done: int, total: int | None) -> None:
            bar.update(item, description=name, completed=done, total=total)

        place = download(key, root, progress=show)
    text = "is already there" if place is None else f"is now at {printable(place)}"
    console.print(f"{key} {text}", highlight=False, markup=False, soft_wrap=True)
    return 0
