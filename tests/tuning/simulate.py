"""A study driven without Ray: runs advance epoch by epoch, in turn or at random."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from captune.config import StudyConfig
from captune.records import JOURNAL, Journal, read_journal
from captune.records.events import StudyOpened
from captune.space import load_space
from captune.tuning.cell import Cell
from captune.tuning.specs import CellInfo
from tests.journals import journal_lines
from tests.tuning.fakes import FakeTrial, info, space_path, study


class Killed(Exception):
    """The driver is gone."""


def make_cell(directory: Path, settings: StudyConfig | None = None, facts: CellInfo | None = None) -> Cell:
    """A cell over a directory's journal, opened."""
    facts = facts or info()
    cell = Cell(
        directory,
        settings or study(trials=8, confirm_top=2, confirm_seeds=2),
        facts,
        load_space(space_path(directory), facts.base),
    )
    if (directory / JOURNAL).exists():
        cell.replay(read_journal(directory / JOURNAL))
    cell.open(Journal(directory / JOURNAL, durable=False), StudyOpened())
    return cell


def drive(
    cell: Cell,
    *,
    concurrency: int = 1,
    order: random.Random | None = None,
    kill_after: int | None = None,
    fail: str = "",
) -> None:
    """Run a study to its end, or to `kill_after` reports of workers."""
    workers: dict[str, FakeTrial] = {}
    reports = 0
    while True:
        while len(workers) < concurrency and (run := cell.next_trial()) is not None:
            spec = cell.spec(run, threads=1)
            cell.start(run.key, "node")
            workers[run.key] = FakeTrial(spec, fail=fail)
        if not workers:
            assert cell.finished, "a study must not wait for nothing"
            return
        key = (order or random.Random(0)).choice(sorted(workers))
        if advance(cell, key, workers[key]):
            del workers[key]
        reports += 1
        if kill_after is not None and reports >= kill_after:
            raise Killed


def advance(cell: Cell, key: str, worker: FakeTrial) -> bool:
    """One report of a worker, as the trainable makes it; whether the run has ended."""
    payload: dict[str, Any] = {"rows": [], "node": "node"}
    try:
        if worker.epoch < worker.num_epochs:
            payload["rows"].append(worker.run_epoch())
        if worker.epoch >= worker.num_epochs:
            payload["outcome"] = worker.finish() | {"seconds": 0.0}
    except Exception as error:
        payload["failed"] = {"reason": str(error), "traceback": "tail"}
    return cell.deliver(key, payload)


def outcomes(directory: Path) -> list[dict[str, Any]]:
    """What a study came to, without times: every run's plan and end, in the order of the journal."""
    events = journal_lines(directory / JOURNAL)
    drop = {"time", "seconds", "event", "node"}
    planned = {e["key"]: e for e in events if e["event"] == "planned"}
    finished = [e for e in events if e["event"] == "finished"]
    assert len({e["key"] for e in finished}) == len(finished), "a run must end once"
    return [
        {name: value for name, value in (planned[end["key"]] | end).items() if name not in drop} for end in finished
    ]


def epochs(directory: Path) -> dict[tuple[str, int], tuple[float, str]]:
    """Score and decision of every epoch; a repeated one must say the same."""
    found: dict[tuple[str, int], tuple[float, str]] = {}
    for event in journal_lines(directory / JOURNAL):
        if event["event"] == "epoch":
            place = event["key"], event["epoch"]
            value = event["score"], event["decision"]
            assert found.get(place, value) == value
            found[place] = value
    return found
