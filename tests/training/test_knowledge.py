"""A backbone whose texts say nothing of the images is told from one that knows them, without a label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from captune.config import TaskConfig
from captune.records import Role
from captune.training.context import open_context
from captune.training.knowledge import classes_unknown

NUM_CLASSES, WIDTH = 30, 64


def feature_file(file: Path, text_KD: np.ndarray, centres_KD: np.ndarray) -> str:
    """Twenty images around each centre, half of them for training."""
    generator = np.random.default_rng(2)
    labels_M = np.tile(np.arange(NUM_CLASSES), 20)
    images_MD = centres_KD[labels_M] + 0.5 * generator.standard_normal((len(labels_M), WIDTH))
    np.savez(
        file,
        image_features=images_MD.astype(np.float32),
        labels=labels_M,
        split=np.where(np.arange(len(labels_M)) < 300, "train", "test"),
        text_features=text_KD.astype(np.float32),
        class_names=np.array([f"thing {label}" for label in range(NUM_CLASSES)]),
        logit_scale=np.array([10.0], np.float32),
    )
    return f"features:{file}"


@pytest.mark.parametrize("knows", [True, False])
def test_texts_that_fit_are_known_and_texts_that_do_not_are_told(tmp_path: Path, knows: bool) -> None:
    generator = np.random.default_rng(1)
    centres_KD = generator.standard_normal((NUM_CLASSES, WIDTH))
    # Texts of another world: all near one direction that has nothing to do with the images.
    others_KD = 3 * generator.standard_normal(WIDTH) + generator.standard_normal((NUM_CLASSES, WIDTH))
    dataset = feature_file(tmp_path / "features.npz", centres_KD if knows else others_KD, centres_KD)
    config = TaskConfig.parse({"dataset": dataset, "paradigm": "ul"})
    said = classes_unknown(open_context(config, Role.REPORT, "cpu"))
    assert (said is None) == knows
    assert knows or "random texts" in str(said)


def test_labelled_images_settle_the_question(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    others_KD = 3 * generator.standard_normal(WIDTH) + generator.standard_normal((NUM_CLASSES, WIDTH))
    dataset = feature_file(tmp_path / "features.npz", others_KD, generator.standard_normal((NUM_CLASSES, WIDTH)))
    config = TaskConfig.parse({"dataset": dataset, "paradigm": "ssl"})
    assert classes_unknown(open_context(config, Role.REPORT, "cpu")) is None
