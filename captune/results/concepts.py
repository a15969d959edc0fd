"""concepts.csv: which classes and confused pairs adaptation mended, and which it broke."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from captune.decisions import statistics
from captune.records import ZERO_SHOT, StudyRecord, Trial, number_or_none
from captune.results.best import configuration_name, recorded_choice, report_trials

_COLUMNS = (
    "study", "dataset", "paradigm", "method", "configuration", "kind", "class", "predicted_as", "mismatched", "before",
    "after", "change",
)  # fmt: skip


def concepts_table(studies: Iterable[StudyRecord]) -> pd.DataFrame:
    """Rows `kind` class (recall in [0, 1]) and pair (mean number of test images of `class` predicted as
    `predicted_as`).

    Before is zero-shot, after the mean of the best configuration over its seeds. Reports list the ten worst pairs
    only: a pair missing from one side has an empty cell there, not a zero. `mismatched` is empty where the study
    recorded no detection.
    """
    return pd.DataFrame([row for study in studies for row in _rows(study)], columns=list(_COLUMNS))


def _rows(study: StudyRecord) -> list[dict[str, Any]]:
    zero_shot = study.find(ZERO_SHOT)
    name = configuration_name(study, recorded_choice(study).config_id)
    after = report_trials(study, name) if name else []
    if not study.sealed_opened or zero_shot is None or not zero_shot.report or not after:
        return []
    context = {"study": study.name, "dataset": study.dataset, "paradigm": study.paradigm, "method": study.method,
               "configuration": name}  # fmt: skip
    return [context | row for row in [*_class_rows(study, zero_shot, after), *_pair_rows(study, zero_shot, after)]]


def _class_name(study: StudyRecord, label: Any) -> str:
    names = study.opened.class_names
    if isinstance(label, int) and 0 <= label < len(names):
        return names[label]
    return str(label)


def _mismatched(study: StudyRecord) -> set[str] | None:
    """The classes that concept-mismatch detection flagged; None where it did not take place."""
    recorded = None if study.mismatch is None else study.mismatch.mismatched
    return None if recorded is None else {_class_name(study, label) for label in recorded}


def _class_rows(study: StudyRecord, zero_shot: Trial, after: Sequence[Trial]) -> list[dict[str, Any]]:
    before_K = _recalls(zero_shot)
    after_SK = [_recalls(trial) for trial in after]
    flagged = _mismatched(study)
    rows = []
    for label, before in enumerate(before_K):
        values = [recall_K[label] for recall_K in after_SK if label < len(recall_K)]
        mean = statistics.mean([value for value in values if value is not None])
        name = _class_name(study, label)
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


def _pair_rows(study: StudyRecord, zero_shot: Trial, after: Sequence[Trial]) -> list[dict[str, Any]]:
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
                "class": _class_name(study, key[0]),
                "predicted_as": _class_name(study, key[1]),
                "before": before.get(key),
                "after": mean,
                "change": None if key not in before or mean is None else mean - before[key],
            }
        )
    return rows
