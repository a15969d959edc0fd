"""`python -m tests.bench` without its command line: all rows in one run, and what they are measured against."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from captune.cost.measure import machine, versions
from captune.model.backbone import Precision
from tests.bench.overhead import measure_overhead
from tests.bench.rows import (
    EncodingRow,
    EpochRow,
    StepRow,
    matrix_rates,
    measure_concurrency,
    measure_encoding,
    measure_epoch,
    measure_sharing,
    measure_steps,
)
from tests.bench.workbench import Workbench, open_backbone

SCHEMA = 1
# At least so many times the plain step: by precision and classes. bf16 is promised where a CPU has AMX.
_STEP_TARGETS = {("bf16", 10): 5.5, ("bf16", 100): 18.0, ("fp32", 10): 1.4, ("fp32", 100): 4.5}
_PEAK_TARGET, _ENCODING_TARGET, _SHARE_TARGET, _CONCURRENCY_TARGET = 3.3e9, 8.0, 0.03, 1.7
_OVERHEAD_TARGET = 0.1
_GPU_TARGETS = {"ViT-B-32": 0.45, "ViT-L-14": 0.55}


@dataclass(frozen=True)
class BenchOptions:
    """What to measure.

    Attributes:
        backbone, pretrained: the model; random weights cost what trained ones do.
        classes: class counts.
        precisions: of the fast way.
        batch_size: images per stream.
        device: auto, cpu, cuda.
        repeats: times each thing is measured, in turn with its rival.
        concurrency_epochs: epochs of the two-trials row; 0 leaves it out.
        overhead_trials: trials of the study that overhead is read from; 0 leaves it out.
    """

    backbone: str = "ViT-B-32"
    pretrained: str | None = "random"
    classes: tuple[int, ...] = (10, 100)
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    batch_size: int = 32
    device: str = "auto"
    repeats: int = 3
    concurrency_epochs: int = 5
    overhead_trials: int = 8


def run_bench(options: BenchOptions, *, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Measure everything in one run; returns what `python -m tests.bench --json` writes.

    Args:
        options: what to measure.
        say: told what is measured next.

    Raises:
        UsageError: a backbone that prompts cannot enter, or fewer than two classes.
        ModelError: weights that cannot be opened.
    """
    say(f"opening {options.backbone}")
    backbone = open_backbone(options.backbone, options.pretrained, options.device)
    device = backbone.device
    rates = matrix_rates(options.precisions, device, seconds=0.2 if options.repeats == 1 else 1.0)
    steps: list[StepRow] = []
    epochs: list[EpochRow] = []
    encoding: list[EncodingRow] = []
    with tempfile.TemporaryDirectory(prefix="captune-bench-") as folder:
        for num_classes in options.classes:
            bench = Workbench(Path(folder), backbone, num_classes, batch_size=options.batch_size)
            if not encoding:
                say("encoding a pool")
                encoding = measure_encoding(bench, options.precisions, rates, repeats=options.repeats)
            # Beside each ratio: the machine may have become busier.
            rates = matrix_rates(options.precisions, device, seconds=0.5)
            say(f"steps, {num_classes} classes")
            rows = measure_steps(bench, options.precisions, rates, repeats=options.repeats)
            steps += rows
            epochs += [measure_epoch(bench, row) for row in rows]
    concurrency, sharing = None, []
    if options.concurrency_epochs and device.type == "cuda":
        say("several trials on one card")
        sharing = measure_sharing(
            backbone=options.backbone, pretrained=options.pretrained, device=str(device), classes=max(options.classes),
            batch_size=options.batch_size, precision=options.precisions[-1],
        )  # fmt: skip
    elif options.concurrency_epochs:
        say("two trials beside each other")
        concurrency = measure_concurrency(epochs=options.concurrency_epochs)
    overhead = None
    if options.overhead_trials:
        say("a study of short trials")
        overhead = asdict(measure_overhead(trials=options.overhead_trials))
    return {
        "schema": SCHEMA,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(device),
        "versions": versions(),
        "settings": {
            "backbone": options.backbone,
            "pretrained": options.pretrained,
            "batch_size": options.batch_size,
            "repeats": options.repeats,
            "fp32_matmul": torch.get_float32_matmul_precision(),
        },
        "steps": [row.as_json() for row in steps],
        "encoding": [row.as_json() for row in encoding],
        "epochs": [{"precision": step.precision, **row.as_json()} for step, row in zip(steps, epochs, strict=True)],
        "concurrency": concurrency,
        "overhead": overhead,
        "sharing": sharing,
    }


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        what: is measured.
        plain, fast: the two ways, with units.
        result: ratio or share.
        target: from the project's goals, or empty.
        met: whether it is reached; None where there is no target for this hardware.
    """

    what: str
    plain: str
    fast: str
    result: str
    target: str = ""
    met: bool | None = None


def table_lines(report: dict[str, Any]) -> list[Line]:
    """The rows of the table that people read, from the JSON."""
    on_gpu, has_amx = "gpu" in report["machine"], "amx_bf16" in report["machine"]["cpu_features"]
    model = report["settings"]["backbone"]
    lines = []
    for step in report["steps"]:
        lines += _step_lines(step, model, on_gpu=on_gpu, has_amx=has_amx)
    for row in report["encoding"]:
        aimed = row["precision"] == "bf16" and not on_gpu and model == "ViT-B-32"
        target = f"≥ {_ENCODING_TARGET:g}×" if aimed else ""
        lines.append(
            Line(
                f"encode a pool, {row['precision']}",
                f"{row['plain_images_per_second']:.1f} images/s",
                f"{row['fast_images_per_second']:.1f} images/s, {100 * row['matrix_share']:.0f} % of matmul rate",
                f"{row['ratio']:.1f}×",
                target,
                row["ratio"] >= _ENCODING_TARGET if target else None,
            )
        )
    for row in report["epochs"]:
        extra = row["margin_seconds"] + row["boards_seconds"] + row["alignment_seconds"]
        lines.append(
            Line(
                f"margin, boards, alignment of an epoch, {row['classes']} classes, {row['precision']}",
                "",
                f"{1000 * extra:.0f} ms of {row['steps_seconds'] + extra:.1f} s",
                f"{100 * row['share']:.2f} %",
                f"≤ {100 * _SHARE_TARGET:g} %",
                row["share"] <= _SHARE_TARGET,
            )
        )
    if report["concurrency"]:
        row = report["concurrency"]
        lines.append(
            Line(
                "two one-thread trials at once, tiny",
                f"one {row['one_seconds']:.1f} s ({row['one_cpu_seconds']:.1f} CPU s)",
                f"two {row['two_seconds']:.1f} s ({row['two_cpu_seconds']:.1f} CPU s each)",
                f"{row['throughput']:.2f}×, {row['throughput_cpu']:.2f}× in CPU time",
                f"≥ {_CONCURRENCY_TARGET:g}×",
                row["throughput"] >= _CONCURRENCY_TARGET,
            )
        )
    if report["overhead"]:
        row = report["overhead"]
        lines.append(
            Line(
                f"overhead a trial beside training, {row['num_trials']} frozen-feature trials on digits",
                "",
                f"the first {1000 * row['first']:.0f} ms",
                f"{1000 * row['median']:.0f} ms",
                f"≤ {1000 * _OVERHEAD_TARGET:g} ms",
                row["median"] <= _OVERHEAD_TARGET,
            )
        )
    for row in report.get("sharing", ()):
        alone = report["sharing"][0]["images_per_second"]
        lines.append(
            Line(
                f"{row['trials']} trial(s) on the card, {row['classes']} classes, {row['precision']}",
                "",
                f"{row['images_per_second']:.0f} images/s in all",
                f"{row['images_per_second'] / alone:.2f}×",
            )
        )
    return lines


def _step_lines(step: dict[str, Any], model: str, *, on_gpu: bool, has_amx: bool) -> list[Line]:
    name = f"{step['classes']} classes, {step['precision']}"
    wanted = None if on_gpu or model != "ViT-B-32" else _STEP_TARGETS.get((step["precision"], step["classes"]))
    noisy = step.get("too_noisy")
    promised_here = has_amx or step["precision"] == "fp32"
    judged = wanted is not None and not noisy and (promised_here or step["ratio"] >= wanted)
    target = "" if wanted is None else f"≥ {wanted:g}×" + ("" if promised_here else " with AMX")
    lines = [
        Line(
            f"step, {name}",
            _seconds(step["plain_seconds"], on_gpu),
            _seconds(step["fast_seconds"], on_gpu),
            f"{step['ratio']:.2f}×" + ("" if on_gpu else " in CPU time") + (", too noisy" if noisy else ""),
            target,
            step["ratio"] >= wanted if judged and wanted is not None else None,
        ),
        Line(
            f"  peak memory, {name}",
            f"{step['plain_peak_bytes'] / 1e9:.2f} GB",
            f"{step['fast_peak_bytes'] / 1e9:.2f} GB",
            f"{step['plain_peak_bytes'] / step['fast_peak_bytes']:.1f}×",
            "≤ 3.3 GB" if wanted is not None and step["classes"] == 100 and step["precision"] == "bf16" else "",
            step["fast_peak_bytes"] <= _PEAK_TARGET
            if wanted is not None and step["classes"] == 100 and step["precision"] == "bf16"
            else None,
        ),
        Line(
            f"  gradients against plain, {name}",
            "",
            f"cosine {step['gradient_cosine']:.6f}, {100 * step['labels_kept']:.0f} % of pseudolabels the same",
            f"{step['gradient_relative_error']:.1e}",
            "≤ 1e-4" if step["precision"] == "fp32" else "",
            step["gradient_relative_error"] <= 1e-4 if step["precision"] == "fp32" else None,
        ),
        Line(
            f"  views, {name}",
            "",
            "",
            f"{100 * step['views_share']:.2f} % of the step",
            f"≤ {100 * _SHARE_TARGET:g} %",
            step["views_share"] <= _SHARE_TARGET,
        ),
    ]
    goal = _GPU_TARGETS.get(model) if on_gpu and step["classes"] == 100 and step["precision"] != "fp32" else None
    lines.append(
        Line(
            f"  throughput, {name}",
            "",
            f"{step['images_per_second']:.0f} images/s, {step['tokens_per_second']:.0f} tokens/s",
            f"{100 * step['matrix_share']:.0f} % of matmul rate",
            "" if goal is None else f"≥ {100 * goal:g} %",
            None if goal is None else step["matrix_share"] >= goal,
        )
    )
    return lines


def _seconds(timing: dict[str, Any], on_gpu: bool) -> str:
    wall = f"{timing['min']:.3g} s"
    return wall if on_gpu else f"{wall} ({timing['cpu_min']:.3g} CPU s)"


def advice(report: dict[str, Any]) -> list[str]:
    """What the steps mean for a trial at the paper's budget, in sentences."""
    noisy = [
        f"Too noisy, {step['classes']} classes, {step['precision']}: {step['too_noisy']}. Measure again."
        for step in report["steps"]
        if step.get("too_noisy")
    ]
    return noisy + [
        f"A full trial (50 × 50 steps), {step['classes']} classes, {step['precision']}: "
        f"{2500 * step['fast_seconds']['min'] / 3600:.1f} hours of training here."
        for step in report["steps"]
    ]
