"""Strong views cropped from the images as they are on disk, not from the store's smaller copies.

Published code crops the original and resizes the crop. A crop of the stored copy, which is smaller, is softer if it has
to be enlarged. Every crop decodes a file, so this is for reproduction and for images that are small anyway.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captune.data.dataset import Dataset, IntArray
from captune.data.decode import Pixels
from captune.data.file_kinds import open_image
from captune.data.views import CropViews, Feed, ImageViews, Normalise, upload
from captune.preprocessing import Preprocessing

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class OriginalCrops(CropViews):
    """The store's weak views, and strong views cut from the original images; the interface is that of `ImageViews`."""

    def __init__(self, views: ImageViews, dataset: Dataset, preprocessing: Preprocessing) -> None:
        """Views of the images of `dataset`, in its order."""
        self.device, self.dtype = views.device, views.dtype
        self.weak, self.feed, self.weak_of = views.weak, views.feed, views.weak_of
        self._dataset, self._size = dataset, preprocessing.image_size
        self._resampling = _RESAMPLING[preprocessing.interpolation]
        self._normalise = Normalise(preprocessing, views.device, views.dtype)
        self._sizes: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return self._dataset.num_images

    def sizes_of(self, indices_N: IntArray) -> IntArray:
        """Heights and widths (N, 2) of the original images."""
        return np.array([self._size_of(int(index)) for index in indices_N])

    def feed_crops(self, indices_SB: IntArray, draws_SB5: Tensor) -> Feed:
        """For each of S steps the crops, resized and flipped, uint8 (B, S, S, 3)."""
        return lambda step: upload(
            torch.from_numpy(
                np.stack(
                    [self._crop(int(i), d) for i, d in zip(indices_SB[step], draws_SB5[step].tolist(), strict=True)]
                )
            ),
            self.device,
        )

    def strong_of(self, fed: Tensor, draws_B5: Tensor) -> Tensor:
        """The crops a feed gave, normalised: (B, 3, S, S)."""
        return self._normalise(fed.permute(0, 3, 1, 2).float())

    def _open(self, index: int) -> Image.Image:
        if self._dataset.images_NHWC is not None:
            pixels = self._dataset.images_NHWC[index]
            return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        return open_image(os.fspath(self._dataset.paths[index]))

    def _size_of(self, index: int) -> tuple[int, int]:
        if index not in self._sizes:
            with self._open(index) as image:
                self._sizes[index] = image.height, image.width
        return self._sizes[index]

    def _crop(self, index: int, draw: Sequence[int]) -> Pixels:
        top, left, height, width, flipped = draw
        with self._open(index) as image:
            crop = image.convert("RGB").crop((left, top, left + width, top + height))
        crop = crop.resize((self._size, self._size), self._resampling)
        return np.asarray(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flipped else crop)
