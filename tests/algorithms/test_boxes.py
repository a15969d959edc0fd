"""Every method against a slow, plain version of its algorithm box, on the real digits' frozen features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from captune.algorithms import ALGORITHMS, default_config
from captune.config import TaskConfig
from captune.records.layout import PREDICTIONS
from captune.training.context import Context
from captune.training.trial import TrainingTrial
from tests.reference import anchored_gaussians, mixtures
from tests.reference import pseudolabelling as reference

SMALL = {"tuning": "features", "epochs": 2, "steps_per_epoch": 3, "batch_size": 5}


def task(paradigm: str, **values: Any) -> TaskConfig:
    # A small pool keeps the plain version quick.
    return TaskConfig.parse({"dataset": "digits", "paradigm": paradigm, "pool_fraction": 0.12, **values})


def predictions(method: str, cell: TaskConfig, directory: Path, **values: Any) -> tuple[torch.Tensor, Any, Context]:
    config = default_config(method, cell).with_values({**SMALL, **values})
    run = TrainingTrial.open(cell, config, algorithm=ALGORITHMS[method], seed=3, directory=directory, role="report")
    while not run.trained:
        run.run_epoch()
    run.finish()
    return safetensors.torch.load_file(directory / PREDICTIONS)["test_probs"].float(), config, run.context


def plain(context: Context, config: Any, choose: Any, num_rounds: int) -> torch.Tensor:
    labelled = context.task.labelled
    pairs = zip(labelled.indices_N.tolist(), labelled.labels_N.tolist(), strict=True)
    weights_KD = reference.learn(
        pool_DN=context.image_features_MD[torch.tensor(context.task.pool.tolist())],
        labelled=[(context.image_features_MD[image], label) for image, label in pairs],
        text_KD=context.text_features_KD,
        scale=context.logit_scale,
        config=config,
        seed=3,
        choose=choose,
        num_rounds=num_rounds,
        classes=np.flatnonzero(context.task.pseudolabelled_K).tolist(),
    )
    images_ND = context.image_features_MD[torch.tensor(context.task.test.tolist())]
    return (context.logit_scale * images_ND @ weights_KD.T).softmax(1)


def open_classes(context: Context) -> list[int]:
    labels: list[int] = np.flatnonzero(context.task.pseudolabelled_K).tolist()
    return labels


def assert_same(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, atol=2e-3, rtol=0)  # predictions are stored in half precision


@pytest.mark.parametrize("paradigm", ["ul", "ssl", "trzsl"])
def test_fpl_equals_its_box(tmp_path: Path, paradigm: str) -> None:
    probs, config, context = predictions("fpl", task(paradigm), tmp_path, num_pseudolabels=3)
    classes = open_classes(context)
    assert_same(probs, plain(context, config, lambda _, p: reference.walk_boards(p, 3, classes), 1))


@pytest.mark.parametrize("paradigm", ["ul", "trzsl"])
def test_grip_equals_its_box(tmp_path: Path, paradigm: str) -> None:
    probs, config, context = predictions("grip", task(paradigm), tmp_path, num_iterations=3)
    classes = open_classes(context)

    def choose(iteration: int, p: reference.Probs) -> reference.Sets:
        return reference.walk_boards(p, max(1, int(iteration * len(p) / (3 * len(classes)))), classes)

    assert_same(probs, plain(context, config, choose, 3))


@pytest.mark.parametrize("paradigm", ["ul", "ssl", "trzsl"])
def test_cpl_equals_its_box(tmp_path: Path, paradigm: str) -> None:
    probs, config, context = predictions("cpl", task(paradigm), tmp_path, num_iterations=3, intra_quantile=0.9)
    classes = open_classes(context)

    def choose(iteration: int, p: reference.Probs) -> reference.Sets:
        sets = reference.candidates(p, 0.9, max(0.0, 1 - 2 / len(classes)), classes)
        rows = reference.accept(p, sets, max(1, int(iteration * len(p) / (3 * len(classes)))))
        return [(row, sets[row]) for row in rows]

    assert_same(probs, plain(context, config, choose, 3))


@pytest.mark.parametrize("paradigm", ["ssl", "trzsl"])
def test_coop_equals_its_box(tmp_path: Path, paradigm: str) -> None:
    """Supervised training on the labelled images, and nothing of the pool."""
    probs, config, context = predictions("coop", task(paradigm), tmp_path)
    assert_same(probs, plain(context, config, lambda *_: {}, 1))


def test_supervised_equals_its_box(tmp_path: Path) -> None:
    probs, config, context = predictions("supervised", task("ul", unseal_pool=True), tmp_path)
    assert len(context.task.labelled) == len(context.task.pool)
    assert_same(probs, plain(context, config, lambda *_: [], 1))


@pytest.mark.parametrize("paradigm", ["tft", "ssl"])
def test_transclip_equals_its_box(tmp_path: Path, paradigm: str) -> None:
    cell = task(paradigm, pool_fraction=0.05)
    probs, _, context = predictions("transclip", cell, tmp_path, num_rounds=2, labelled_weight=0.2)
    features, pool, labelled = context.image_features_MD.double(), context.task.pool.tolist(), context.task.labelled
    log_text = context.zero_shot_logits(context.task.pool).double().log_softmax(1)
    strength = 0.5 if len(labelled) else 1.0
    z, means, variances = mixtures.fit(
        features[pool].numpy(),
        log_text.numpy(),
        text_strength=strength,
        num_neighbors=3,
        labelled=features[labelled.indices_N.tolist()].numpy(),
        labels=labelled.labels_N,
        labelled_weight=0.2,
        num_steps=2,
        num_inner=5,
        num_confident=8,
    )
    means_KD, variances_D = torch.tensor(means).double(), torch.tensor(variances).double()
    for row, image in enumerate(context.task.test.tolist()):
        if image in pool:
            expected = torch.tensor(z[pool.index(image)])
        else:
            density_K = -0.5 * ((features[image] - means_KD).square() / variances_D).sum(1)
            text_K = context.logit_scale * features[image] @ context.text_features_KD.double().T
            expected = (strength * text_K + density_K / 50).softmax(0)
        assert_same(probs[row], expected.float())


@pytest.mark.parametrize("paradigm", ["ul", "tft", "trzsl"])
def test_anchored_equals_its_box(tmp_path: Path, paradigm: str) -> None:
    cell = task(paradigm, pool_fraction=0.03)
    probs, _, context = predictions("anchored", cell, tmp_path, num_rounds=2, text_images=3.0)
    features, labelled = context.image_features_MD.double().numpy(), context.task.labelled
    pool, open_K = context.task.pool.tolist(), context.task.pseudolabelled_K
    pairs = list(zip(labelled.indices_N.tolist(), labelled.labels_N.tolist(), strict=True))
    settings: dict[str, Any] = {
        "open_classes": open_K.tolist(), "labelled": [(features[image], label) for image, label in pairs],
        "kappa": 3.0, "nu": 1.0, "beta": 0.15, "text_strength": 1.0, "shrinkage": 0.5, "num_steps": 2,
    }  # fmt: skip
    logits_NK, prior_K, _ = anchored_gaussians.fit(
        features[pool], context.text_features_KD.double().numpy(), context.logit_scale, **settings
    )
    if paradigm == "tft":
        logits_NK = logits_NK + 0.5 * np.log(prior_K)
        rows = [context.task.test.tolist().index(image) for image in pool]
        assert_same(probs[rows], torch.tensor(logits_NK).softmax(1).float())
    else:
        run = TrainingTrial.open(
            cell, default_config("anchored", cell).with_values({**SMALL, "num_rounds": 2, "text_images": 3.0}),
            algorithm=ALGORITHMS["anchored"], seed=3, directory=tmp_path / "again", role="report",
        )  # fmt: skip
        assert_same(run._algorithm.predict(context.task.pool), torch.tensor(logits_NK).softmax(1).float())


def test_prompt_ensembles_average_the_templates(tmp_path: Path) -> None:
    templates = ("a photo of the digit {}.", "the number {}.")
    probs, _, context = predictions("zero_shot", task("ul"), tmp_path, templates=templates)
    assert context.backbone is not None
    names = context.task.class_names
    texts = [context.backbone.encode_texts([t.replace("{}", n) for n in names]) for t in templates]
    mean_KD = torch.stack([t / t.norm(dim=1, keepdim=True) for t in texts]).mean(0)
    mean_KD = mean_KD / mean_KD.norm(dim=1, keepdim=True)
    images_ND = context.image_features_MD[torch.tensor(context.task.test.tolist())]
    assert_same(probs, (context.logit_scale * images_ND @ mean_KD.T).softmax(1))
