"""How a `--dataset` becomes a `Dataset`: a known one (`DATASETS`, the table in known_datasets.py) or a user's own."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import astuple, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from captune.config import Paradigm, TaskConfig
from captune.data.class_folders import read_folder
from captune.data.dataset import UNKNOWN, Dataset, Split
from captune.data.difficulties import hide_classes
from captune.data.digits import CLASS_NAMES, TEMPLATE, digits_splits, load_digits_arrays
from captune.data.duplicates import keep_copies_together
from captune.data.feature_bank import read_feature_file
from captune.data.known_datasets import DATASETS, DatasetRow
from captune.data.listing import Layout, Listing
from captune.data.manifests import Columns, read_manifest
from captune.data.overrides import GivenNames, apply_overrides, read_class_names, spelled_alike, spelling
from captune.data.published_accuracies import published_results
from captune.data.tree import name_some, printable
from captune.errors import DataError, UsageError, did_you_mean, did_you_mean_path

__all__ = [
    "DATASETS",
    "DatasetRow",
    "cache_directory",
    "check_dataset_name",
    "data_root",
    "default_backbone",
    "default_settings",
    "find_layout",
    "load_dataset",
    "published_results",
]

_PLAIN_TEMPLATE = "a photo of a {}."
_PAPER_TEMPLATE = "a photo of a {}"
# The embedded model's name, and the width of its features.
TINY, TINY_WIDTH = "tiny", 64
_OWN = ("folder", "csv", "features")


# Settings of the pool, of the labels and of the model. They change neither a dataset's images nor its class names.
_OF_THE_POOL = (
    "descriptions", "shots", "pool_imbalance", "pool_fraction", "present_fraction", "shot_noise",
    "holdout_fraction", "unseal_pool",
)  # fmt: skip
_OF_THE_MODEL = ("backbone", "pretrained", "precision", "kernels", "cache_dir", "store")
_OWN_TEST: Paradigm = "tft"


def load_dataset(task: TaskConfig) -> Dataset:
    """Read the dataset of a cell: its names, its splits and the paths of its images; no image is opened.

    A process reads a dataset once, and again when its files or folders have changed.

    Raises:
        UsageError: no such dataset, or overrides that do not fit.
        DataError: it is not on disk (what is missing, where to put it, what works now), or not as it should be.
    """
    return _read_dataset(_without(task, _OF_THE_POOL + _OF_THE_MODEL), _state_on_disk(task))


def images_of(task: TaskConfig) -> TaskConfig:
    """The part of a cell that decides its decoded images and their features; equal for cells that share them."""
    return _without(task, (*_OF_THE_POOL, "template", "prompt_form"))


def _without(task: TaskConfig, names: Sequence[str]) -> TaskConfig:
    plain = {name: TaskConfig.model_fields[name].default for name in names}
    own = task.dataset.partition(":")[0] in _OWN
    # The paradigm decides which copies are allowed across splits, but only for the user's own images.
    return task.model_copy(update=plain | {"paradigm": task.paradigm if own and task.paradigm == _OWN_TEST else "ul"})


def _state_on_disk(task: TaskConfig) -> tuple[tuple[str, int, int], ...]:
    """A value that changes when a file or folder of the dataset is added, removed or renamed, or its list rewritten."""
    kind, _, place = task.dataset.partition(":")
    own = bool(place) and kind in _OWN
    root = Path(place).expanduser().absolute() if own else data_root(task)
    places: list[Path] = [root, task.class_names] if isinstance(task.class_names, Path) else [root]
    folders = [root]
    for _ in range(3 if own else 2):
        folders = [below for folder in folders for below in _folders_in(folder)]
        places += folders
    found = [(str(path), path.stat()) for path in places if path.exists()]
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in found)


def _folders_in(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()]
    except OSError:  # missing or unreadable; reading it later raises a better error
        return []


@lru_cache(maxsize=4)
def _read_dataset(task: TaskConfig, _state: tuple[tuple[str, int, int], ...]) -> Dataset:
    kind, _, place = task.dataset.partition(":")
    given = read_class_names(task.class_names)
    if place and kind in _OWN:
        dataset = _own_dataset(task, kind, Path(place).expanduser().absolute(), given)
    else:
        dataset = _catalogue_dataset(dataset_row(task.dataset), task)
    dataset = apply_overrides(dataset, task, given)
    own = bool(place) and kind in _OWN
    if own:
        _refuse_equal_names(dataset)
    reading = ("viewer" if own else "open_clip") if task.pixels == "auto" else task.pixels
    dataset = replace(dataset, reading=reading, max_unreadable=task.max_unreadable)
    return hide_classes(dataset, task) if task.open_set_fraction else dataset


def _refuse_equal_names(dataset: Dataset) -> None:
    """Refuse equal class names in the user's own data. Published names are not checked: ImageNet's contain some."""
    alike = spelled_alike(dataset.class_names)
    empty = ["a name of nothing but blanks and `_`"] if not all(map(spelling, dataset.class_names)) else []
    if alike or empty:
        raise DataError(
            "class names must be different and not empty without case, blanks and `_`",
            got=name_some([*alike, *empty]),
            where=dataset.source,
            next_step="Rename the classes there, or give other names by --class-names.",
        )


def dataset_row(key: str) -> DatasetRow:
    """A row of DATASETS.

    Raises:
        UsageError: no such dataset, with the nearest name.
    """
    if key not in DATASETS:
        known = [*DATASETS, *(f"{kind}:" for kind in _OWN)]
        hint = _own_images(key) or (did_you_mean(key, known) if ":" not in key else f"Known: {', '.join(known)}")
        raise UsageError("--dataset must name a dataset", got=f"'{key}'", next_step=hint)
    return DATASETS[key]


def _own_images(key: str) -> str | None:
    """The message for a path that was given as a dataset's name; None if it is no path."""
    place = Path(key).expanduser()
    kind = {".csv": "csv", ".tsv": "csv", ".npz": "features"}.get(place.suffix.lower(), "folder")
    if place.is_dir() or (place.is_file() and kind != "folder"):
        return f"Did you mean '{kind}:{key}'?"
    if "/" not in key or ":" in key:
        return None
    near = did_you_mean_path(place)
    return (
        f"Your own images are folder:DIR, csv:FILE or features:FILE.npz, but {key} is not there. {near or ''}".strip()
    )


def check_dataset_name(key: str) -> None:
    """Check that a `--dataset` names a row of DATASETS or the user's own data, without looking for the data.

    Raises:
        UsageError: it names neither, with the nearest name.
    """
    kind, _, place = key.partition(":")
    if not (place and kind in _OWN):
        dataset_row(key)


def data_root(task: TaskConfig | None = None) -> Path:
    """Where datasets lie: `data_root`, else $CAPTUNE_DATA, else ~/.cache/captune/data."""
    given = None if task is None else task.data_root
    return given or _from_environment("CAPTUNE_DATA", "data")


def cache_directory(task: TaskConfig) -> Path:
    """Where stores and banks are built on this node: `cache_dir`, else $CAPTUNE_CACHE, else ~/.cache/captune/store."""
    return task.cache_dir or _from_environment("CAPTUNE_CACHE", "store")


def _from_environment(variable: str, name: str) -> Path:
    value = os.environ.get(variable)
    try:
        return Path(value).expanduser().absolute() if value else Path.home() / ".cache" / "captune" / name
    except RuntimeError:  # an account without a home folder, and HOME is not set
        raise UsageError(
            f"${variable} must name a folder where the account has no home folder",
            got="none",
            next_step=f"Set {variable}, for example {variable}=/tmp/captune/{name}.",
        ) from None


def default_backbone(task: TaskConfig) -> tuple[str, str | None]:
    """Model name and weights: those asked for, else the dataset's (tiny for digits, otherwise OpenAI's ViT-B-32)."""
    row = DATASETS.get(task.dataset)
    default = row.backbone if row is not None else DatasetRow.backbone
    name = task.backbone or default
    # A folder or a repository of the Hub (ORG/REPO) includes its weights. OpenAI's own ViT-B/32 contains a slash too.
    at_a_place = Path(name).is_dir() or ("/" in name and not name.startswith(("ViT-", "RN")))
    travels_with_weights = name == "tiny" or name.startswith(("hf-hub:", "local-dir:")) or at_a_place
    return name, task.pretrained or (None if travels_with_weights else "openai")


def default_settings(task: TaskConfig, tuning: str | None = None) -> dict[str, Any]:
    """Trial settings that follow from the data: the budget in epochs × steps (the paper's 50 × 50; 12 × 16 for digits
    and for the embedded model on any images) and whatever else differs from the defaults.

    Args:
        task: the cell.
        tuning: "prompts" or "features" if that is asked for; else the dataset's default (precomputed features can
            only be tuned as features).
    """
    row = DATASETS.get(task.dataset)
    if task.dataset != "digits" and not task.dataset.startswith("features:") and default_backbone(task)[0] == TINY:
        # The embedded model knows nothing about other images. It serves to try captune out, so minutes must do.
        digits = DATASETS["digits"]
        epochs, steps = digits.budget
        return {"epochs": epochs, "steps_per_epoch": steps, "tuning": tuning or digits.tuning}
    if row is None:
        tuning = tuning or ("features" if task.dataset.startswith("features:") else DatasetRow.tuning)
        epochs, steps = DatasetRow.budget
        return {"epochs": epochs, "steps_per_epoch": steps, "tuning": tuning}
    tuning = tuning or row.tuning
    settings = {"epochs": row.budget[0], "steps_per_epoch": row.budget[1], "tuning": tuning, **row.settings}
    return settings | (dict(row.feature_settings) if tuning == "features" else {})


def paper_datasets() -> tuple[str, ...]:
    """The six datasets of the paper: those that can be read in the paper's own splits."""
    return tuple(key for key, row in DATASETS.items() if "paper" in row.protocols)


def is_found(key: str, root: Path, protocol: str = "coop") -> bool:
    """Whether a dataset of the catalogue is on disk or needs no files. A user's own path counts as found."""
    row = DATASETS.get(key)
    return row is None or not row.layouts or find_layout(row, root, protocol) is not None


def find_layout(row: DatasetRow, root: Path, protocol: str = "coop") -> tuple[Layout, tuple[Path, ...]] | None:
    """The first folder shape of a dataset that is found on disk; those of the protocol are tried first.

    If the paper has its own splits of a dataset, its protocol accepts no others, so that no other split passes for the
    paper's. For a dataset without them (caltech101, say) the protocol only means that the pool is train + val.
    """
    fitting = [layout for layout in row.layouts if protocol in layout.protocols]
    others = [layout for layout in row.layouts if protocol not in layout.protocols]
    if protocol == "paper" and fitting:
        others = []
    for layout in [*fitting, *others]:
        paths = layout.find(root)
        if paths is not None:
            return layout, paths
    return None


def _catalogue_dataset(row: DatasetRow, task: TaskConfig) -> Dataset:
    if row.key == "digits":
        return _digits(row)
    root = data_root(task)
    found = find_layout(row, root, task.protocol)
    if found is None:
        raise _missing(row, root, task)
    layout, paths = found
    listing: Listing = layout.read(*paths)
    if len(listing.class_names) != row.num_classes:
        raise DataError(
            f"{row.key} must have {row.num_classes} classes",
            got=len(listing.class_names),
            where=listing.where,
            next_step="Is this the whole dataset, in the shape that is named in `captune datasets`?",
        )
    located = listing.located()
    absolute = {name: list(zip(split.paths, split.labels_N.tolist(), strict=True)) for name, split in located.items()}
    listing = keep_copies_together(
        replace(listing, splits=absolute, image_folder=None), cache_directory(task),
        allow=False, shared_test=False, published=True,
    )  # fmt: skip
    splits = listing.located()
    return Dataset(
        key=row.key,
        class_names=listing.class_names,
        template=_PAPER_TEMPLATE if task.protocol == "paper" else row.template,
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        source=str(paths[0]),
        layout=layout.name,
        licence=row.licence,
        notes=_catalogue_notes(row, layout, listing),
    )


def _catalogue_notes(row: DatasetRow, layout: Layout, listing: Listing) -> tuple[str, ...]:
    if listing.cut and layout.name != "CoOp":
        return (
            f"{row.key} is read as {layout.name} without a split file, cut by captune: {listing.cut}. "
            "Numbers made with this split do not compare with published ones.",
            *listing.notes,
        )
    return (f"{row.key} is read as {layout.name}, its own split files", *listing.notes)


def _digits(row: DatasetRow) -> Dataset:
    images_NHW, labels_N = load_digits_arrays()
    parts = digits_splits()
    order = np.concatenate([parts["train"], parts["val"], parts["test"]])
    return Dataset(
        key=row.key,
        class_names=CLASS_NAMES,
        template=TEMPLATE,
        train=Split((), labels_N[parts["train"]]),
        val=Split((), labels_N[parts["val"]]),
        test=Split((), labels_N[parts["test"]]),
        images_NHWC=images_NHW[order][..., None],
        source="inside scikit-learn",
        layout="embedded",
        licence=row.licence,
    )


def _own_dataset(task: TaskConfig, kind: str, place: Path, given: GivenNames | None) -> Dataset:
    labels = task.labels == "auto"
    if kind == "features":
        dataset = read_feature_file(place, task.dataset, _PLAIN_TEMPLATE)
        return dataset if labels else _unlabelled(dataset)
    if kind == "folder" and not place.is_dir():
        raise DataError(
            "folder:DIR must be a folder", got="none" if not place.exists() else "a file", where=place,
            next_step=None if place.exists() else did_you_mean_path(place),
        )  # fmt: skip
    if kind == "folder":
        skip = [name.strip() for name in (task.pass_over or "").split(",") if name.strip()]
        root, links = task.data_root, task.follow_links
        listing = read_folder(place, given, labels=labels, root=root, follow_links=links, pass_over=skip)
    else:
        names = (task.image_column, task.label_column, task.split_column)
        columns = Columns(*(name or default for name, default in zip(names, astuple(Columns()), strict=True)))
        root, links = task.data_root, task.follow_links
        listing = read_manifest(place, given, labels=labels, columns=columns, root=root, follow_links=links)
    listing = keep_copies_together(
        listing, cache_directory(task), allow=task.allow_duplicates, shared_test=task.paradigm == _OWN_TEST
    )
    splits = listing.located()
    return Dataset(
        key=task.dataset,
        class_names=listing.class_names,
        template=_PLAIN_TEMPLATE,
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        source=str(place),
        layout=listing.layout,
        licence="that of your own data",
        notes=_reading_notes(task.dataset, listing),
    )


def _unlabelled(dataset: Dataset) -> Dataset:
    """The dataset as if nobody had labelled it."""

    def hidden(split: Split) -> Split:
        return replace(split, labels_N=np.full(len(split), UNKNOWN))

    return replace(dataset, train=hidden(dataset.train), val=hidden(dataset.val), test=hidden(dataset.test))


def _reading_notes(key: str, listing: Listing) -> tuple[str, ...]:
    """How a dataset was read, in one sentence, and the other notes of its reader."""
    cut = f", cut by captune: {listing.cut}" if listing.cut else ""
    return (f"{printable(key)} is read as {listing.layout}{cut}", *listing.notes)


def _missing(row: DatasetRow, root: Path, task: TaskConfig) -> DataError:
    """The message for a missing dataset: what is missing, where it goes, how to get it, what works now."""
    wanted = [layout for layout in row.layouts if task.protocol in layout.protocols] or list(row.layouts)
    shapes = wanted if task.protocol == "paper" else list(row.layouts)
    lines = ["Put it below that folder in one of these shapes (upper or lower case):"]
    for layout in shapes:
        there = layout.present(root)
        marks = [f"{need}{'' if need not in there else ' (is there)'}" for need in layout.needs]
        lines.append(f"  {layout.name}: {', '.join(marks)}")
    other = find_layout(row, root) if task.protocol == "paper" else None
    if other is not None:
        lines.append(f"There is a copy with other splits ({other[0].name}): leave out --protocol paper to use it.")
    lines.append(f"How to get it: {row.how_to_get} Licence: {row.licence}.")
    if row.torchvision is not None:
        lines.append(f"Or: captune datasets --download {row.key} --data-root {root}")
    lines.append("Another place: --data-root DIR or $CAPTUNE_DATA.")
    lines.append("Works now: captune run --dataset digits --paradigm ul")
    there_is = "a part of it" if any(layout.present(root) for layout in shapes) else "nothing of it"
    return DataError(
        f"{row.key} must be on disk{' in the splits of the paper' if task.protocol == 'paper' else ''}",
        got=there_is if root.is_dir() else "no such folder",
        where=root,
        next_step="\n".join(lines),
    )
