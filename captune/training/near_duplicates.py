"""Test images of a cell that nearly equal a training image, by the frozen features; no label is read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from captune.config import TaskConfig
from captune.data.catalog import load_dataset
from captune.data.duplicates import nearest_across
from captune.records import Role
from captune.training.context import open_context

# Pairs of images above which looking for near duplicates takes minutes; `captune datasets --check --duplicates` does.
_MOST_PAIRS = 3_000_000_000


@dataclass(frozen=True)
class NearDuplicates:
    """What was found.

    Attributes:
        num_test: test images that were looked at.
        count: how many of them have a training image with a cosine of at least 0.99.
        pairs: (test image, training image, cosine) of the closest, by index in the dataset, falling.
    """

    num_test: int
    count: int
    pairs: tuple[tuple[int, int, float], ...]


@lru_cache(maxsize=2)
def near_duplicates(config: TaskConfig) -> NearDuplicates:
    """Search for near duplicates; an empty result where that would take minutes."""
    context = open_context(config, Role.REPORT)
    dataset = load_dataset(config)
    readable = np.ones(dataset.num_images, bool)
    if context.unreadable:
        readable[:] = [path not in context.unreadable for path in dataset.paths]
    train, test = (images[readable[images]] for images in (dataset.indices("train", "val"), dataset.indices("test")))
    if not len(train) or not len(test) or len(train) * len(test) > _MOST_PAIRS:
        return NearDuplicates(len(test), 0, ())
    features_MD = context.image_features_MD.cpu().numpy()
    count, pairs = nearest_across(features_MD[train], features_MD[test])
    found = tuple((int(test[at]), int(train[row]), float(cosine)) for row, at, cosine in pairs)
    return NearDuplicates(len(test), count, found)
