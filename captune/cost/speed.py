"""`captune bench` without its command line: how fast this machine trains a backbone, and what a study would cost."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from captune.algorithms import default_config
from captune.config import StudyConfig, TaskConfig
from captune.cost.estimate import TrialCost, estimate_trial_cost, num_confirmations
from captune.cost.measure import MatrixRate, machine, matrix_rate, versions, why_too_noisy
from captune.cost.photographs import class_names, write_photographs
from captune.errors import UsageError
from captune.model.device import resolve_device

Precision = Literal["fp32", "bf16", "fp16"]
SCHEMA = 3
_IMAGES = 96


@dataclass(frozen=True)
class Speed:
    """The speed of prompt tuning with one number of classes in one precision, alone on this machine.

    Attributes:
        classes: number of classes K.
        precision: of the frozen towers.
        batch_size: images per stream and step; the streams are main samples, weak and strong views of the pool.
        step_seconds: of a training step.
        images_per_second: views encoded per second while training.
        prepared_per_second: images decoded and encoded per second, as is done once on every node.
        memory_bytes: peak memory of training and predicting (resident on a CPU, allocated on a GPU).
        trial_seconds: of training at the paper's budget of 50 × 50 steps.
        study_seconds: of training the default study's trials and confirmations, one at a time, none stopped early.
        matrix_flops: operations per second of matrix products, measured just before and after.
        too_noisy: why these numbers cannot be trusted; None if they can.
    """

    classes: int
    precision: Precision
    batch_size: int
    step_seconds: float
    images_per_second: float
    prepared_per_second: float
    memory_bytes: int
    trial_seconds: float
    study_seconds: float
    matrix_flops: tuple[float, float]
    too_noisy: str | None


def measure_speed(
    backbone: str,
    pretrained: str | None,
    *,
    classes: tuple[int, ...],
    precisions: tuple[Precision, ...],
    batch_size: int = 32,
    device: str = "auto",
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure the training of CAP's prompts on made-up photographs; returns what `captune bench --json` writes.

    Args:
        backbone: open_clip model name, or tiny.
        pretrained: weights; random ones take as long as trained ones.
        classes: class counts.
        precisions: of the frozen towers.
        batch_size: images per stream and step.
        device: auto, cpu, cuda or cuda:N.
        say: called with a description of what is measured next.

    Raises:
        UsageError: fewer than two classes, or an unknown backbone.
        ModelError: weights that cannot be opened, or a backbone that prompts cannot enter.
    """
    where = resolve_device(device)
    rates: dict[str, float] = {}
    rows: list[Speed] = []
    with tempfile.TemporaryDirectory(prefix="captune-bench-") as folder:
        for count in classes:
            photographs = Path(folder) / str(count)
            write_photographs(photographs, class_names(count), max(_IMAGES, batch_size))
            num_images = sum(1 for _ in photographs.rglob("*.jpg"))
            for precision in precisions:
                say(f"{backbone}, {count} classes, {precision}")
                task = TaskConfig.parse(
                    {
                        "dataset": f"folder:{photographs}", "paradigm": "ul", "backbone": backbone,
                        "pretrained": pretrained, "precision": precision,
                    }
                )  # fmt: skip
                # At a threshold of 0 the strong views of all images are trained on: this is the most expensive step.
                config = default_config("cap", task, "prompts").with_values(
                    {"batch_size": batch_size, "confidence_threshold": 0.0, "epochs": 50, "steps_per_epoch": 50}
                )
                before = matrix_rate(precision, where, seconds=0.5)
                cost = estimate_trial_cost(task, config, "cap", device=device, advice=False)
                beside = before, matrix_rate(precision, where, seconds=0.5)
                rates[precision] = max(rates.get(precision, 0.0), *(rate.flops for rate in beside))
                rows.append(_speed(count, precision, batch_size, num_images, cost, beside))
    return {
        "schema": SCHEMA,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(where),
        "versions": versions(),
        "settings": {"backbone": backbone, "pretrained": pretrained, "batch_size": batch_size},
        "matrix_flops": rates,
        "speeds": [asdict(row) for row in rows],
    }


def _speed(
    count: int,
    precision: Precision,
    batch_size: int,
    num_images: int,
    cost: TrialCost,
    beside: tuple[MatrixRate, MatrixRate],
) -> Speed:
    study = StudyConfig.parse({"task": {"dataset": "digits", "paradigm": "ul"}})
    trials = study.trials + num_confirmations(study)
    training = cost.num_epochs * cost.epoch_seconds
    return Speed(
        classes=count,
        precision=precision,
        batch_size=batch_size,
        step_seconds=cost.step_seconds,
        images_per_second=3 * batch_size / cost.step_seconds,
        prepared_per_second=num_images / cost.prepare_seconds,
        memory_bytes=cost.memory_bytes,
        trial_seconds=training,
        study_seconds=trials * training,
        matrix_flops=(beside[0].flops, beside[1].flops),
        too_noisy=why_too_noisy(*beside),
    )


def precisions_in(text: str) -> tuple[Precision, ...]:
    """The precisions that an option such as 'fp32,bf16' names.

    Raises:
        UsageError: it holds an unknown name, or none.
    """
    known: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
    asked = text.replace(",", " ").split()
    chosen = tuple(name for name in known if name in asked)
    if not chosen or set(asked) - set(known):
        raise UsageError("--precision must name fp32, bf16 or fp16, as 'fp32,bf16'", got=f"'{text}'")
    return chosen
