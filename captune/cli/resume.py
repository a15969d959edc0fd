"""captune resume: go on with studies that were interrupted, exactly as if they had not been."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from captune.cli.console import plain_console
from captune.cli.options import COMMAND_LINE, Given, say_notes, with_options
from captune.cli.places import studies_in
from captune.config import MachineConfig, StudyConfig
from captune.tuning.allotment import refuse_several_gpus
from captune.tuning.answering import check_answers
from captune.tuning.loggers import check_loggers


@with_options("machine")
def resume(
    given: Given,
    studies: Annotated[
        list[Path], typer.Argument(help="Directories that `captune run` wrote, or the folder of several.")
    ],
    trials: Annotated[
        int | None,
        typer.Option(help="Extend the search to this many trials.", min=1, rich_help_panel=StudyConfig.panel),
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed",
            help="Hand failed trials out again, once their cause is gone.",
            rich_help_panel=MachineConfig.panel,
        ),
    ] = False,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Database of the Optuna copy; needed again where its address has a password; none: a file instead.",
            rich_help_panel=MachineConfig.panel,
        ),
    ] = None,
) -> None:
    """Go on with studies: nothing that finished is lost or repeated, running trials go on from their last epoch.

    Example: captune resume runs/digits-ul-cap
    """
    console = plain_console(file=sys.stdout)
    machine = MachineConfig.parse(given.machine, where=COMMAND_LINE)
    check_loggers(machine.logger)
    refuse_several_gpus(machine.gpus_per_trial)
    check_answers(machine.address)
    with console.status("Loading PyTorch and Ray"):
        from captune.cli.studies import execute
        from captune.studies.planning import plan_to_continue
        from captune.studies.running import Settings
    passed_over: list[str] = []
    with console.status("Reading what the studies need"):
        plans = [
            plan_to_continue(directory.absolute(), trials=trials, storage=storage)
            for directory in studies_in(studies, passed_over)
        ]
    say_notes(console, passed_over)
    execute(
        plans,
        Settings(**machine.model_dump(), resume=True, retry_failed=retry_failed),
        console,
    )
