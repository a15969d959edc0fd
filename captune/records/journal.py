"""A study's journal: an append-only file of events, the truth about what happened.

A line is `<crc32 of the body, 8 hex digits> <JSON body>\\n`. It is written by one `write` and fsynced before anything
acts on it. After a power cut at most the last line is torn: it is cut off when the journal is opened for writing.
Damage anywhere else is an error. This module knows neither Ray nor Optuna.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from captune.errors import RecordError, StudyError
from captune.plain_text import counted, resume_command
from captune.records.event import Event
from captune.records.lenient import jsonable
from captune.records.lines import event_from_json

_decode = json.JSONDecoder().decode


class Journal:
    """The journal of one study, open for writing.

    NaN and infinities are written as null: a number that does not exist is never written as one.
    """

    def __init__(self, path: Path, *, durable: bool = True, length: int | None = None) -> None:
        """Open for appending, cutting off a torn last line.

        Args:
            path: the file; it is made if there is none.
            durable: fsync every event.
            length: bytes of its intact lines, as `read_journal_and_length` found them; it is read for them if None.

        Raises:
            RecordError: a line before the last is damaged.
        """
        self.path = path
        self._durable = durable
        self._together = False
        self._length = _intact_length(path) if length is None else length
        self._file = path.open("ab", buffering=0)
        if path.stat().st_size > self._length:
            self._file.truncate(self._length)

    def append(self, event: Event) -> Event:
        """Write one event. It is on disk when this returns; inside a block of `together`, when that block ends.

        Returns:
            The event as a reader of the journal will see it.

        Raises:
            StudyError: it cannot be written; the journal is as it was before.
        """
        if event.time is None:
            event = replace(event, time=time.time())
        values = jsonable(event.as_json())
        body = json.dumps(values, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
        line = b"%08x %s\n" % (zlib.crc32(body), body)
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:])
            if not self._together:
                self._sync()
        except OSError as error:
            # A part of a line must not stay: the next event would follow it.
            with contextlib.suppress(OSError):
                self._file.truncate(self._length)
            raise self._not_writable(error) from None
        self._length += len(line)
        return event_from_json(values)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Write the events of a block in their order, and wait for the disk once, when the block ends.

        Raises:
            StudyError: they cannot be written.
        """
        within, self._together = self._together, True
        try:
            yield
        finally:
            self._together = within
            try:
                if not within:
                    self._sync()
            except OSError as error:
                raise self._not_writable(error) from None

    def _sync(self) -> None:
        if self._durable:
            os.fsync(self._file.fileno())

    def _not_writable(self, error: OSError) -> StudyError:
        return StudyError(
            "the journal of a study must be writable",
            got=error.strerror,
            where=self.path,
            next_step=f"Make room, then: {resume_command(self.path.parent)}. What is finished is kept.",
        )

    def close(self) -> None:
        """Close the file; the journal can be opened again."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_journal(path: Path) -> list[Event]:
    """All intact events of a journal, in order; a torn last line is left out.

    Raises:
        RecordError: the file is missing, or a line before the last fails its checksum.
    """
    return read_journal_and_length(path)[0]


def read_journal_and_length(path: Path) -> tuple[list[Event], int]:
    """What `read_journal` gives, and the bytes of the intact lines, to open the same file for writing.

    Raises:
        RecordError: the file is missing, or a line before the last fails its checksum.
    """
    try:
        found = [(event_from_json(values), end) for values, end in _lines(path)]
    except FileNotFoundError:
        raise RecordError(
            "a study's directory must hold its journal",
            got="none",
            where=path,
            next_step="Is this the directory that `captune run` wrote?",
        ) from None
    return [event for event, _ in found], found[-1][1] if found else 0


def read_damaged_journal(path: Path) -> tuple[list[Event], list[str]]:
    """Every event whose checksum holds, of a journal that may be damaged or edited by hand.

    Returns:
        The events, and a sentence on what was left out.
    """
    events: list[Event] = []
    damaged: list[int] = []
    data = path.read_bytes()
    lines = data.splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            values = _parse_line(line)
        except ValueError:
            values = None
        if values is None:
            damaged.append(number)
        else:
            events.append(event_from_json(values))
    if not data.endswith(b"\n") and damaged in ([], [len(lines)]):
        return events, ["the last line was torn off"] if data else []
    if not damaged:
        return events, []
    named = ", ".join(str(number) for number in damaged[:3]) + (", …" if len(damaged) > 3 else "")
    lines_were = f"{counted(len(damaged), 'damaged or edited journal line')} {'was' if len(damaged) == 1 else 'were'}"
    return events, [f"{lines_were} left out (line {named})"]


def _intact_length(path: Path) -> int:
    return max((end for _, end in _lines(path)), default=0) if path.exists() else 0


def _lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """The JSON of each line, and the offset of the line's end."""
    data = path.read_bytes()
    start = number = 0
    while start < len(data):
        number += 1
        end = data.find(b"\n", start)
        line = data[start : end if end >= 0 else len(data)]
        values = _parse_line(line) if end >= 0 else None
        if values is None:
            if end < 0 or end + 1 == len(data):
                return
            raise RecordError(
                "every line of a journal but a torn last one must match its checksum",
                got=f"damage in line {number}",
                where=path,
                next_step="Restore the file from a copy, or cut it off before that line to lose what follows.",
            )
        start = end + 1
        yield values, start


def _parse_line(line: bytes) -> dict[str, Any] | None:
    checksum, _, body = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(body):
        return None
    values = _decode(body.decode())
    return values if isinstance(values, dict) else None
