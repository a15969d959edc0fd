"""How fast the image store is built beside torchvision's ImageFolder, bytes an image, and the peak of extreme images.

    python -m tests.bench.store --images 5000
    python -m tests.bench.store --peaks

All ways read the same files in one run on the same cores, in turn, several times; the medians of CPU and wall seconds
are printed. ImageFolder decodes (its own loader, Pillow to RGB) in one process, as `for image, label in ImageFolder(…)`
does, and by a DataLoader of as many workers as there are cores; with its usual transform it also resizes, crops and
makes tensors. The store decodes, resizes and writes.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize, ToTensor

from captune.data.dataset import Dataset, Split, empty_split
from captune.data.image_store import ImageStore
from captune.preprocessing import Preprocessing
from tests.tools.photos import write_photos

_PREPROCESSING = Preprocessing(224, (0.5,) * 3, (0.5,) * 3)


def _no_pixels(image: Image.Image) -> int:
    return image.width


def cpu_and_wall(work: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds, of child processes too, and seconds on the clock."""

    def cpu() -> float:
        both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in both)

    before, started = cpu(), time.perf_counter()
    work()
    return cpu() - before, time.perf_counter() - started


def measure(folder: Path, cache: Path, repeats: int) -> tuple[dict[str, tuple[float, float]], float]:
    """Milliseconds an image, (CPU, wall), of each way of reading a folder; and bytes of a stored image."""
    usual = Compose([Resize(224, InterpolationMode.BICUBIC), CenterCrop(224), ToTensor()])
    decoded, transformed = ImageFolder(str(folder), _no_pixels), ImageFolder(str(folder), usual)
    paths = tuple(path for path, _ in decoded.samples)
    split = Split(paths, np.zeros(len(paths), np.int64))
    cores = len(os.sched_getaffinity(0))
    sizes: list[int] = []

    def one_by_one(images: ImageFolder) -> Callable[[], object]:
        return lambda: [images[index] is None for index in range(len(images))]

    def loaded(images: ImageFolder) -> Callable[[], object]:
        return lambda: [None for _ in DataLoader(images, batch_size=64, num_workers=cores)]

    def stored(reading: str) -> Callable[[], object]:
        def build() -> None:
            dataset = Dataset("bench", ("a", "b"), "{}", split, empty_split(), empty_split(), reading=reading)  # type: ignore[arg-type]
            store = ImageStore.open_or_build(dataset, _PREPROCESSING, cache)
            sizes.append(store.num_bytes)
            shutil.rmtree(store.directory)

        return build

    ways: dict[str, Callable[[], object]] = {
        "ImageFolder decodes": one_by_one(decoded),
        f"ImageFolder decodes, {cores} workers": loaded(decoded),
        "ImageFolder with its usual transform": one_by_one(transformed),
        f"the same, {cores} workers": loaded(transformed),
        "store, own images (viewer)": stored("viewer"),
        "store, benchmarks (open_clip)": stored("open_clip"),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, work in ways.items():
            seconds[name].append(cpu_and_wall(work))
    medians = {
        name: (1000 * median(cpu for cpu, _ in each) / len(paths), 1000 * median(wall for _, wall in each) / len(paths))
        for name, each in seconds.items()
    }
    return medians, sizes[0] / len(paths)


def peak_megabytes(file: Path) -> tuple[float, str]:
    """Peak memory of a process that reads one image, and what it says of it."""
    script = (
        "import re\nfrom captune.data.decode import Unreadable, decode_file\n"
        "from captune.preprocessing import Preprocessing\n"
        f"try:\n    said = decode_file({str(file)!r}, Preprocessing(224, (0.5,) * 3, (0.5,) * 3)).shape\n"
        "except Unreadable as reason:\n    said = reason\nprint(said)\n"
        "print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])"
    )
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return int(said[1]) / 1024, said[0]


def print_peaks() -> None:
    """The peak of a process for images of extreme shapes."""
    Image.MAX_IMAGE_PIXELS = None
    with tempfile.TemporaryDirectory() as place:
        for size, name, options in (
            ((224, 224), "1.png", {}), ((4000, 2), "1.png", {}), ((65535, 1), "1.png", {}),
            ((20000, 15000), "1.jpg", {}), ((20000, 15000), "1.jpg", {"progressive": True}),
        ):  # fmt: skip
            file = Path(place) / name
            Image.new("RGB", size, (200, 90, 30)).save(file, **options)
            megabytes, said = peak_megabytes(file)
            kind = "progressive JPEG" if options else file.suffix[1:].upper()
            print(f"{size[0]} x {size[1]} {kind}: {megabytes:.0f} MB peak, {said}")


def main() -> None:
    """Print a table for each size of photograph."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--large-images", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peaks", action="store_true", help="only the peak memory of extreme images")
    arguments = parser.parse_args()
    if arguments.peaks:
        print_peaks()
        return
    for count, size in ((arguments.images, (500, 375)), (arguments.large_images, (4000, 3000))):
        if not count:
            continue
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            write_photos(folder / "images", count, size)
            files = sum(file.stat().st_size for file in (folder / "images").rglob("*.jpg"))
            rows, stored = measure(folder / "images", folder / "cache", arguments.repeats)
        load = os.getloadavg()[0]
        kilobytes = files / count / 1e3
        print(f"\n{count} JPEGs of {size[0]} x {size[1]}, {kilobytes:.0f} kB each; {stored / 1e3:.0f} kB in the store")
        print(f"load average {load:.1f}; median of {arguments.repeats}")
        first = rows["ImageFolder decodes"]
        print(f"{'milliseconds an image':38} {'CPU':>7} {'wall':>7}   CPU and wall, times ImageFolder's decoding")
        for name, (cpu, wall) in rows.items():
            print(f"{name:38} {cpu:7.2f} {wall:7.2f}   {cpu / first[0]:5.2f} {wall / first[1]:5.2f}")


if __name__ == "__main__":
    main()
