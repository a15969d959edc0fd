"""The study's truth on disk: one append-only journal a run, from which every table is made.

A line is `<crc32 of the body, 8 hex digits> <JSON body>\\n`. It is written with one `write` and fsynced before anything
acts on it, so after a power cut at most the last line is torn; a torn tail is cut off on opening, damage anywhere else
is an error. Nothing here knows Ray or Optuna: tuning writes, results read.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from captune.errors import RecordError, StudyError

SCHEMA_VERSION = 1
JOURNAL = "journal.jsonl"

SCREEN, SEARCH, CONFIRM, STRESS, REFERENCE = "screen", "search", "confirm", "stress", "reference"
RUNNING, COMPLETE, PRUNED, FAILED = "RUNNING", "COMPLETE", "PRUNED", "FAILED"


class Journal:
    """Append-only, checksummed, fsynced events of one run.

    Events are JSON objects with a key `event`; `captune/tuning/README.md` lists each kind's fields. NaN and
    infinities are written as null: a number that is not there is never written as one.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        """Open for appending, cutting off a torn last line."""
        self.path = path
        self._durable = durable
        self._together = False
        self._length = _intact_length(path)
        self._file = path.open("ab", buffering=0)
        if path.stat().st_size > self._length:
            self._file.truncate(self._length)

    def append(self, event: str, /, **fields: Any) -> dict[str, Any]:
        """Write one event, on disk when this returns (in a block of `together`, when that ends).

        Raises:
            StudyError: it cannot be written; the journal is as it was before.
        """
        record = {"event": event, **{key: _jsonable(value) for key, value in fields.items()}}
        body = json.dumps(record, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
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
        return record

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Events of the block are on disk, in their order, when it ends: one wait for the disk instead of one each.

        Raises:
            StudyError: they cannot be written.
        """
        self._together = True
        try:
            yield
        finally:
            self._together = False
            try:
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
            next_step="Make room, then go on with --resume: what is finished is kept.",
        )

    def close(self) -> None:
        """Close the file; the journal can be opened again."""
        self._file.close()


def read_journal(path: Path) -> list[dict[str, Any]]:
    """All intact events of a journal, in order; a torn last line is left out.

    Raises:
        RecordError: the file is missing, or a line before the last fails its checksum.
    """
    try:
        return [event for event, _ in _events(path)]
    except FileNotFoundError:
        raise RecordError(
            "a run's directory must hold its journal",
            got="none",
            where=path,
            next_step="Is this the directory that `captune run` wrote?",
        ) from None


def _intact_length(path: Path) -> int:
    return max((end for _, end in _events(path)), default=0) if path.exists() else 0


def _events(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Each event and the offset behind it."""
    data = path.read_bytes()
    start = number = 0
    while start < len(data):
        number += 1
        end = data.find(b"\n", start)
        line = data[start : end if end >= 0 else len(data)]
        event = _parse_line(line) if end >= 0 else None
        if event is None:
            if end < 0 or end + 1 == len(data):
                return
            raise RecordError(
                "every line of a journal but a torn last one must match its checksum",
                got=f"damage in line {number}",
                where=path,
                next_step="Restore the file from a copy, or cut it off before that line to lose what follows.",
            )
        start = end + 1
        yield event, start


def _parse_line(line: bytes) -> dict[str, Any] | None:
    checksum, _, body = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(body):
        return None
    event = json.loads(body)
    return event if isinstance(event, dict) else None


def _jsonable(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if hasattr(value, "tolist"):
        return _jsonable(value.tolist())
    if isinstance(value, Path):
        return str(value)
    return value


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all: beside it, fsynced, then renamed over it."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
