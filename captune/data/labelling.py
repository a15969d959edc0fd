"""A model's predictions for images: predictions.csv, and copies or links of the images in one folder per class."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from captune.data.dataset import Dataset, IntArray
from captune.data.tree import printable
from captune.errors import UsageError
from captune.plain_text import as_unicode

_LONGEST_NAME = 255
"""Most bytes that file systems take in one name."""
_LONGEST_SUFFIX = 16
COLUMNS = ("image", "class", "probability", "second_class", "second_probability", "margin")


@dataclass(frozen=True)
class Prediction:
    """A model's prediction for one image.

    Attributes:
        image: the file, or the number of the row in arrays and feature files.
        label: the most probable class.
        probability: that of `label`.
        second: the second most probable class; None if there is only one class.
        second_probability: that of `second`.
    """

    image: str
    label: str
    probability: float
    second: str | None
    second_probability: float | None

    @property
    def row(self) -> list[str]:
        """Its cells, in the order of `COLUMNS`; the margin is the difference of the two probabilities."""
        cells = [as_unicode(self.image), self.label, f"{self.probability:.6f}"]
        if self.second is None or self.second_probability is None:
            return [*cells, "", "", ""]
        margin = self.probability - self.second_probability
        return [*cells, self.second, f"{self.second_probability:.6f}", f"{margin:.6f}"]


def predictions(images: Sequence[str], probs_NK: npt.NDArray[np.floating], names: Sequence[str]) -> list[Prediction]:
    """The two most probable classes of each image.

    Args:
        images: N names.
        probs_NK: probabilities of the K classes.
        names: the classes' names.
    """
    best_Nk = np.argsort(-probs_NK, axis=1, kind="stable")[:, :2]
    found = []
    for image, best_k, probs_K in zip(images, best_Nk.tolist(), probs_NK, strict=True):
        second = best_k[1] if len(best_k) > 1 else None
        found.append(
            Prediction(
                image,
                names[best_k[0]],
                float(probs_K[best_k[0]]),
                None if second is None else names[second],
                None if second is None else float(probs_K[second]),
            )
        )
    return found


def predictions_csv(found: Iterable[Prediction]) -> str:
    """The text of predictions.csv."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *(prediction.row for prediction in found)])
    return text.getvalue()


def image_names(dataset: Dataset, indices: IntArray) -> list[str]:
    """Names of images in predictions.csv: their files; of a feature file their rows in it; else their indices."""
    if dataset.paths:
        return [dataset.paths[index] for index in indices.tolist()]
    return [str(row) for row in (indices if dataset.rows_M is None else dataset.rows_M[indices]).tolist()]


def sort_into_folders(
    found: Sequence[Prediction], directory: Path, *, min_confidence: float = 0.0, link: bool = False
) -> tuple[int, int]:
    """Copy (or link) every image into the folder of its class.

    Args:
        found: predictions for image files.
        directory: made if missing; it must be empty and lie in no folder of the images.
        min_confidence: images less probable than this stay out.
        link: symbolic links instead of copies.

    Returns:
        how many images were sorted in, and how many stayed out.

    Raises:
        UsageError: the directory holds files, or cannot be written.
    """
    check_empty(directory)
    folders = _folder_names(sorted({prediction.label for prediction in found}))
    taken: dict[str, FreeNames] = defaultdict(FreeNames)
    count = 0
    for prediction in found:
        if prediction.probability < min_confidence:
            continue
        source = Path(prediction.image).absolute()
        target = directory / folders[prediction.label]
        try:
            target.mkdir(parents=True, exist_ok=True)
            place = target / taken[prediction.label].take(source.stem, source.suffix)
            if link:
                place.symlink_to(source)
            else:
                shutil.copy2(source, place)
        except OSError as error:
            raise UsageError("--copy-to must be writable", got=error.strerror, where=printable(target)) from None
        count += 1
    return count, len(found) - count


def check_empty(directory: Path) -> None:
    """Check that a directory is not there yet, or empty.

    Raises:
        UsageError: it is a file or holds files.
    """
    if directory.is_dir() and any(directory.iterdir()):
        raise UsageError("--copy-to must be an empty folder", got="files in it", where=directory)
    if directory.exists() and not directory.is_dir():
        raise UsageError("--copy-to must be a folder", got="a file", where=directory)


def _folder_names(labels: Sequence[str]) -> dict[str, str]:
    """Class → a folder name that every file system takes; no two classes share one."""
    names = FreeNames()
    folders: dict[str, str] = {}
    for label in labels:
        name = re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*]', "_", label).strip().rstrip(".") or "_"
        folders[label] = names.take(f"_{name[1:]}" if name.startswith(".") else name)
    return folders


class FreeNames:
    """File names for one folder, none given out twice, whatever its case; a name that is taken gets a number."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._tried: dict[str, int] = {}

    def take(self, stem: str, suffix: str = "") -> str:
        """A free name: `stem` and `suffix`, with a number between them if need be, cut to what a file system takes."""
        if len(os.fsencode(suffix)) > _LONGEST_SUFFIX:
            stem, suffix = stem + suffix, ""
        wanted = (stem + suffix).casefold()
        # Go on from the last number: counting from 2 again for each of 10,000 equal names would take 50 million tries.
        number = self._tried.get(wanted, 1)
        while True:
            mark = "" if number == 1 else f"-{number}"
            name = _cut(stem, _LONGEST_NAME - len(os.fsencode(mark + suffix))) + mark + suffix
            number += 1
            if name.casefold() not in self._taken:
                break
        self._tried[wanted] = number
        self._taken.add(name.casefold())
        return name


def _cut(text: str, num_bytes: int) -> str:
    """As many whole characters of a text as fit into `num_bytes`."""
    data = os.fsencode(text)
    if len(data) <= num_bytes:
        return text
    return data[:num_bytes].decode("utf-8", "ignore").rstrip()
