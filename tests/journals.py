"""Journals in tests: their lines as plain JSON objects, and lines written without naming the class of the event."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from captune.records import Journal, read_journal
from captune.records.lenient import jsonable
from captune.records.lines import event_from_json


def journal_lines(path: Path) -> list[dict[str, Any]]:
    """The events of a journal as its lines hold them."""
    return [jsonable(event.as_json()) for event in read_journal(path)]


def append(journal: Journal, event: str, **fields: Any) -> dict[str, Any]:
    """Write an event by its name; returns its line."""
    return jsonable(journal.append(event_from_json({"event": event, **fields})).as_json())  # type: ignore[no-any-return]
