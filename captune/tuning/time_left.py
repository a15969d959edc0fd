"""How long a study will still take: epochs that are left, at the seconds an epoch took so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from captune.records import CONFIRM, REFERENCE, RUNNING, SCREEN, SEARCH
from captune.tuning.cell import Cell
from captune.tuning.runs import Run


def num_confirmations(cell: Cell) -> int:
    """Confirmation runs at most: the best, the paper's configuration, each over all fresh seeds."""
    study = cell.study
    confirmed = min(study.confirm_top + 1, cell.num_trials) if study.confirm_top else 0
    return confirmed * study.confirm_seeds * (2 if cell.info.both_roles else 1)


def seconds_left(cell: Cell, *, concurrency: int = 1) -> float | None:
    """Seconds until a study ends, `concurrency` runs at a time; None until an epoch of each kind left was measured.

    Frozen-feature epochs and prompt epochs cost differently and are counted apart. A run that is still to be planned is
    taken to have the mean budget of those like it, and to be stopped as early as they were.
    """
    runs = [run for run in cell.runs.values() if run.phase != REFERENCE]
    rates = _seconds_an_epoch(runs)
    left: dict[str, float] = {}
    for run in runs:
        if run.state == RUNNING:
            left[_tuning(run.config)] = left.get(_tuning(run.config), 0.0) + max(_budget(run) - run.epochs, 0.0)
    for phase, count, base in _to_be_planned(cell):
        alike = [run for run in runs if run.phase == phase]
        left[_tuning(base)] = left.get(_tuning(base), 0.0) + count * _mean_epochs(alike, _epochs(base))
    left = {tuning: epochs for tuning, epochs in left.items() if epochs > 0}
    if any(tuning not in rates for tuning in left):
        return None
    return sum(epochs * rates[tuning] for tuning, epochs in left.items()) / max(concurrency, 1)


def _to_be_planned(cell: Cell) -> list[tuple[str, int, dict[str, Any]]]:
    """Phase, number and published configuration of the runs that nobody has planned yet."""
    base = cell.info.base.model_dump()
    screen_base = base if cell.info.screen_base is None else cell.info.screen_base.model_dump()
    screened = 0 if cell.screening is None else len(cell.screening.runs)
    confirmed = sum(run.phase == CONFIRM for run in cell.runs.values())
    counts = [
        (SCREEN, cell.num_screened - screened, screen_base),
        (SEARCH, cell.num_trials - len(cell.search), base),
        (CONFIRM, num_confirmations(cell) - confirmed if not cell.finished else 0, base),
    ]
    return [(phase, max(count, 0), config) for phase, count, config in counts]


def _seconds_an_epoch(runs: Sequence[Run]) -> dict[str, float]:
    """By what is tuned; a method without epochs counts each of its runs as one."""
    seconds: dict[str, float] = {}
    epochs: dict[str, float] = {}
    for run in runs:
        done = run.epochs if run.epochs or run.state == RUNNING else 1
        seconds[_tuning(run.config)] = seconds.get(_tuning(run.config), 0.0) + run.seconds
        epochs[_tuning(run.config)] = epochs.get(_tuning(run.config), 0.0) + done
    return {tuning: seconds[tuning] / count for tuning, count in epochs.items() if count}


def _mean_epochs(alike: Sequence[Run], otherwise: float) -> float:
    """Epochs a run like these comes to: the trained ones of those that have ended, else its budget."""
    ended = [float(run.epochs or 1) for run in alike if run.state != RUNNING]
    budgets = ended or [_budget(run) for run in alike] or [otherwise]
    return sum(budgets) / len(budgets)


def _budget(run: Run) -> float:
    return run.epochs / run.fidelity if run.fidelity else _epochs(run.config)


def _epochs(config: dict[str, Any]) -> float:
    return float(config.get("epochs", 1) * config.get("num_iterations", 1))


def _tuning(config: dict[str, Any]) -> str:
    return str(config.get("tuning"))
