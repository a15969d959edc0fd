"""What the advice may know of a cell: predictions on all unlabelled images, and whether the texts fit them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from captune.config import TaskConfig
from captune.decisions.evidence import Knowledge
from captune.records import Role
from captune.training.context import open_context
from captune.training.pool_evidence import HOLDOUT_PROBS, POOL_PROBS, evidence_images, knowledge_of, pool_evidence
from captune.training.trial import PREDICTIONS

NUM_CLASSES, WIDTH = 30, 64


def measured(config: TaskConfig) -> Knowledge | None:
    """Of the pool of a cell."""
    context = open_context(config, Role.REPORT, "cpu")
    features_ND = context.image_features_MD[torch.tensor(context.task.pool)]
    similarity_NN = (features_ND @ features_ND.T).fill_diagonal_(float("-inf"))
    return knowledge_of(context, features_ND, similarity_NN.topk(10).indices)


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
    knowledge = measured(config)
    assert knowledge is not None and knowledge.known(0.4) == knows
    assert "random texts" in knowledge.evidence


def test_labelled_images_settle_the_question(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    others_KD = 3 * generator.standard_normal(WIDTH) + generator.standard_normal((NUM_CLASSES, WIDTH))
    dataset = feature_file(tmp_path / "features.npz", others_KD, generator.standard_normal((NUM_CLASSES, WIDTH)))
    config = TaskConfig.parse({"dataset": dataset, "paradigm": "ssl"})
    assert measured(config) is None


def stored(directory: Path, **tensors: torch.Tensor) -> Path:
    directory.mkdir(parents=True)
    safetensors.torch.save_file({name: tensor.half() for name, tensor in tensors.items()}, directory / PREDICTIONS)
    return directory


def test_candidates_are_compared_on_every_unlabelled_image_and_seeds_are_averaged(tmp_path: Path) -> None:
    config = TaskConfig(dataset="digits", paradigm="ul")
    task = open_context(config, Role.SCORE).task
    images = evidence_images(task)
    assert sorted(images) == sorted([*task.pool, *task.holdout]) and len(images) > 1000
    one = torch.eye(10)[torch.arange(len(images)) % 10]
    zero, balanced = (stored(tmp_path / name, pool_probs=one) for name in ("zero_shot", "balanced"))
    seeds = [stored(tmp_path / f"c1-s{seed}", pool_probs=one.roll(seed, 1)) for seed in (1, 2)]
    evidence = pool_evidence(config, {"zero_shot": [zero], "balanced": [balanced], "c1": seeds}, {"c1": "cap"})
    assert evidence is not None and evidence.families["c1"] == "cap"
    assert evidence.probs["c1"][0].tolist() == [0, 0.5, 0.5, *[0] * 7]
    assert evidence.neighbours_Nk.shape == (len(images), 10)


def test_predictions_of_an_older_captune_are_compared_on_the_held_out_images(tmp_path: Path) -> None:
    config = TaskConfig(dataset="digits", paradigm="ul")
    task = open_context(config, Role.SCORE).task
    held_out, pool = (torch.full((count, 10), 0.1) for count in (len(task.holdout), len(evidence_images(task))))
    old = stored(tmp_path / "zero_shot", **{HOLDOUT_PROBS: held_out})
    new = stored(tmp_path / "balanced", **{HOLDOUT_PROBS: held_out, POOL_PROBS: pool})
    evidence = pool_evidence(config, {"zero_shot": [old], "balanced": [new]}, {})
    assert evidence is not None and len(evidence.neighbours_Nk) == len(task.holdout)
    nothing = stored(tmp_path / "c1", test_probs=held_out)
    assert pool_evidence(config, {"zero_shot": [old], "balanced": [new], "c1": [nothing]}, {}) is None
