"""runs.csv: what each run was, how far it got, what cannot be said about it, and what to try next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pandas as pd

from captune.records import COMPLETE, CONFIRM, FAILED, PRUNED, REFERENCE, SCREEN, SEARCH
from captune.results import statistics
from captune.results.best import best_configs_table, recorded_choice
from captune.results.curves import expected_best
from captune.results.runs import RunRecord

_COLUMNS = (
    "run", "dataset", "paradigm", "method", "select_by", "metric_name", "advice", "num_screened", "num_trials",
    "num_complete", "num_stopped_early", "num_failed", "num_unfinished", "num_confirmed", "num_confirm_runs",
    "sealed_opened", "measurable", "num_classes", "num_pool", "num_test", "interval_level", "minimum_effect", "notes",
    "next_steps", "seed", "captune", "git", "host", "compute_seconds",
)  # fmt: skip
_RISING = 0.002
"""An expected gain above this (0.2 points) over the last quarter of the trials says that more trials would still
pay.
"""


def runs_table(runs: Iterable[RunRecord]) -> pd.DataFrame:
    """One row a run; see analysis/README.md for each column."""
    return pd.DataFrame([_row(run) for run in runs], columns=list(_COLUMNS))


def _row(run: RunRecord) -> dict[str, Any]:
    search = run.of_phase(SEARCH)
    states = Counter(trial.state for trial in search)
    confirmed = [trial for trial in run.of_phase(CONFIRM) if trial.finished]
    versions = run.opened.get("versions")
    ended = states[COMPLETE] + states[PRUNED] + states[FAILED]
    return {
        "run": run.name,
        "dataset": run.dataset,
        "paradigm": run.paradigm,
        "method": run.method,
        "select_by": run.select_by,
        "metric_name": run.metric_name,
        "advice": recorded_choice(run).advice,
        "num_screened": len(run.of_phase(SCREEN)),
        "num_trials": len(search),
        "num_complete": states[COMPLETE],
        "num_stopped_early": states[PRUNED],
        "num_failed": states[FAILED],
        "num_unfinished": len(search) - ended,
        "num_confirmed": len({trial.name for trial in confirmed}),
        "num_confirm_runs": len(confirmed),
        "sealed_opened": run.sealed_opened,
        "measurable": run.measurable,
        "num_classes": run.opened.get("num_classes"),
        "num_pool": run.opened.get("num_pool"),
        "num_test": run.opened.get("num_test"),
        "interval_level": statistics.LEVEL,
        "minimum_effect": statistics.MINIMUM_EFFECT,
        "notes": "; ".join(run.notes) or None,
        "next_steps": "; ".join(next_steps(run)) or None,
        "seed": run.study.get("seed"),
        "captune": versions.get("captune") if isinstance(versions, dict) else None,
        "git": run.opened.get("git"),
        "host": run.opened.get("host"),
        "compute_seconds": sum(t.seconds or 0.0 for t in run.trials if t.phase != REFERENCE),
    }


def next_steps(run: RunRecord) -> list[str]:
    """What a person might do now, by the flags of the best configuration and the state of the search."""
    best = best_configs_table([run]).iloc[0]
    marks = str(best["flags"]).split()
    steps = []
    search = run.of_phase(SEARCH)
    if any(trial.state not in (COMPLETE, PRUNED, FAILED) for trial in search):
        steps.append("the search has not ended: continue it with `captune resume`")
    if recorded_choice(run).advice == "adaptation changed nothing":
        steps.append(
            "the best configuration leaves zero-shot as it is: try fewer main samples or a higher learning rate"
        )
    if "below_zero_shot" in marks or "maybe_below_zero_shot" in marks:
        steps.append(
            "the best configuration does not beat zero-shot here: keep zero-shot, or try another method or criterion"
        )
    borders = [mark.removeprefix("on_border:") for mark in marks if mark.startswith("on_border:")]
    if borders:
        steps.append(
            f"the best configuration lies on the border of {', '.join(borders)}: widen that range in the search space"
        )
    if "underpowered" in marks:
        steps.append("the seeds are too few to be sure: raise `--confirm-seeds`")
    if _still_rising(run):
        steps.append("the expected best score still rises with the number of trials: raise `--trials`")
    if sum(trial.state == FAILED for trial in search) * 4 > len(search):
        steps.append("many trials failed: read their reasons in trials.csv and narrow the search space")
    if run.select_by == "oracle":
        steps.append("this study selected by sealed labels: repeat it with an honest criterion before any claim")
    return steps


def _still_rising(run: RunRecord) -> bool:
    scores = [trial.score for trial in run.of_phase(SEARCH) if trial.finished and trial.score is not None]
    if len(scores) < 8:
        return False
    import numpy as np

    (earlier, last), _ = expected_best(np.array(scores, dtype=float), None, [len(scores) * 3 // 4, len(scores)])
    return bool(last - earlier > _RISING)
