"""How much time and how many GPU hours a study has used, and when its search must end to close within its budget.

Both are counted from the journal (`captune.records.usage`), over every driver that ran the study. Studies that run at
the same time share one budget: wall-clock time counts once, GPU hours are added up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from captune.durations import duration
from captune.records.usage import covered
from captune.tuning.cell import Cell
from captune.tuning.time_left import seconds_to_close

# The last trials of a phase leave workers idle, which the sum of the remaining training does not include.
_MARGIN = 1.15
CLOSING_SECONDS = 20.0
"""Assumed time to choose, read the test labels and write the report, until a study of this command was timed."""
_EVERY_SECONDS = 1.0


class Budget:
    """Ends searches in time for confirmation and report.

    Args:
        cells: opened studies, which share the budget.
        seconds: limit of wall-clock time; None: no limit.
        gpu_hours: limit of the trials' hours times their GPUs; None: no limit.
        closings: returns the seconds that choosing, measuring and reporting will still take; None: CLOSING_SECONDS for
            each unfinished study.
        clock: returns Unix time in seconds; None: for wall-clock time one on which a clock that is set later has no
            effect, for GPU hours the clock by which the journal says when each trial began.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        *,
        seconds: float | None = None,
        gpu_hours: float | None = None,
        closings: Callable[[], float] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._cells = list(cells)
        self._usages = [cell.record.usage for cell in cells]
        self._seconds, self._gpu_seconds = seconds, None if gpu_hours is None else 3600 * gpu_hours
        self._closings = closings or self._all_unfinished
        self._clock = clock or _unset_clock()
        self._clock_of_events = clock or time.time
        self._checked = 0.0

    @property
    def spent_seconds(self) -> float:
        """Wall-clock seconds over all sessions of all studies; time in which several ran counts once."""
        now = self._clock()
        return covered(interval for usage in self._usages for interval in usage.sessions(now))

    @property
    def spent_gpu_hours(self) -> float:
        """GPU hours of all studies."""
        now = self._clock_of_events()
        return sum(usage.gpu_seconds(now) for usage in self._usages) / 3600

    def left(self) -> str | None:
        """What is left of the limits, in words; None without one."""
        told = []
        if self._seconds is not None:
            left = max(0.0, self._seconds - self.spent_seconds)
            told.append(f"{duration(left)} left of the budget of {duration(self._seconds)}")
        if self._gpu_seconds is not None:
            hours = self._gpu_seconds / 3600
            told.append(f"{max(0.0, hours - self.spent_gpu_hours):.2f} of {hours:g} GPU hours left")
        return ", ".join(told) or None

    def reopen(self) -> None:
        """Reopen searches that an earlier budget ended, if this one leaves time for more than closing the studies."""
        if (self._seconds is None and self._gpu_seconds is None) or self._exceeded(1, 0.0) is not None:
            return
        for cell in self._cells:
            cell.reopen_search()

    def check(self, *, concurrency: int, gpus: float) -> None:
        """End all searches once closing the studies needs the rest of the budget; past the limit, plan nothing more."""
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
        """Which limit is reached, in words, or None; `reserve`: the time to close the studies counts as used."""
        work = [seconds_to_close(cell) for cell in self._cells if not cell.finished] if reserve else []
        total, longest = sum(seconds for seconds, _ in work), max((single for _, single in work), default=0.0)
        wall = _MARGIN * (total / max(concurrency, 1) + longest)
        if reserve:
            wall += self._closings()
        if self._seconds is not None and self.spent_seconds + wall >= self._seconds:
            return f"the time budget of {self._seconds:.0f} s"
        used = 3600 * self.spent_gpu_hours + _MARGIN * total * gpus
        if self._gpu_seconds is not None and used >= self._gpu_seconds:
            return f"the budget of {self._gpu_seconds / 3600:g} GPU hours"
        return None

    def _all_unfinished(self) -> float:
        return CLOSING_SECONDS * sum(not cell.finished for cell in self._cells)


def _unset_clock() -> Callable[[], float]:
    """A clock that shows Unix time and then runs on, whatever the machine's clock is set to."""
    began, start = time.time(), time.monotonic()
    return lambda: began + time.monotonic() - start
