"""What several layouts share: CoOp's split files, cuts by class, and reading JSON and list files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from captune.data.digits import stratified_split
from captune.data.listing import SPLITS, Items, Listing
from captune.data.tree import is_text
from captune.errors import DataError
from captune.seeding import numpy_generator

_SPLIT_SEED = 1
CUT = "50/20/30 % of each class"
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
                "dev": "val", "test": "test", "testing": "test"}  # fmt: skip


def read_coop_split(split_file: Path, image_folder: Path) -> Listing:
    """CoOp's JSON: `{"train": [[path, label, class name], …], "val": …, "test": …}`; labels are the file's own.

    Raises:
        DataError: the file is no such JSON, or gives one label two names.
    """
    values = read_json(split_file)
    names: dict[int, str] = {}
    splits: dict[str, Items] = {}
    where_of: dict[str, str] = {}
    for split in SPLITS:
        items = values.get(split) if isinstance(values, dict) else None
        if not isinstance(items, list) or not all(_is_item(item) for item in items):
            raise DataError(
                'a split file must hold {"train": [[path, label, class name], …], "val": …, "test": …}',
                got=_odd_item(split, items),
                where=split_file,
                next_step="Use the split_zhou_*.json file that CoOp publishes for this dataset.",
            )
        for path, label, name in items:
            if names.setdefault(label, name) != name:
                raise DataError(
                    "a label must have one class name",
                    got=f"'{names[label]}' and '{name}' for label {label}",
                    where=split_file,
                )
            if where_of.setdefault(path, split) != split:
                raise DataError(
                    "an image must stand in one split, or test images are trained on",
                    got=f"'{path}' in {where_of[path]} and {split}",
                    where=split_file,
                )
        splits[split] = [(path, label) for path, label, _ in items]
    gaps = next((label for label in range(len(names)) if label not in names), None)
    if gaps is not None:
        raise DataError("labels must run from 0 without gaps", got=f"no label {gaps}", where=split_file)
    class_names = tuple(as_words(names[label]) for label in range(len(names)))
    return Listing(class_names, splits, image_folder, str(split_file))


def _is_item(item: Any) -> bool:
    """Whether a split file's entry is [path, label, class name]: text that can be written, a label from 0."""
    if not isinstance(item, list) or len(item) != 3:
        return False
    path, label, name = item
    is_label = isinstance(label, int) and not isinstance(label, bool) and label >= 0
    return is_label and all(
        isinstance(text, str) and text and is_text(text) and "\0" not in text for text in (path, name)
    )


def _odd_item(split: str, items: Any) -> str:
    if not isinstance(items, list):
        return f"another shape: no list '{split}'"
    odd = next(item for item in items if not _is_item(item))
    return f"another shape in {split}: {ascii(odd)[:100]}"


def cut_by_class(names: Sequence[str], files: Sequence[Sequence[str]], *, where: str) -> Listing:
    """Cut each class 50/20/30 % into train/val/test by a fixed seeded shuffle of its sorted files (absolute names).

    As CoOp does for datasets without official splits; every class keeps at least one train image.
    """
    splits: dict[str, Items] = {split: [] for split in SPLITS}
    for label, paths in enumerate(files):
        order = numpy_generator(_SPLIT_SEED, "cut", label).permutation(len(paths))
        num_train = max(1, round(len(paths) * 0.5))
        num_val = min(round(len(paths) * 0.2), len(paths) - num_train)
        bounds = {
            "train": order[:num_train],
            "val": order[num_train : num_train + num_val],
            "test": order[num_train + num_val :],
        }
        for split, chosen in bounds.items():
            splits[split] += [(paths[index], label) for index in sorted(chosen.tolist())]
    return Listing(tuple(as_words(name) for name in names), splits, None, where, cut=CUT)


def cut_validation(items: Items, share: float = 0.2) -> tuple[Items, Items]:
    """Cut an official trainval list 80/20 per class, seeded; returns (train, val)."""
    labels_N = np.array([label for _, label in items], dtype=np.int64)
    parts = stratified_split(labels_N, {"train": 1 - share, "val": share}, seed=_SPLIT_SEED)
    return [items[index] for index in parts["train"]], [items[index] for index in parts["val"]]


def as_words(name: str) -> str:
    """A folder name as a prompt has it: `_` becomes a space."""
    return " ".join(name.replace("_", " ").split())


def read_json(file: Path) -> Any:
    """A JSON file.

    Raises:
        DataError: unreadable, not UTF-8, or no JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError("a split file must be readable", got=error.strerror, where=file) from None
    except UnicodeDecodeError as error:
        raise DataError("a split file must be UTF-8 text", got=f"byte {error.start} is not", where=file) from None
    except (ValueError, RecursionError) as error:
        raise DataError("a split file must be JSON", got=str(error), where=file) from None


def read_lines(file: Path) -> list[str]:
    """The lines of a text file that are not blank, without line ends.

    Raises:
        DataError: unreadable, or not UTF-8.
    """
    try:
        return [line.rstrip("\r") for line in file.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except OSError as error:
        raise DataError("a list file must be readable", got=error.strerror, where=file) from None
    except UnicodeDecodeError as error:
        raise DataError("a list file must be UTF-8 text", got=f"byte {error.start} is not", where=file) from None
