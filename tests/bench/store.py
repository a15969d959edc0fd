"""How fast the image store is built beside torchvision's ImageFolder, its size, and the peak memory of a thin image.

    python -m tests.bench.store --images 5000

All are measured in one run on the same cores: ImageFolder decodes (PIL to RGB, no resize) in one thread and by a
DataLoader of as many workers as there are cores; the store decodes, resizes and writes.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from captune.data.dataset import Dataset, Split, empty_split
from captune.data.image_store import ImageStore
from captune.preprocessing import Preprocessing

_PREPROCESSING = Preprocessing(224, (0.5,) * 3, (0.5,) * 3)


def write_photos(folder: Path, count: int, size: tuple[int, int]) -> None:
    """JPEGs with structure at every scale, as photographs have; quality 90."""
    generator = np.random.default_rng(0)
    (folder / "photos").mkdir(parents=True)
    for number in range(count):
        pixels = sum(
            np.asarray(
                Image.fromarray(generator.integers(0, 256, (side * 3 // 4, side, 3)).astype(np.uint8)).resize(size),
                np.float32,
            )
            / 4
            for side in (4, 16, 64, 256)
        )
        Image.fromarray(np.asarray(pixels).astype(np.uint8)).save(folder / "photos" / f"{number:05d}.jpg", quality=90)


def _no_pixels(image: Image.Image) -> int:
    return image.width


def measure(count: int, size: tuple[int, int]) -> dict[str, float]:
    """Seconds for all images of each way, and bytes of a stored image."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_photos(folder / "images", count, size)
        images = ImageFolder(str(folder / "images"), transform=_no_pixels)
        seconds = {}
        started = time.perf_counter()
        for index in range(count):
            images[index]
        seconds["ImageFolder, one thread"] = time.perf_counter() - started
        cores = len(os.sched_getaffinity(0))
        started = time.perf_counter()
        for _ in DataLoader(images, batch_size=64, num_workers=cores):
            pass
        seconds[f"ImageFolder, {cores} workers"] = time.perf_counter() - started
        paths = tuple(path for path, _ in images.samples)
        for reading in ("viewer", "open_clip"):
            split = Split(paths, np.zeros(count, np.int64))
            dataset = Dataset("bench", ("a", "b"), "{}", split, empty_split(), empty_split(), reading=reading)
            started = time.perf_counter()
            store = ImageStore.open_or_build(dataset, _PREPROCESSING, folder / "cache")
            seconds[f"store, {reading}"] = time.perf_counter() - started
        return {**seconds, "bytes": store.num_bytes / count}


def thin_image_megabytes() -> float:
    """Peak memory of a process that reads an image of 4000 x 2 pixels."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "thin.png"
        Image.new("RGB", (4000, 2)).save(file)
        script = (
            "from captune.data.decode import decode_file\nfrom captune.preprocessing import Preprocessing\n"
            f"decode_file({str(file)!r}, Preprocessing(224, (0.5,) * 3, (0.5,) * 3))\n"
            "print(open('/proc/self/status').read())"
        )
        said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    found = re.search(r"VmHWM:\s*(\d+)", said)
    return int(found[1]) / 1024 if found else float("nan")


def main() -> None:
    """Print one row a size of photograph."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--large-images", type=int, default=100)
    arguments = parser.parse_args()
    for count, size in ((arguments.images, (500, 375)), (arguments.large_images, (4000, 3000))):
        rows = measure(count, size)
        stored = rows.pop("bytes")
        print(f"{count} JPEGs of {size[0]} x {size[1]}, {stored / 1e3:.0f} kB each in the store")
        for name, seconds in rows.items():
            print(f"  {name:26} {1000 * seconds / count:8.2f} ms an image")
    print(f"4000 x 2 pixels: {thin_image_megabytes():.0f} MB peak")


if __name__ == "__main__":
    main()
