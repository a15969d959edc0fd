"""Whole runs of CAP: captune against the slow reference's record, and the reference against the published code's."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tf
from PIL import Image

from captune.algorithms import default_config
from captune.algorithms.cap import Cap
from captune.algorithms.configs import CapConfig
from captune.model.class_prompts import class_prompts
from captune.training.context import Context, open_context
from captune.training.loop import Loop
from tests.golden.make_cap_run import PARADIGMS, PATH, SEED, config, task
from tests.golden.official_run import OFFICIAL, Official
from tests.reference.cap_run import Batch, CapRun, Settings


def losses_of(loop: Loop) -> list[float]:
    """A list that takes up the loss of every step from now on."""
    losses: list[float] = []
    step = loop._step

    def watched(batch: Any) -> Any:
        loss, seen = step(batch)
        losses.append(float(loss))
        return loss, seen

    loop._step = watched  # type: ignore[assignment]
    return losses


@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_a_run_is_the_one_on_record(paradigm: str) -> None:
    """Five epochs with growing boards and margins: boards in order, counts, margins, losses, predictions."""
    record = json.loads(PATH.read_text())[paradigm]
    context = open_context(task(paradigm), "report", "cpu")
    cap = Cap(context, config(), SEED)
    loop = Loop(cap, cap.config, cap.config.epochs)
    losses = losses_of(loop)
    for number, epoch in enumerate(record["epochs"]):
        losses.clear()
        loop.run_epoch()
        np.testing.assert_allclose(cap.margin_KK.numpy(), epoch["margin"], atol=2e-4, err_msg=f"margin {number}")
        np.testing.assert_allclose(losses, epoch["losses"], atol=2e-4, err_msg=f"losses {number}")
        assert cap.counts_K.int().tolist() == epoch["counts"], number
        boards = {str(label): [image for image, _ in board] for label, board in cap.boards.items()}
        assert boards == epoch["boards"], number
    assert cap.predict(context.task.test).argmax(-1).tolist() == record["predictions"]


@pytest.mark.slow
@pytest.mark.skipif(not OFFICIAL.exists(), reason=f"no recorded runs of the published code at {OFFICIAL}")
@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_the_reference_is_the_published_code(paradigm: str, tmp_path: Path) -> None:
    official = Official(tmp_path, paradigm)
    given = official.config
    context = open_context(official.task, "report", "cpu")
    held, backbone = context.task, context.backbone
    assert backbone is not None and context.image_views is not None
    views, preprocessing = context.image_views, backbone.preprocessing
    unseen = np.flatnonzero(held.pseudolabelled_K).tolist()
    labelled = [(int(official.ours[i]), int(label)) for i, label in official["labelled"]] if paradigm != "ul" else []
    run = CapRun(
        backbone.model,
        backbone.tokenize(class_prompts(held.class_names, "a photo of a {}.")),
        official.initial(),
        context.zero_shot_logits(held.pool).double().softmax(-1).tolist(),
        held.pool.tolist(),
        labelled,
        unseen,
        lambda images: views.weak(np.array(images)),
        Settings(
            epochs=given["EPOCHS"], steps=given["ITER_PER_EPOCH"], threshold=given["THRESHOLD"],
            margin_scale=given["MARGIN_SCALE"], main_samples=given["N_MAIN_SAMPLES"],
            max_ratio=given["MAX_MAIN_RATIO"], grow_every=given["ITER_EPOCHS"], learning_rate=given["LR"],
            weight_decay=given["DECAY"], momentum=0.9, warmup_epochs=given["WARMUP_EPOCHS"], residual=0.01,
            logit_scale=context.logit_scale,
        ),
    )  # fmt: skip
    assert {k: [i for i, _ in board] for k, board in run.boards.items()} == official.boards("first", unseen)

    def crop(image: int, box: list[int]) -> torch.Tensor:
        picture = Image.open(official.dataset.paths[image]).convert("RGB")
        cut = tf.hflip(tf.resized_crop(picture, *box, [64, 64], tf.InterpolationMode.BICUBIC))
        return tf.normalize(tf.to_tensor(cut), preprocessing.mean, preprocessing.std)

    def batches(epoch: int) -> Any:
        def batch(step: int) -> Batch:
            at = epoch * given["ITER_PER_EPOCH"] + step

            pool = [int(official.ours[i]) for i in official["u_images"][at]]
            boxes = official["crops"][at].tolist()
            strong = torch.stack([crop(image, box) for image, box in zip(pool, boxes, strict=True)])
            return Batch(pool, official.pairs("m", at), official.pairs("l", at) if paradigm != "ul" else [], strong)

        return batch

    off = ~np.eye(held.num_classes, dtype=bool)
    for epoch in range(given["EPOCHS"]):
        record = run.run_epoch(epoch, batches(epoch))
        np.testing.assert_allclose(np.array(record.margin)[off], official[f"e{epoch}_margin"][off], atol=1e-3)
        np.testing.assert_allclose(record.losses, np.nansum(official[f"e{epoch}_losses"][:, :3], axis=1), atol=1e-3)
        assert record.counts == official[f"e{epoch}_counts"].tolist(), epoch
        assert record.boards == official.boards(f"e{epoch}_board", unseen), epoch
    expected = dict(
        zip(official.ours[int(official.record["num_pool"]) :].tolist(), official["predictions"].tolist(), strict=True)
    )
    assert run.predictions(held.test.tolist()) == [expected[image] for image in held.test.tolist()]


class Recorded(Cap):
    """CAP as it ships, but the batches and the crops are a record's: they are random, not method."""

    def __init__(self, context: Context, config: CapConfig, official: Official) -> None:
        self.official = official
        super().__init__(context, config, 0)

    def _batches(self, epoch: int) -> list[list[np.ndarray]]:
        steps = range(epoch * self.config.steps_per_epoch, (epoch + 1) * self.config.steps_per_epoch)
        labelled = self.context.task.labelled
        places = {
            "u": {int(image): place for place, image in enumerate(self.context.task.pool)},
            "m": {(int(image), int(label)): place for place, (image, label) in enumerate(self.main_M2)},
            "l": {
                (int(image), int(label)): place
                for place, (image, label) in enumerate(zip(labelled.indices_N, labelled.labels_N, strict=True))
            },
        }
        crops_SB4 = torch.from_numpy(self.official["crops"][steps.start : steps.stop])
        flipped_SB1 = torch.ones_like(crops_SB4[..., :1])
        self.views.draw = lambda *_, **__: torch.cat([crops_SB4, flipped_SB1], dim=-1)  # type: ignore[method-assign]

        def of(kind: str, step: int) -> np.ndarray:
            if kind == "u":
                rows = [places["u"][int(self.official.ours[image])] for image in self.official["u_images"][step]]
            elif kind == "l" and not len(labelled.indices_N):
                rows = []
            else:
                pairs = self.official.pairs(kind, step)
                rows = [places[kind][pair] for pair in pairs]
            return np.array(rows, dtype=np.int64)

        return [[of(kind, step) for step in steps] for kind in ("u", "m", "l")]


@pytest.mark.slow
@pytest.mark.skipif(not OFFICIAL.exists(), reason=f"no recorded runs of the published code at {OFFICIAL}")
@pytest.mark.parametrize("paradigm", PARADIGMS)
def test_captune_under_the_preset_is_the_published_code(paradigm: str, tmp_path: Path) -> None:
    """`--preset paper` at the record's size, as it ships: first boards, renewals in order, counts, margins, losses,
    accuracies and every test prediction. Only batches, crops and initial values come from the record.
    """
    official = Official(tmp_path, paradigm)
    given = official.config
    context = open_context(official.task, "report", "cpu")
    held = context.task
    config = default_config("cap", official.task, "prompts", "paper").with_values(
        {
            "epochs": given["EPOCHS"], "steps_per_epoch": given["ITER_PER_EPOCH"], "batch_size": given["BATCH_SIZE"],
            "num_main_samples": given["N_MAIN_SAMPLES"], "max_main_ratio": given["MAX_MAIN_RATIO"],
            "grow_every": given["ITER_EPOCHS"], "confidence_threshold": given["THRESHOLD"],
            "prompt_depth": given["PROMPT_DEPTH"],
        }
    )  # fmt: skip
    for name, value in (("N_CTX", config.num_context), ("LR", config.learning_rate), ("DECAY", config.weight_decay),
                        ("WARMUP_EPOCHS", config.warmup_epochs), ("MARGIN_SCALE", config.margin_scale)):  # fmt: skip
        assert given[name] == value, f"the preset's own value of {name}"
    unseen = np.flatnonzero(held.pseudolabelled_K).tolist()
    cap = Recorded(context, config, official)
    assert {k: [i for i, _ in board] for k, board in cap.boards.items()} == official.boards("first", unseen)
    own = dict(cap.classifier.named_parameters())
    with torch.no_grad():
        for name, value in official.initial().items():
            place = name if name.split(".")[0] in ("main", "text", "pseudo") else None
            own[f"adapters.{name}" if place else f"prompts.{name}"].copy_(value)
    loop = Loop(cap, config, config.epochs)
    losses = losses_of(loop)
    off = ~np.eye(held.num_classes, dtype=bool)
    truth = np.array(official.dataset.labels_M)[held.test]
    expected = dict(
        zip(official.ours[int(official.record["num_pool"]) :].tolist(), official["predictions"].tolist(), strict=True)
    )
    for epoch in range(config.epochs):
        losses.clear()
        loop.run_epoch()
        np.testing.assert_allclose(cap.margin_KK.numpy()[off], official[f"e{epoch}_margin"][off], atol=1e-3)
        np.testing.assert_allclose(losses, np.nansum(official[f"e{epoch}_losses"][:, :3], axis=1), atol=1e-3)
        assert cap.counts_K.int().tolist() == official[f"e{epoch}_counts"].tolist(), epoch
        boards = {k: [i for i, _ in board] for k, board in cap.boards.items()}
        assert boards == official.boards(f"e{epoch}_board", unseen), epoch
        hit = cap.predict(held.test).argmax(-1).numpy() == truth
        parts = [hit] if paradigm != "trzsl" else [hit[held.seen_K[truth]], hit[~held.seen_K[truth]]]
        accuracy = statistics.harmonic_mean([float(part.mean()) for part in parts])
        assert accuracy == pytest.approx(float(official[f"e{epoch}_accuracy"][0]), abs=1e-6), epoch
    assert cap.predict(held.test).argmax(-1).tolist() == [expected[image] for image in held.test.tolist()]
