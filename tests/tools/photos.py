"""Folders of as many JPEGs as a measurement needs, made from the real photographs in ../shared/data.

    python -m tests.tools.photos DIR --count 5000 --size 500 375

Each file is a different crop of a real photograph (Caltech-101), mirrored or not, with a camera's noise, so that files
have the bytes that photographs of their size have. Files are numbered and drawn from a fixed seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
_NOISE = 5.0


def write_photos(folder: Path, count: int, size: tuple[int, int], *, classes: int = 10, quality: int = 92) -> None:
    """Write `folder/<class>/<number>.jpg`.

    Args:
        folder: created.
        count: files in all.
        size: width and height of each.
        classes: folders that they are dealt to in turn.
        quality: of the JPEGs.

    Raises:
        FileNotFoundError: the real photographs are not beside this checkout.
    """
    sources = sorted((SHARED_DATA / "caltech-101").rglob("*.jpg"))
    if not sources:
        raise FileNotFoundError(f"no photographs below {SHARED_DATA}")
    generator = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"class{label:02d}").mkdir(parents=True)
    noise_HW3 = generator.normal(0, _NOISE, (size[1] + 64, size[0] + 64, 3)).astype(np.float32)
    for number in range(count):
        with Image.open(sources[number % len(sources)]) as source:
            photo = source.convert("RGB")
        share = generator.uniform(0.7, 1, 2)
        left, top = (1 - share) * generator.random(2)
        box = (left * photo.width, top * photo.height, (left + share[0]) * photo.width, (top + share[1]) * photo.height)
        pixels_HW3 = np.asarray(photo.resize(size, Image.Resampling.BICUBIC, box), np.float32)
        row, column = generator.integers(0, 64, 2)
        pixels_HW3 = pixels_HW3 + noise_HW3[row : row + size[1], column : column + size[0]]
        pixels_HW3 = pixels_HW3[:, :: 1 if generator.random() < 0.5 else -1]
        seen = Image.fromarray(pixels_HW3.clip(0, 255).astype(np.uint8))
        seen.save(folder / f"class{number % classes:02d}" / f"{number:06d}.jpg", quality=quality)


def main() -> None:
    """Write a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--size", type=int, nargs=2, default=(500, 375))
    arguments = parser.parse_args()
    write_photos(arguments.folder, arguments.count, tuple(arguments.size))


if __name__ == "__main__":
    main()
