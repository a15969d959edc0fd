"""The table of events in captune/records/README.md, made from the classes: `python -m tests.records.event_table`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from captune.records.enums import EPOCH_VALUES
from captune.records.event import Event
from captune.records.events import EVENTS

README = Path(__file__).parents[2] / "captune" / "records" / "README.md"
BEGIN, END = "<!-- events: made by tests/records/event_table.py -->", "<!-- end of events -->"


def event_table() -> str:
    """Every event with its fields and what it means, in Markdown."""
    rows = ["| event | fields | meaning |", "|---|---|---|"]
    rows += [f"| `{kind}` | {_fields(cls)} | {_meaning(cls)} |" for kind, cls in EVENTS.items()]
    rows += ["", "An `epoch` also holds what the method reports of it, usually:", ""]
    rows += [f"- `{name}`: {meaning}" for name, meaning in EPOCH_VALUES.items()]
    return "\n".join(rows)


def with_table(text: str) -> str:
    """The README with its table made anew."""
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n{event_table()}\n{END}{after}"


def _fields(cls: type[Event]) -> str:
    return " ".join(f"`{one.name}`" for one in fields(cls) if one.name not in ("time", "values")) or "–"


def _meaning(cls: type[Event]) -> str:
    first = (cls.__doc__ or "").split("\n\n")[0]
    return " ".join(first.split())


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
