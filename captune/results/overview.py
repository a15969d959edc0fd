"""studies.csv: what each study was, how far it got, what cannot be said about it, and what to try next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pandas as pd

from captune.decisions import statistics
from captune.decisions.criteria import ORACLE
from captune.records import Phase, State, StudyRecord
from captune.results.best import best_configs_table, recorded_choice
from captune.results.curves import expected_best

_COLUMNS = (
    "study", "dataset", "paradigm", "method", "select_by", "metric_name", "advice", "num_screened", "num_trials",
    "num_complete", "num_stopped_early", "num_failed", "num_unfinished", "num_confirmed", "num_confirm_trials",
    "sealed_opened", "measurable", "num_classes", "num_pool", "num_test", "interval_level", "minimum_effect", "notes",
    "next_steps", "seed", "captune", "git", "host", "compute_seconds",
)  # fmt: skip
_RISING = 0.002
"""An expected gain above this (0.2 points) over the last quarter of the trials says that more trials would still
pay.
"""


def studies_table(studies: Iterable[StudyRecord]) -> pd.DataFrame:
    """One row per study; see analysis/README.md for each column."""
    return pd.DataFrame([_row(study) for study in studies], columns=list(_COLUMNS))


def _row(study: StudyRecord) -> dict[str, Any]:
    search = study.of_phase(Phase.SEARCH)
    states = Counter(trial.state for trial in search)
    confirmed = [trial for trial in study.of_phase(Phase.CONFIRM) if trial.finished]
    ended = states[State.COMPLETE] + states[State.PRUNED] + states[State.FAILED]
    return {
        "study": study.name,
        "dataset": study.dataset,
        "paradigm": study.paradigm,
        "method": study.method,
        "select_by": study.select_by,
        "metric_name": study.metric_name,
        "advice": recorded_choice(study).advice,
        "num_screened": len(study.of_phase(Phase.SCREEN)),
        "num_trials": len(search),
        "num_complete": states[State.COMPLETE],
        "num_stopped_early": states[State.PRUNED],
        "num_failed": states[State.FAILED],
        "num_unfinished": len(search) - ended,
        "num_confirmed": len({trial.name for trial in confirmed}),
        "num_confirm_trials": len(confirmed),
        "sealed_opened": study.sealed_opened,
        "measurable": study.measurable,
        "num_classes": study.opened.num_classes,
        "num_pool": study.opened.num_pool,
        "num_test": study.opened.num_test,
        "interval_level": statistics.LEVEL,
        "minimum_effect": statistics.MINIMUM_EFFECT,
        "notes": "; ".join(study.notes) or None,
        "next_steps": "; ".join(next_steps(study)) or None,
        "seed": study.settings.get("seed"),
        "captune": study.opened.versions.get("captune"),
        "git": study.opened.git,
        "host": study.opened.host,
        "compute_seconds": sum(t.seconds or 0.0 for t in study.trials if t.phase != Phase.REFERENCE),
    }


def next_steps(study: StudyRecord) -> list[str]:
    """What a person might do now, by the flags of the best configuration and the state of the search."""
    best = best_configs_table([study]).iloc[0]
    marks = str(best["flags"]).split()
    steps = []
    search = study.of_phase(Phase.SEARCH)
    if any(trial.state not in (State.COMPLETE, State.PRUNED, State.FAILED) for trial in search):
        steps.append("the search has not ended: continue it with `captune resume`")
    if recorded_choice(study).advice == "adaptation changed nothing":
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
    if _still_rising(study):
        steps.append("the expected best score still rises with the number of trials: raise `--trials`")
    if sum(trial.state == State.FAILED for trial in search) * 4 > len(search):
        steps.append("many trials failed: read their reasons in trials.csv and narrow the search space")
    if study.select_by == ORACLE:
        steps.append("this study selected by sealed labels: repeat it with an honest criterion before any claim")
    return steps


def _still_rising(study: StudyRecord) -> bool:
    scores = [trial.score for trial in study.of_phase(Phase.SEARCH) if trial.finished and trial.score is not None]
    if len(scores) < 8:
        return False
    import numpy as np

    (earlier, last), _ = expected_best(np.array(scores, dtype=float), None, [len(scores) * 3 // 4, len(scores)])
    return bool(last - earlier > _RISING)
