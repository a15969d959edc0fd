"""Write cap_run.json: whole runs of CAP by the slow reference, on the digits with the embedded model.

Batches, views and initial values are captune's (they are random, not method); boards, margins, losses, steps and
predictions are `tests.reference.cap_run`'s. Run it as `python -m tests.golden.make_cap_run`, and only if the method
itself is meant to change.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from captune.algorithms.cap import Cap
from captune.algorithms.configs import CapConfig
from captune.config import TaskConfig
from captune.model.class_prompts import class_prompts, learned_template
from captune.model.prompts import class_tokens
from captune.training.context import Context, open_context
from tests.reference.cap_run import Batch, CapRun, Settings

PATH = Path(__file__).with_name("cap_run.json")
PARADIGMS = ("ul", "ssl", "trzsl")
SEED = 5


def task(paradigm: str) -> TaskConfig:
    # A small pool keeps the reference quick.
    return TaskConfig.parse({"dataset": "digits", "paradigm": paradigm, "pool_fraction": 0.12})


def config() -> CapConfig:
    return CapConfig.parse(
        {
            "tuning": "prompts", "epochs": 5, "steps_per_epoch": 4, "batch_size": 6, "confidence_threshold": 0.6,
            "num_main_samples": 3, "max_main_ratio": 0.8, "grow_every": 2, "margin_features": "reencoded",
            "mismatched": "none", "learning_rate": 0.05, "batching": "published", "adapter_start": "random",
        }
    )  # fmt: skip


def initial_values(cap: Cap) -> dict[str, torch.Tensor]:
    """Captune's initial values under the names of the reference."""
    assert cap.classifier is not None
    learned = cap.classifier.learned_state()
    values = {name: learned[f"prompts.{name}"] for name in ("context", "deep", "projection", "projection_bias")}
    return values | {
        f"{which}.{part}": learned[f"adapters.{which}.{part}"]
        for which in ("main", "pseudo", "text")
        for part in ("down_weight", "down_bias", "up_weight", "up_bias")
    }


def reference_run(context: Context, cap: Cap) -> CapRun:
    """The reference at the start of the same run."""
    held, config_, backbone = context.task, cap.config, context.backbone
    assert backbone is not None and context.image_views is not None
    views = context.image_views
    template = learned_template(held.template, held.config.prompt_form)
    tokens_KL, _ = class_tokens(
        backbone, class_prompts(held.class_names, template), template.split("{}")[0], config_.num_context
    )
    zero_shot = context.zero_shot_logits(held.pool).double().softmax(-1).tolist()
    return CapRun(
        backbone.model,
        tokens_KL,
        initial_values(cap),
        zero_shot,
        held.pool.tolist(),
        list(zip(held.labelled.indices_N.tolist(), held.labelled.labels_N.tolist(), strict=True)),
        np.flatnonzero(held.pseudolabelled_K).tolist(),
        lambda images: views.weak(np.array(images)),
        Settings(
            epochs=config_.epochs,
            steps=config_.steps_per_epoch,
            threshold=config_.confidence_threshold,
            margin_scale=config_.margin_scale,
            main_samples=config_.num_main_samples,
            max_ratio=config_.max_main_ratio,
            grow_every=config_.epochs_between_renewals,
            learning_rate=config_.learning_rate,
            weight_decay=config_.weight_decay,
            momentum=config_.momentum,
            warmup_epochs=config_.warmup_epochs,
            residual=config_.adapter_residual,
            logit_scale=context.logit_scale,
        ),
    )


def batches_of(cap: Cap, run: CapRun) -> Callable[[int], Batch]:
    """What captune draws for an epoch, from the boards of the reference."""
    task_ = cap.context.task

    def batch(step: int) -> Batch:
        fed = cap.batch(step)
        main = cap.main_M2[cap.main_S[step]]
        own = cap.labelled_S[step]
        return Batch(
            cap.pool_SB[step].tolist(),
            [(int(image), int(label)) for image, label in main],
            list(zip(task_.labelled.indices_N[own].tolist(), task_.labelled.labels_N[own].tolist(), strict=True)),
            cap.views.strong_of(fed["strong"], fed["draws"]),
        )

    return batch


def make(paradigm: str) -> dict[str, Any]:
    """The record of one paradigm."""
    context = open_context(task(paradigm), "report", "cpu")
    cap = Cap(context, config(), SEED)
    run = reference_run(context, cap)
    epochs = []
    for number in range(cap.config.epochs):
        # Which images a step reads follows from the boards: the reference's, not captune's.
        cap.boards = run.boards
        cap.start_epoch(number)
        record = run.run_epoch(number, batches_of(cap, run))
        epochs.append(
            {
                "margin": [[round(value, 6) for value in row] for row in record.margin],
                "losses": [round(value, 6) for value in record.losses],
                "counts": record.counts,
                "boards": {str(label): images for label, images in record.boards.items()},
            }
        )
    return {"epochs": epochs, "predictions": run.predictions(context.task.test.tolist())}


def main() -> None:
    PATH.write_text(json.dumps({paradigm: make(paradigm) for paradigm in PARADIGMS}) + "\n")


if __name__ == "__main__":
    main()
