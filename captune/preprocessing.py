"""How images are prepared for a backbone; used by the image store (data) and the backbones (model)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Preprocessing:
    """Resizing and normalisation of one backbone, as open_clip describes them.

    Attributes:
        image_size: side of the square input, in pixels.
        mean: per-channel mean subtracted from values in [0, 1].
        std: per-channel standard deviation by which they are then divided.
        resize_mode: what is resized to `image_size`: the shortest side, followed by a centre crop (shortest); both
            sides (squash); or the longest side, followed by padding (longest).
        interpolation: of the resize.
    """

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize_mode: Literal["shortest", "squash", "longest"] = "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
