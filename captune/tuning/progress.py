"""What a person sees while studies run: one live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from captune.durations import duration
from captune.plain_text import counted
from captune.records import ENSEMBLE, ZERO_SHOT, Event, Phase, State, Trial
from captune.records.events import Crashed, Finished, PhaseBegun, Preempted
from captune.tuning.cell import Cell
from captune.tuning.time_left import seconds_left

_PHASES = {
    Phase.REFERENCE: "references",
    Phase.SCREEN: "screening on frozen features",
    Phase.SEARCH: "searching",
    Phase.CONFIRM: "confirming",
    Phase.STRESS: "stress tests",
}


_WIDE = 110
"""The least width, in columns, of a terminal on which every count is shown."""


@dataclass(frozen=True)
class Standing:
    """How far one study is."""

    cell: str
    phase: str
    done: int
    planned: int
    running: int
    stopped: int
    failed: int
    best: float | None
    zero_shot: float | None
    first: float | None
    seconds_left: float | None


def standing(cell: Cell, *, concurrency: int = 1) -> Standing:
    """The standing of a study, from what its journal says."""
    # Ensembles are not trials that run: they are averaged when the study is closed.
    trials = [trial for trial in cell.trials.values() if trial.origin != ENSEMBLE]
    ended = [trial for trial in trials if trial.ended]
    scores = [trial.score_at_end for trial in cell.search if trial.scored and trial.score_at_end is not None]
    # A study that was read from disk knows only the number of its references.
    references = len(cell.info.references) or cell.record.opened.num_references or 0
    expected = references + cell.num_screened + cell.num_trials + cell.num_confirmations()
    return Standing(
        cell=cell.name,
        phase=_phase(cell),
        done=len(ended),
        planned=len(ended) if cell.finished else max(expected, len(trials)),
        running=len(cell.active),
        stopped=sum(trial.state is State.PRUNED for trial in ended),
        failed=sum(trial.state is State.FAILED for trial in ended),
        best=max(scores, default=None),
        zero_shot=_score(cell.trials.get(ZERO_SHOT)),
        first=_score(cell.search[0] if cell.search else None),
        seconds_left=0.0 if cell.finished else seconds_left(cell, concurrency=concurrency),
    )


def _phase(cell: Cell) -> str:
    if cell.given_up or cell.unable:
        return f"given up: {cell.given_up or cell.unable}"
    if cell.finished:
        return "done"
    if cell.unprepared is not None:
        return cell.unprepared
    return "waiting" if cell.record.phase is None else _PHASES[cell.record.phase]


def _score(trial: Trial | None) -> float | None:
    return trial.score_at_end if trial is not None and trial.state is State.COMPLETE else None


class Progress:
    """Shows the progress of studies.

    Args:
        cells: the studies.
        console: where to print; a terminal gets a live table, anything else a line for each finished trial.
        concurrency: trials at once, from which the time left is estimated.
        budget: returns what is left of the budget in words; None if there is no budget.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        console: Console,
        *,
        concurrency: int,
        budget: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._budget = budget
        self._cells = list(cells)
        self._console = console
        self._concurrency = concurrency
        self._standings: list[Standing] = []
        self._num_epochs = 0
        self._began = time.monotonic()
        self._refreshed = 0.0
        for cell in cells:
            cell.listeners.append(self._line(cell))

    @contextlib.contextmanager
    def shown(self) -> Iterator[Progress]:
        """Show the progress while the block runs."""
        self.refresh()
        if not self._console.is_terminal:
            yield self
            return
        live = Live(
            get_renderable=self._table, console=self._console, refresh_per_second=4, transient=True,
            redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip
        with live:
            yield self

    def refresh(self) -> None:
        """Update what is shown, at most four times per second; called in every iteration of Tune's loop."""
        now = time.monotonic()
        if now - self._refreshed > 0.25:
            self._refreshed = now
            self._standings = [standing(cell, concurrency=self._concurrency) for cell in self._cells]
            self._num_epochs = sum(trial.num_epochs for cell in self._cells for trial in cell.trials.values())

    def _table(self) -> Table:
        table = standings_table(self._standings, width=self._console.width)
        table.caption, table.caption_justify = self._moving(), "left"
        return table

    def _moving(self) -> str:
        """What changes while no trial ends: the time, and the epochs trained."""
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        parts = [f"{minutes}:{seconds:02d} so far", counted(self._num_epochs, "epoch") + " trained", self._budget()]
        return ", ".join(part for part in parts if part is not None)

    def _line(self, cell: Cell) -> Any:
        def write(event: Event, trial: Trial | None) -> None:
            if isinstance(event, PhaseBegun):
                self._say(f"{cell.name}: {_PHASES[event.name]}")
            elif isinstance(event, (Finished, Preempted, Crashed)) and trial is not None:
                if self._console.is_terminal:  # the table below says the rest
                    self._say(trial_line(cell, trial, event, None))
                    return
                line = trial_line(cell, trial, event, standing(cell, concurrency=self._concurrency))
                budget = self._budget()
                self._say(line if budget is None else f"{line} [{budget}]")

        return write

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)


def trial_line(cell: Cell, trial: Trial, event: Finished | Preempted | Crashed, now: Standing | None) -> str:
    """The end or the loss of a trial as one line of text, followed by the study's standing if that is given."""
    words = {State.COMPLETE: "finished", State.PRUNED: "stopped early", State.FAILED: "FAILED"}
    what = words[trial.state] if isinstance(event, Finished) else event.kind
    line = f"{cell.name} {trial.key:<16} {what:<13}"
    if trial.state is State.FAILED or not isinstance(event, Finished):
        line += f" {(event.reason or '').splitlines()[0] if event.reason else ''}"
    elif trial.score_at_end is not None:
        line += f" {cell.info.criterion} {trial.score_at_end:.4f}"
        # Such a score must not be compared with that of a search trial.
        line += " on frozen features" if trial.phase is Phase.SCREEN else ""
    if now is None:
        return line
    line += f"  [{now.done}/{now.planned}"
    if now.best is not None:
        line += f", best {now.best:.4f}"
    if now.zero_shot is not None:
        line += f", zero-shot {now.zero_shot:.4f}"
    if now.seconds_left is not None and now.seconds_left >= 1:
        line += f", {duration(now.seconds_left)} left"
    return line + "]"


def standings_table(standings: Sequence[Standing], *, width: int = _WIDE) -> Table:
    """Standings of studies as a table for a terminal of `width` columns; a narrow one leaves out some counts."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    if width < _WIDE:
        return _narrow(table, standings)
    table.add_column("study", overflow="fold")
    table.add_column("phase", overflow="fold", min_width=10)
    for heading in ("trials", "running", "stopped", "failed", "best", "zero-shot", "default", "left"):
        # As wide as a score, so that nothing jumps when the first one comes.
        table.add_column(heading, justify="right", no_wrap=True, min_width=6 if heading == "best" else None)
    for now in standings:
        left = "" if now.seconds_left is None else duration(now.seconds_left)
        table.add_row(
            now.cell, now.phase, f"{now.done}/{now.planned}", str(now.running), str(now.stopped), str(now.failed),
            _number(now.best), _number(now.zero_shot), _number(now.first), left,
        )  # fmt: skip
    return table


def _narrow(table: Table, standings: Sequence[Standing]) -> Table:
    table.add_column("study", overflow="fold")
    table.add_column("phase", overflow="fold", min_width=10)
    for heading in ("trials", "best", "zero-shot", "left"):
        # As wide as a score, so that nothing jumps when the first one comes.
        table.add_column(heading, justify="right", no_wrap=True, min_width=6 if heading == "best" else None)
    for now in standings:
        phase = f"{now.phase}, {now.failed} failed" if now.failed else now.phase
        left = "" if now.seconds_left is None else duration(now.seconds_left)
        done = f"{now.done}/{now.planned}"
        table.add_row(now.cell, phase, done, _number(now.best), _number(now.zero_shot), left)
    return table


def _number(score: float | None) -> str:
    return "–" if score is None else f"{score:.4f}"
