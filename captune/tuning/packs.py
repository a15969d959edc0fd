"""Packs: which trials on frozen features a worker trains together (`captune.training.packs` says how)."""

from __future__ import annotations

from captune.algorithms import ALGORITHMS
from captune.decisions.confirming import RACE_AFTER
from captune.records import Phase, Trial
from captune.records.events import Planned
from captune.tuning.cell import Cell
from captune.tuning.packing import block_size


def next_pack(cell: Cell, *, packed: bool = True) -> list[Trial]:
    """The next trials of a study, for one worker: several where their steps can be taken together; empty for none now.

    New trials are planned up to the end of their block of the search and no further. So what a sampler knew when it
    proposed a trial is the same in a study that was killed and continued.

    Args:
        cell: the study.
        packed: whether trials may train together at all (not on a GPU, where each trial's steps are recorded).
    """
    first = cell.next_trial()
    if first is None:
        return []
    pack = [first]

    def fits(other: Trial | Planned) -> bool:
        return _alike(first, other) and (isinstance(other, Trial) or _block(cell, first) == _block(cell, other))

    while packed and len(pack) < _most(cell, first) and _may_be_packed(pack[-1], cell):
        trial = cell.next_trial(fits=fits)
        if trial is None:
            break
        pack.append(trial)
    return pack


def _most(cell: Cell, first: Trial) -> int:
    """Trials of a pack at most. Confirmations come all at once, up to their race: two workers share them evenly."""
    if first.phase is not Phase.CONFIRM:
        return cell.info.most_packed
    study = cell.study
    confirmed = (study.confirm_top + 1) * min(study.confirm_seeds, RACE_AFTER)
    return block_size(confirmed, cell.info.most_packed)


def _may_be_packed(trial: Trial, cell: Cell) -> bool:
    """Whether a trial may train beside others; one whose process died before is tried again alone."""
    method = ALGORITHMS.get(trial.method or cell.study.method)
    return method is not None and method.packs and trial.config.get("tuning") == "features" and not trial.crashes


def _alike(first: Trial, other: Trial | Planned) -> bool:
    """Whether two trials share phase, method, role and pool, so that their steps can be taken together."""
    what = [(each.phase, each.method, each.role, each.task_overrides) for each in (first, other)]
    return what[0] == what[1] and not (isinstance(other, Trial) and other.crashes)


def _block(cell: Cell, plan: Trial | Planned) -> int | None:
    if plan.number is None:
        return None
    total = cell.study.num_screen_trials if plan.phase is Phase.SCREEN else cell.study.trials
    return plan.number // block_size(total, cell.info.most_packed)
