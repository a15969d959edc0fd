"""concepts.csv: which classes and confused pairs adaptation mended, and which it broke."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from captune.decisions import statistics
from captune.records import ZERO_SHOT, StudyRecord, Trial, number_or_none
from captune.results.best import configuration_name, recorded_choice, report_trials

_COLUMNS = (
    "run", "dataset", "paradigm", "method", "configuration", "kind", "class", "predicted_as", "mismatched", "before",
    "after", "change",
)  # fmt: skip


def concepts_table(runs: Iterable[StudyRecord]) -> pd.DataFrame:
    """Rows `kind` class (recall in [0, 1]) and pair (mean number of test images of `class` predicted as
    `predicted_as`).

    Before is zero-shot, after the mean of the best configuration over its seeds. Reports list the ten worst pairs
    only: a pair missing from one side has an empty cell there, not a zero. `mismatched` is empty where the study
    recorded no detection.
    """
    return pd.DataFrame([row for run in runs for row in _rows(run)], columns=list(_COLUMNS))


def _rows(run: StudyRecord) -> list[dict[str, Any]]:
    zero_shot = run.find(ZERO_SHOT)
    name = configuration_name(run, recorded_choice(run).config_id)
    after = report_trials(run, name) if name else []
    if not run.sealed_opened or zero_shot is None or not zero_shot.report or not after:
        return []
    context = {"run": run.name, "dataset": run.dataset, "paradigm": run.paradigm, "method": run.method,
               "configuration": name}  # fmt: skip
    return [context | row for row in [*_class_rows(run, zero_shot, after), *_pair_rows(run, zero_shot, after)]]


def _class_name(run: StudyRecord, label: Any) -> str:
    names = run.opened.class_names
    if isinstance(label, int) and 0 <= label < len(names):
        return names[label]
    return str(label)


def _mismatched(run: StudyRecord) -> set[str] | None:
    """The classes that concept-mismatch detection flagged; None where it was not run."""
    recorded = None if run.mismatch is None else run.mismatch.mismatched
    return None if recorded is None else {_class_name(run, label) for label in recorded}


def _class_rows(run: StudyRecord, zero_shot: Trial, after: Sequence[Trial]) -> list[dict[str, Any]]:
    before_K = _recalls(zero_shot)
    after_SK = [_recalls(trial) for trial in after]
    flagged = _mismatched(run)
    rows = []
    for label, before in enumerate(before_K):
        values = [recall_K[label] for recall_K in after_SK if label < len(recall_K)]
        mean = statistics.mean([value for value in values if value is not None])
        name = _class_name(run, label)
        rows.append(
            {
                "kind": "class",
                "class": name,
                "mismatched": None if flagged is None else name in flagged,
                "before": before,
                "after": mean,
                "change": None if before is None or mean is None else mean - before,
            }
        )
    return rows


def _recalls(trial: Trial) -> list[float | None]:
    recalls = (trial.report or {}).get("per_class_recall")
    return [number_or_none(value) for value in recalls] if isinstance(recalls, list) else []


def _pairs(trial: Trial) -> dict[tuple[Any, Any], float]:
    listed = (trial.report or {}).get("confused_pairs")
    pairs = [pair for pair in listed if isinstance(pair, list) and len(pair) == 3] if isinstance(listed, list) else []
    return {(true, predicted): float(count) for true, predicted, count in pairs}


def _pair_rows(run: StudyRecord, zero_shot: Trial, after: Sequence[Trial]) -> list[dict[str, Any]]:
    before, after_S = _pairs(zero_shot), [_pairs(trial) for trial in after]
    keys = dict.fromkeys([*before, *(key for pairs in after_S for key in pairs)])
    rows = []
    for key in keys:
        seen = [pairs[key] for pairs in after_S if key in pairs]
        # A mean over only the seeds where the pair is among the worst would be too high: it needs every seed.
        mean = statistics.mean(seen) if len(seen) == len(after_S) else None
        if key not in before and mean is None:
            continue
        rows.append(
            {
                "kind": "pair",
                "class": _class_name(run, key[0]),
                "predicted_as": _class_name(run, key[1]),
                "before": before.get(key),
                "after": mean,
                "change": None if key not in before or mean is None else mean - before[key],
            }
        )
    return rows
