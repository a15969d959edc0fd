"""Warn of trials that do not report for ten times as long as an epoch takes; only --trial-timeout would end them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from captune.durations import duration
from captune.records import Epoch, Event, Trial
from captune.records.events import Crashed, Finished, Preempted, Started
from captune.tuning.cell import Cell
from captune.tuning.time_left import seconds_an_epoch

_TIMES = 10
# Less time is no reason to warn: opening and final evaluation take longer than an epoch, and short epochs are gathered.
_LEAST_SECONDS = 60.0
_EVERY_SECONDS = 1.0


class Silence:
    """Watches how long ago running trials last reported.

    Args:
        cells: opened studies.
        tell: called with a warning, once per silent trial; silent trials on one node share a warning.
        clock: returns seconds.
    """

    def __init__(
        self, cells: Sequence[Cell], tell: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cells = list(cells)
        self._tell = tell
        self._clock = clock
        self._heard: dict[tuple[str, str], float] = {}
        self._told: set[tuple[str, str]] = set()
        self._looked = float("-inf")
        for cell in cells:
            cell.listeners.append(self._listener(cell))

    def look(self) -> None:
        """Warn of trials that have become silent; called in every iteration of Ray's loop."""
        now = self._clock()
        if now - self._looked < _EVERY_SECONDS:
            return
        self._looked = now
        for cell in self._cells:
            quiet = [(key, now - self._heard.get((cell.name, key), now)) for key in sorted(cell.active)]
            quiet = [(key, seconds) for key, seconds in quiet if seconds > _LEAST_SECONDS]
            if not quiet:
                continue
            rates = seconds_an_epoch([trial for trial in cell.trials.values() if trial.num_epochs])
            groups: dict[tuple[str | None, float], list[tuple[str, float]]] = {}
            for key, seconds in quiet:
                trial = cell.trials[key]
                usual = rates.get(str(trial.config.get("tuning")))
                if usual is not None and seconds > _TIMES * usual and (cell.name, key) not in self._told:
                    self._told.add((cell.name, key))
                    groups.setdefault((trial.node, usual), []).append((key, seconds))
            for (node, usual), silent in groups.items():
                self._tell(_sentence(cell.name, silent, node, usual))

    def _listener(self, cell: Cell) -> Callable[[Event, Trial | None], None]:
        def note(event: Event, _trial: Trial | None) -> None:
            if isinstance(event, (Started, Epoch)):
                self._heard[cell.name, event.key] = self._clock()
                self._told.discard((cell.name, event.key))
            elif isinstance(event, (Finished, Crashed, Preempted)):
                self._heard.pop((cell.name, event.key), None)

        return note


def _sentence(cell: str, silent: Sequence[tuple[str, float]], node: str | None, usual: float) -> str:
    """The warning for silent trials on one node, which may be a pack that trains together."""
    where = f" on {node}" if node else ""
    verb = "has" if len(silent) == 1 else "have"
    return (
        f"{cell} {', '.join(key for key, _ in silent)}{where} {verb} made no step for "
        f"{duration(min(seconds for _, seconds in silent))}, where an epoch usually takes "
        f"{duration(usual) if usual >= 1 else f'{usual:.2f} s'}. A mount or a GPU that hangs looks like this; "
        "`captune resume` with --trial-timeout ends such trials by itself."
    )
