"""How much of its time and of its GPUs a study has used, and when its search must end to close within its budget.

Both are counted from the journal, over every driver that ran the study: a session lasts from an opening to the last
event before the next. Studies that run side by side share one budget: hours on the clock count once, GPU hours add up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from captune.records import JOURNAL, Event, read_journal
from captune.records.events import Crashed, Finished, Preempted, Started, StudyOpened
from captune.tuning.cell import Cell
from captune.tuning.time_left import seconds_to_close

# Reports, and the last trials of a phase that leave workers idle, are not in the sum of what is left to train.
_MARGIN, _REPORT_SECONDS = 1.15, 10.0
_EVERY_SECONDS = 1.0


class Usage:
    """What one study has used, from its events in their order."""

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
            self._began = now
        elif isinstance(event, Started):
            self._stop(event.key, now)
            self._running[event.key] = (now, event.gpus or 0.0)
        elif isinstance(event, (Finished, Crashed, Preempted)):
            self._stop(event.key, now)
        self._last = max(self._last, now)

    def sessions(self, now: float) -> list[tuple[float, float]]:
        """Beginning and end of each session; the last goes on until `now`."""
        current = [] if self._began is None else [(self._began, max(now, self._began))]
        return self._closed + current

    def gpu_seconds(self, now: float) -> float:
        """Seconds of trials times their share of a GPU."""
        running = sum(max(now - began, 0.0) * gpus for began, gpus in self._running.values())
        return self._gpu_seconds + running

    def _end_session(self) -> None:
        if self._began is not None:
            self._closed.append((self._began, max(self._last, self._began)))
        # What ran when a driver died ran until somebody last heard of the study.
        for key in list(self._running):
            self._stop(key, self._last)

    def _stop(self, key: str, now: float) -> None:
        began, gpus = self._running.pop(key, (now, 0.0))
        self._gpu_seconds += max(now - began, 0.0) * gpus

    @classmethod
    def of(cls, cell: Cell) -> Usage:
        """That of a study that is open: its journal so far, and from now on what it writes."""
        usage = cls(read_journal(cell.directory / JOURNAL))
        cell.listeners.append(lambda event, _trial: usage.apply(event))
        return usage


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


class Budget:
    """Ends searches in time for confirmation and report.

    Args:
        cells: opened studies, which share the budget.
        seconds: on the clock; None: no limit.
        gpu_hours: trials' seconds times their GPUs; None: no limit.
        clock: Unix seconds.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        *,
        seconds: float | None = None,
        gpu_hours: float | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._cells = list(cells)
        self._usages = [Usage.of(cell) for cell in cells]
        self._seconds, self._gpu_seconds = seconds, None if gpu_hours is None else 3600 * gpu_hours
        self._clock = clock
        self._checked = 0.0

    @property
    def spent_seconds(self) -> float:
        """On the clock, over all sessions of all studies; where two ran side by side it counts once."""
        now = self._clock()
        return covered(interval for usage in self._usages for interval in usage.sessions(now))

    @property
    def spent_gpu_hours(self) -> float:
        """Of all studies."""
        now = self._clock()
        return sum(usage.gpu_seconds(now) for usage in self._usages) / 3600

    def reopen(self) -> None:
        """Let searches that an earlier budget ended go on, where this one has room for more than their closing."""
        if (self._seconds is None and self._gpu_seconds is None) or self._exceeded(1, 0.0) is not None:
            return
        for cell in self._cells:
            cell.reopen_search()

    def check(self, *, concurrency: int, gpus: float) -> None:
        """End searches whose closing needs what is left; past the limit, plan nothing more."""
        now = self._clock()
        if now - self._checked < _EVERY_SECONDS or (self._seconds is None and self._gpu_seconds is None):
            return
        self._checked = now
        over = self._exceeded(concurrency, gpus, reserve=False)
        reason = over or self._exceeded(concurrency, gpus)
        if reason is not None:
            for cell in self._cells:
                cell.end_search(reason, confirm=over is None)

    def _exceeded(self, concurrency: int, gpus: float, *, reserve: bool = True) -> str | None:
        """Which limit is reached, in words."""
        work = [seconds_to_close(cell) for cell in self._cells if not cell.finished] if reserve else []
        total, longest = sum(seconds for seconds, _ in work), max((single for _, single in work), default=0.0)
        wall = _MARGIN * (total / max(concurrency, 1) + longest) + (_REPORT_SECONDS * len(work) if reserve else 0.0)
        if self._seconds is not None and self.spent_seconds + wall >= self._seconds:
            return f"the time budget of {self._seconds:.0f} s"
        used = 3600 * self.spent_gpu_hours + _MARGIN * total * gpus
        if self._gpu_seconds is not None and used >= self._gpu_seconds:
            return f"the budget of {self._gpu_seconds / 3600:g} GPU hours"
        return None
