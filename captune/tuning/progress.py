"""What a person sees while studies run: one live table on a terminal, plain lines anywhere else."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from captune.records import COMPLETE, FAILED, PRUNED, REFERENCE, RUNNING, SCREEN, SEARCH
from captune.tuning.cell import Cell
from captune.tuning.runs import Run
from captune.tuning.time_left import num_confirmations, seconds_left

_PHASES = {
    "reference": "references",
    "screen": "screening on frozen features",
    "search": "searching",
    "confirm": "confirming",
    "stress": "stress tests",
}


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
    best_key: str | None
    zero_shot: float | None
    paper: float | None
    seconds_left: float | None


def standing(cell: Cell, *, concurrency: int = 1) -> Standing:
    """The standing of a study, from what its journal says."""
    runs = list(cell.runs.values())
    ended = [run for run in runs if run.state != RUNNING]
    searched = [run for run in runs if run.phase == SEARCH and run.state == COMPLETE and run.score is not None]
    best = max(searched, key=lambda run: run.score or 0.0, default=None)
    # A study that is read from disk knows its references by their runs alone.
    references = max(len(cell.info.references), sum(run.phase == REFERENCE for run in runs))
    expected = references + cell.num_screened + cell.num_trials + num_confirmations(cell)
    planned = max(expected, len(runs))
    return Standing(
        cell=cell.name,
        phase=f"given up: {cell.aborted}" if cell.aborted else "done" if cell.finished else _phase(cell),
        done=len(ended),
        planned=len(ended) if cell.finished else planned,
        running=len(cell.active),
        stopped=sum(run.state == PRUNED for run in ended),
        failed=sum(run.state == FAILED for run in ended),
        best=best.score if best else None,
        best_key=best.key if best else None,
        zero_shot=_score(cell.runs.get("zero_shot")),
        paper=_score(cell.search[0] if cell.search else None),
        seconds_left=0.0 if cell.finished else seconds_left(cell, concurrency=concurrency),
    )


def _phase(cell: Cell) -> str:
    return _PHASES.get(cell.phase or "", cell.phase or "waiting")


def _score(run: Run | None) -> float | None:
    return run.score if run is not None and run.state == COMPLETE else None


class Progress:
    """Shows how studies go on.

    Args:
        cells: the studies.
        console: where to; a terminal gets a live table, anything else a line for each finished run.
        concurrency: runs at once, for the time that is left.
    """

    def __init__(self, cells: Sequence[Cell], console: Console, *, concurrency: int) -> None:
        self._cells = list(cells)
        self._console = console
        self._concurrency = concurrency
        self._standings: list[Standing] = []
        self._refreshed = 0.0
        if not console.is_terminal:
            for cell in cells:
                cell.listeners.append(self._line(cell))

    @contextlib.contextmanager
    def shown(self) -> Iterator[Progress]:
        """Show it while the block runs."""
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
        """Take stock; called at every turn of Tune's loop, which is not drawn more than a few times a second."""
        now = time.monotonic()
        if now - self._refreshed > 0.25:
            self._refreshed = now
            self._standings = [standing(cell, concurrency=self._concurrency) for cell in self._cells]

    def _table(self) -> Table:
        return standings_table(self._standings)

    def _line(self, cell: Cell) -> Any:
        def write(event: dict[str, Any], run: Run | None) -> None:
            if event["event"] == "phase" and event["name"] in _PHASES:
                self._say(f"{cell.name}: {_PHASES[event['name']]}")
            elif event["event"] in ("finished", "preempted", "crashed") and run is not None:
                self._say(run_line(cell, run, event["event"], standing(cell, concurrency=self._concurrency)))

        return write

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)


def run_line(cell: Cell, run: Run, event: str, now: Standing) -> str:
    """One run's end as one line of text."""
    words = {COMPLETE: "finished", PRUNED: "stopped early", FAILED: "FAILED"}
    what = words.get(run.state, event) if event == "finished" else event
    line = f"{cell.name} {run.key:<16} {what:<13}"
    if run.state == FAILED or event != "finished":
        line += f" {(run.reason or '').splitlines()[0] if run.reason else ''}"
    elif run.score is not None:
        line += f" {cell.info.criterion} {run.score:.4f}"
        # Not to be compared with a search trial's.
        line += " on frozen features" if run.phase == SCREEN else ""
    line += f"  [{now.done}/{now.planned}"
    if now.best is not None:
        line += f", best {now.best:.4f}"
    if now.zero_shot is not None:
        line += f", zero-shot {now.zero_shot:.4f}"
    if now.seconds_left is not None and now.seconds_left >= 1:
        line += f", {duration(now.seconds_left)} left"
    return line + "]"


def standings_table(standings: Sequence[Standing]) -> Table:
    """Standings of studies as a table for a terminal."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("study", no_wrap=True)
    table.add_column("phase", overflow="fold", min_width=10)
    for heading in ("runs", "running", "stopped", "failed", "best", "zero-shot", "paper", "left"):
        table.add_column(heading, justify="right", no_wrap=True)
    for now in standings:
        left = "" if now.seconds_left is None else duration(now.seconds_left)
        table.add_row(
            now.cell, now.phase, f"{now.done}/{now.planned}", str(now.running), str(now.stopped), str(now.failed),
            _number(now.best), _number(now.zero_shot), _number(now.paper), left,
        )  # fmt: skip
    return table


def _number(score: float | None) -> str:
    return "–" if score is None else f"{score:.4f}"


def duration(seconds: float) -> str:
    """A time span as people say it: 45 s, 3 min, 2 h 10 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
