"""Made-up photographs, so that a machine can be measured without a dataset; reading them costs as much as real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from captune.errors import UsageError
from captune.seeding import numpy_generator

_KINDS = ("small", "large", "red", "striped", "common", "northern", "wild", "spotted", "folding", "mountain")
_THINGS = (
    "coffee cup", "fire engine", "maple leaf", "woodpecker", "garden chair", "church tower", "sewing machine",
    "river otter", "passenger aircraft", "yellow iris flower",
)  # fmt: skip
# Height and width in pixels, as in common collections of photographs.
_SHAPES = ((375, 500), (500, 375), (400, 400), (333, 500))


def class_names(count: int) -> list[str]:
    """`count` class names of ordinary length: 100 of two or more words, then the same ones with a number.

    Raises:
        UsageError: `count` is less than two.
    """
    if count < 2:
        raise UsageError("--classes must be at least 2", got=count)
    names = [f"{kind} {thing}" for thing in _THINGS for kind in _KINDS]
    rounds = -(-count // len(names))
    return [name if turn == 0 else f"{name} {turn}" for turn in range(rounds) for name in names][:count]


def write_photographs(folder: Path, names: list[str], num_train: int) -> None:
    """Write JPEG files of coloured blurs to train/<class>/ and test/<class>/; every call makes the same files.

    Args:
        folder: to write into.
        names: of the classes.
        num_train: training images in all, at least one per class.
    """
    generator = numpy_generator(0, "photographs")
    for split, count in (("train", max(num_train, len(names))), ("test", len(names))):
        for index in range(count):
            height, width = _SHAPES[index % len(_SHAPES)]
            coarse = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8))
            directory = folder / split / names[index % len(names)].replace(" ", "_")
            directory.mkdir(parents=True, exist_ok=True)
            coarse.resize((width, height), Image.Resampling.BICUBIC).save(directory / f"{index:05d}.jpg", quality=90)
