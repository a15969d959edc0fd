"""Run directories to records: the one reader of journals that every table, figure and page starts from.

Nothing here raises for a run that is merely unfinished, torn, copied or edited: what can be said is in the record, what
cannot is in `RunRecord.notes`, one sentence each. Only a path without any journal is an error.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from captune.errors import RecordError
from captune.records import (
    CONFIRM,
    JOURNAL,
    REFERENCE,
    RUNNING,
    SCHEMA_VERSION,
    SCREEN,
    SEARCH,
    STRESS,
    read_journal,
)
from captune.results.runs import (
    BALANCED,
    ENSEMBLE,
    PLANNED,
    ZERO_SHOT,
    EpochRecord,
    Event,
    RunRecord,
    TrialRecord,
    number_or_none,
)

_KEY = re.compile(r"(?P<name>.+?)(-s(?P<seed>\d+))?(?P<report>-report)?", re.DOTALL)


def load_runs(paths: Iterable[Path | str]) -> list[RunRecord]:
    """Every run under the given paths, each once, in the order given.

    A path is a run's directory, its journal, or a folder that holds runs at any depth up to three. The same run given
    twice, by two names or as a copy, is read once (the longer journal wins) and noted.

    Raises:
        RecordError: a path does not exist or holds no journal.
    """
    runs: dict[str, tuple[int, RunRecord]] = {}
    for path in paths:
        for directory in _run_directories(Path(path)):
            run, identity, num_events = _load(directory)
            known = runs.get(identity)
            if known is None:
                runs[identity] = (num_events, run)
                continue
            longer, shorter = (run, known[1]) if num_events > known[0] else (known[1], run)
            if longer.directory.resolve() != shorter.directory.resolve():
                note = f"given twice: {shorter.directory.name} is a copy of the same run and was left out"
                longer = _with_notes(longer, note)
            runs[identity] = (max(num_events, known[0]), longer)
    return _distinct_names([run for _, run in runs.values()])


def load_run(path: Path | str) -> RunRecord:
    """One run.

    Raises:
        RecordError: no journal, or more than one.
    """
    runs = load_runs([path])
    if len(runs) != 1:
        raise RecordError("one run must be given", got=f"{len(runs)} runs", where=path)
    return runs[0]


def _run_directories(path: Path) -> list[Path]:
    if path.name == JOURNAL and path.is_file():
        return [path.parent]
    if (path / JOURNAL).is_file():
        return [path]
    found = sorted(journal.parent for depth in ("*", "*/*", "*/*/*") for journal in path.glob(f"{depth}/{JOURNAL}"))
    if not found:
        raise RecordError(
            f"a run's directory must hold {JOURNAL}",
            got="none" if path.exists() else "no such path",
            where=path,
            next_step="Give the directory that `captune run` wrote, or a folder of such directories.",
        )
    return found


def _load(directory: Path) -> tuple[RunRecord, str, int]:
    events, notes = _read_tolerantly(directory / JOURNAL)
    num_events = len(events)
    events, more = migrate(events)
    openings = [event for event in events if event.get("event") == "study_opened"] or [{}]
    # Resuming opens again, perhaps with more trials: the last one counts, the first one tells which study it is.
    first, opened = openings[0], openings[-1]
    notes += more
    if not opened:
        notes.append("no study_opened event: dataset, method and search space are unknown")
    if isinstance(told := opened.get("notes"), list):
        notes += [str(note) for note in told]
    study = opened.get("study")
    trials = tuple(_settled(_trials(events, notes), events, opened))
    screened = sum(trial.phase == SCREEN for trial in trials)
    if screened:
        notes.append(
            f"{screened} configurations were ranked on frozen features first; their scores are of another tuning and "
            "compare with no other"
        )
    run = RunRecord(
        directory=directory,
        name=directory.resolve().name,
        study=study if isinstance(study, dict) else {},
        opened=opened,
        trials=trials,
        phases=tuple(event for event in events if event.get("event") == "phase"),
        choice=next((event for event in reversed(events) if event.get("event") == "choice"), None),
        extras=_extras(events),
    )
    notes += _what_is_missing(run)
    identity = json.dumps([first.get("time"), first.get("host"), first.get("study")], sort_keys=True, default=str)
    if not opened:
        identity = str(directory.resolve())
    return _with_notes(run, *notes), identity, num_events


def _with_notes(run: RunRecord, *notes: str) -> RunRecord:
    return replace(run, notes=(*run.notes, *notes))


def _distinct_names(runs: list[RunRecord]) -> list[RunRecord]:
    """Runs whose folders share a name get the parent folder in front, so that no table mixes them."""
    names = [run.name for run in runs]
    distinct: list[RunRecord] = []
    for run in runs:
        name = f"{run.directory.resolve().parent.name}/{run.name}" if names.count(run.name) > 1 else run.name
        taken = {other.name for other in distinct}
        suffix = next(
            f"{name}{mark}" for mark in ("", *(f"#{n}" for n in range(2, 10_000))) if f"{name}{mark}" not in taken
        )
        distinct.append(replace(run, name=suffix))
    return distinct


def _read_tolerantly(path: Path) -> tuple[list[Event], list[str]]:
    try:
        events = read_journal(path)
        torn = [] if path.read_bytes().endswith(b"\n") or not path.stat().st_size else ["the last line was torn off"]
        return events, torn
    except RecordError:
        return _intact_lines(path)


def _intact_lines(path: Path) -> tuple[list[Event], list[str]]:
    """What a damaged or hand-edited journal still says: the lines whose checksum holds."""
    events: list[Event] = []
    damaged: list[int] = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        checksum, _, body = line.partition(b" ")
        try:
            event = json.loads(body) if checksum == b"%08x" % zlib.crc32(body) else None
        except ValueError:
            event = None
        if isinstance(event, dict):
            events.append(event)
        else:
            damaged.append(number)
    named = ", ".join(str(number) for number in damaged[:3]) + (", …" if len(damaged) > 3 else "")
    return events, [f"{len(damaged)} damaged or edited journal lines were left out (line {named})"]


def _infer_unnumbered(events: list[Event]) -> list[Event]:
    """Schema 0, a journal without a schema number: phase, role, seed and config_id are read from each key."""
    migrated = []
    for event in events:
        if event.get("event") == "planned" and isinstance(event.get("key"), str):
            event = {**_fields_of_key(event["key"]), **{k: v for k, v in event.items() if v is not None}}
        elif event.get("event") == "study_opened":
            event = {**event, "schema": 1}
        migrated.append(event)
    return migrated


def _split_key(key: str) -> tuple[str, str | None, str]:
    """`c7-s3-report` is configuration c7, seed 3, role report."""
    match = _KEY.fullmatch(key)
    if match is None:
        return key, None, "score"
    return match["name"], match["seed"], "report" if match["report"] else "score"


def _fields_of_key(key: str) -> dict[str, Any]:
    name, seed, role = _split_key(key)
    fields: dict[str, Any] = {"role": role, "phase": REFERENCE}
    if re.fullmatch(r"t\d+", name):
        fields |= {"phase": SEARCH, "number": int(name[1:]), "config_id": int(name[1:])}
    elif seed is not None and (own := re.match(r"(c|x)(-?\d+)", name)):
        fields |= {"phase": CONFIRM if own[1] == "c" else STRESS, "config_id": int(own[2]), "seed": int(seed)}
    return fields


# From schema version n to n + 1. A new version adds one function here and keeps its predecessor's journal as a fixture.
MIGRATIONS: dict[int, Callable[[list[Event]], list[Event]]] = {0: _infer_unnumbered}


def migrate(events: list[Event], to_version: int = SCHEMA_VERSION) -> tuple[list[Event], list[str]]:
    """Events in the newest schema, and notes on what was done; a newer journal than this program is read as it is."""
    opened = next((event for event in events if event.get("event") == "study_opened"), {})
    version = opened.get("schema")
    start = version if isinstance(version, int) and not isinstance(version, bool) else 0
    notes = []
    if start > to_version:
        notes.append(
            f"written by a newer captune (schema {start}, this one reads {to_version}): some fields may be missed"
        )
    elif start < to_version:
        notes.append(f"records of an older schema ({start if version is not None else 'unnumbered'}) were migrated")
    for step in range(start, to_version):
        events = MIGRATIONS[step](events)
    return events, notes


def _trials(events: list[Event], notes: list[str]) -> list[TrialRecord]:
    by_key: dict[str, dict[str, list[Event]]] = {}
    for event in events:
        key, kind = event.get("key"), event.get("event")
        if isinstance(key, str) and isinstance(kind, str):
            by_key.setdefault(key, {}).setdefault(kind, []).append(event)
    unplanned = sorted(key for key, kinds in by_key.items() if "planned" not in kinds)
    if unplanned:
        notes.append(
            f"{len(unplanned)} trials without a plan (their configuration is unknown): {', '.join(unplanned[:3])}"
        )
    trials = [_trial(key, kinds) for key, kinds in by_key.items()]
    return sorted(trials, key=_table_order)


def _settled(trials: list[TrialRecord], events: list[Event], opened: Event) -> list[TrialRecord]:
    """Trials with the scores that were settled after the last of them: a vote of all is not known before."""
    last = next((event for event in reversed(events) if event.get("event") == "settled"), {})
    criterion, scores = last.get("criterion"), _numbers(last.get("scores"))
    if not isinstance(criterion, str):
        return trials
    selects = opened.get("select_by") == criterion
    return [
        replace(
            trial,
            scores=trial.scores | {criterion: scores[trial.key]},
            score=scores[trial.key] if selects and trial.score is not None else trial.score,
        )
        if trial.key in scores
        else trial
        for trial in trials
    ]


_PHASE_ORDER = {REFERENCE: 0, SCREEN: 1, SEARCH: 2, CONFIRM: 3, STRESS: 4}
_REFERENCE_ORDER = {ZERO_SHOT: 0, BALANCED: 1, ENSEMBLE: 2}


def _table_order(trial: TrialRecord) -> tuple[Any, ...]:
    # By what a trial is, never by when it was written: a resumed study gives the same order as an uninterrupted one.
    return (
        _PHASE_ORDER.get(trial.phase, 9),
        _REFERENCE_ORDER.get(trial.key, 9) if trial.phase == REFERENCE else 0,
        trial.number if trial.number is not None else 0,
        trial.config_id if trial.config_id is not None else 0,
        trial.name,
        trial.role == "report",
        trial.seed if trial.seed is not None else -1,
        trial.key,
    )


def _last(kinds: dict[str, list[Event]], kind: str) -> Event:
    return kinds.get(kind, [{}])[-1]


def _trial(key: str, kinds: dict[str, list[Event]]) -> TrialRecord:
    plan = {**_fields_of_key(key), **{k: v for k, v in _last(kinds, "planned").items() if v is not None}}
    finished, started = _last(kinds, "finished"), _last(kinds, "started")
    state = str(finished.get("state") or (RUNNING if started else PLANNED))
    report = _last(kinds, "report").get("metrics")
    attempts = kinds.get("started", [])
    return TrialRecord(
        key=key,
        phase=str(plan["phase"]),
        name=_split_key(key)[0],
        number=plan.get("number"),
        config_id=plan.get("config_id"),
        origin=plan.get("origin"),
        promoted_from=plan.get("promoted_from"),
        params=_mapping(plan.get("params")),
        config=_mapping(plan.get("config")),
        seed=plan.get("seed"),
        role=str(plan["role"]),
        task_overrides=_mapping(plan.get("task_overrides")),
        state=state,
        score=number_or_none(finished.get("score")),
        score_epoch=finished.get("score_epoch"),
        scores=_numbers(finished.get("scores")),
        gain_errors=_numbers(finished.get("gain_errors")),
        fidelity=number_or_none(finished.get("fidelity")),
        num_parameters=finished.get("num_parameters"),
        reason=finished.get("reason"),
        attempts=len(attempts),
        preemptions=len(kinds.get("preempted", [])),
        seconds=number_or_none(finished.get("seconds")),
        node=finished.get("node") or started.get("node"),
        started=number_or_none(attempts[0].get("time")) if attempts else None,
        second_objective=number_or_none(finished.get("prediction_balance")),
        epochs=tuple(_epochs(kinds.get("epoch", []))),
        report=report if isinstance(report, dict) else None,
    )


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _numbers(value: Any) -> dict[str, float]:
    return {name: number for name, item in _mapping(value).items() if (number := number_or_none(item)) is not None}


_EPOCH_OWN = {"event", "key", "time", "epoch", "fidelity", "score", "scores", "decision"}


def _epochs(events: list[Event]) -> Iterator[EpochRecord]:
    # An epoch run again after a kill is written twice with the same numbers: the last row counts.
    last = {event["epoch"]: event for event in events if isinstance(event.get("epoch"), int)}
    for epoch in sorted(last):
        event = last[epoch]
        yield EpochRecord(
            epoch=epoch,
            fidelity=number_or_none(event.get("fidelity")),
            score=number_or_none(event.get("score")),
            scores=_numbers(event.get("scores")),
            values={name: value for name, value in event.items() if name not in _EPOCH_OWN},
            decision=event.get("decision"),
        )


_KNOWN_EVENTS = {
    "study_opened",
    "planned",
    "started",
    "epoch",
    "preempted",
    "crashed",
    "finished",
    "phase",
    "report",
    "choice",
    "settled",
}


def _extras(events: list[Event]) -> dict[str, list[Event]]:
    extras: dict[str, list[Event]] = {}
    for event in events:
        kind = event.get("event")
        if isinstance(kind, str) and kind not in _KNOWN_EVENTS:
            extras.setdefault(kind, []).append(event)
    return extras


def _what_is_missing(run: RunRecord) -> list[str]:
    search, notes = run.of_phase(SEARCH), []
    finished = [trial for trial in search if trial.finished]
    if not finished:
        notes.append("no search trial has finished: there is nothing to choose from yet")
    zero_shot = run.find(ZERO_SHOT)
    if zero_shot is None or zero_shot.score is None:
        notes.append("no zero-shot reference: gains over zero-shot cannot be given")
    waiting = [trial for trial in search if trial.state in (RUNNING, PLANNED)]
    if waiting:
        notes.append(f"unfinished: {len(waiting)} of {len(search)} search trials are still to end")
    numbers = [trial.number for trial in search if trial.number is not None]
    if numbers and sorted(numbers) != list(range(len(numbers))):
        notes.append("the numbers of the search trials have gaps or repeats")
    if not any(trial.finished for trial in run.of_phase(CONFIRM)):
        notes.append("no configuration was confirmed over fresh seeds: scores are single runs")
    if not run.sealed_opened:
        notes.append("the seal was not opened: no test metric exists yet")
    elif not any(trial.report for trial in run.trials):
        notes.append("the seal was opened but no report was written")
    return notes
