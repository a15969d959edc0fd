"""Packs: which trials on frozen features a worker trains together (`captune.training.packs` says how)."""

from __future__ import annotations

from captune.algorithms import ALGORITHMS
from captune.records import Phase, Trial
from captune.records.events import Planned
from captune.tuning.allotment import block_size, search_block
from captune.tuning.cell import Cell


def next_pack(cell: Cell, *, packed: bool = True, workers: int = 2) -> list[Trial]:
    """The next trials of a study for one worker: several if they can train together; empty if there are none now.

    New trials are planned only up to the end of their block of the search. A sampler therefore knows the same when it
    proposes a trial, whether or not the study was killed and continued.

    Args:
        cell: the study.
        packed: whether trials may train together at all.
        workers: number of packs that train at once; blocks are equally long, so that no worker waits for another.
    """
    first = cell.next_trial()
    if first is None:
        return []
    pack, most = [first], _most(cell, first, workers)

    def fits(other: Trial | Planned) -> bool:
        same_block = isinstance(other, Trial) or _block(cell, first, workers) == _block(cell, other, workers)
        return _alike(first, other) and same_block

    while packed and len(pack) < most and _may_be_packed(pack[-1], cell):
        trial = cell.next_trial(fits=fits)
        if trial is None:
            break
        pack.append(trial)
    return pack


def _most(cell: Cell, first: Trial, workers: int) -> int:
    """The most trials in a pack. Many confirmations can run at once, so they are divided evenly among the workers."""
    if first.phase is not Phase.CONFIRM:
        return cell.info.most_packed
    return block_size(cell.num_confirmed_with(first), cell.info.most_packed, workers=workers)


def _may_be_packed(trial: Trial, cell: Cell) -> bool:
    """Whether a trial may train in a pack; one whose process died before is tried again alone."""
    method = ALGORITHMS.get(trial.method or cell.study.method)
    return method is not None and method.packs and trial.config.get("tuning") == "features" and not trial.crashes


def _alike(first: Trial, other: Trial | Planned) -> bool:
    """Whether two trials share phase, method, role and pool, so that their steps can be taken together."""
    what = [(each.phase, each.method, each.role, each.task_overrides) for each in (first, other)]
    return what[0] == what[1] and not (isinstance(other, Trial) and other.crashes)


def _block(cell: Cell, plan: Trial | Planned, workers: int) -> int | None:
    """The block of a search or screen that a trial belongs to; None in other phases."""
    if plan.number is None:
        return None
    total = cell.study.num_screen_trials if plan.phase is Phase.SCREEN else cell.study.trials
    return plan.number // search_block(total, cell.info.most_packed, workers=workers)
