"""From a line of a journal, of this captune or an older one, to its event."""

from __future__ import annotations

from typing import Any

from captune.records.event import Event
from captune.records.events import EVENTS, GivenUp, Other, SealOpened
from captune.records.lenient import mapping, number_or_none


def upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """A line of any older journal as today's captune writes it.

    Schema 1 (captune 0.1) wrote that test labels may be read, and that a study is given up, as phases.
    """
    if values.get("event") == "phase":
        if values.get("name") == "sealed_opened":
            return {"event": SealOpened.kind, "time": values.get("time")}
        if values.get("name") == "aborted":
            reason = mapping(values.get("detail")).get("reason")
            return {"event": GivenUp.kind, "reason": reason, "time": values.get("time")}
    return values


def event_from_json(values: dict[str, Any]) -> Event:
    """The event of one line of a journal, new or old."""
    values = upgrade(values)
    name = str(values.get("event"))
    known = EVENTS.get(name)
    if known is not None:
        try:
            return known.from_json(values)
        except ValueError:
            pass
    others = {key: value for key, value in values.items() if key not in ("event", "time")}
    return Other(name=name, values=others, time=number_or_none(values.get("time")))
