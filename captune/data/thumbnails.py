"""Small pictures of a dataset's images, for pages."""

from __future__ import annotations

import io

from PIL import Image

from captune.data.dataset import Dataset
from captune.data.decode import Unreadable, decode_file
from captune.preprocessing import Preprocessing

SIDE = 96
"""Longest side of a thumbnail, in pixels."""
_QUALITY = 78
_AS_A_VIEWER = Preprocessing(SIDE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), resize_mode="longest")


def has_pictures(dataset: Dataset) -> bool:
    """Whether there are pixels to show; a file of features has none."""
    return dataset.image_features_MD is None and (dataset.images_NHWC is not None or bool(dataset.paths))


def thumbnail(dataset: Dataset, index: int) -> bytes | None:
    """An image as a small JPEG, without the other things in its file (place, date, camera).

    Args:
        dataset: one with pictures.
        index: in the dataset's index space.

    Returns:
        None if the image cannot be read.
    """
    if dataset.images_NHWC is not None:
        pixels = dataset.images_NHWC[index]
    else:
        try:
            pixels = decode_file(dataset.paths[index], _AS_A_VIEWER)
        except Unreadable:
            return None
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    image = Image.fromarray(pixels)
    times = SIDE / max(image.size)
    if times > 1:  # JPEG blurs an image of a few pixels beyond recognition
        image = image.resize([max(1, round(times * side)) for side in image.size], Image.Resampling.BICUBIC)
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_QUALITY, optimize=True)
    return out.getvalue()
