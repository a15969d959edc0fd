"""Options that several subcommands share."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from captune.config import PARADIGM_ALIASES, PARADIGMS, TaskConfig
from captune.errors import UsageError, did_you_mean

_PARADIGM_HELP = "; ".join(f"{key} = {text}" for key, text in PARADIGMS.items())

Dataset = Annotated[
    str, typer.Option(help="Catalogue key (`captune datasets`), or folder:DIR, csv:FILE, features:FILE.npz.")
]
Paradigm = Annotated[str, typer.Option(help=f"{_PARADIGM_HELP} (alias: transductive).")]
DataRoot = Annotated[Path | None, typer.Option(help="Where datasets lie; else $CAPTUNE_DATA, ~/.cache/captune/data.")]
Backbone = Annotated[str | None, typer.Option(help="open_clip model name, or tiny; default: the dataset's.")]
Pretrained = Annotated[
    str | None, typer.Option(help="Weights: open_clip tag, .pt or .safetensors file, folder, hf-hub: or local-dir:.")
]
Precision = Annotated[str, typer.Option(help="Of the frozen towers: fp32, bf16 or fp16.")]
Kernels = Annotated[str, typer.Option(help="On a GPU: auto (recorded steps, Triton kernels) or plain (PyTorch's own).")]
Shots = Annotated[int | None, typer.Option(help="Labelled images a class (default: ssl 2, tft 0).")]
SplitSeed = Annotated[int, typer.Option(help="Of the seen/unseen draw and the held-out pool (published: 500, 0, 200).")]
Protocol = Annotated[str, typer.Option(help="coop (CoOp's splits) or paper (the paper's, as GRIP keeps them).")]
PoolImbalance = Annotated[float, typer.Option(help="Make the pool long-tailed: largest over smallest class.")]
OpenSet = Annotated[float, typer.Option(help="Share of the classes not asked for; their images stay in the pool.")]
ShotNoise = Annotated[float, typer.Option(help="Share of the labelled images that get a wrong label.")]
Template = Annotated[str | None, typer.Option(help="Prompt template with one {}; default: the dataset's.")]
ClassNames = Annotated[Path | None, typer.Option(help="YAML list of class names, in label order.")]
Descriptions = Annotated[Path | None, typer.Option(help="YAML of class descriptions for concept alignment.")]
Tuning = Annotated[str | None, typer.Option(help="prompts (learn prompts) or features (frozen features, far cheaper).")]
Epochs = Annotated[int | None, typer.Option(help="Training epochs; default: the dataset's budget.")]
StepsPerEpoch = Annotated[int | None, typer.Option(help="Steps an epoch; default: the dataset's budget.")]
BatchSize = Annotated[int | None, typer.Option(help="Images a stream and step.")]
MicroBatch = Annotated[int | None, typer.Option(help="Images at once in a gradient forward; same mathematics.")]


def check_writable(file: Path) -> None:
    """See that a file can be written before anything is computed for it.

    Raises:
        UsageError: it is a folder, lies in no folder, or may not be written.
    """
    if file.is_dir():
        raise UsageError("--out must be a file", got="a folder", where=file)
    if not file.absolute().parent.is_dir():
        raise UsageError("--out must lie in a folder that is there", got="none", where=file.absolute().parent)
    if not os.access(file if file.exists() else file.absolute().parent, os.W_OK):
        raise UsageError("--out must be writable", got="no permission", where=file)


def say_notes(console: Console, notes: Iterable[str]) -> None:
    """Print, once each, what a person should know before reading numbers."""
    for note in dict.fromkeys(notes):
        console.print(f"[yellow]note[/]: {escape(note)}", highlight=False, soft_wrap=True)


def resolve_paradigm(name: str) -> str:
    """A paradigm's key from a key or alias.

    Raises:
        UsageError: unknown, with the nearest known one.
    """
    key = PARADIGM_ALIASES.get(name, name)
    if key not in PARADIGMS:
        known = [*PARADIGMS, *PARADIGM_ALIASES]
        raise UsageError("--paradigm must name a paradigm", got=f"'{name}'", next_step=did_you_mean(name, known))
    return key


def task_config(paradigm: str, **values: Any) -> TaskConfig:
    """A cell from options; unset ones (None) keep their defaults."""
    given = {key: value for key, value in values.items() if value is not None}
    return TaskConfig.parse({"paradigm": resolve_paradigm(paradigm), **given}, where="the command line")


def trial_values(**values: Any) -> dict[str, Any]:
    """Trial settings that were given on the command line."""
    return {key: value for key, value in values.items() if value is not None}
