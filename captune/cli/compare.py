"""captune compare: every method on the same cells with the same search budget, and how they compare."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

from captune.algorithms import ALGORITHMS, default_config, method_named
from captune.cli.console import plain_console
from captune.cli.options import COMMAND_LINE, Given, Set, names_in, required, resolve_paradigm, settings, with_options
from captune.cli.paper import (
    check_preset,
    check_show,
    paper_datasets_in,
    refuse_settings_of_a_search,
    run_paper_table,
    show_preset,
)
from captune.config import PARADIGMS, MachineConfig, Paradigm, StudyConfig, TaskConfig
from captune.data.catalog import check_dataset_name
from captune.data.roles import has_labels
from captune.decisions.criteria import resolve_criterion
from captune.errors import CaptuneError
from captune.records import atomic_write
from captune.records.foreign import check_report_folder
from captune.tuning.loggers import check_loggers

# Every study already has these two as references.
_REFERENCES = ("zero_shot", "balanced")
# Options that belong to one method and would mean something else for another.
_OF_ONE_METHOD = ("method", "space", "objectives", "storage")

METHODS_CSV = "methods.csv"
# The same search budget for every method, whatever is usual for it.
_DEFAULTS = {"trials": 12, "confirm_top": 1, "confirm_seeds": 5, "logger": "none"}


@with_options(
    "task", "study", "trial", "machine",
    without=_OF_ONE_METHOD,
    notes={"paradigm": " (several: a,b; default: all)"},
    defaults=_DEFAULTS,
)  # fmt: skip
def compare(
    given: Given,
    methods: Annotated[
        str, typer.Option(help=f"{', '.join(ALGORITHMS)}, or all (several: a,b).", rich_help_panel=StudyConfig.panel)
    ] = "all",
    out: Annotated[Path, typer.Option(help="Folder of the studies and of the comparison.")] = Path("comparison"),
    resume: Annotated[bool, typer.Option("--resume", metavar="", help="Continue the studies in the folder.")] = False,
    show: Annotated[bool, typer.Option("--show", metavar="", help="Print the preset's settings and end.")] = False,
    set_: Set = None,
) -> None:
    """Run a study of each method with the same search budget; say who won, by how much, and how sure that is.

    With --preset paper there is no search: the published settings of six datasets and three paradigms are run over the
    published seeds, and the paper's main table is printed with the published number beside every cell.

    Example: captune compare --dataset digits --paradigm ul --methods cap,fpl,transclip --trials 6
    """
    console = plain_console(file=sys.stdout)
    out = out.expanduser().absolute()
    preset = given.study.get("preset")
    if show:
        check_show(preset)
        show_preset(paper_datasets_in(given.task), console)
        return
    if preset is not None:
        check_preset(preset)
        refuse_settings_of_a_search(given, _DEFAULTS)
        run_paper_table(given.task, settings(given.trial, set_), methods, out, console)
        return
    required(given.task, "dataset")
    check_dataset_name(given.task["dataset"])
    machine = MachineConfig.parse(given.machine, where=COMMAND_LINE)
    check_loggers(machine.logger)
    fixed = settings(given.trial, set_)
    studies = []
    for kind, name in cells_of(given.task.get("paradigm", "all"), methods, console, given.task):
        task = TaskConfig.parse(
            given.task | {"paradigm": kind, "unseal_pool": ALGORITHMS[name].unsealed}, where=COMMAND_LINE
        )
        default_config(name, task, fixed.get("tuning")).with_values(fixed, where=COMMAND_LINE)
        values = given.study | {"task": task.model_dump(), "method": name, "fixed": fixed}
        if not ALGORITHMS[name].tunable:
            values["trials"] = 1
        study = StudyConfig.parse(values, where=COMMAND_LINE)
        resolve_criterion(study.select_by, kind)  # a wrong name is reported before PyTorch is loaded
        studies.append(study)
    with console.status("Loading PyTorch and Ray"):
        from captune.cli.studies import execute
        from captune.studies.planning import plan_study
        from captune.studies.running import Settings
        from captune.tuning.describe import cell_name
    with console.status("Reading what the studies need"):
        plans = [
            plan_study(
                study, out / "runs" / cell_name(study.task.dataset, study.task.paradigm, study.method), resume=resume
            )
            for study in studies
        ]
    check_report_folder(out, more=[METHODS_CSV])
    lost: CaptuneError | None = None
    try:
        execute(plans, Settings(**machine.model_dump(), resume=resume), console)
    except CaptuneError as error:
        lost = error  # the other studies are still compared
    try:
        write_comparison(out, console)
    except CaptuneError as error:
        # If no study began there is nothing to compare, and the user must see why none began.
        raise lost or error from None
    if lost is not None:
        raise lost


def cells_of(
    paradigm: str, methods: str, console: Console, task_values: Mapping[str, Any]
) -> list[tuple[Paradigm, str]]:
    """(paradigm, method) in the order asked; combinations that do not exist are left out and reported.

    Args:
        task_values: the other settings of the cells.
    """
    names = list(PARADIGMS) if paradigm == "all" else names_in(paradigm, "--paradigm")
    kinds = [cast(Paradigm, resolve_paradigm(name)) for name in names]
    if methods == "all":
        asked = [name for name in ALGORITHMS if name not in _REFERENCES]
    else:
        asked = [method_named(name).name for name in names_in(methods, "--methods")]
    cells: list[tuple[Paradigm, str]] = []
    for kind in dict.fromkeys(kinds):
        labelled = has_labels(TaskConfig.parse({**task_values, "paradigm": kind}, where=COMMAND_LINE))
        for name in dict.fromkeys(asked):
            if ALGORITHMS[name].unsealed and kind == "tft":
                console.print(
                    f"{name} is left out of tft: its pool is the test set; ul has the ceiling.", highlight=False
                )
            elif ALGORITHMS[name].labels_only and not labelled:
                console.print(f"{name} is left out of {kind}: it learns from labelled images alone.", highlight=False)
            else:
                cells.append((kind, name))
    return cells


def write_comparison(out: Path, console: Console) -> None:
    """Write every table, figure and page for all studies in the folder, earlier ones too; print the methods' table."""
    from captune.results.formats import percent
    from captune.results.load import load_studies
    from captune.results.methods import methods_table
    from captune.results.report import report_studies

    def mean_sd(mean: float | None, sd: float | None) -> str:
        return percent(mean) + (f" ± {percent(sd)}" if sd is not None and sd == sd else "")

    files = report_studies([out / "runs"], out)
    table = methods_table(load_studies([out / "runs"]))
    atomic_write(out / METHODS_CSV, table.to_csv(index=False))
    shown = Table(
        "cell", "method", "default %", "tuned %", "zero-shot %", "trials", "epochs", "s", box=None, pad_edge=False
    )
    for row in table.to_dict("records"):
        shown.add_row(
            str(row["cell"]), str(row["method"]), mean_sd(row["default_mean"], row["default_sd"]),
            mean_sd(row["tuned_mean"], row["tuned_sd"]), percent(row["zero_shot"]), _count(row["search_trials"]),
            _count(row["search_epochs"]), _count(row["search_seconds"]),
        )  # fmt: skip
    console.print(shown)
    console.print(f"{len(files) + 1} files in {out}; the page is {files[-1]}", highlight=False, soft_wrap=True)


def _count(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.0f}"
