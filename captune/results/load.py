"""Read directories of studies into records, from which every table, figure and page is made.

A study that is unfinished, torn, copied or edited is not an error: its record holds what could be read, and its notes
say what is missing or doubtful, one sentence each. Only a path without any journal is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from captune.errors import RecordError
from captune.records import JOURNAL, SCHEMA_VERSION, ZERO_SHOT, Phase, StudyRecord
from captune.records.journal import read_damaged_journal
from captune.records.layout import OF_A_STUDY


def load_studies(paths: Iterable[Path | str]) -> list[StudyRecord]:
    """Every study under the given paths, each once, in the order given.

    A path is a study's directory, a file that names it (its journal), or a folder with studies at most three levels
    down. A study that is given twice, by two names or as a copy, is read once: the longer journal counts, and a copy
    is noted.

    Raises:
        RecordError: a path does not exist or holds no journal.
    """
    studies: dict[str, tuple[int, StudyRecord]] = {}
    for path in paths:
        for directory in _study_directories(Path(path)):
            study, num_events = _load(directory)
            identity = _identity(study)
            known = studies.get(identity)
            if known is None:
                studies[identity] = (num_events, study)
                continue
            longer, shorter = (study, known[1]) if num_events > known[0] else (known[1], study)
            if longer.directory.resolve() != shorter.directory.resolve():
                note = f"given twice: {shorter.directory.name} is a copy of the same study and was left out"
                longer.notes += (note,)
            studies[identity] = (max(num_events, known[0]), longer)
    return _distinct_names([study for _, study in studies.values()])


def load_study(path: Path | str) -> StudyRecord:
    """The one study at a path.

    Raises:
        RecordError: no journal, or more than one.
    """
    studies = load_studies([path])
    if len(studies) != 1:
        raise RecordError("one study must be given", got=f"{len(studies)} studies", where=path)
    return studies[0]


def _study_directories(path: Path) -> list[Path]:
    if path.name in OF_A_STUDY and path.is_file() and (path.parent / JOURNAL).is_file():
        return [path.parent]
    if (path / JOURNAL).is_file():
        return [path]
    found = sorted(journal.parent for depth in ("*", "*/*", "*/*/*") for journal in path.glob(f"{depth}/{JOURNAL}"))
    if not found:
        raise RecordError(
            f"a study's directory must hold {JOURNAL}",
            got="none" if path.exists() else "no such path",
            where=path,
            next_step="Give the directory that `captune run` wrote, or a folder of such directories.",
        )
    return found


def _load(directory: Path) -> tuple[StudyRecord, int]:
    """The study in a directory, with its notes, and the number of events in its journal."""
    events, notes = read_damaged_journal(directory / JOURNAL)
    study = StudyRecord(directory, events)
    add_notes(study, *notes)
    return study, len(events)


def add_notes(study: StudyRecord, *notes: str) -> None:
    """Set a record's notes: those given (from reading its journal), then what is missing or doubtful in it."""
    found = list(notes)
    schema = study.opened.schema
    if not study.num_openings:
        found.append("no study_opened event: dataset, method and search space are unknown")
    elif schema is not None and schema > SCHEMA_VERSION:
        found.append(
            f"written by a newer captune (schema {schema}, this one reads {SCHEMA_VERSION}): some fields may be missed"
        )
    if study.unplanned:
        found.append(
            f"{len(study.unplanned)} trials without a plan (their configuration is unknown): "
            f"{', '.join(sorted(study.unplanned)[:3])}"
        )
    found += study.opened.notes
    found += study.data_notes.notes if study.data_notes is not None else ()
    if screened := len(study.of_phase(Phase.SCREEN)):
        found.append(
            f"{screened} configurations were ranked on frozen features first; their scores are of another tuning and "
            "compare with no other"
        )
    study.notes = (*found, *_what_is_missing(study))


def _identity(study: StudyRecord) -> str:
    """A text that is equal for copies of a study. It uses the first opening: a copy may have been continued."""
    first = study.first_opened
    if not study.num_openings:
        return str(study.directory.resolve())
    return json.dumps([first.time, first.host, first.study], sort_keys=True, default=str)


def _distinct_names(studies: list[StudyRecord]) -> list[StudyRecord]:
    """Put the parent folder's name before names that several studies share, so that no table mixes them."""
    names = [study.name for study in studies]
    taken: set[str] = set()
    for study in studies:
        name = f"{study.directory.resolve().parent.name}/{study.name}" if names.count(study.name) > 1 else study.name
        study.name = next(
            f"{name}{mark}" for mark in ("", *(f"#{n}" for n in range(2, 10_000))) if f"{name}{mark}" not in taken
        )
        taken.add(study.name)
    return studies


def _what_is_missing(study: StudyRecord) -> list[str]:
    search, notes = study.of_phase(Phase.SEARCH), []
    finished = [trial for trial in search if trial.scored]
    if not finished:
        notes.append("no search trial has finished: there is nothing to choose from yet")
    zero_shot = study.find(ZERO_SHOT)
    if zero_shot is None or zero_shot.score is None:
        notes.append("no zero-shot reference: gains over zero-shot cannot be given")
    waiting = [trial for trial in search if not trial.ended]
    if waiting:
        notes.append(f"unfinished: {len(waiting)} of {len(search)} search trials are still to end")
    numbers = [trial.number for trial in search if trial.number is not None]
    if numbers and sorted(numbers) != list(range(len(numbers))):
        notes.append("the numbers of the search trials have gaps or repeats")
    if not any(trial.scored for trial in study.of_phase(Phase.CONFIRM)):
        notes.append("no configuration was confirmed over fresh seeds: scores are single trials")
    if not study.sealed_opened:
        notes.append("the test labels were not read yet: there is no test metric")
    elif not any(trial.report for trial in study.trials):
        notes.append("the test labels were released, but no metric was written")
    return notes
