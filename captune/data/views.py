"""Weak and strong views, batched on the device.

The weak view is open_clip's preprocessing (centre crop, normalise). The strong view is a random resized crop and a
flip, as in CAP. Boxes are drawn as torchvision's RandomResizedCrop draws them, in the stored image, and resampled by
antialiased bicubic weights: on a CPU box by box, on a GPU as two batched matrix products, A_y · X · A_xᵀ, whose rows
are those weights; a flip reverses the rows of A_x. If a GPU has room for all images, they are kept there and the host
only draws boxes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from captune.data.dataset import IntArray
from captune.data.decode import Pixels
from captune.data.image_store import ImageStore
from captune.data.resampling import by_products, one_by_one
from captune.data.resident import fits, resident_pixels
from captune.preprocessing import Preprocessing

_TRIES = 10
_RATIO = (3 / 4, 4 / 3)


def upload(array: npt.NDArray[Any] | Tensor, device: torch.device) -> Tensor:
    """The array on a device. It goes to a GPU through page-locked memory, so that the host need not wait."""
    tensor = torch.tensor(array) if isinstance(array, np.ndarray) else array
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Normalise:
    """(x / 255 - mean) / std on the device, as one multiplication and one addition."""

    def __init__(self, preprocessing: Preprocessing, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        """Constants of one backbone on one device."""
        std_3 = torch.tensor(preprocessing.std, dtype=torch.float64)
        shift_3 = -torch.tensor(preprocessing.mean, dtype=torch.float64) / std_3
        self._factor_311 = (1 / (255 * std_3)).float().reshape(3, 1, 1).to(device)
        self._shift_311 = shift_3.float().reshape(3, 1, 1).to(device)
        self._dtype = dtype

    def __call__(self, pixels_B3SS: Tensor) -> Tensor:
        """Grey levels 0-255 (B, 3, S, S), any float type → normalised."""
        scaled: Tensor = torch.addcmul(self._shift_311, pixels_B3SS, self._factor_311)
        return scaled.to(self._dtype).contiguous()


Feed = Callable[[int], Tensor]


class CropViews(ABC):
    """Views whose strong side is a random crop: draws the boxes, and puts a strong view together from its parts."""

    device: torch.device

    def strong(
        self,
        indices: IntArray,
        generator: torch.Generator,
        *,
        flip_probability: float,
        crop_scale_min: float,
        feature_dropout: float = 0.0,
    ) -> Tensor:
        """Random resized crops (area `crop_scale_min`-1, ratio 3/4-4/3, bicubic), flipped or not: (B, 3, S, S).

        The arguments are those of `draw`.
        """
        draws_1B5 = self.draw(
            indices[None],
            generator,
            flip_probability=flip_probability,
            crop_scale_min=crop_scale_min,
            feature_dropout=feature_dropout,
        )
        return self.strong_of(self.feed_crops(indices[None], draws_1B5)(0), upload(draws_1B5[0], self.device))

    def draw(
        self,
        indices_SB: IntArray,
        generator: torch.Generator,
        *,
        flip_probability: float,
        crop_scale_min: float,
        feature_dropout: float = 0.0,
    ) -> Tensor:
        """Everything random about strong views: a crop's top, left, height and width, flipped or not; (S, B, 5) int64.

        Args:
            indices_SB: images.
            generator: CPU generator that everything random comes from.
            flip_probability: probability of a horizontal flip.
            crop_scale_min: smallest share of the image's area that a crop may cover.
            feature_dropout: not used here; views of features take it.
        """
        boxes = sample_boxes(self.sizes_of(indices_SB.reshape(-1)), crop_scale_min, generator)
        flip_N = torch.rand(indices_SB.size, generator=generator) < flip_probability
        columns = (boxes.top_B, boxes.left_B, boxes.height_B, boxes.width_B, flip_N.long())
        return torch.stack(columns, dim=1).reshape(*indices_SB.shape, 5)

    @abstractmethod
    def sizes_of(self, indices_N: IntArray) -> IntArray:
        """Heights and widths (N, 2) of the images that boxes are drawn in."""

    @abstractmethod
    def feed_crops(self, indices_SB: IntArray, draws_SB5: Tensor) -> Feed:
        """A function from each of S steps to what `strong_of` makes its views of."""

    @abstractmethod
    def strong_of(self, fed: Tensor, draws_B5: Tensor) -> Tensor:
        """Crops, resampled and normalised, of what a feed gave: (B, 3, S, S)."""


class ImageViews(CropViews):
    """Views of the images of a store.

    Views are made in two parts, so that the second can be recorded as a CUDA graph. A feed gives each step its inputs
    (pixels, or only indices if the pixels are on the device); `weak_of` and `strong_of` make views of them.
    """

    def __init__(
        self,
        store: ImageStore,
        preprocessing: Preprocessing,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        *,
        resident: bool | None = None,
    ) -> None:
        """Views in `dtype` of `store`, which must have been built with `preprocessing`.

        `resident` keeps all images in the device's memory; None does so if it is a GPU with room for them.
        """
        self.device = torch.device(device)
        self.dtype = dtype
        self._store = store
        self._size = preprocessing.image_size
        self._normalise = Normalise(preprocessing, self.device, dtype)
        keep = fits(store, self.device) if resident is None else resident
        self._resident = resident_pixels(store, preprocessing, self.device) if keep else None

    def __len__(self) -> int:
        return len(self._store)

    def sizes_of(self, indices_N: IntArray) -> IntArray:
        """Heights and widths (N, 2) of stored images."""
        return self._store.sizes_N2[indices_N]

    def weak(self, indices: IntArray) -> Tensor:
        """Centre crops, normalised: (B, 3, S, S)."""
        return self.weak_of(self.feed(indices[None])(0))

    def feed(self, indices_SB: IntArray) -> Feed:
        """A function from each of S steps to what `weak_of` makes its views of."""
        if self._resident is not None:
            return upload(indices_SB, self.device).__getitem__
        return lambda step: self._upload(self._centres(indices_SB[step]))

    def weak_of(self, fed: Tensor) -> Tensor:
        """Centre crops, normalised, of what a feed gave: (B, 3, S, S)."""
        if self._resident is not None:
            return self._resident.centres(fed, self.dtype)
        return self._normalise(fed.permute(0, 3, 1, 2).float())

    def feed_crops(self, indices_SB: IntArray, draws_SB5: Tensor) -> Feed:
        """A function from each of S steps to what `strong_of` makes its views of."""
        if self._resident is not None:
            return upload(indices_SB, self.device).__getitem__
        if self._whole:
            return lambda step: self._upload(self._store.images(indices_SB[step]))
        return lambda step: self._upload(self._cut_out(indices_SB[step], draws_SB5[step]))

    def strong_of(self, fed: Tensor, draws_B5: Tensor) -> Tensor:
        """Crops, resampled and normalised, of what a feed gave: (B, 3, S, S).

        Args:
            fed: from `feed_crops`.
            draws_B5: the step's numbers of `draw`, on the device.
        """
        if self._resident is not None:
            return self._resident.crops(fed, draws_B5, self.dtype)
        # A box that was cut out first lies in the upper left corner of its canvas.
        corner_B2 = torch.zeros_like(draws_B5[:, :2])
        boxes_B5 = draws_B5 if self._whole else torch.cat((corner_B2, draws_B5[:, 2:]), 1)
        resampled = one_by_one if self.device.type == "cpu" else by_products
        crops_B3SS = resampled(fed, boxes_B5, self._size)
        return self._normalise(crops_B3SS.clamp_(0, 255))  # bicubic overshoots at edges

    @property
    def _whole(self) -> bool:
        """Whether crops are taken from whole images rather than cut out first."""
        return self._store.uniform_size is not None

    def _centres(self, indices: IntArray) -> Pixels:
        size = self._size
        if self._store.uniform_size == (size, size):
            return self._store.images(indices)
        # Black pads images shorter than the crop (resize mode 'longest'); open_clip pads CMYK with white there.
        pixels_BSS3 = np.zeros((len(indices), size, size, 3), np.uint8)
        for row, index in enumerate(indices):
            centre_crop(self._store.image(int(index)), pixels_BSS3[row])
        return pixels_BSS3

    def _cut_out(self, indices: IntArray, draws_B5: Tensor) -> Pixels:
        """The boxes' pixels, each in the upper left corner of a canvas.

        On a CPU the canvas is as large as the batch's largest box. On a GPU it is as large as the largest possible box,
        so that recorded steps keep their shapes.
        """
        largest = draws_B5.amax(0)[2:4].tolist() if self.device.type == "cpu" else self._store.largest_crop
        canvas_BHW3 = np.zeros((len(indices), *largest, 3), np.uint8)
        for row, (index, box) in enumerate(zip(indices, draws_B5.tolist(), strict=True)):
            top, left, height, width, _ = box
            image = self._store.image(int(index))
            canvas_BHW3[row, :height, :width] = image[top : top + height, left : left + width]
        return canvas_BHW3

    def _upload(self, pixels_BHW3: Pixels) -> Tensor:
        pixels = torch.from_numpy(pixels_BHW3)
        return pixels if self.device.type == "cpu" else upload(pixels, self.device)


class FeatureViews:
    """Views of frozen image features, made in two parts as those of `ImageViews`."""

    def __init__(self, features_MD: Tensor | npt.NDArray[np.float32], device: torch.device | str) -> None:
        """Views of normalised features (M, D)."""
        self.device = torch.device(device)
        self._features_MD = torch.as_tensor(features_MD, device=self.device)

    def __len__(self) -> int:
        return len(self._features_MD)

    def weak(self, indices: IntArray) -> Tensor:
        """The features as they are: (B, D)."""
        return self.weak_of(upload(indices, self.device))

    def strong(
        self,
        indices: IntArray,
        generator: torch.Generator,
        *,
        flip_probability: float = 0.0,
        crop_scale_min: float = 1.0,
        feature_dropout: float,
    ) -> Tensor:
        """The features with a share of their entries dropped, normalised again: (B, D)."""
        keep_1BD = self.draw(indices[None], generator, feature_dropout=feature_dropout)
        return self.strong_of(upload(indices, self.device), upload(keep_1BD[0], self.device))

    def feed(self, indices_SB: IntArray) -> Feed:
        """A function from each of S steps to what `weak_of` makes its views of: indices."""
        return upload(indices_SB, self.device).__getitem__

    def weak_of(self, fed: Tensor) -> Tensor:
        """The features as they are: (B, D)."""
        return self._features_MD[fed]

    def draw(
        self,
        indices_SB: IntArray,
        generator: torch.Generator,
        *,
        flip_probability: float = 0.0,
        crop_scale_min: float = 1.0,
        feature_dropout: float,
    ) -> Tensor:
        """Everything random about strong views: which entries are kept, (S, B, D) bool.

        Args:
            indices_SB: images.
            generator: CPU generator that the dropped entries come from.
            flip_probability, crop_scale_min: not used here; views of pixels take them.
            feature_dropout: probability that an entry is dropped.
        """
        return torch.rand(*indices_SB.shape, self._features_MD.shape[1], generator=generator) >= feature_dropout

    def feed_crops(self, indices_SB: IntArray, draws_SBD: Tensor) -> Feed:
        """As `feed`."""
        return self.feed(indices_SB)

    def strong_of(self, fed: Tensor, draws_BD: Tensor) -> Tensor:
        """The features without what was dropped, normalised again: (B, D)."""
        return torch.nn.functional.normalize(self._features_MD[fed] * draws_BD, dim=-1)


@dataclass(frozen=True)
class Boxes:
    """Crop boxes in whole pixels, each (B,) int64."""

    top_B: Tensor
    left_B: Tensor
    height_B: Tensor
    width_B: Tensor


def sample_boxes(sizes_B2: IntArray, scale_min: float, generator: torch.Generator) -> Boxes:
    """Draw crop boxes as torchvision's `RandomResizedCrop.get_params` does, for a batch at once.

    Area uniform in [scale_min, 1] of the image, log aspect ratio uniform in log 3/4-log 4/3, position uniform; the
    first of ten tries that fits, else the largest central crop within the ratios.

    Args:
        sizes_B2: height and width of each image.
        scale_min: smallest share of the area.
        generator: CPU generator; takes 22 numbers per image whatever is drawn.
    """
    num_images = len(sizes_B2)
    height_B, width_B = (torch.as_tensor(sizes_B2[:, side]).double() for side in (0, 1))
    draws = torch.rand(2 * _TRIES + 2, num_images, generator=generator, dtype=torch.float64)
    area_TB = height_B * width_B * (scale_min + (1 - scale_min) * draws[:_TRIES])
    low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
    ratio_TB = torch.exp(low + (high - low) * draws[_TRIES : 2 * _TRIES])
    tall_TB, wide_TB = (area_TB / ratio_TB).sqrt().round(), (area_TB * ratio_TB).sqrt().round()
    fits_TB = (wide_TB > 0) & (wide_TB <= width_B) & (tall_TB > 0) & (tall_TB <= height_B)
    first_1B = fits_TB.int().argmax(0, keepdim=True)
    fits_B = fits_TB.any(0)
    # The central crop: the whole image, with its longer side cut if its aspect ratio lies outside `_RATIO`.
    whole_ratio_B = width_B / height_B
    central_tall_B = torch.where(whole_ratio_B < _RATIO[0], (width_B / _RATIO[0]).round(), height_B)
    central_wide_B = torch.where(whole_ratio_B > _RATIO[1], (height_B * _RATIO[1]).round(), width_B)
    tall_B = torch.where(fits_B, tall_TB.gather(0, first_1B)[0], central_tall_B)
    wide_B = torch.where(fits_B, wide_TB.gather(0, first_1B)[0], central_wide_B)
    top_B, left_B = (
        torch.where(fits_B, (draws[2 * _TRIES + axis] * (room_B + 1)).floor().minimum(room_B), (room_B / 2).floor())
        for axis, room_B in enumerate((height_B - tall_B, width_B - wide_B))
    )
    return Boxes(top_B.long(), left_B.long(), tall_B.long(), wide_B.long())


def centre_crop(image_HW3: Pixels, out_SS3: Pixels) -> None:
    """Copy the central S × S of an image, rounded as torchvision rounds; a shorter side is centred in `out`."""
    size = len(out_SS3)
    windows = []
    for length in image_HW3.shape[:2]:
        if length >= size:
            start = int(round((length - size) / 2.0))  # noqa: RUF046 - as torchvision writes it
            windows.append((slice(start, start + size), slice(0, size)))
        else:
            start = (size - length) // 2
            windows.append((slice(0, length), slice(start, start + length)))
    (source_rows, rows), (source_columns, columns) = windows
    out_SS3[rows, columns] = image_HW3[source_rows, source_columns]
