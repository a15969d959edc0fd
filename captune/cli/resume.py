"""captune resume: go on with studies that were interrupted, exactly as if they had not been."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from captune.cli.studies import Plan, Settings, execute
from captune.tuning.describe import describe_cell
from captune.tuning.study import read_study, with_storage
from captune.tuning.telemetry import check_loggers


def resume(
    runs: Annotated[list[Path], typer.Argument(help="Directories that `captune run` wrote.")],
    trials: Annotated[int | None, typer.Option(help="More search trials than before.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Runs at once; default: what fits.")] = None,
    cpus_per_trial: Annotated[float | None, typer.Option(help="CPUs (threads) of a run; default 1.")] = None,
    gpus_per_trial: Annotated[float | None, typer.Option(help="GPUs of a run.")] = None,
    memory_per_trial: Annotated[float | None, typer.Option(min=0.1, help="GB of a run; default: as measured.")] = None,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster: auto, HOST:PORT or ray://…")] = None,
    storage: Annotated[str | None, typer.Option(help="The Optuna copy's database, where it has a password.")] = None,
    no_dashboard: Annotated[bool, typer.Option("--no-dashboard", help="Start no Ray dashboard.")] = False,
    dashboard_host: Annotated[
        str | None, typer.Option(help="Where the dashboard listens; default: this machine only.")
    ] = None,
    logger: Annotated[str, typer.Option(help="tensorboard, mlflow, wandb (a,b) or none.")] = "tensorboard",
) -> None:
    """Go on with studies: nothing that finished is lost or run twice, running trials go on from their last epoch.

    Example: captune resume runs/digits-ul-cap
    """
    plans = []
    for directory in runs:
        directory = directory.expanduser().absolute()
        study, space = read_study(directory)
        if trials is not None:
            study = study.model_copy(update={"trials": trials})
        study = with_storage(study, storage)
        plans.append(Plan(directory, study, describe_cell(study), space))
    settings = Settings(
        address=address, concurrency=concurrency, cpus_per_trial=cpus_per_trial, gpus_per_trial=gpus_per_trial,
        memory_per_trial=memory_per_trial, dashboard=not no_dashboard, dashboard_host=dashboard_host,
        loggers=check_loggers(logger), resume=True,
    )  # fmt: skip
    execute(plans, settings, Console(file=sys.stdout))
