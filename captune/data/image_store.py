"""The image store: every image decoded and resized once per node, read by all trials from one memory map.

On disk a store is a folder `images-<key>` with `pixels.u8` (the images one after another, HWC) or `images.jpeg` (a JPEG
of each, one after another), `index.npy` (offset, height, width of each) and `meta.json`. The key is a hash of the files
(path, size, modification time) and the resize, so a changed file or another backbone makes another store. An unreadable
image is stored as black and named in `meta.json`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from captune.data.build_once import build_once, note_work
from captune.data.dataset import Dataset, IntArray
from captune.data.decode import (
    Pixels,
    Reading,
    Unreadable,
    decode_array,
    decode_file,
    decode_stored,
    stored_size,
)  # fmt: skip
from captune.data.file_kinds import open_image
from captune.data.tree import name_some, printable
from captune.errors import DataError
from captune.preprocessing import Preprocessing

Progress = Callable[[int, int], None]
_FORMAT = 1
# Version of the viewer's reading. 2: resized by torch, which differs from Pillow by one grey level in places.
_VIEWER = 2
_THREADS = min(8, os.cpu_count() or 1)
# From this many bytes on, the user is told the size before the store is built.
_LARGE = 200e6
_SAMPLED = 64
_ENCODED = 16
_QUALITY = 95
_FILES = {"pixels": "pixels.u8", "jpeg": "images.jpeg"}
Keep = Literal["pixels", "jpeg"]
T = TypeVar("T")


class ImageStore:
    """Resized images in one read-only memory map; ragged, since shortest-side resizing keeps the aspect ratio.

    Attributes:
        key: content address, 32 hex digits.
        keep: "pixels", or "jpeg" if each image is kept as a JPEG and decoded when it is asked for.
        sizes_N2: height and width of each stored image.
        offsets_N: where each image begins in the file.
        unreadable: index → reason, for images that could not be decoded.
    """

    def __init__(self, directory: Path, key: str) -> None:
        """Open a complete store; `open_or_build` is the usual way in."""
        index_N3 = np.load(directory / "index.npy")
        meta = json.loads((directory / "meta.json").read_text())
        self.key = key
        self.directory = directory
        self.keep: Keep = meta.get("keep", "pixels")
        self.unreadable: dict[int, str] = {int(index): why for index, why in meta.get("unreadable", {}).items()}
        self.sizes_N2: IntArray = index_N3[:, 1:]
        self.offsets_N: IntArray = index_N3[:, 0]
        # np.memmap refuses empty files, and an empty dataset has one.
        self._bytes: npt.NDArray[np.uint8] = (
            np.memmap(directory / _FILES[self.keep], np.uint8, "r") if len(index_N3) else np.empty(0, np.uint8)
        )
        self.uniform_size: tuple[int, int] | None = None
        if len(index_N3) and bool((self.sizes_N2 == self.sizes_N2[0]).all()):
            self.uniform_size = (int(self.sizes_N2[0, 0]), int(self.sizes_N2[0, 1]))

    @classmethod
    def open_or_build(
        cls,
        dataset: Dataset,
        preprocessing: Preprocessing,
        cache_dir: Path,
        *,
        keep: Keep = "pixels",
        progress: Progress | None = None,
    ) -> ImageStore:
        """Open the store of a dataset, decoding all its images first if this node has none yet.

        Args:
            dataset: its images in index order.
            preprocessing: whose size, resize mode and interpolation apply.
            cache_dir: where stores are kept on this node.
            keep: what is kept of each resized image: its pixels, or a JPEG (quality 95, no chroma subsampling), which
                takes a sixth of the room and whose pixels differ by a grey level or two.
            progress: called with (images done, images in all) while building.

        Raises:
            DataError: more unreadable images than the dataset allows (counted, three named), a disk too small, or a
                cache directory that cannot be written.
        """
        key = store_key(dataset, preprocessing, keep)
        directory = cache_dir / f"images-{key}"

        def build(part: Path) -> None:
            _check_room(dataset, preprocessing, part, keep)
            _write(part, dataset, preprocessing, keep, progress)
            note_work(decoded=dataset.num_images)

        build_once(directory, is_whole=lambda at: _is_whole(at, dataset.num_images), build=build)
        store = cls(directory, key)
        # The store may have been built by a command that allowed more unreadable images.
        if len(store.unreadable) > dataset.max_unreadable * len(store):
            paths = dataset.paths
            broken = [(paths[index], why) for index, why in store.unreadable.items()]
            raise unreadable_images(broken, dataset.key, len(store))
        return store

    def __len__(self) -> int:
        return len(self.offsets_N)

    @property
    def num_bytes(self) -> int:
        """Bytes of all images as they are kept."""
        return len(self._bytes)

    def flat(self) -> npt.NDArray[np.uint8]:
        """The pixels of all images, one after another, read-only.

        Raises:
            ValueError: the store keeps JPEGs.
        """
        if self.keep != "pixels":
            raise ValueError("flat() must be called on a store of pixels")
        return self._bytes

    @cached_property
    def largest_crop(self) -> tuple[int, int]:
        """Height and width that hold every crop of every image, for aspect ratios of 3/4 to 4/3 and their rounding."""
        tall_N, wide_N = self.sizes_N2[:, 0], self.sizes_N2[:, 1]
        height = np.minimum(tall_N, np.ceil(wide_N * 4 / 3) + 2).max(initial=0)
        width = np.minimum(wide_N, np.ceil(tall_N * 4 / 3) + 2).max(initial=0)
        return int(height), int(width)

    def image(self, index: int) -> Pixels:
        """One stored image (H, W, 3), uint8; a read-only view if pixels are kept."""
        height, width = self.sizes_N2[index]
        start = int(self.offsets_N[index])
        if self.keep == "jpeg":
            end = int(self.offsets_N[index + 1]) if index + 1 < len(self) else len(self._bytes)
            return decode_stored(self._bytes[start:end].tobytes())
        view: Pixels = self._bytes[start : start + int(height * width) * 3].reshape(int(height), int(width), 3)
        return view

    def images(self, indices: IntArray) -> Pixels:
        """A batch (B, H, W, 3) copied out of a store whose images have one size.

        Raises:
            ValueError: the store is ragged.
        """
        if self.uniform_size is None:
            raise ValueError("images() must be called on a store of one image size")
        height, width = self.uniform_size
        if self.keep == "jpeg":
            copied: Pixels = np.empty((len(indices), height, width, 3), np.uint8)
            for row, index in enumerate(indices.tolist()):
                copied[row] = self.image(index)
            return copied
        whole: Pixels = self._bytes.reshape(len(self), height, width, 3)
        return whole[indices]


def store_key(dataset: Dataset, preprocessing: Preprocessing, keep: Keep = "pixels") -> str:
    """The content address of a dataset's store: files by path, size and modification time, arrays by their bytes.

    Raises:
        DataError: files that are not there.
    """
    digest = hashlib.sha256(
        json.dumps([_FORMAT, preprocessing.image_size, preprocessing.resize_mode, preprocessing.interpolation]).encode()
    )
    if keep != "pixels":
        digest.update(f"{keep} {_QUALITY}".encode())
    if dataset.reading != "open_clip":
        digest.update(f"{dataset.reading} {_VIEWER}".encode())
    if dataset.images_NHWC is not None:
        digest.update(repr(dataset.images_NHWC.shape).encode())
        digest.update(np.ascontiguousarray(dataset.images_NHWC).tobytes())
        return digest.hexdigest()[:32]
    missing = []
    for path in dataset.paths:
        try:
            status = os.stat(path)  # noqa: PTH116 - a Path for each of a million files costs seconds
        except OSError:
            missing.append(path)
            continue
        digest.update(os.fsencode(path) + b"\0%d\0%d\n" % (status.st_size, status.st_mtime_ns))
    if missing:
        raise DataError("every image must be on disk", got=f"{len(missing)} missing: {name_some(missing)}")
    return digest.hexdigest()[:32]


def _kept_images(
    dataset: Dataset, preprocessing: Preprocessing, keep: Keep
) -> Iterator[tuple[str, tuple[Pixels, bytes | memoryview] | Unreadable]]:
    """All images in index order: the path, with the pixels and the bytes to keep, or why it cannot be read."""

    def kept(pixels: Pixels) -> tuple[Pixels, bytes | memoryview]:
        return pixels, _encoded(pixels) if keep == "jpeg" else np.ascontiguousarray(pixels).data

    if dataset.images_NHWC is not None:
        return (("", kept(decode_array(pixels, preprocessing))) for pixels in dataset.images_NHWC)
    return decode_many(dataset.paths, preprocessing, dataset.reading, kept)


def _check_room(dataset: Dataset, preprocessing: Preprocessing, part: Path, keep: Keep) -> None:
    """Say how large a large store will be, and check that the disk has space for it.

    Raises:
        DataError: the disk is too small.
    """
    count, free = len(dataset.paths), shutil.disk_usage(part).free
    if not count:
        return

    def each(kept: Keep) -> float:
        return (_bytes_of_pixels if kept == "pixels" else _bytes_of_jpegs)(dataset, preprocessing)

    needed = count * each(keep)
    if needed > free:
        with_jpegs = count * each("jpeg") if keep == "pixels" else needed
        smaller = f" Or keep JPEGs: --store jpeg takes about {with_jpegs / 1e9:,.1f} GB."
        raise DataError(
            "the store of decoded images must fit on the disk",
            got=f"{needed / 1e9:,.1f} GB for {count:,} images of {needed / count / 1e3:,.0f} kB, {free / 1e9:,.1f} "
            "GB free",
            where=part.parent,
            next_step="Free space, or name another disk by --cache-dir or $CAPTUNE_CACHE."
            + (smaller if with_jpegs < needed else ""),
        )
    if needed > _LARGE:
        sys.stderr.write(
            f"decoding {count:,} images once for all trials: {needed / count / 1e3:,.0f} kB each, "
            f"{needed / 1e9:,.1f} GB in {part.parent}\n"
        )


def _sample(paths: Sequence[str], count: int) -> Sequence[str]:
    """About `count` files, spread over all of them."""
    return paths[:: max(1, len(paths) // count)]


def _bytes_of_pixels(dataset: Dataset, preprocessing: Preprocessing) -> float:
    """Mean bytes of a stored image's pixels, estimated from the headers of some files."""
    sizes = []
    for path in _sample(dataset.paths, _SAMPLED):
        try:
            with open_image(path) as image:
                sizes.append(stored_size(image.height, image.width, preprocessing))
        except Exception:  # reported when it is decoded
            continue
    return float(np.mean([3 * height * width for height, width in sizes])) if sizes else 0.0


def _bytes_of_jpegs(dataset: Dataset, preprocessing: Preprocessing) -> float:
    """Mean bytes of a stored image's JPEG, estimated by encoding a few."""
    found = decode_many(_sample(dataset.paths, _ENCODED), preprocessing, dataset.reading)
    sizes = [len(_encoded(pixels)) for _, pixels in found if not isinstance(pixels, Unreadable)]
    return float(np.mean(sizes)) if sizes else 0.0


def _encoded(pixels_HW3: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels_HW3).save(file, "JPEG", quality=_QUALITY, subsampling=0)
    return file.getvalue()


@overload
def decode_many(
    paths: Sequence[str], preprocessing: Preprocessing, reading: Reading = "viewer"
) -> Iterator[tuple[str, Pixels | Unreadable]]: ...


@overload
def decode_many(
    paths: Sequence[str], preprocessing: Preprocessing, reading: Reading, finish: Callable[[Pixels], T]
) -> Iterator[tuple[str, T | Unreadable]]: ...


def decode_many(
    paths: Sequence[str],
    preprocessing: Preprocessing,
    reading: Reading = "viewer",
    finish: Callable[[Pixels], Any] = lambda pixels: pixels,
) -> Iterator[tuple[str, Any]]:
    """Decode files with a few threads and yield (path, result) in order; for an unreadable file its `Unreadable`.

    Threads are enough, because Pillow, simplejpeg and torch release the interpreter lock while they work. `finish` is
    called with the pixels in the same threads, and its return value is the result.
    """

    def attempt(path: str) -> Any:
        try:
            return finish(decode_file(path, preprocessing, reading))
        except Unreadable as reason:
            return reason

    with ThreadPoolExecutor(_THREADS) as pool:
        queue = iter(paths)
        # Only a few results may be pending: those of a whole dataset would not fit in memory.
        window: list[tuple[str, Future[Any]]] = [
            (path, pool.submit(attempt, path)) for path in islice(queue, 4 * _THREADS)
        ]
        try:
            while window:
                path, result = window.pop(0)
                yield path, result.result()
                window.extend((following, pool.submit(attempt, following)) for following in islice(queue, 1))
        finally:
            for _, pending in window:
                pending.cancel()


def unreadable_images(broken: Sequence[tuple[str, str]], dataset: str, num_images: int) -> DataError:
    """The error that counts broken images and names three."""
    named = "; ".join(f"{printable(path)} ({reason})" for path, reason in broken[:3])
    return DataError(
        "every image must be readable, or all but a few",
        got=f"{len(broken)} of {num_images} broken: {named}{'; …' if len(broken) > 3 else ''}",
        where=dataset,
        next_step=f"`captune datasets --check {dataset}` lists all of them; replace them, take them out, "
        "or leave them out by --max-unreadable.",
    )


def _write(part: Path, dataset: Dataset, preprocessing: Preprocessing, keep: Keep, progress: Progress | None) -> None:
    index: list[tuple[int, int, int]] = []
    broken: list[tuple[str, str]] = []
    unreadable: dict[int, str] = {}
    offset, num_images = 0, dataset.num_images
    black = np.zeros((preprocessing.image_size, preprocessing.image_size, 3), np.uint8)
    with (part / _FILES[keep]).open("wb") as file:
        for number, (path, found) in enumerate(_kept_images(dataset, preprocessing, keep)):
            if isinstance(found, Unreadable):
                broken.append((path, str(found)))
                unreadable[number] = str(found)
                found = black, _encoded(black) if keep == "jpeg" else black.data
            pixels, kept = found
            if len(broken) <= dataset.max_unreadable * num_images:  # else the rest is read only to count what is broken
                index.append((offset, pixels.shape[0], pixels.shape[1]))
                offset += file.write(kept)
            if progress is not None:
                progress(number + 1, num_images)
    if len(broken) > dataset.max_unreadable * num_images:
        raise unreadable_images(broken, dataset.key, num_images)
    np.save(part / "index.npy", np.array(index, np.int64).reshape(-1, 3))
    meta = {
        "format": _FORMAT, "keep": keep, "num_images": len(index), "num_bytes": offset, "unreadable": unreadable
    }  # fmt: skip
    (part / "meta.json").write_text(json.dumps(meta))


def _is_whole(directory: Path, num_images: int) -> bool:
    try:
        meta = json.loads((directory / "meta.json").read_text())
        return (
            meta["format"] == _FORMAT
            and meta["num_images"] == num_images
            and (directory / _FILES[meta.get("keep", "pixels")]).stat().st_size == meta["num_bytes"]
            and len(np.load(directory / "index.npy", mmap_mode="r" if num_images else None)) == num_images
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
