"""When the test labels of a study may be read: once it has chosen, and not before.

This module records in the journal that the labels may be read, and the metrics that follow from them. Only
`captune.training.evaluation` reads them. A sealed label is a true label that no part of training, search or choice can
reach; the one exception is `--select-by oracle`, which is for research.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from captune.config import TaskConfig
from captune.data.paradigms import IntArray
from captune.errors import StudyError
from captune.records import JOURNAL, ZERO_SHOT, Event, Phase, StudyRecord, Trial
from captune.records.events import Reported, SealOpened
from captune.records.layout import PREDICTIONS, trial_directory
from captune.training.evaluation import evaluate_trial, read_predictions


def record_seal_opened(record: StudyRecord, write: Callable[[Event], object]) -> None:
    """Record in the journal that test labels may be read from here on.

    Raises:
        StudyError: the study has not chosen yet, so its choice could depend on the labels.
    """
    if record.choice is None:
        raise StudyError(
            "test labels must stay sealed until the study has chosen",
            got="a study without a choice",
            where=record.directory,
            next_step="Let it end with `captune resume`.",
        )
    if not record.sealed_opened:
        write(SealOpened())


def record_test_metrics(record: StudyRecord, write: Callable[[Event], object]) -> None:
    """Compare the predictions of every complete trial that has no report with the test labels, and record its metrics.

    Raises:
        StudyError: the study has not recorded that test labels may be read.
        RecordError: the predictions of a trial are missing, or are of other images.
    """
    if not record.sealed_opened:
        raise StudyError(
            "a study must have chosen before its trials are compared with test labels",
            got="sealed labels",
            where=record.directory,
        )
    zero_shot_N = _zero_shot_predictions(record)
    for trial in record.complete():
        if trial.report is None:
            write(_report(record, trial, zero_shot_N))


def _report(record: StudyRecord, trial: Trial, zero_shot_N: IntArray | None) -> Reported:
    directory = trial_directory(record.directory, trial.key)
    config = TaskConfig.parse({**record.task, **trial.task_overrides}, where=record.directory / JOURNAL)
    metrics = evaluate_trial(config, trial.role, directory)
    # An open set has fewer classes, so its class indices differ.
    if zero_shot_N is not None and "open_set_fraction" not in trial.task_overrides:
        predicted_N = read_predictions(directory)
        if len(predicted_N) == len(zero_shot_N):
            metrics["agreement_zero_shot"] = float(np.mean(predicted_N == zero_shot_N))
    return Reported(key=trial.key, metrics=metrics)


def _zero_shot_predictions(record: StudyRecord) -> IntArray | None:
    trial = record.find(ZERO_SHOT)
    directory: Path = trial_directory(record.directory, ZERO_SHOT)
    known = trial is not None and trial.phase is Phase.REFERENCE and (directory / PREDICTIONS).exists()
    return read_predictions(directory) if known else None
