"""What `captune run` and `captune resume` share: studies opened, run to their end, chosen, reported."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from captune.cli.closing import prepare_choice, record_mismatch, write_study_predictions
from captune.cli.options import say_notes
from captune.config import StudyConfig
from captune.errors import StudyError, UsageError
from captune.records import COMPLETE, JOURNAL, SEARCH, Journal, read_journal
from captune.results.choice import choose
from captune.results.load import load_run
from captune.results.report import report_run, report_runs
from captune.results.runs import RunRecord
from captune.results.tables import ORACLE_STAMP
from captune.space import Space
from captune.training.evaluation import open_seal
from captune.tuning.cell import Cell
from captune.tuning.cluster import Cluster, connected, token_file
from captune.tuning.engine import run_cells
from captune.tuning.nodes import check_gpus, check_nodes
from captune.tuning.packing import Allotment, allot
from captune.tuning.progress import Progress
from captune.tuning.runs import CellInfo, RunSpec
from captune.tuning.samplers import check_sampler
from captune.tuning.study import OpenStudy
from captune.tuning.telemetry import logger_callbacks, telemetry
from captune.tuning.trainable import OpenRun

INTERRUPTED = 130


@dataclass(frozen=True)
class Plan:
    """A study that is ready to be opened."""

    directory: Path
    study: StudyConfig
    info: CellInfo
    space: Space
    warm_starts: tuple[dict[str, Any], ...] = ()
    after: str | None = None


@dataclass(frozen=True)
class Settings:
    """How studies are run, as opposed to what they are: free to differ each time."""

    address: str | None = None
    concurrency: int | None = None
    cpus_per_trial: float | None = None
    gpus_per_trial: float | None = None
    memory_per_trial: float | None = None
    allow_cpu: bool = False
    dashboard: bool = True
    dashboard_host: str | None = None
    loggers: tuple[str, ...] = ("tensorboard",)
    resume: bool = False
    open_run: Callable[[RunSpec], OpenRun] | None = field(default=None)


def shown_path(path: Path) -> Path:
    """A path as a person would type it: relative where it lies below the working directory."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def execute(plans: Sequence[Plan], settings: Settings, console: Console) -> None:
    """Run studies to their end, choose, open the seal, report.

    Raises:
        typer.Exit: 130 when interrupted, with what is kept and how to go on.
        StudyError: a study had to be given up.
    """
    for plan in plans:
        check_sampler(plan.study.sampler)
    say_notes(console, (note for plan in plans for note in plan.info.notes))
    with contextlib.ExitStack() as stack:
        studies: list[OpenStudy] = []
        try:
            for plan in plans:
                opened = OpenStudy(
                    plan.directory, plan.study, plan.info, plan.space, resume=settings.resume,
                    warm_starts=plan.warm_starts, after=plan.after,
                )  # fmt: skip
                stack.callback(opened.close)
                studies.append(opened)
            cells = [opened.cell for opened in studies]
            _chain(studies)
            finished = all(cell.finished for cell in cells) or _run(cells, plans, settings, console)
        except BaseException as error:
            for opened in studies:
                opened.withdraw()
            if isinstance(error, KeyboardInterrupt):
                _say_kept([opened.cell for opened in studies if opened.cell.runs], console)
                raise typer.Exit(INTERRUPTED) from None
            raise
        for opened in studies:
            for warning in opened.warnings:
                console.print(f"[yellow]warning[/]: {warning}", highlight=False)
        if not finished:
            _say_kept(cells, console)
            raise typer.Exit(INTERRUPTED)
        try:
            failures = [conclude(opened, console) for opened in studies]
        except KeyboardInterrupt:
            _say_kept(cells, console)
            raise typer.Exit(INTERRUPTED) from None
    reported = [plan.directory for plan, failure in zip(plans, failures, strict=True) if failure is None]
    if len(reported) > 1:
        together = plans[0].directory.parent / "report"
        report_runs(reported, together)
        console.print(f"\nAll {len(reported)} studies side by side: {together}", highlight=False, soft_wrap=True)
    for failure in failures:
        if failure is not None:
            raise failure


def _chain(studies: Sequence[OpenStudy]) -> None:
    """Let studies that start from an earlier one's best configurations wait for it.

    Raises:
        UsageError: the earlier one is not among those that are run.
    """
    cells = {opened.directory: opened.cell for opened in studies}
    for opened in studies:
        if opened.after is None or opened.cell.started_from_earlier:
            continue
        earlier = opened.directory.with_name(opened.after)
        if earlier not in cells:
            raise UsageError(
                "a study that starts from another's best configurations must be continued together with it",
                got="it alone", where=opened.directory,
                next_step=f"captune resume {earlier} {opened.directory}",
            )  # fmt: skip
        opened.cell.after = cells[earlier]


def _run(cells: list[Cell], plans: Sequence[Plan], settings: Settings, console: Console) -> bool:
    threads = max(1, int(settings.cpus_per_trial or 1))
    with connected(
        settings.address, threads=threads, dashboard=settings.dashboard, dashboard_host=settings.dashboard_host
    ) as cluster:
        on_gpus = bool(cluster.gpus) and settings.gpus_per_trial != 0
        if on_gpus:
            on_gpus = check_gpus(allow_cpu=settings.allow_cpu)
        allotment = allot(
            cluster.nodes,
            concurrency=settings.concurrency,
            cpus=settings.cpus_per_trial,
            gpus=settings.gpus_per_trial if on_gpus or not cluster.gpus else 0.0,
            memory_bytes=None if settings.memory_per_trial is None else 1e9 * settings.memory_per_trial,
            measured_bytes=max((run.memory_bytes for cell in cells for run in cell.runs.values()), default=0),
            deterministic=any(plan.study.deterministic for plan in plans),
        )
        _say_start(cells, cluster, allotment, console)
        check_nodes(
            [(plan.directory, plan.study.task) for plan in plans],
            custom=settings.open_run is not None,
            here=cluster.local and not cluster.gpus,
        )
        progress = Progress(cells, console, concurrency=allotment.concurrency)
        watching = telemetry(cells, loggers=settings.loggers, concurrency=allotment.concurrency)
        with watching as on_step, progress.shown():

            def step() -> None:
                on_step()
                progress.refresh()

            return run_cells(
                cells,
                cluster,
                allotment,
                open_run=settings.open_run,
                allow_cpu=settings.allow_cpu,
                callbacks=logger_callbacks(settings.loggers, cells),
                on_step=step,
            )


def conclude(opened: OpenStudy, console: Console) -> StudyError | None:
    """Record the choice, open the seal, write the report, show both; the error of a study that was given up."""
    cell, directory = opened.cell, opened.directory
    opened.settle()
    if not any(run.phase == SEARCH and run.state == COMPLETE for run in cell.runs.values()):
        reasons = list(dict.fromkeys(run.reason for run in cell.runs.values() if run.reason))
        return StudyError(
            "at least one trial of a study must finish",
            got=f"{len(cell.runs)} that all failed: {reasons[0] if reasons else 'no reason recorded'}",
            where=directory,
            next_step="Mend that and continue with --resume; tracebacks are in journal.jsonl.",
        )
    record_choice(directory)
    record_mismatch(directory)
    open_seal(directory)
    labelling = write_study_predictions(directory)
    files = [*([labelling] if labelling else []), *report_run(directory)]
    show_result(load_run(directory), files, console)
    return None


def record_choice(directory: Path) -> None:
    """Choose from what the search may see and write it down, once for each state of the study."""
    kinds = [event["event"] for event in read_journal(directory / JOURNAL)]
    last = {kind: at for at, kind in enumerate(kinds)}
    if last.get("choice", -1) > last.get("finished", -1):
        return
    prepare_choice(directory)
    choice = choose(load_run(directory))
    journal = Journal(directory / JOURNAL)
    journal.append("choice", **choice.as_event(), time=time.time())
    journal.append("phase", name="sealed_opened", detail={}, time=time.time())
    journal.close()


def show_result(run: RunRecord, files: Sequence[Path], console: Console) -> None:
    """The advice, the confirmed configurations beside the references, and where everything lies."""
    choice = run.choice or {}
    console.print(f"\n[bold]{run.name}[/]: [bold]{choice.get('advice')}[/]. {choice.get('reason')}", highlight=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("candidate", f"{run.select_by} (search)", f"{run.metric_name} (sealed test)", "seeds"):
        table.add_column(heading, overflow="fold")
    rows = sorted(choice.get("candidates", ()), key=lambda row: -(row["mean_score"] or 0.0))
    for row in rows:
        trials = [trial for trial in run.trials if row["name"] in (trial.key, trial.name)]
        reports = [trial for trial in trials if trial.role == "report"] or trials
        metrics = [trial.metric for trial in reports if trial.metric is not None]
        paper = " (paper)" if row["config_id"] == 0 else ""
        table.add_row(
            row["name"] + paper,
            _mean_sd(row["mean_score"], row["sd"]),
            _percent(metrics) if run.measurable else "no labels: not measured",
            str(row["num_seeds"]),
        )
    console.print(table)
    if run.select_by == "oracle":
        console.print(f"[bold red]{ORACLE_STAMP}[/]", highlight=False)
    config = choice.get("config") or {}
    searched = [name for name, entry in run.space.items() if entry.get("role") != "fixed" and name in config]
    if searched:
        told = ", ".join(f"{name} {_short(config[name])}" for name in searched)
        console.print(f"best configuration (c{choice.get('config_id')}): {told}", highlight=False)
    if files:
        console.print(f"Files in {shown_path(run.directory)}:", highlight=False, soft_wrap=True)
        console.print("  " + "  ".join(path.name for path in files), highlight=False)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _mean_sd(mean: float | None, sd: float | None) -> str:
    if mean is None:
        return "–"
    return f"{mean:.4f}" + (f" ± {sd:.4f}" if sd is not None else "")


def _percent(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean = sum(values) / len(values)
    return f"{100 * mean:.2f} %" + (f" ({100 * min(values):.1f}–{100 * max(values):.1f})" if len(values) > 1 else "")


def _say_start(cells: Sequence[Cell], cluster: Cluster, allotment: Allotment, console: Console) -> None:
    where = "this machine" if cluster.local else "the cluster"
    share = f"{allotment.cpus:g} CPU" + (f", {allotment.gpus:g} GPU" if allotment.gpus else "")
    share += f", {allotment.memory_bytes / 1e9:.1f} GB" if allotment.memory_bytes else ""
    console.print(
        f"{len(cells)} {'study' if len(cells) == 1 else 'studies'} on {where}: {allotment.concurrency} runs at once, "
        f"{share} each",
        highlight=False,
    )
    if cluster.dashboard:
        console.print(
            f"Ray dashboard: http://{cluster.dashboard}"
            + (f" (asks for the token in {token_file()})" if cluster.authenticated else ""),
            highlight=False,
        )
    if cluster.warning:
        console.print(f"[yellow]warning[/]: {cluster.warning}", highlight=False)


def _say_kept(cells: Sequence[Cell], console: Console) -> None:
    if not cells:
        console.print("Interrupted before the first run: nothing is left behind, the same command begins again.")
    for cell in cells:
        ended = sum(run.state != "RUNNING" for run in cell.runs.values())
        console.print(
            f"Interrupted. {cell.name}: {ended} finished runs are kept, unfinished ones go on from their last epoch.\n"
            f"Continue with: captune resume {cell.directory}",
            highlight=False,
            soft_wrap=True,
        )
