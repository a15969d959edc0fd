"""captune status: how far studies are, from another shell, while they run or afterwards."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from captune.cli.console import plain_console
from captune.cli.places import studies_in
from captune.conditions import METHOD
from captune.config import TrialConfig, read_yaml
from captune.durations import duration
from captune.errors import StudyError
from captune.plain_text import resume_command
from captune.records import JOURNAL, StudyRecord, read_journal
from captune.records.layout import PAGE, STUDY
from captune.tuning.asking import Asking
from captune.tuning.cell import Cell
from captune.tuning.header import read_study
from captune.tuning.lock import drivers_of
from captune.tuning.progress import Standing, standing, standings_table
from captune.tuning.specs import CellInfo

_WATCH_SECONDS = 5.0
_USUAL = "runs"
"""Where `captune run` puts studies by default."""


def status(
    what: Annotated[
        list[str] | None,
        typer.Argument(help="Directories of studies or the folder of several (default: runs), or a Ray address."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every five seconds, until Ctrl-C.")] = False,
) -> None:
    """Show how far studies are.

    Example: captune status runs/digits-ul-cap --watch
    """
    console = plain_console()
    with contextlib.ExitStack() as stack:
        ask = cache(lambda address: stack.enter_context(Asking(address)))
        while True:
            _show_all(what, ask, console)
            if not watch:
                return
            time.sleep(_WATCH_SECONDS)
            if console.is_terminal:
                console.clear()


def _show_all(what: list[str] | None, ask: Callable[[str], Asking], console: Console) -> None:
    if not what and not Path(_USUAL).is_dir():
        raise StudyError(
            "a study must have begun below this folder", got=f"no folder '{_USUAL}'", where=Path.cwd(),
            next_step="Name the directory of one, or begin one: captune demo.",
        )  # fmt: skip
    names = what or [_USUAL]
    addresses = [name for name in names if re.fullmatch(r"auto|[a-z]+://.+|[^/]+:\d+", name)]
    places = [Path(name) for name in names if name not in addresses]
    if places:
        _show_directories(studies_in(places), console)
    for address in addresses:
        _show(ask(address).standings(), console)


def _show_directories(directories: list[Path], console: Console) -> None:
    standings = []
    for directory, driver in drivers_of(directories).items():
        now, record = read_standing(directory, running=driver is not None)
        if directory.name != now.cell:  # two studies of one cell are told apart by their directories
            now = replace(now, cell=f"{directory.name} ({now.cell})")
        heard = duration(max(0.0, time.time() - record.last_time))
        if driver is not None:
            said = f"run by process {driver['pid']} on {driver['host']}, last event {heard} ago"
        elif not record.num_openings:
            said = f"ended before it began; begin with: {resume_command(directory)}"
        elif now.phase == "done" and not record.closed:
            said = f"stopped {heard} ago, before its choice was written; go on with: {resume_command(directory)}"
            now = replace(now, phase="not closed, stopped")
        elif now.phase == "done":
            said = f"finished {heard} ago"
            if not (directory / PAGE).is_file():
                said += f", but its report is not written; go on with: {resume_command(directory)}"
        else:
            said = f"stopped {heard} ago; go on with: {resume_command(directory)}"
            now = replace(now, phase=f"{now.phase}, stopped")
        standings.append(now)
        console.print(f"{now.cell}: {said}", highlight=False, soft_wrap=True)
    _show(standings, console)


def _show(standings: list[Standing], console: Console) -> None:
    console.print(standings_table(standings, width=console.width) if standings else "No studies.")


def _base(values: Any) -> TrialConfig:
    """Only the settings that all methods share, since a study may be of a method that this captune does not know."""
    known = values if isinstance(values, dict) else {}
    return TrialConfig.parse({name: known[name] for name in TrialConfig.model_fields if name in known})


def read_standing(directory: Path, *, running: bool) -> tuple[Standing, StudyRecord]:
    """The standing of a study on disk and its record, read without its data.

    Args:
        directory: the study's directory.
        running: whether a driver runs it now.
    """
    study, space = read_study(directory)
    header = read_yaml(directory / STUDY)
    base = _base(header.get("base"))
    methods = next((parameter.choices for parameter in space.parameters if parameter.name == METHOD), ())
    info = CellInfo(
        name=str(header.get("cell", directory.name)),
        base=base,
        screen_base=_base((header.get("screen") or {}).get("base")),
        references=(),
        num_classes=header.get("num_classes", 0),
        class_names=tuple(header.get("class_names", ())),
        num_pool=header.get("num_pool", 0),
        num_test=header.get("num_test", 0),
        num_scored=header.get("num_scored", 0),
        class_size=1,
        metric_name=str(header.get("metric_name")),
        criterion=str(header.get("select_by")),
        criterion_help=str(header.get("criterion_help")),
        both_roles=bool(header.get("both_roles")),
        methods={str(name): base for name in methods},
    )
    starts = header.get("warm_starts") or ()
    cell = Cell(directory, study, info, space, warm_starts=starts, proposes=False)
    journal = directory / JOURNAL
    cell.replay(read_journal(journal) if journal.exists() else [])
    if running:
        cell.active.update(trial.key for trial in cell.trials.values() if not trial.ended)
    return standing(cell), cell.record
