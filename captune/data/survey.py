"""Which datasets are on disk, and which of their images are broken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from captune.config import TaskConfig
from captune.data.catalog import dataset_row, find_layout, load_dataset
from captune.data.dataset import Dataset
from captune.data.decode import Unreadable
from captune.data.image_store import decode_many
from captune.data.known_datasets import DatasetRow
from captune.errors import DataError
from captune.preprocessing import Preprocessing

# Only whether images can be read matters, so they are resized to a small size, which is faster.
_SMALL = Preprocessing(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class Status:
    """One dataset as found.

    Attributes:
        row: its facts.
        dataset: as read, or None.
        problem: why it cannot be used although something is there; None if it can be, or if nothing is there.
    """

    row: DatasetRow
    dataset: Dataset | None
    problem: str | None


def survey(task: TaskConfig) -> Status:
    """Look for the dataset of a cell and read its splits; a broken one is a status, not an error.

    Raises:
        UsageError: no such dataset in the catalogue.
    """
    row = dataset_row(task.dataset)
    try:
        return Status(row, load_dataset(task), None)
    except DataError as error:
        is_there = find_layout(row, task.data_root, task.protocol) if task.data_root is not None else None
        return Status(row, None, None if is_there is None else str(error))


def broken_images(dataset: Dataset, *, progress: Callable[[int, int], None] | None = None) -> list[tuple[str, str]]:
    """Decode every image file and list the unreadable ones with the reason, in index order.

    Args:
        dataset: arrays and features have no files and so no broken ones.
        progress: called with (images done, images in all).
    """
    broken = []
    for number, (path, pixels) in enumerate(decode_many(dataset.paths, _SMALL, dataset.reading), start=1):
        if isinstance(pixels, Unreadable):
            broken.append((path, str(pixels)))
        if progress is not None:
            progress(number, len(dataset.paths))
    return broken
