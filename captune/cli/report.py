"""captune report: the CSVs, figures and page of one study or of many, made again from their journals."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from captune.cli.console import plain_console
from captune.cli.options import say_notes
from captune.cli.places import studies_in
from captune.decisions.criteria import ORACLE
from captune.errors import UsageError
from captune.records import StudyRecord
from captune.records.layout import REPORT

_MARKS = {
    "below_zero_shot": "best below zero-shot",
    "maybe_below_zero_shot": "best perhaps below zero-shot",
    "on_border": "setting on its border",
    "underpowered": "too few seeds",
    "oracle": "selected by test labels",
}
"""Columns of best_configs.csv that are warnings, in words."""


def report(
    studies: Annotated[list[Path], typer.Argument(help="Directories of studies, or folders that hold them.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where to write. Default: of one study, its own directory; of several, `report` beside them."
        ),
    ] = None,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Small pictures of the images in the page of a study.")
    ] = True,
) -> None:
    """Write every table, figure and page the records support: one study, many, finished or not.

    Example: captune report runs/digits-ul-cap
    Example: captune report runs --out comparison
    """
    console = plain_console()
    with console.status("Loading"):
        from captune.results.best_configs import best_configs_table
        from captune.results.formats import percent, points
        from captune.results.load import load_studies
        from captune.results.report import report_studies, report_study
        from captune.results.tables import ORACLE_STAMP
    passed_over: list[str] = []
    places = studies_in(studies, passed_over)
    say_notes(console, passed_over)
    records = load_studies(places)
    if out is None and len(records) > 1:
        parents = {record.directory.resolve().parent for record in records}
        if len(parents) > 1:
            raise UsageError(
                "--out must say where the report of studies in several folders goes",
                got=f"{len(records)} studies in {len(parents)} folders and no --out",
                next_step="Add --out DIR.",
            )
        out = parents.pop() / REPORT
    if out is None and not os.access(records[0].directory, os.W_OK):
        raise UsageError(
            "a study's directory must be writable for its report", got="no permission", where=records[0].directory,
            next_step="Add --out DIR to write the report elsewhere.",
        )  # fmt: skip
    with console.status("Writing tables, figures and the page"):
        written = report_study(records[0].directory, images=images) if out is None else report_studies(places, out)
    advices = {record.name: _advice(record) for record in records}
    table = Table(box=None, pad_edge=False)
    for heading in ("study", "advice", "advised %", "zero-shot %", "gain", "beware"):
        table.add_column(heading, overflow="fold")
    for _, row in best_configs_table(records).iterrows():
        marks = [words for name, words in _MARKS.items() if row[name]]
        table.add_row(
            row["study"], advices[row["study"]], percent(row["advised_test"]), percent(row["zero_shot"]),
            points(row["advised_gain"]), ", ".join(marks),
        )  # fmt: skip
    console.print(table)
    for record in records:
        if record.select_by == ORACLE:
            console.print(f"{record.name}: {ORACLE_STAMP}", style="bold red", highlight=False, markup=False)
    for record in records:
        for note in record.notes:
            console.print(f"{record.name}: {note}", style="yellow", highlight=False, markup=False)
    console.print(
        f"{len(written)} files in {written[0].parent}; the page is {written[-1]}", highlight=False, soft_wrap=True
    )


def _advice(record: StudyRecord) -> str:
    """What a study advises; of one that has not chosen, what it would advise so far."""
    if record.advises_nothing:
        return "none yet"
    from captune.results.best import recorded_choice

    return recorded_choice(record).advice + ("" if record.choice is not None else " (so far)")
