"""A store's images in a GPU's memory, and views cut out of them by one kernel (Triton).

The host only draws boxes. A target pixel is the sum over the few source pixels under the bicubic kernel, with the
weights of `captune.data.resampling.resampling_weights`. As matrix products these would take twenty kernels and ten
times as long on a GPU.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from captune.data.image_store import ImageStore
from captune.preprocessing import Preprocessing

# Images may take only this share of a GPU's memory: several trials can run on it, and each needs more than its images.
_SHARE = 0.1
_CHUNK = 64 * 2**20
_SHARED: WeakValueDictionary[tuple[str, Preprocessing, str], ResidentPixels] = WeakValueDictionary()


def fits(store: ImageStore, device: torch.device) -> bool:
    """Whether a store of pixels fits in a tenth of a GPU's memory and Triton is installed; False for other stores."""
    if store.keep != "pixels" or device.type != "cuda" or len(store) == 0 or find_spec("triton") is None:
        return False
    return store.num_bytes <= _SHARE * torch.cuda.get_device_properties(device).total_memory


def resident_pixels(store: ImageStore, preprocessing: Preprocessing, device: torch.device) -> ResidentPixels:
    """The pixels of a store on a device, one copy per process, however many cells and roles use it."""
    key = store.key, preprocessing, str(device)
    pixels = _SHARED.get(key)
    if pixels is None:
        pixels = _SHARED[key] = ResidentPixels(store, preprocessing, device)
    return pixels


class ResidentPixels:
    """All pixels of a store on a device.

    Args:
        store: its images.
        preprocessing: how views are sized and normalised.
        device: where the pixels are kept.
    """

    def __init__(self, store: ImageStore, preprocessing: Preprocessing, device: torch.device) -> None:
        pixels = store.flat()
        self._pixels = torch.empty(len(pixels), dtype=torch.uint8, device=device)
        for start in range(0, len(pixels), _CHUNK):
            # A copy, because torch needs writable memory.
            part = torch.from_numpy(np.array(pixels[start : start + _CHUNK]))
            self._pixels[start : start + len(part)] = part.to(device)
        self._start_N = torch.as_tensor(np.array(store.offsets_N), device=device)
        self._sizes_N2 = torch.as_tensor(np.array(store.sizes_N2), device=device)
        size = preprocessing.image_size
        room_N2 = store.sizes_N2 - size
        # As `centre_crop`: round half to even if the image is larger than the crop, towards zero if it is smaller.
        corner_N2 = np.where(room_N2 >= 0, np.rint(room_N2 / 2), -((-room_N2) // 2))
        centre_N5 = np.pad(corner_N2, ((0, 0), (0, 3))).astype(np.int64)
        centre_N5[:, 2:4] = size
        self._centre_N5 = torch.as_tensor(centre_N5, device=device)
        self._size = size
        self._factors = [1 / (255 * std) for std in preprocessing.std]
        self._shifts = [-mean / std for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True)]
        shrink = max(1.0, max(store.largest_crop) / size)
        # The most whole numbers that an interval as wide as the kernel, 4 · shrink, can hold, ends included.
        self._taps = math.floor(4 * shrink) + 1

    def centres(self, indices_B: Tensor, dtype: torch.dtype) -> Tensor:
        """Central crops (B, 3, S, S), normalised; black beyond the edge of a smaller image."""
        return self._cut(indices_B, self._centre_N5[indices_B], dtype, taps=1)

    def crops(self, indices_B: Tensor, boxes_B5: Tensor, dtype: torch.dtype) -> Tensor:
        """Crops resampled to (B, 3, S, S), normalised.

        Args:
            indices_B: images, on the device.
            boxes_B5: top, left, height, width and 1 for a flip, inside the images.
            dtype: type of the views.
        """
        return self._cut(indices_B, boxes_B5, dtype, taps=self._taps)

    def _cut(self, indices_B: Tensor, boxes_B5: Tensor, dtype: torch.dtype, *, taps: int) -> Tensor:
        from captune.data.resident_kernel import cut

        return cut(
            self._pixels, self._start_N, self._sizes_N2, indices_B, boxes_B5,
            size=self._size, factors=self._factors, shifts=self._shifts, taps=taps, dtype=dtype,
        )  # fmt: skip
