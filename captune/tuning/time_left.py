"""How long a study will still take: the epochs that are left, times the seconds per epoch so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from captune.records import Phase, Trial
from captune.tuning.cell import Cell


def seconds_left(cell: Cell, *, concurrency: int = 1) -> float | None:
    """Seconds until a study ends, `concurrency` trials at a time; None until an epoch of each kind left was measured.

    Frozen-feature epochs and prompt epochs cost differently and are counted separately. A trial that is not planned yet
    is assumed to train as many epochs as the ended trials of its phase did on average.
    """
    trials = [trial for trial in cell.trials.values() if trial.phase != Phase.REFERENCE]
    rates = seconds_an_epoch(trials)
    left: dict[str, float] = {}
    for trial in trials:
        if not trial.ended:
            left[_tuning(trial.config)] = left.get(_tuning(trial.config), 0.0) + max(
                _budget(trial) - trial.num_epochs, 0.0
            )
    for phase, count, base in _to_be_planned(cell):
        alike = [trial for trial in trials if trial.phase == phase]
        left[_tuning(base)] = left.get(_tuning(base), 0.0) + count * _mean_epochs(alike, _epochs(base))
    left = {tuning: epochs for tuning, epochs in left.items() if epochs > 0}
    if any(tuning not in rates for tuning in left):
        return None
    return sum(epochs * rates[tuning] for tuning, epochs in left.items()) / max(concurrency, 1)


def seconds_to_close(cell: Cell) -> tuple[float, float]:
    """Seconds of training that would be left if the search ended now: in total, and of the longest single trial.

    Running trials would be finished and the best configurations confirmed. Zero if nothing has been measured yet.
    """
    trials = [trial for trial in cell.trials.values() if trial.phase != Phase.REFERENCE]
    rates = seconds_an_epoch(trials)
    seconds = [
        max(_budget(trial) - trial.num_epochs, 0.0) * rates.get(_tuning(trial.config), 0.0)
        for trial in trials if trial.key in cell.active
    ]  # fmt: skip
    base = cell.info.base.model_dump()
    confirmed = sum(trial.phase == Phase.CONFIRM for trial in trials)
    whole = max((_budget(trial) for trial in cell.search), default=_epochs(base)) * rates.get(_tuning(base), 0.0)
    seconds += [whole] * max(cell.num_confirmations(len(cell.search)) - confirmed, 0)
    return sum(seconds), max(seconds, default=0.0)


def _to_be_planned(cell: Cell) -> list[tuple[Phase, int, dict[str, Any]]]:
    """Phase, number and first configuration of the trials that are not planned yet."""
    base = cell.info.base.model_dump()
    screen_base = base if cell.info.screen_base is None else cell.info.screen_base.model_dump()
    screened = 0 if cell.screening is None else len(cell.screening.trials)
    confirmed = sum(trial.phase == Phase.CONFIRM for trial in cell.trials.values())
    counts = [
        (Phase.SCREEN, cell.num_screened - screened, screen_base),
        (Phase.SEARCH, cell.num_trials - len(cell.search), base),
        (Phase.CONFIRM, cell.num_confirmations() - confirmed if not cell.finished else 0, base),
    ]
    return [(phase, max(count, 0), config) for phase, count, config in counts]


def seconds_an_epoch(trials: Sequence[Trial]) -> dict[str, float]:
    """Mean seconds per epoch, by what is tuned; an ended trial of a method without epochs counts as one epoch."""
    seconds: dict[str, float] = {}
    epochs: dict[str, float] = {}
    for trial in trials:
        done = trial.num_epochs if trial.num_epochs or not trial.ended else 1
        seconds[_tuning(trial.config)] = seconds.get(_tuning(trial.config), 0.0) + trial.seconds_so_far
        epochs[_tuning(trial.config)] = epochs.get(_tuning(trial.config), 0.0) + done
    return {tuning: seconds[tuning] / count for tuning, count in epochs.items() if count}


def _mean_epochs(alike: Sequence[Trial], otherwise: float) -> float:
    """How many epochs such a trial trains: the mean of `alike` that have ended, else their mean budget."""
    ended = [float(trial.num_epochs or 1) for trial in alike if trial.ended]
    budgets = ended or [_budget(trial) for trial in alike] or [otherwise]
    return sum(budgets) / len(budgets)


def _budget(trial: Trial) -> float:
    return trial.num_epochs / trial.progress if trial.progress else _epochs(trial.config)


def _epochs(config: dict[str, Any]) -> float:
    return float(config.get("epochs", 1) * config.get("num_iterations", 1))


def _tuning(config: dict[str, Any]) -> str:
    return str(config.get("tuning"))
