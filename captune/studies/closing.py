"""The steps that close a study once its last trial has ended.

The journal is read once. A step runs if the journal does not hold its result yet. So the same list also closes a study
that was killed while it was being closed, and one that was continued: it repeats the steps that new trials affect.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from captune.algorithms.concept_alignment import mismatch_report
from captune.config import TaskConfig, read_yaml
from captune.data.catalog import load_dataset
from captune.data.duplicates import NEARLY
from captune.data.labelling import image_names
from captune.decisions.candidates import (
    advised_config,
    advised_shares,
    candidate_trials,
    ensemble_trials,
    even_shares,
    methods_of,
    needs_ensemble,
    reported_role,
)
from captune.decisions.choice_record import Choice
from captune.decisions.choosing import choose, chooses_by_criterion
from captune.decisions.criteria import ENSV, ORACLE
from captune.errors import StudyError
from captune.plain_text import resume_command
from captune.plain_yaml import dump_yaml
from captune.records import (
    ENSEMBLE,
    JOURNAL,
    Event,
    Journal,
    Phase,
    Role,
    State,
    StudyRecord,
    Trial,
    atomic_write,
    read_journal,
)  # fmt: skip
from captune.records.events import Chosen, DataNotes, Finished, Mismatch, Planned, Settled
from captune.records.layout import CHECKPOINT, PREDICTIONS_CSV, STUDY, trial_directory
from captune.records.trial import trial_key
from captune.results.load import add_notes
from captune.results.report import report_study
from captune.studies.checks import check_predictions
from captune.studies.findings import write_findings
from captune.studies.seal import record_seal_opened, record_test_metrics
from captune.training.context import open_context
from captune.training.ensemble import write_ensemble, write_ensemble_checkpoint
from captune.training.evaluation import oracle_score
from captune.training.near_duplicates import near_duplicates
from captune.training.pool_evidence import pool_evidence
from captune.training.trial_predictions import write_predictions
from captune.tuning.votes import Votes

Write = Callable[[Event], object]
# Number of images times classes above which mismatch detection, which clusters the pool repeatedly, takes minutes.
_MISMATCH_LIMIT = 20_000_000
_FOUND = "found_in_data"


def close_study(directory: Path) -> tuple[StudyRecord, list[Path]]:
    """Choose, read the test labels and write the report; steps that are already done are skipped.

    Returns:
        The study, and the files of the report.

    Raises:
        StudyError: no search trial ran to its end, so there is nothing to choose from.
        RecordError: the journal or predictions are missing or damaged.
    """
    record = choose_and_evaluate(directory)
    predictions = write_study_predictions(record)
    add_notes(record)
    findings = write_findings(record)
    return record, [*write_advised(record), *predictions, *findings, *report_study(record)]


def choose_and_evaluate(directory: Path) -> StudyRecord:
    """Run the steps whose results are written to the journal: everything but the report.

    Raises:
        StudyError, RecordError: as `close_study`.
    """
    with Journal(directory / JOURNAL) as journal:
        record = StudyRecord(directory, read_journal(directory / JOURNAL))
        _check_closable(record)
        check_predictions(record, finished=True)

        def write(event: Event) -> None:
            record.apply(journal.append(event))

        for step in STEPS:
            step(record, write)
    return record


def write_ensembles(record: StudyRecord, write: Write) -> None:
    """Average the confirmed configurations, if a criterion will choose among them and this ensemble."""
    if chooses_by_criterion(record):
        for role in Role:
            _write_ensemble(record, write, role, ensemble_trials(record, even_shares(record), role), None, {})


def _write_ensemble(
    record: StudyRecord,
    write: Write,
    role: Role,
    groups: dict[str, list[Trial]],
    weights: dict[str, float] | None,
    config: dict[str, Any],
) -> None:
    """Average trials of one role and record the result as a reference, unless one newer than all of them exists.

    Args:
        record, write: the study, and what writes its events.
        role: the trials' role.
        groups: candidate → its trials.
        weights: of the candidates; None: equal.
        config: the ensemble as a configuration of `blend`; empty if it is not needed.
    """
    key = trial_key(ENSEMBLE, role=role)
    known = record.find(key)
    averaged_at = known.ended_at if known is not None and known.state is State.COMPLETE else -1
    newest = max((trial.ended_at for group in groups.values() for trial in group), default=-1)
    current = known is not None and known.config == config
    if not groups or (current and averaged_at > newest):
        return
    members = [[trial_directory(record.directory, trial.key) for trial in group] for group in groups.values()]
    directory, started = trial_directory(record.directory, key), time.perf_counter()
    shares = None if weights is None else [weights[name] for name in groups]
    outcome = write_ensemble(_task(record), role, members, directory, criterion=record.select_by, weights=shares)
    if outcome is None:
        return
    if record.select_by == ORACLE and role is Role.SCORE:
        metric = oracle_score(_task(record), role, directory)
        outcome |= {"score": metric, "scores": outcome["scores"] | {ORACLE: metric}}
    if not current:
        write(
            Planned(
                key=key, phase=Phase.REFERENCE, origin=ENSEMBLE, seed=record.settings.get("seed"), role=role,
                method=ENSEMBLE, config=config,
            )
        )  # fmt: skip
    seconds = time.perf_counter() - started
    write(Finished(key=key, state=State.COMPLETE, score_epoch=0, fidelity=1.0, seconds=seconds, **outcome))


def settle_votes(record: StudyRecord, write: Write) -> None:
    """Score every candidate by its agreement with the vote of all.

    During the search each candidate was scored against the vote of those before it only.
    """
    voters = [
        trial
        for trial in sorted(record.complete(), key=lambda trial: trial.ended_at)
        if trial.role is Role.SCORE
        and trial.phase in (Phase.REFERENCE, Phase.SEARCH, Phase.CONFIRM)
        # An ensemble that is built by the choice comes after the vote, so it does not vote.
        and (trial.origin != ENSEMBLE or chooses_by_criterion(record))
    ]
    if record.settled_at > max((trial.ended_at for trial in voters), default=0):
        return
    votes = Votes()
    for trial in voters:
        votes.add(trial.key, trial_directory(record.directory, trial.key))
    if scores := votes.agreements():
        write(Settled(criterion=ENSV, scores=scores))


def find_mismatch(record: StudyRecord, write: Write) -> None:
    """Record, once per study, the class names that concept-mismatch detection flags on the whole pool (no labels)."""
    if record.mismatch is not None:
        return
    if (record.opened.num_pool or 0) * (record.opened.num_classes or 0) > _MISMATCH_LIMIT:
        reason = "the pool is too large to look for mismatched classes in passing: use captune mismatch"
        write(Mismatch(reason=reason))
    else:
        found = mismatch_report(open_context(_task(record), Role.REPORT)).mismatched
        write(Mismatch(mismatched=tuple(int(label) for label in found)))


def note_data(record: StudyRecord, write: Write) -> None:
    """Record, once per study, notes that need the weights and the decoded images; in study.yaml too.

    They say how the weights were read, which images are unreadable and which test images nearly equal a training image.
    """
    if record.data_notes is None:
        write(_found_in_data(record))
    file, noted = record.directory / STUDY, record.data_notes
    if noted is not None and file.exists():
        content = read_yaml(file)
        found = {"notes": list(noted.notes), "near_duplicates": noted.near_duplicates}
        if content.get(_FOUND) != found:
            atomic_write(file, dump_yaml(content | {_FOUND: found}))


def _found_in_data(record: StudyRecord) -> DataNotes:
    task = _task(record)
    notes = [note for note in open_context(task, Role.REPORT).notes if note not in record.opened.notes]
    dataset = load_dataset(task)
    if dataset.images_NHWC is not None:  # the embedded digits hold no copies
        return DataNotes(notes=tuple(notes))
    found = near_duplicates(task)
    closest = [
        {"test": image_names(dataset, np.array([test]))[0], "train": image_names(dataset, np.array([other]))[0],
         "cosine": round(cosine, 5)}
        for test, other, cosine in found.pairs
    ]  # fmt: skip
    if found.count:
        named = ", ".join(f"{pair['test']} = {pair['train']} ({pair['cosine']:.4f})" for pair in closest[:3])
        notes.append(
            f"{found.count} of {found.num_test} test images are nearly a training image (cosine of the frozen features "
            f"at least {NEARLY}); the closest: {named}{', …' if len(closest) > 3 else ''}"
        )
    near = {"count": found.count, "num_test": found.num_test, "threshold": NEARLY, "closest": closest}
    return DataNotes(notes=tuple(notes), near_duplicates=near if closest else None)


def record_choice(record: StudyRecord, write: Write) -> None:
    """Choose from what the search may see, and write the ensemble that was considered."""
    if record.choice_is_current:
        return
    choice = choice_of(record)
    if choice.weights and needs_ensemble(choice.weights, candidate_trials(record)):
        config = advised_config(record, choice.weights)
        for role in Role:
            groups = ensemble_trials(record, choice.weights, role)
            _write_ensemble(record, write, role, groups, choice.weights, config)
    write(choice.as_event())


def choice_of(record: StudyRecord) -> Choice:
    """The choice of a study whose trials have ended, from the candidates' predictions or by the study's criterion.

    Only the criterion `oracle` uses test labels.
    """
    trials = candidate_trials(record)
    paths = {name: [trial_directory(record.directory, trial.key) for trial in group] for name, group in trials.items()}
    if chooses_by_criterion(record):
        return choose(record)
    evidence = pool_evidence(_task(record), paths, methods_of(record, trials))
    return choose(record, evidence, open_context(_task(record), Role.SCORE).task.class_names)


def chosen_now(record: StudyRecord) -> Chosen:
    """`choice_of` as an event, for a study that runs stress tests on its choice."""
    return choice_of(record).as_event()


def write_advised(record: StudyRecord) -> list[Path]:
    """Write checkpoint.safetensors for `captune predict`: the advised model, as the study's trials saved it."""
    if record.choice is None:
        return []
    shares = advised_shares(record, record.choice)
    groups = ensemble_trials(record, shares, reported_role(record, shares))
    saved = [[trial_directory(record.directory, trial.key) / CHECKPOINT for trial in own] for own in groups.values()]
    path = record.directory / CHECKPOINT
    config = {name: value for name, value in record.choice.advised.items() if name not in ("method", "learn_from")}
    return [path] if write_ensemble_checkpoint(saved, record.choice.advised.get("method"), config, path) else []


def write_study_predictions(record: StudyRecord) -> list[Path]:
    """Write predictions.csv: what the advised candidate predicts, over all its seeds, for the images of the report."""
    if record.choice is None:
        return []
    # An ensemble's predictions were averaged when it was made; they are read from disk like those of a trial.
    name = str(record.choice.name)
    own = [trial for trial in record.complete() if trial.name == name and trial.phase is not Phase.STRESS]
    role = Role.REPORT if any(trial.role is Role.REPORT for trial in own) else Role.SCORE
    trials = [trial_directory(record.directory, trial.key) for trial in own if trial.role is role]
    file = record.directory / PREDICTIONS_CSV
    return [file] if write_predictions(trials, _task(record), role, file) else []


STEPS: tuple[Callable[[StudyRecord, Write], None], ...] = (
    write_ensembles,
    settle_votes,
    find_mismatch,
    note_data,
    record_choice,
    record_seal_opened,
    record_test_metrics,
)
"""In this order. No step before `record_seal_opened` uses test labels, except with the criterion `oracle`."""


def _check_closable(record: StudyRecord) -> None:
    if any(trial.phase is Phase.SEARCH and trial.state is State.COMPLETE for trial in record.trials):
        return
    ended = record.search_ended
    failed = [trial for trial in record.trials if trial.state is State.FAILED]
    if not failed and ended is not None and ended.reason is not None:
        raise StudyError(
            "at least one trial of a study's search must finish", got=f"none before {ended.reason} was used up",
            where=record.directory,
            next_step=f"Give more of it (--time-budget, --gpu-hours): {resume_command(record.directory)}",
        )  # fmt: skip
    reasons = list(dict.fromkeys(trial.reason for trial in failed if trial.reason))
    raise StudyError(
        "at least one trial of a study's search must finish",
        got=f"{len(failed)} of {len(record.trials)} that failed: {reasons[0] if reasons else 'no reason recorded'}",
        where=record.directory,
        next_step=f"Fix that, then: {resume_command(record.directory)} --retry-failed. Tracebacks are in {JOURNAL}.",
    )


def _task(record: StudyRecord) -> TaskConfig:
    return TaskConfig.parse(record.task, where=record.directory / JOURNAL)
