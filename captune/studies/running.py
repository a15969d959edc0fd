"""Run studies to their end: open them, give all to Ray together, close each as it ends.

Nothing here prints. Events are passed to a `Watcher`; the command line has one that prints them. The modules that close
studies import PyTorch, plotting and more, so they are imported only after Ray has started.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from captune import interruption
from captune.config import MachineConfig
from captune.data.tree import name_some
from captune.errors import StudyError, UsageError, unwritable
from captune.plain_text import resume_command
from captune.records import StudyRecord
from captune.records.events import Chosen
from captune.records.foreign import check_report_folder
from captune.records.layout import JOURNAL, REPORT
from captune.studies.checks import check_before_ray, check_predictions, fetch_weights_here
from captune.studies.closing_in_background import BackgroundClosing
from captune.studies.planning import Plan
from captune.tuning.allotment import Allotment, allot
from captune.tuning.budget import Budget
from captune.tuning.cell import Cell
from captune.tuning.cluster import Cluster, connected
from captune.tuning.engine import run_cells
from captune.tuning.gpus import machine_has_gpus
from captune.tuning.loggers import check_loggers
from captune.tuning.nodes import check_gpus, check_nodes
from captune.tuning.open_study import OpenStudy
from captune.tuning.preparing import Preparation
from captune.tuning.samplers import check_sampler
from captune.tuning.silence import Silence
from captune.tuning.specs import TrialSpec
from captune.tuning.starting import (
    Alongside,
    DashboardComesUp,
    ImportedAhead,
    modules_of_trials,
    run_references_here,
    wait_for_workers,
)
from captune.tuning.stopping import StopRequests
from captune.tuning.telemetry import logger_callbacks, telemetry
from captune.tuning.trainable import OpenTrial


class Settings(MachineConfig):
    """How studies are run: the machine's settings, and what a command adds to them.

    Attributes:
        resume: continue studies that already exist in their directories.
        retry_failed: run failed trials again.
        open_trial: opens a trial in a worker; tests pass one whose trials are quick.
    """

    resume: bool = False
    retry_failed: bool = False
    open_trial: Callable[[TrialSpec], OpenTrial] | None = None

    @property
    def loggers(self) -> tuple[str, ...]:
        """The loggers that `logger` names."""
        return check_loggers(self.logger)


class Watcher:
    """Receives the events of running studies. This class ignores all; a subclass overrides what it wants to show."""

    def note(self, text: str) -> None:
        """A note that the user should read before the numbers."""

    def warn(self, text: str) -> None:
        """Something went wrong that does not stop the studies."""

    def started(self, cells: Sequence[Cell], cluster: Cluster, allotment: Allotment) -> None:
        """Ray is connected, and trials are about to start."""

    def dashboard(self, cluster: Cluster) -> None:
        """Ray's dashboard is up."""

    @contextlib.contextmanager
    def watching(
        self, cells: Sequence[Cell], *, concurrency: int, budget: Callable[[], str | None]
    ) -> Iterator[Callable[[], None]]:
        """Watch studies while the block runs; yields a function that is called in every iteration of Ray's loop.

        `concurrency` is the number of trials at once; `budget` returns what is left of the budget in words, or None.
        """
        yield lambda: None

    def ended(self, cells: Sequence[Cell]) -> None:
        """The last trial has ended; the choice, the test metrics and the report follow."""

    def interrupted(self, cells: Sequence[Cell]) -> None:
        """The studies stop here; finished trials are kept. `cells` is empty if none was begun."""

    def closed(self, record: StudyRecord, files: Sequence[Path]) -> None:
        """A study is done and its report is written."""

    def compared(self, directory: Path, num_studies: int) -> None:
        """The report of all studies together is written."""


def run_studies(plans: Sequence[Plan], settings: Settings, watcher: Watcher | None = None) -> list[StudyRecord]:
    """Run studies to their end: search, choose, read the test labels, report.

    Returns:
        The studies, with their choices and test metrics.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; what is finished is kept, and the studies can be continued.
        UsageError: a directory holds another study, or this one and `resume` is off.
        StudyError: a study had to be given up, and the others are closed; or a disk is full.
    """
    try:
        return _run_studies(plans, settings, watcher or Watcher())
    except OSError as error:
        if not unwritable(error):
            raise
        begun = [plan.directory for plan in plans if (plan.directory / JOURNAL).exists()]
        again = f"What is finished is kept: {resume_command(*begun)}" if begun else "Then give the same command again."
        raise StudyError(
            "the files of a study must be readable and writable", got=error.strerror,
            where=error.filename or name_some([str(plan.directory) for plan in plans]),
            next_step=f"Make room, if that is missing. {again}",
        ) from error  # fmt: skip


def _run_studies(plans: Sequence[Plan], settings: Settings, watcher: Watcher) -> list[StudyRecord]:
    for plan in plans:
        check_sampler(plan.study.sampler)
    check_before_ray(
        plans, address=settings.address, gpus_per_trial=settings.gpus_per_trial, allow_cpu=settings.allow_cpu
    )
    if len(plans) > 1:
        check_report_folder(_common_report(plans))
    for note in notes_of(plans):
        watcher.note(note)
    records: list[StudyRecord] = []
    failures: list[StudyError] = []
    with contextlib.ExitStack() as stack:
        # Leaving the stack ends Ray, after the answer was printed.
        studies, background = _run_trials(plans, settings, watcher, stack)
        cells = [opened.cell for opened in studies]
        try:
            for opened in studies:
                if opened.cell.unable is not None:
                    failures.append(_unable(opened))
                    continue
                opened.settle()
                if opened.directory in background.records:
                    records.append(background.records[opened.directory])
                    continue
                try:
                    if opened.directory in background.failures:
                        raise background.failures[opened.directory]
                    from captune.studies.closing import close_study

                    record, files = close_study(opened.directory)
                except StudyError as error:
                    failures.append(error)
                else:
                    records.append(record)
                    watcher.closed(record, files)
        except KeyboardInterrupt:
            watcher.interrupted(cells)
            raise
    if len(records) > 1:
        from captune.results.report import report_studies

        together = _common_report(plans)
        report_studies([record.directory for record in records], together)
        watcher.compared(together, len(records))
    for failure in failures[1:]:
        watcher.warn(str(failure))
    for failure in failures:
        raise failure
    return records


def notes_of(plans: Sequence[Plan]) -> list[str]:
    """The notes on the studies, each once; a note that is not about all of them names those it is about."""
    about: dict[str, list[str]] = {}
    for plan in plans:
        for note in plan.info.notes:
            about.setdefault(note, []).append(plan.info.name)
    return [note if len(names) == len(plans) else f"{name_some(names)}: {note}" for note, names in about.items()]


def _chosen_now(record: StudyRecord) -> Chosen:
    from captune.studies.closing import chosen_now

    return chosen_now(record)


def _common_report(plans: Sequence[Plan]) -> Path:
    """Where the report of all studies of a command lies."""
    return plans[0].directory.parent / REPORT


def _unable(opened: OpenStudy) -> StudyError:
    """The error of a study none of whose trials could begin. The files of a new study are deleted."""
    opened.withdraw()
    return StudyError(
        "every node that runs trials must see the data and the weights",
        got=f"\n  {opened.cell.unable}", where=opened.cell.name,
        next_step="Put them on storage that all nodes share (--data-root, --pretrained), or leave the study out.",
    )  # fmt: skip


def _run_trials(
    plans: Sequence[Plan], settings: Settings, watcher: Watcher, stack: contextlib.ExitStack
) -> tuple[list[OpenStudy], BackgroundClosing]:
    """Open the studies and run their trials; close each of several as it ends. Closing `stack` releases them."""
    studies: list[OpenStudy] = []
    try:
        # Until a study stands in the list, an exception would leave its files behind. So a signal takes effect after
        # all studies are open.
        with interruption.noted():
            for plan in plans:
                opened = OpenStudy(
                    plan.directory, plan.study, plan.info, plan.space, resume=settings.resume,
                    warm_starts=plan.warm_starts, after=plan.after,
                )  # fmt: skip
                opened.cell.chooses_by(_chosen_now)
                stack.callback(opened.close)
                studies.append(opened)
            interruption.check()
        for opened in studies:
            if not opened.cell.finished:
                check_predictions(opened.cell.record, finished=False)
        chain(studies)
        cells = [opened.cell for opened in studies]
        # This process closes a single study itself, since it has nothing else to do.
        background = BackgroundClosing(studies if len(studies) > 1 else [], watcher.closed, _common_report(plans))
        closings = background.seconds_left if len(studies) > 1 else None
        budget = Budget(cells, seconds=settings.time_budget, gpu_hours=settings.gpu_hours, closings=closings)
        budget.reopen()
        if settings.retry_failed:
            for cell in cells:
                cell.retry_failed()
        finished = all(cell.finished for cell in cells) or _run_on_ray(
            cells, plans, settings, watcher, budget, background, stack
        )
        for opened in studies:
            opened.note_spent(budget.spent_seconds, budget.spent_gpu_hours, shared_by=len(studies))
    except BaseException as error:
        with interruption.noted():
            for opened in reversed(studies):  # the first one made the folder that they share
                opened.withdraw()
        if isinstance(error, KeyboardInterrupt):
            watcher.interrupted([opened.cell for opened in studies if opened.cell.trials])
        raise
    for opened in studies:
        for warning in opened.warnings:
            watcher.warn(warning)
    if not finished:
        watcher.interrupted(cells)
        raise KeyboardInterrupt
    return studies, background


def chain(studies: Sequence[OpenStudy]) -> None:
    """Make each study that starts from an earlier one's best configurations wait for it.

    Raises:
        UsageError: the earlier study is not among those that are run.
    """
    cells = {opened.directory: opened.cell for opened in studies}
    for opened in studies:
        if opened.after is None or opened.cell.record.warm_starts is not None:
            continue
        earlier = opened.directory.with_name(opened.after)
        if earlier not in cells:
            raise UsageError(
                "a study that starts from another's best configurations must be continued together with it",
                got="it alone", where=opened.directory,
                next_step=resume_command(earlier, opened.directory),
            )  # fmt: skip
        opened.cell.after = cells[earlier]


def _run_on_ray(
    cells: list[Cell],
    plans: Sequence[Plan],
    settings: Settings,
    watcher: Watcher,
    budget: Budget,
    background: BackgroundClosing,
    stack: contextlib.ExitStack,
) -> bool:
    """Run all trials; False when interrupted. Ray ends with the stack."""
    if settings.address is None and settings.open_trial is None:
        fetch_weights_here(plans)
    threads = max(1, int(settings.cpus_per_trial or 1))
    preparation = Preparation(
        [] if settings.open_trial is not None else cells, watcher.warn, patience=settings.trial_timeout
    )
    # If all trials train on this machine's CPUs and share one dataset, this process prepares the images while Ray
    # starts. With a time limit another process does it, because that one can be ended if a read hangs.
    alone = settings.address is None and len(preparation.groups) == 1 and not machine_has_gpus()
    alone = alone and settings.trial_timeout is None
    preparing = Alongside(preparation.prepare_here) if alone else None
    modules = (
        []
        if settings.open_trial is not None
        else modules_of_trials(cells, concurrency=settings.concurrency, cpus_per_trial=settings.cpus_per_trial)
    )
    with preparing or contextlib.nullcontext():
        cluster = stack.enter_context(
            connected(
                settings.address,
                threads=threads,
                dashboard=settings.dashboard,
                modules=modules,
                dashboard_host=settings.dashboard_host,
            )
        )
        on_gpus = bool(cluster.gpus) and settings.gpus_per_trial != 0
        if on_gpus:
            on_gpus = check_gpus(allow_cpu=settings.allow_cpu)
        allotment = allot(
            cluster.nodes,
            concurrency=settings.concurrency,
            cpus=settings.cpus_per_trial,
            gpus=settings.gpus_per_trial if on_gpus or not cluster.gpus else 0.0,
            memory_bytes=None if settings.memory_per_trial is None else 1e9 * settings.memory_per_trial,
            measured_bytes=max((trial.memory_bytes for cell in cells for trial in cell.trials.values()), default=0),
            deterministic=any(plan.study.deterministic for plan in plans),
        )
        watcher.started(cells, cluster, allotment)
        if settings.gpu_hours is not None and not allotment.gpus:
            watcher.warn("no trial uses a GPU here, so --gpu-hours limits nothing")
        check_nodes([plan.directory for plan in plans], here=cluster.local and not cluster.gpus)
    if preparing is None and preparation.groups:
        preparation.begin(allotment)
    publishing = telemetry(cells, loggers=settings.loggers, concurrency=allotment.concurrency)
    watched = watcher.watching(cells, concurrency=allotment.concurrency, budget=budget.left)
    silence = Silence(cells, watcher.warn)
    dashboard = DashboardComesUp(cluster, watcher.dashboard)
    # Imported while the last trials run, because a core is free then and this process needs the module next.
    closing = ImportedAhead("captune.studies.closing")
    with watched as refresh, publishing as publish:
        if preparing is not None:
            run_references_here(cells, threads=threads, look=refresh)
        if modules:
            wait_for_workers(cluster.ready, min(int(cluster.cpus), allotment.concurrency), look=refresh)

        def step() -> None:
            budget.check(concurrency=allotment.concurrency, gpus=allotment.gpus)
            publish()
            refresh()
            silence.look()
            background.look()
            preparation.look()
            dashboard.look()

        finished = run_cells(
            cells,
            cluster,
            allotment,
            open_trial=settings.open_trial,
            allow_cpu=settings.allow_cpu,
            trial_timeout=settings.trial_timeout,
            should_stop=StopRequests([cell.directory for cell in cells]).came,
            callbacks=logger_callbacks(settings.loggers, cells),
            on_step=step,
            when_spare=closing.begin,
        )
    if finished:
        watcher.ended(cells)
    background.wait(begin=finished)
    if finished:
        cluster.ending.begin()
    return finished
