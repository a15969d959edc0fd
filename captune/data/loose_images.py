"""Images that belong to no dataset: files and folders that a person wants classified."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from captune.data.decode import Pixels, Unreadable, decode_array, resize_image
from captune.data.image_store import decode_many
from captune.data.tree import Tree, name_some
from captune.data.views import Normalise, centre_crop
from captune.errors import DataError, UsageError, did_you_mean_path
from captune.preprocessing import Preprocessing

_BATCH = 64
LooseImage = str | Path | Image.Image | npt.NDArray[Any]
"""An image as a person has it: a file (or a folder of them), a Pillow image, or an array (H, W), (H, W, 1 or 3)."""


@dataclass(frozen=True)
class Batch:
    """Some readable images.

    Attributes:
        paths: files of the images.
        pixels_B3SS: their weak views, normalised, on the device.
    """

    paths: tuple[Path, ...]
    pixels_B3SS: Tensor


def image_files(places: Sequence[Path], notes: list[str] | None = None) -> list[Path]:
    """The given files, and all images below the given folders in order of their names.

    Args:
        places: files and folders.
        notes: collects what was passed over in the folders, one sentence each.

    Raises:
        DataError: a place that is missing, or that is neither a file nor a folder; or no image anywhere.
    """
    missing = [str(place) for place in places if not place.exists()]
    if missing:
        raise DataError(
            "every image or folder must be there", got=f"{len(missing)} missing: {name_some(missing)}",
            next_step=did_you_mean_path(Path(missing[0])),
        )  # fmt: skip
    special = [str(place) for place in places if not (place.is_file() or place.is_dir())]
    if special:
        raise DataError("every place must be a file or a folder", got=name_some(special))
    files: list[Path] = []
    for place in places:
        if not place.is_dir():
            files.append(place)
            continue
        tree = Tree(place)
        files += [Path(path) for path in tree.images()]
        if notes is not None:
            notes += tree.notes()
    if not files:
        raise DataError("there must be an image", got=f"none in {name_some([str(place) for place in places])}")
    return files


def preprocessed_batches(
    files: Sequence[Path],
    preprocessing: Preprocessing,
    device: torch.device | str,
    broken: list[tuple[Path, str]],
) -> Iterator[Batch]:
    """Weak views of files in batches, in order. Unreadable files are left out and put into `broken` with a reason."""
    normalise = Normalise(preprocessing, torch.device(device))
    size = preprocessing.image_size
    paths: list[Path] = []
    crops: list[np.ndarray] = []

    def batch() -> Batch:
        pixels_BSS3 = torch.from_numpy(np.stack(crops)).to(device)
        return Batch(tuple(paths), normalise(pixels_BSS3.permute(0, 3, 1, 2).float()))

    for path, pixels in decode_many([str(file) for file in files], preprocessing):
        if isinstance(pixels, Unreadable):
            broken.append((Path(path), str(pixels)))
            continue
        crops.append(np.zeros((size, size, 3), np.uint8))
        centre_crop(pixels, crops[-1])
        paths.append(Path(path))
        if len(paths) == _BATCH:
            yield batch()
            paths, crops = [], []
    if paths:
        yield batch()


def as_list(images: LooseImage | Iterable[LooseImage]) -> list[LooseImage]:
    """Images one by one: a folder becomes its files, a stack of arrays (N, H, W, 3) its images.

    Raises:
        DataError: a file or folder that is not there, or no image at all.
    """
    if isinstance(images, np.ndarray) and images.ndim == 4:
        return list(images)
    if isinstance(images, (str, Path, Image.Image, np.ndarray)):
        images = [images]
    found: list[LooseImage] = []
    for image in images:
        found += image_files([Path(image).expanduser()]) if isinstance(image, (str, Path)) else [image]
    if not found:
        raise DataError("there must be an image", got="none")
    return found


def pixels_in_batches(
    images: Sequence[LooseImage], preprocessing: Preprocessing, device: torch.device
) -> Iterator[Tensor]:
    """Weak views (B, 3, S, S) of images, normalised, on the device, in order.

    Raises:
        DataError: an image that cannot be read, with the reason.
        UsageError: an array that is no image.
    """
    normalise = Normalise(preprocessing, device)
    size = preprocessing.image_size
    for start in range(0, len(images), _BATCH):
        part = images[start : start + _BATCH]
        crops_BSS3 = np.zeros((len(part), size, size, 3), np.uint8)
        for place, pixels in enumerate(_resized(part, preprocessing)):
            if isinstance(pixels, Unreadable):
                raise DataError("an image must be readable", got=str(pixels), where=part[place])
            centre_crop(pixels, crops_BSS3[place])
        yield normalise(torch.from_numpy(crops_BSS3).to(device).permute(0, 3, 1, 2).float())


def _resized(images: Sequence[LooseImage], preprocessing: Preprocessing) -> Iterator[Pixels | Unreadable]:
    files = [str(image) for image in images if isinstance(image, (str, Path))]
    decoded = iter(decode_many(files, preprocessing))
    for image in images:
        if isinstance(image, (str, Path)):
            yield next(decoded)[1]
        elif isinstance(image, Image.Image):
            yield resize_image(image, preprocessing)
        else:
            yield decode_array(_checked(np.asarray(image)), preprocessing)


def _checked(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] not in (1, 3):
        raise UsageError(
            "an image array must be uint8 of shape (H, W), (H, W, 1) or (H, W, 3)",
            got=f"{pixels.dtype} of shape {pixels.shape}",
            next_step="Scale values to 0-255 and put channels last.",
        )
    return pixels
