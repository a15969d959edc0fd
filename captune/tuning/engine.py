"""The engine: one `Tuner.fit()` that runs every cell's plan to its end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from ray import tune
from ray.tune import CheckpointConfig, FailureConfig, RunConfig, TuneConfig, Tuner

from captune import interruption
from captune.errors import CaptuneError, StudyError, unwritable
from captune.plain_text import resume_command
from captune.tuning import ray_internals
from captune.tuning.allotment import Allotment
from captune.tuning.cell import Cell
from captune.tuning.cluster import Cluster
from captune.tuning.planner import Planner, StopOnInterrupt, StudyCallback, StudyScheduler
from captune.tuning.quiet import muted
from captune.tuning.specs import TrialSpec
from captune.tuning.trainable import SPEC, OpenTrial, StudyTrainable, open_trial_anywhere

# A report costs the driver some milliseconds and a wait for the disk; further epochs in the same report cost little.
# With many trials at once, each therefore reports less often. An epoch at which the scheduler decides is reported at
# once.
_REPORTS_A_SECOND = 16


def run_cells(
    cells: Sequence[Cell],
    cluster: Cluster,
    allotment: Allotment,
    *,
    open_trial: Callable[[TrialSpec], OpenTrial] | None = None,
    allow_cpu: bool = False,
    trial_timeout: float | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    callbacks: Sequence[Any] = (),
    on_step: Callable[[], None] = lambda: None,
    when_spare: Callable[[], None] = lambda: None,
) -> bool:
    """Run all cells until they are finished; False when interrupted (what is done is kept).

    Ctrl-C and SIGTERM end the study in order; a second one ends it at once. A trial that was given a GPU fails if torch
    finds none, unless `allow_cpu` is set; a trial that takes more than `trial_timeout` seconds fails too. `should_stop`
    is called in every iteration of Ray's loop and ends the study in order once it returns True. `when_spare` is called
    when a worker is free and there is no trial for it.

    Raises:
        StudyError: Ray cannot go on.
        KeyboardInterrupt: a signal came twice, or before the first trial.
    """
    planner = Planner(
        cells,
        threads=allotment.threads,
        gpus=allotment.gpus,
        timeout=trial_timeout,
        # Loggers that are services make one entry per Tune trial, which then must not hold a pack.
        packed=not callbacks,
        workers=allotment.concurrency,
    )
    scheduler = StudyScheduler(planner, kept=allotment.concurrency if cluster.local else 0)
    for cell in cells:
        cell.report_seconds = gathering_seconds(allotment.concurrency)

    def step() -> None:
        scheduler.end_overdue()
        if should_stop():
            planner.interrupt()
        if cluster.dead:
            raise _RayDied
        on_step()

    planner.while_waiting, planner.when_spare = step, when_spare
    trainable: Any = StudyTrainable
    if open_trial is None and allow_cpu:
        open_trial = open_trial_anywhere
    if open_trial is not None:
        trainable = tune.with_parameters(trainable, open_trial=open_trial)
    tuner = Tuner(
        tune.with_resources(trainable, allotment.resources()),
        tune_config=TuneConfig(
            search_alg=planner,
            scheduler=scheduler,
            num_samples=-1,
            max_concurrent_trials=allotment.concurrency,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_id,
        ),
        run_config=RunConfig(
            name="study",
            storage_path=str(cluster.storage),
            stop=StopOnInterrupt(planner),
            verbose=0,
            callbacks=[StudyCallback(planner, step), *callbacks],
            # Tune must not retry. The planner does: it hands out a lost trial again, as a new Tune trial.
            failure_config=FailureConfig(max_failures=0, fail_fast=False),
            checkpoint_config=CheckpointConfig(checkpoint_at_end=False, checkpoint_frequency=0),
        ),
    )
    taken = ray_internals.workers_taken_as_they_are() if cluster.local else contextlib.nullcontext()
    with interruption.noted(planner.interrupt), muted(), taken, ray_internals.loggers_uncounted():
        interruption.check()
        try:
            tuner.fit()
        except _RayDied:
            raise StudyError(
                "the processes of Ray that this command started must run until it ends",
                got=f"the end of {' and '.join(cluster.dead)}, as where the system runs out of memory",
                next_step=_kept(cells),
            ) from None
        except Exception as error:
            cause = _cause(error)
            if isinstance(cause, CaptuneError) or (isinstance(cause, OSError) and unwritable(cause)):
                raise cause from None
            raise StudyError(
                "Ray must be able to go on", got=f"{type(cause).__name__}: {cause}",
                next_step=_kept(cells),
            ) from error  # fmt: skip
    return not planner.interrupted


class _RayDied(BaseException):
    """Ends Tune's loop. After an `Exception` Tune would ask Ray to end the trials, and wait until Ray aborts."""


def _kept(cells: Sequence[Cell]) -> str:
    return f"What is finished is kept. Go on with: {resume_command(*[cell.directory for cell in cells])}"


def gathering_seconds(concurrency: int) -> float:
    """For how many seconds a trial gathers epochs before it reports them, with `concurrency` trials at once."""
    return max(1.0, concurrency / _REPORTS_A_SECOND)


def _trial_name(trial: Any) -> str:
    first, *others = TrialSpec.pack_from_json(trial.config[SPEC])
    return f"{first.cell}-{first.key}" + (f"-and-{len(others)}" if others else "")


def _trial_id(trial: Any) -> str:
    return str(trial.trial_id)


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
