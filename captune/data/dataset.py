"""What a dataset is to the rest of captune: three splits in one index space, names, and where it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
UNKNOWN = -1
"""The label of an image whose class is not known."""


@dataclass(frozen=True, eq=False)
class Split:
    """Some images with their labels.

    Attributes:
        paths: absolute file names; empty for datasets of arrays or features.
        labels_N: class indices, int64; `UNKNOWN` (-1) if there is none.
    """

    paths: tuple[str, ...]
    labels_N: IntArray

    def __len__(self) -> int:
        return len(self.labels_N)


def empty_split() -> Split:
    """No images."""
    return Split((), np.empty(0, np.int64))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset as it is on disk. It holds every label; training gets a `Task`, which has only labels it may use.

    An image's index counts through train, then val, then test: one index space of M images.

    Attributes:
        key: as typed: a catalogue key, or folder:DIR, csv:FILE, features:FILE.npz.
        class_names: K names in label order, as they stand in a prompt.
        template: prompt with one `{}`.
        train, val, test: the splits; val may be empty.
        images_NHWC: all images as uint8 arrays (digits); None if they are files or features.
        image_features_MD: precomputed image features of all images, else None.
        rows_M: of precomputed features, the row of each image in its file, in index order.
        text_features_KD: precomputed class features, else None.
        logit_scale: exp(logit_scale) that belongs to the precomputed features, if the file gives one.
        source: where it is, as shown to users.
        layout: the folder shape it was read in, as shown to users.
        licence: what its owners allow, as shown to users.
        notes: what a person should know about how it was read, one sentence each.
        reading: how pixels are read, "open_clip" or "viewer" (`captune.data.decode`).
        max_unreadable: fraction of the images that may be unreadable; these are left out.
    """

    key: str
    class_names: tuple[str, ...]
    template: str
    train: Split
    val: Split
    test: Split
    images_NHWC: npt.NDArray[np.uint8] | None = field(default=None, repr=False)
    image_features_MD: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    rows_M: IntArray | None = field(default=None, repr=False)
    text_features_KD: npt.NDArray[np.float32] | None = field(default=None, repr=False)
    logit_scale: float | None = None
    source: str = ""
    layout: str = ""
    licence: str = ""
    notes: tuple[str, ...] = ()
    reading: Literal["open_clip", "viewer"] = "open_clip"
    max_unreadable: float = 0.01

    @property
    def num_images(self) -> int:
        """M: images of all splits together."""
        return len(self.train) + len(self.val) + len(self.test)

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def paths(self) -> tuple[str, ...]:
        """File names of all images in index order; empty for arrays and features."""
        return self.train.paths + self.val.paths + self.test.paths

    @property
    def labels_M(self) -> IntArray:
        """Labels of all images in index order."""
        return np.concatenate([self.train.labels_N, self.val.labels_N, self.test.labels_N])

    def indices(self, *splits: str) -> IntArray:
        """Indices of the named splits ("train", "val", "test"), in ascending order."""
        starts = {"train": 0, "val": len(self.train), "test": len(self.train) + len(self.val)}
        sizes = {"train": len(self.train), "val": len(self.val), "test": len(self.test)}
        chosen = [
            np.arange(starts[name], starts[name] + sizes[name], dtype=np.int64) for name in starts if name in splits
        ]
        return np.concatenate(chosen) if chosen else np.empty(0, np.int64)
