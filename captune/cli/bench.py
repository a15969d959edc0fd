"""captune bench: how fast is this machine, and what will a study cost here?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from captune.cli.console import plain_console
from captune.cli.options import Device, Threads
from captune.errors import UsageError
from captune.own_process import wait_passively
from captune.records import atomic_write


def bench(
    backbone: Annotated[str, typer.Option(help="Name of an open_clip model, or tiny.")] = "ViT-B-32",
    pretrained: Annotated[
        str | None, typer.Option(help="Weights; random ones cost what trained ones do. tiny brings its own.")
    ] = "random",
    classes: Annotated[str, typer.Option(help="Numbers of classes, as '10,100'.")] = "10,100",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per step, from each stream.")] = 32,
    precision: Annotated[str, typer.Option(help="Number formats of the towers, as 'fp32,bf16'.")] = "fp32,bf16",
    device: Device = "auto",
    threads: Threads = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write everything measured to this file.", metavar="FILE")
    ] = None,
) -> None:
    """Measure how fast this machine trains prompts, and what a trial and a study would cost.

    Example: captune bench --backbone tiny --classes 10
    """
    counts = _counts(classes)
    console = plain_console()
    wait_passively()
    with console.status("Loading PyTorch") as status:
        from captune.cost.speed import measure_speed, precisions_in
        from captune.training.trial import limit_threads

        if threads is not None:
            limit_threads(threads)
        report = measure_speed(
            backbone,
            None if backbone == "tiny" and pretrained == "random" else pretrained,
            classes=counts, precisions=precisions_in(precision), batch_size=batch_size, device=device,
            say=lambda what: status.update(f"Measuring: {what}"),
        )  # fmt: skip
    for line in lines(report):
        console.print(line, highlight=False)
    if json_file is not None:
        atomic_write(json_file, json.dumps(report, indent=2) + "\n")
        console.print(f"written: {json_file}", highlight=False, soft_wrap=True)


def lines(report: dict[str, Any]) -> list[str | Table]:
    """The lines that show a report: the machine, a table, and how to find out what a study of one's own costs."""
    hardware, found = report["machine"], report["versions"]
    noisy = [
        f"Too noisy, {row['classes']} classes, {row['precision']}: {row['too_noisy']}. Measure again when it is idle."
        for row in report["speeds"]
        if row["too_noisy"]
    ]
    table = Table(
        "classes", "precision", "step", "images/s", "matrix products", "memory", "a trial (50 × 50 steps)", "a study",
        box=None, pad_edge=False, title_justify="left",
        title=f"{report['settings']['backbone']}, prompts, one trial at a time",
    )  # fmt: skip
    for row in report["speeds"]:
        table.add_row(
            str(row["classes"]), row["precision"], f"{1000 * row['step_seconds']:.0f} ms",
            f"{row['images_per_second']:.0f}", _rates(row["matrix_flops"]), f"{row['memory_bytes'] / 1e9:.1f} GB",
            f"{row['trial_seconds'] / 3600:.1f} h", f"{row['study_seconds'] / 3600:.0f} h",
        )  # fmt: skip
    prepared = max(row["prepared_per_second"] for row in report["speeds"])
    return [
        f"{hardware.get('gpu', hardware['cpu'])}, {hardware['cores']} cores, {hardware['threads']} threads, "
        f"load {hardware['load_average']:.1f}; "
        + ", ".join(f"{name} {value}" for name, value in found.items())
        + f"; {report['date']}",
        table,
        *noisy,
        f"Each image is decoded and encoded once per machine, {prepared:.0f} images/s here. A study is 12 trials and "
        "12 confirmations; early stopping makes it cheaper, trials in parallel shorter.",
        "What a study of your own data costs: captune run … --dry-run. --tuning features costs far less.",
    ]


def _rates(flops: Sequence[float]) -> str:
    """Matrix rates before and after, in GFLOP/s; one number if they are equal."""
    before, after = (f"{value / 1e9:.0f}" for value in flops)
    return f"{before} GFLOP/s" if before == after else f"{before}, then {after} GFLOP/s"


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise UsageError("--classes must be whole numbers, as '10,100'", got=f"'{text}'") from None
    if not counts or min(counts) < 2:
        raise UsageError("--classes must be at least 2 each, as '10,100'", got=f"'{text}'")
    return counts
