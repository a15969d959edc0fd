"""captune compare: every method on the same cells with the same search budget, and what came of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console
from rich.table import Table

from captune.algorithms import ALGORITHMS, method_named
from captune.cli import options
from captune.cli.run import names_in, plan_of
from captune.cli.studies import Plan, Settings, execute
from captune.config import PARADIGMS, Paradigm, StudyConfig
from captune.errors import CaptuneError
from captune.records import atomic_write
from captune.results.load import load_runs
from captune.results.methods import methods_table
from captune.results.page import percent
from captune.results.report import report_runs
from captune.tuning.describe import cell_name

# These two stand in every study as references.
_REFERENCES = ("zero_shot", "balanced")


def compare(
    dataset: Annotated[str, typer.Option(help="Catalogue key, folder:DIR, csv:FILE or features:FILE.")],
    paradigm: Annotated[str, typer.Option(help=f"{', '.join(PARADIGMS)}; a,b or all.")] = "all",
    methods: Annotated[str, typer.Option(help=f"{', '.join(ALGORITHMS)}; a,b or all.")] = "all",
    trials: Annotated[int, typer.Option(help="Search trials of every study, the default configuration included.")] = 12,
    confirm_top: Annotated[int, typer.Option(help="Best configurations confirmed over fresh seeds.")] = 1,
    confirm_seeds: Annotated[int, typer.Option(help="Fresh seeds a confirmed configuration.")] = 5,
    seed: Annotated[int, typer.Option(help="Root seed of every study.")] = 0,
    stress: Annotated[bool, typer.Option("--stress", help="Also run each choice on harder pools.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the studies and of the comparison.")] = Path("comparison"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the studies in the folder.")] = False,
    concurrency: Annotated[int | None, typer.Option(help="Runs at once; default: what fits.")] = None,
    cpus_per_trial: Annotated[float | None, typer.Option(help="CPUs (threads) of a run; default 1.")] = None,
    gpus_per_trial: Annotated[float | None, typer.Option(help="GPUs of a run; 0.25 puts four on one.")] = None,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster: auto, HOST:PORT or ray://…")] = None,
    no_dashboard: Annotated[bool, typer.Option("--no-dashboard", help="Start no Ray dashboard.")] = False,
    data_root: options.DataRoot = None,
    backbone: options.Backbone = None,
    pretrained: options.Pretrained = None,
    protocol: options.Protocol = "coop",
    shots: options.Shots = None,
    split_seed: options.SplitSeed = 500,
    pool_imbalance: options.PoolImbalance = 1.0,
    open_set_fraction: options.OpenSet = 0.0,
    shot_noise: options.ShotNoise = 0.0,
    template: options.Template = None,
    class_names: options.ClassNames = None,
    tuning: options.Tuning = None,
    epochs: options.Epochs = None,
    steps_per_epoch: options.StepsPerEpoch = None,
) -> None:
    """Run a study of every method on every cell with one search budget; write who won, by how much, and how sure.

    Example: captune compare --dataset digits --paradigm ul --methods cap,fpl,transclip --trials 6
    """
    console = Console(file=sys.stdout)
    out = out.expanduser().absolute()
    fixed = options.trial_values(tuning=tuning, epochs=epochs, steps_per_epoch=steps_per_epoch)
    plans: list[Plan] = []
    for kind, name in cells_of(paradigm, methods, console):
        task = options.task_config(
            kind, dataset=dataset, data_root=data_root, backbone=backbone, pretrained=pretrained, protocol=protocol,
            shots=shots, split_seed=split_seed, pool_imbalance=pool_imbalance,
            open_set_fraction=open_set_fraction, shot_noise=shot_noise, template=template,
            class_names=class_names,
        ).model_dump()  # fmt: skip
        task["unseal_pool"] = ALGORITHMS[name].unsealed
        values = {
            "task": task, "method": name, "fixed": fixed, "trials": trials if ALGORITHMS[name].tunable else 1,
            "seed": seed, "confirm_top": confirm_top, "confirm_seeds": confirm_seeds, "stress": stress,
        }  # fmt: skip
        study = StudyConfig.parse(values, where="the command line")
        plans.append(plan_of(study, out / "runs" / cell_name(dataset, kind, name)))
    settings = Settings(
        address=address, concurrency=concurrency, cpus_per_trial=cpus_per_trial, gpus_per_trial=gpus_per_trial,
        dashboard=not no_dashboard, loggers=(), resume=resume,
    )  # fmt: skip
    lost: CaptuneError | None = None
    try:
        execute(plans, settings, console)
    except CaptuneError as error:
        lost = error  # the others are compared nevertheless
    write_comparison(out, console)
    if lost is not None:
        raise lost


def cells_of(paradigm: str, methods: str, console: Console) -> list[tuple[Paradigm, str]]:
    """(paradigm, method) in the order asked; what cannot be is left out and said."""
    names = list(PARADIGMS) if paradigm == "all" else names_in(paradigm, "--paradigm")
    kinds = [cast(Paradigm, options.resolve_paradigm(name)) for name in names]
    if methods == "all":
        asked = [name for name in ALGORITHMS if name not in _REFERENCES]
    else:
        asked = [method_named(name).name for name in names_in(methods, "--methods")]
    cells: list[tuple[Paradigm, str]] = []
    for kind in dict.fromkeys(kinds):
        for name in dict.fromkeys(asked):
            if ALGORITHMS[name].unsealed and kind == "tft":
                console.print(
                    f"{name} is left out of tft: its pool is the test set; ul has the ceiling.", highlight=False
                )
            else:
                cells.append((kind, name))
    return cells


def write_comparison(out: Path, console: Console) -> None:
    """Every table, figure and the page over all studies in the folder, earlier ones too; the methods on the screen."""
    files = report_runs([out / "runs"], out)
    table = methods_table(load_runs([out / "runs"]))
    atomic_write(out / "methods.csv", table.to_csv(index=False))
    shown = Table(
        "cell", "method", "default %", "tuned %", "zero-shot %", "trials", "epochs", "s", box=None, pad_edge=False
    )
    for row in table.to_dict("records"):
        shown.add_row(
            str(row["cell"]), str(row["method"]), _mean_sd(row["default_mean"], row["default_sd"]),
            _mean_sd(row["tuned_mean"], row["tuned_sd"]), percent(row["zero_shot"]), _count(row["search_trials"]),
            _count(row["search_epochs"]), _count(row["search_seconds"]),
        )  # fmt: skip
    console.print(shown)
    console.print(f"{len(files) + 1} files in {out}; the page is {files[-1]}", highlight=False, soft_wrap=True)


def _mean_sd(mean: float | None, sd: float | None) -> str:
    return percent(mean) + (f" ± {percent(sd)}" if sd is not None and sd == sd else "")


def _count(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.0f}"
