"""Images that belong to no dataset: files and folders that a person wants classified."""

from __future__ import annotations

import os
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
from captune.plain_text import counted
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
    """The given files, and all images below the given folders in order of their names; each file once.

    Args:
        places: files and folders.
        notes: collects what was passed over in the folders and what was given twice, one sentence each.

    Raises:
        DataError: a place that is missing, or that is neither a file nor a folder; or no image anywhere.
    """
    broken = [str(place) for place in places if place.is_symlink() and not place.exists()]
    if broken:
        raise DataError("every link must lead to an image", got=f"{len(broken)} that lead nowhere: {name_some(broken)}")
    missing = [str(place) for place in places if not place.exists()]
    if missing:
        raise DataError(
            "every image or folder must be there", got=f"{len(missing)} missing: {name_some(missing)}",
            next_step=did_you_mean_path(Path(missing[0])),
        )  # fmt: skip
    special = [str(place) for place in places if not (place.is_file() or place.is_dir())]
    if special:
        raise DataError("every place must be a file or a folder", got=name_some(special))
    files: dict[str, Path] = {}
    passed_over: list[str] = []
    num_given = 0
    for place in places:
        found = [place]
        if place.is_dir():
            tree = Tree(place)
            found = [Path(path) for path in tree.images()]
            passed_over += tree.notes()
        num_given += len(found)
        for file in found:
            files.setdefault(str(file.absolute()), file)  # `..` stays: behind a link it leads elsewhere
    if not files:
        among = f" ({'; '.join(passed_over)})" if passed_over else ""
        raise DataError("there must be an image", got=f"none in {name_some([str(place) for place in places])}{among}")
    if notes is not None:
        repeated = num_given - len(files)
        notes += passed_over
        notes += [f"{counted(repeated, 'image')} given again, each taken once"] if repeated else []
    return list(files.values())


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
        UsageError: something that is neither a file nor a Pillow image nor an array.
    """
    found: list[LooseImage] = []
    for image in _one_by_one(images):
        if isinstance(image, (str, os.PathLike)):
            found += _files_at(Path(image).expanduser())
            continue
        if not isinstance(image, Image.Image) and _as_array(image) is None:
            raise UsageError(
                "an image must be a file, a folder, a Pillow image or an array",
                got=f"one of type {type(image).__name__}",
            )
        found.append(image)
    if not found:
        raise DataError("there must be an image", got="none")
    return found


def _one_by_one(images: object) -> Iterable[Any]:
    """Several images as they were given, one as a list of itself."""
    if isinstance(images, (str, bytes, os.PathLike, Image.Image)) or not isinstance(images, Iterable):
        return [images]
    array = _as_array(images)
    if array is None:
        return images
    is_list = array.ndim == 4 or array.dtype.kind in "OUS"  # a stack of images, or a column of their names
    return list(np.atleast_1d(array)) if is_list else [array]


def _as_array(image: object) -> npt.NDArray[Any] | None:
    """An array of NumPy, PyTorch or another library that NumPy understands; None for anything else."""
    if isinstance(image, Tensor):
        return np.asarray(image.detach().cpu())
    return np.asarray(image) if hasattr(image, "__array__") and not isinstance(image, Image.Image) else None


def _files_at(place: Path) -> list[Path]:
    if place.suffix.lower() in (".npz", ".npy") and place.is_file():
        raise UsageError(
            "an image must be given", got="a file of arrays", where=place,
            next_step="Features go to predict(features=…), arrays of pixels in memory.",
        )  # fmt: skip
    return image_files([place])


def pixels_in_batches(
    images: Sequence[LooseImage], preprocessing: Preprocessing, device: torch.device
) -> Iterator[Tensor]:
    """Weak views (B, 3, S, S) of images, normalised, on the device, in order.

    Files and Pillow images are read alike: turned as their EXIF data say, 16 bits scaled to 8, transparency on white.

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
                image = part[place]
                where = image if isinstance(image, (str, Path)) else f"image {start + place}"
                raise DataError("an image must be readable", got=str(pixels), where=where)
            centre_crop(pixels, crops_BSS3[place])
        yield normalise(torch.from_numpy(crops_BSS3).to(device).permute(0, 3, 1, 2).float())


def _resized(images: Sequence[LooseImage], preprocessing: Preprocessing) -> Iterator[Pixels | Unreadable]:
    files = [str(image) for image in images if isinstance(image, (str, Path))]
    decoded = iter(decode_many(files, preprocessing))
    for image in images:
        if isinstance(image, (str, Path)):
            yield next(decoded)[1]
        elif isinstance(image, Image.Image):
            yield _as_its_file(image, preprocessing)
        else:
            array = _as_array(image)
            assert array is not None  # `as_list` has checked it
            yield decode_array(_checked(array), preprocessing)


def _as_its_file(image: Image.Image, preprocessing: Preprocessing) -> Pixels | Unreadable:
    """The pixels of a Pillow image, read as `decode_file` reads the file that it may have come from."""
    try:
        image.load()  # first: a JPEG that is not loaded yet would be decoded smaller, and stay so for its owner
        if not image.width or not image.height:
            return Unreadable(f"{image.width} x {image.height} pixels")
        return resize_image(image, preprocessing, "viewer")
    except Exception as error:  # for a damaged or closed file, decoders raise many kinds of exceptions
        return Unreadable(str(error) or type(error).__name__)


def _checked(pixels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] not in (1, 3) or 0 in pixels.shape:
        raise UsageError(
            "an image array must be uint8 of shape (H, W), (H, W, 1) or (H, W, 3)",
            got=f"{pixels.dtype} of shape {pixels.shape}",
            next_step="Scale values to 0-255 and put channels last.",
        )
    return pixels
