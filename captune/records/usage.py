"""How much time and how many GPU hours a study has used, counted from its journal over every driver that ran it.

A session lasts from an opening to the last event before the next.
"""

from __future__ import annotations

from collections.abc import Iterable

from captune.records.event import Event
from captune.records.events import Crashed, Finished, Preempted, Started, StudyOpened


class Usage:
    """Time and GPU hours of one study, from its events in order."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self._closed: list[tuple[float, float]] = []
        self._began: float | None = None
        self._last = 0.0
        self._running: dict[str, tuple[float, float]] = {}
        self._gpu_seconds = 0.0
        for event in events:
            self.apply(event)

    def apply(self, event: Event) -> None:
        """Take in an event."""
        now = event.time or self._last
        if isinstance(event, StudyOpened):
            self._end_session()
            self._began = self._last = now  # of this driver's clock, which may be behind the one before
        elif isinstance(event, Started):
            self._stop(event.key, now)
            self._running[event.key] = (now, event.gpus or 0.0)
        elif isinstance(event, (Finished, Crashed, Preempted)):
            self._stop(event.key, now)
        self._last = max(self._last, now)

    def sessions(self, now: float | None = None) -> list[tuple[float, float]]:
        """Beginning and end of each session; the last goes on until `now`, by default its last event."""
        now = self._last if now is None else now
        current = [] if self._began is None else [(self._began, max(now, self._began))]
        return self._closed + current

    def seconds(self, now: float | None = None) -> float:
        """On the clock, over all sessions."""
        return covered(self.sessions(now))

    def gpu_seconds(self, now: float | None = None) -> float:
        """Seconds of trials times their share of a GPU."""
        now = self._last if now is None else now
        running = sum(max(now - began, 0.0) * gpus for began, gpus in self._running.values())
        return self._gpu_seconds + running

    def _end_session(self) -> None:
        if self._began is not None:
            self._closed.append((self._began, max(self._last, self._began)))
        # Trials that ran when a driver died count until the last event of its session.
        for key in list(self._running):
            self._stop(key, self._last)

    def _stop(self, key: str, now: float) -> None:
        began, gpus = self._running.pop(key, (now, 0.0))
        self._gpu_seconds += max(now - began, 0.0) * gpus


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
