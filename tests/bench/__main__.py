"""`python -m tests.bench`: the fast way of training and encoding against the plain way, in one table."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from captune.errors import UsageError
from captune.own_process import wait_passively
from captune.records import atomic_write
from captune.training.trial import limit_threads
from tests.bench.bench import BenchOptions, advice, run_bench, table_lines


def bench(
    backbone: Annotated[str, typer.Option(help="open_clip model name, or tiny.")] = "ViT-B-32",
    pretrained: Annotated[
        str | None, typer.Option(help="Weights; random ones cost what trained ones do. tiny brings its own.")
    ] = "random",
    classes: Annotated[str, typer.Option(help="Class counts, as '10,100'.")] = "10,100",
    batch_size: Annotated[int, typer.Option(min=1, help="Images per stream and step.")] = 32,
    precision: Annotated[str, typer.Option(help="Precisions of the fast way, as 'fp32,bf16' or 'fp16'.")] = "fp32,bf16",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    repeats: Annotated[int, typer.Option(min=1, help="How often each thing is measured, in turn with its rival.")] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: torch's choice.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", metavar="", help="Once each, and only the smallest class count.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write everything measured to this file.")
    ] = None,
) -> None:
    """Measure the training step, the encoding of a pool and more, against the plain way of doing it.

    Example: python -m tests.bench --backbone tiny --classes 10 --quick
    """
    counts = _counts(classes)
    precisions = _precisions(precision)
    if threads is not None:
        limit_threads(threads)
    options = BenchOptions(
        backbone=backbone,
        pretrained=None if backbone == "tiny" and pretrained == "random" else pretrained,
        classes=(min(counts),) if quick else counts,
        precisions=precisions,
        batch_size=batch_size,
        device=device,
        repeats=1 if quick else repeats,
        concurrency_epochs=2 if quick else 5,
        overhead_trials=0 if quick else 8,
    )
    console = Console()
    with console.status("python -m tests.bench") as status:
        report = run_bench(options, say=lambda what: status.update(f"measuring: {what}"))
    hardware, found = report["machine"], report["versions"]
    console.print(
        f"{hardware.get('gpu', hardware['cpu'])}, {hardware['cores']} cores, {hardware['threads']} threads "
        f"({', '.join(hardware['cpu_features'])}); {', '.join(f'{name} {value}' for name, value in found.items())}; "
        f"{report['date']}",
        highlight=False,
    )
    console.print(_table(report, f"{backbone}, batches of {batch_size} a stream"))
    for sentence in advice(report):
        console.print(sentence, highlight=False)
    if json_file is not None:
        atomic_write(json_file, json.dumps(report, indent=2) + "\n")
        console.print(f"written: {json_file}", highlight=False, soft_wrap=True)


def _table(report: dict[str, object], title: str) -> Table:
    table = Table("measured", "plain", "fast", "result", "target", "met", title=title)
    for line in table_lines(report):
        met = {True: "[green]yes", False: "[red]no", None: ""}[line.met]
        table.add_row(line.what, line.plain, line.fast, line.result, line.target, met)
    return table


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise UsageError("--classes must be whole numbers, as '10,100'", got=f"'{text}'") from None
    if not counts or min(counts) < 2:
        raise UsageError("--classes must be at least 2 each, as '10,100'", got=f"'{text}'")
    return counts


def _precisions(text: str) -> tuple[Literal["fp32", "bf16", "fp16"], ...]:
    known: tuple[Literal["fp32", "bf16", "fp16"], ...] = ("fp32", "bf16", "fp16")
    chosen = tuple(name for name in known if name in text.replace(",", " ").split())
    wrong = [part for part in text.replace(",", " ").split() if part not in known]
    if wrong or not chosen:
        raise UsageError("--precision must name fp32, bf16 or fp16, as 'fp32,bf16'", got=f"'{text}'")
    return chosen


if __name__ == "__main__":
    if os.environ.get("OMP_WAIT_POLICY") is None:
        # PyTorch is imported already: threads that spin while they wait would count as CPU time.
        wait_passively()
        os.execv(sys.executable, [sys.executable, "-m", "tests.bench", *sys.argv[1:]])
    typer.run(bench)
