"""What every event of a journal has: its line, and how that is read back, leniently."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any, ClassVar, Self

from captune.records.lenient import CONVERTERS


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of a journal. `time` is in Unix seconds and filled in when the event is written."""

    kind: ClassVar[str]
    time: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The event as the journal holds it: `event` first, `time` last."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "time"}
        return {"event": self.kind, **values, "time": self.time}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The event that `as_json` wrote.

        Raises:
            ValueError: a field that must be there is missing or of no use.
        """
        event = object.__new__(cls)
        # Not by `cls(…)`: a frozen class's own `__init__` takes half the time of reading a long journal.
        own = event.__dict__
        for name, convert, default, factory in _fields(cls):  # type: ignore[arg-type]
            value = values.get(name)
            if value is None and factory is not MISSING:
                own[name] = factory()
            else:
                own[name] = default if value is None and default is not MISSING else convert(value)
        return event


@cache
def _fields(cls: type[Event]) -> tuple[tuple[str, Callable[[Any], Any], Any, Any], ...]:
    """Name, converter, default and factory of the default of every field of an event."""
    return tuple((one.name, CONVERTERS[str(one.type)], one.default, one.default_factory) for one in fields(cls))
