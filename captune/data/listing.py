"""What a layout says a dataset holds, before any file is looked up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from captune.data.dataset import Split
from captune.data.tree import Tree, find_path, name_some
from captune.errors import DataError

Items = list[tuple[str, int]]
"""Pairs of an image's name relative to the image folder (absolute if there is none) and its label."""
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Listing:
    """Class names and the images of each split.

    Attributes:
        class_names: in label order, as they stand in a prompt.
        splits: "train", "val", "test" → images and labels.
        image_folder: what image names are relative to; None if they are absolute and already checked.
        where: the file or folder that this was read from, for messages.
        layout: the shape it was read in, as shown to users; empty if the caller knows.
        notes: what a person should know about how it was read, one sentence each.
        cut: how captune itself cut it into splits; empty for splits that were given.
    """

    class_names: tuple[str, ...]
    splits: dict[str, Items]
    image_folder: Path | None
    where: str
    layout: str = ""
    notes: tuple[str, ...] = ()
    cut: str = ""

    def located(self) -> dict[str, Split]:
        """The splits with files looked up on disk.

        Raises:
            DataError: labels that have no name, missing files, files outside the image folder.
        """
        labels = {label for items in self.splits.values() for _, label in items}
        wrong = sorted(label for label in labels if not -1 <= label < len(self.class_names))
        if wrong:
            raise DataError(
                "every label must have a class name",
                got=f"{len(self.class_names)} names and labels {name_some([str(label) for label in wrong])}",
                where=self.where,
            )
        tree = None if self.image_folder is None else Tree(self.image_folder)
        # All splits are looked up together, so that the error counts every missing file.
        items = [item for name in SPLITS for item in self.splits.get(name, [])]
        names = [path for path, _ in items]
        paths = tuple(names) if tree is None else tree.locate(names, where=self.where)
        result, start = {}, 0
        for name in SPLITS:
            chosen = self.splits.get(name, [])
            labels_N = np.array([label for _, label in chosen], dtype=np.int64)
            result[name] = Split(paths[start : start + len(chosen)], labels_N)
            start += len(chosen)
        return result


@dataclass(frozen=True)
class Layout:
    """One folder shape of one dataset below the data root.

    Attributes:
        name: what users see.
        protocols: whose splits these are: "coop", "paper", or both if the splits are the same.
        needs: files and folders that must be there, relative to the data root (any case).
        read: those paths on disk, in the same order → listing.
    """

    name: str
    protocols: tuple[str, ...]
    needs: tuple[str, ...]
    read: Callable[..., Listing]

    def find(self, root: Path) -> tuple[Path, ...] | None:
        """The needed paths on disk, or None if one is missing."""
        found = [find_path(root, need) for need in self.needs]
        paths = tuple(path for path in found if path is not None)
        return paths if len(paths) == len(found) else None

    def present(self, root: Path) -> list[str]:
        """The needed paths that are on disk."""
        return [need for need in self.needs if find_path(root, need) is not None]
