"""studies.csv and notes.csv: what each study was, how far it got, its gaps and doubts, and what to try next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pandas as pd

from captune.config import TaskConfig
from captune.data.catalog import DATASETS, default_backbone
from captune.decisions import statistics
from captune.decisions.criteria import ORACLE
from captune.errors import CaptuneError
from captune.records import Phase, State, StudyRecord
from captune.results.best import recorded_choice
from captune.results.best_configs import best_flags
from captune.results.curves import expected_best
from captune.results.tables import clock

_COLUMNS = (
    "study", "dataset", "paradigm", "method", "select_by", "metric_name", "advice", "num_screened", "num_trials",
    "num_complete", "num_stopped_early", "num_failed", "num_unfinished", "num_confirmed", "num_confirm_trials",
    "sealed_opened", "measurable", "num_classes", "num_pool", "num_test", "interval_level", "minimum_effect", "seed",
    "backbone", "weights", "tuning", "template", "command", "captune", "versions", "git", "machine", "begun",
    "wall_seconds", "spent_seconds", "compute_seconds", "gpu_hours", "ended_early",
)  # fmt: skip
_RISING = 0.002
"""If the last quarter of the trials raised the expected best score by more than this (0.2 points), more trials would
probably raise it further.
"""


def studies_table(studies: Iterable[StudyRecord]) -> pd.DataFrame:
    """One row per study; captune/results/columns.yaml explains each column."""
    return pd.DataFrame([_row(study) for study in studies], columns=list(_COLUMNS))


def _row(study: StudyRecord) -> dict[str, Any]:
    search = study.of_phase(Phase.SEARCH)
    states = Counter(trial.state for trial in search)
    confirmed = [trial for trial in study.of_phase(Phase.CONFIRM) if trial.scored]
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
        "seed": study.settings.get("seed"),
        **_what_was_adapted(study),
        "captune": study.opened.versions.get("captune"),
        "versions": ", ".join(f"{name} {version}" for name, version in study.opened.versions.items()) or None,
        "git": study.opened.git,
        "machine": ", ".join(filter(None, [study.opened.host, study.opened.machine])) or None,
        "command": study.first_opened.command,
        "begun": clock(study.first_opened.time),
        "wall_seconds": study.last_time - study.first_opened.time if study.first_opened.time else None,
        "spent_seconds": study.usage.seconds(),
        "compute_seconds": sum(t.seconds or 0.0 for t in study.trials if t.phase != Phase.REFERENCE),
        "gpu_hours": study.usage.gpu_seconds() / 3600,
        "ended_early": study.search_ended.reason if study.search_ended is not None else None,
    }


def _what_was_adapted(study: StudyRecord) -> dict[str, Any]:
    """The model of a study, and which part of it is learned."""
    base, task = study.opened.base, study.task
    tuning = {"features": "adapters on frozen features", "prompts": f"{base.get('prompts')} prompts"}
    backbone: str | None = "precomputed features"
    weights: str | None = None
    if not study.dataset.startswith("features:"):
        try:
            backbone, weights = default_backbone(TaskConfig.parse(task))
        except CaptuneError:  # task settings of another captune version
            backbone, weights = task.get("backbone"), task.get("pretrained")
        weights = weights or ("embedded in captune" if backbone == "tiny" else None)
    row = DATASETS.get(study.dataset)
    return {
        "backbone": backbone,
        "weights": weights,
        "tuning": tuning.get(str(base.get("tuning"))),
        "template": task.get("template") or (row.template if row is not None else None),
    }


def notes_table(studies: Iterable[StudyRecord]) -> pd.DataFrame:
    """One row per sentence: doubts and gaps of a study (`note`), and what to try next (`next step`)."""
    rows = [
        {"study": study.name, "kind": kind, "text": text}
        for study in studies
        for kind, texts in (("note", study.notes), ("next step", next_steps(study)))
        for text in texts
    ]
    return pd.DataFrame(rows, columns=["study", "kind", "text"])


def next_steps(study: StudyRecord) -> list[str]:
    """What to do now, judged by the flags of the best configuration and the state of the search."""
    marks = best_flags(study)
    steps = []
    search = study.of_phase(Phase.SEARCH)
    if any(trial.state not in (State.COMPLETE, State.PRUNED, State.FAILED) for trial in search):
        steps.append("the search has not ended: continue it with `captune resume`")
    if recorded_choice(study).advice == "adaptation changed nothing":
        steps.append(
            "the best configuration leaves zero-shot as it is: try fewer main samples or a higher learning rate"
        )
    if marks.below_zero_shot or marks.maybe_below_zero_shot:
        steps.append(
            "the best configuration does not beat zero-shot here: keep zero-shot, or try another method or criterion"
        )
    if marks.border_settings:
        borders = ", ".join(marks.border_settings)
        steps.append(f"the best configuration lies on the border of {borders}: widen that range in the search space")
    if marks.underpowered:
        steps.append("the seeds are too few to be sure: raise `--confirm-seeds`")
    if _still_rising(study):
        steps.append("the expected best score still rises with the number of trials: raise `--trials`")
    if sum(trial.state == State.FAILED for trial in search) * 4 > len(search):
        steps.append("many trials failed: read their reasons in trials.csv and narrow the search space")
    if study.select_by == ORACLE:
        steps.append("this study selected by sealed labels: repeat it with an honest criterion before any claim")
    return steps


def _still_rising(study: StudyRecord) -> bool:
    scores = [trial.score for trial in study.of_phase(Phase.SEARCH) if trial.scored and trial.score is not None]
    if len(scores) < 8:
        return False
    import numpy as np

    (earlier, last), _ = expected_best(np.array(scores, dtype=float), None, [len(scores) * 3 // 4, len(scores)])
    return bool(last - earlier > _RISING)
