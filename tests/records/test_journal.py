"""The journal: whole lines, checksums, torn tails."""

from __future__ import annotations

import math
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from captune.errors import RecordError, StudyError
from captune.records import JOURNAL, Journal, atomic_write
from captune.records.events import Other
from tests.journals import append, journal_lines


def written(path: Path, count: int) -> list[dict[str, object]]:
    journal = Journal(path)
    events = [append(journal, "note", number=number, text="ü\n|", time=1.0) for number in range(count)]
    journal.close()
    return events


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert read_journal_after(path, 3) == written(tmp_path / "other.jsonl", 3)


def read_journal_after(path: Path, count: int) -> list[dict[str, object]]:
    written(path, count)
    return journal_lines(path)


@pytest.mark.parametrize("lost", range(1, 40))
def test_any_torn_tail_costs_only_the_last_event(tmp_path: Path, lost: int) -> None:
    path = tmp_path / "journal.jsonl"
    events = written(path, 3)
    whole = path.read_bytes()
    path.write_bytes(whole[:-lost])
    assert journal_lines(path) == events[:2]
    journal = Journal(path)
    append(journal, "note", number=9)
    journal.close()
    assert [event["number"] for event in journal_lines(path)] == [0, 1, 9]


def test_damage_before_the_last_line_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    written(path, 4)
    data = bytearray(path.read_bytes())
    data[data.index(b"\n") + 30] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(RecordError, match="damage in line 2"):
        journal_lines(path)
    with pytest.raises(RecordError, match="damage in line 2"):
        Journal(path)


def test_numbers_that_are_none_are_never_written_as_numbers(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append(Other(name="note", values={"score": math.nan, "a": {"b": math.inf}, "recall": [0.1, math.nan]}))
    journal.close()
    (event,) = journal_lines(tmp_path / "journal.jsonl")
    assert event.pop("time") > 0
    assert event == {"event": "note", "score": None, "a": {"b": None}, "recall": [0.1, None]}


def test_a_missing_journal_says_what_to_look_for(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="must hold its journal"):
        journal_lines(tmp_path / "journal.jsonl")


def test_every_acknowledged_event_outlives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    program = (
        "from pathlib import Path\nfrom captune.records import Journal\nfrom captune.records.events import Other\n"
        f"journal = Journal(Path({str(path)!r}))\n"
        "for number in range(100000):\n"
        "    journal.append(Other(name='note', values={'number': number})); print(number, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = [int(process.stdout.readline()) for _ in range(50)][-1]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    numbers = [event["number"] for event in journal_lines(path)]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > acknowledged


def test_events_written_together_wait_for_the_disk_once_and_are_on_it_behind_the_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = []
    monkeypatch.setattr(os, "fsync", waits.append)
    journal = Journal(tmp_path / JOURNAL)
    with journal.together():
        for number in range(5):
            append(journal, "note", number=number)
        assert not waits
    assert len(waits) == 1
    append(journal, "end")
    assert len(waits) == 2
    assert [event.get("number") for event in journal_lines(tmp_path / JOURNAL)] == [0, 1, 2, 3, 4, None]


def test_atomic_write_replaces_whole_files_and_leaves_no_parts(tmp_path: Path) -> None:
    atomic_write(tmp_path / "file", "old")
    atomic_write(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_event_that_does_not_fit_on_the_disk_leaves_the_journal_whole(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: a part of the line is written, then no more."""
    path = tmp_path / "journal.jsonl"
    events = written(path, 3)
    journal = Journal(path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))
    try:
        with pytest.raises(StudyError, match=r"must be writable, but got File too large .* captune resume "):
            append(journal, "note", number=3, text="more than twenty bytes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert journal_lines(path) == events
    events.append(append(journal, "note", number=4))
    journal.close()
    assert journal_lines(path) == events


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_no_part(tmp_path: Path) -> None:
    atomic_write(tmp_path / "file", "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            atomic_write(tmp_path / "file", "new" * 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"
