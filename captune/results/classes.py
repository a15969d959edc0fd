"""classes.csv and pairs.csv: which classes and confused pairs adaptation improved, and which it made worse."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd

from captune.decisions import statistics
from captune.records import ZERO_SHOT, StudyRecord, Trial, number_or_none
from captune.results.best import compared_candidate, report_trials
from captune.results.findings_tables import class_name, findings_of

_CONTEXT = ("study", "dataset", "paradigm", "method", "candidate")
_CLASS_COLUMNS = (*_CONTEXT, "class", "mismatched", "recall_before", "recall_after", "recall_change",
                  "share_before", "share_after", "share_change")  # fmt: skip
_PAIR_COLUMNS = (*_CONTEXT, "class", "predicted_as", "before", "after", "change")


def classes_table(studies: Iterable[StudyRecord]) -> pd.DataFrame:
    """One row per class: its recall on the test, and the share of the pool that is predicted as it, in [0, 1].

    Before is zero-shot; after is the mean over seeds of the candidate that `compared_candidate` names. `mismatched` is
    empty if the study recorded no detection.
    """
    rows = []
    for study in studies:
        recalls = {row["class"]: row for row in _rows([study], _class_rows)}
        shares = _share_rows(study)
        flagged = _mismatched(study)
        for name in dict.fromkeys([*recalls, *shares]):
            own = {"class": name, "mismatched": None if flagged is None else name in flagged}
            rows.append(_context(study) | own | shares.get(name, {}) | recalls.get(name, {}))
    return pd.DataFrame(rows, columns=list(_CLASS_COLUMNS))


def _share_rows(study: StudyRecord) -> dict[str, dict[str, Any]]:
    """Class → its share of the pool before and after."""
    return {
        class_name(study, label): {"share_before": before, "share_after": after, "share_change": after - before}
        for label, (before, after) in enumerate(findings_of(study).get("shares", []))
    }


def _context(study: StudyRecord) -> dict[str, Any]:
    return {"study": study.name, "dataset": study.dataset, "paradigm": study.paradigm, "method": study.method,
            "candidate": compared_candidate(study)}  # fmt: skip


def pairs_table(studies: Iterable[StudyRecord]) -> pd.DataFrame:
    """One row per confused pair: the number of test images of `class` that are predicted as `predicted_as`.

    Before and after mean the same as in `classes_table`. A report lists only the ten worst pairs, so a pair that one
    side does not list has an empty cell there, not a zero.
    """
    return pd.DataFrame(_rows(studies, _pair_rows), columns=list(_PAIR_COLUMNS))


_Maker = Callable[[StudyRecord, Trial, Sequence[Trial]], list[dict[str, Any]]]


def _rows(studies: Iterable[StudyRecord], make: _Maker) -> list[dict[str, Any]]:
    rows = []
    for study in studies:
        zero_shot, name = study.find(ZERO_SHOT), compared_candidate(study)
        after = report_trials(study, name) if name else []
        if not study.sealed_opened or zero_shot is None or not zero_shot.report or not after:
            continue
        rows += [_context(study) | row for row in make(study, zero_shot, after)]
    return rows


def _mismatched(study: StudyRecord) -> set[str] | None:
    """The classes that concept-mismatch detection flagged; None if it did not run."""
    recorded = None if study.mismatch is None else study.mismatch.mismatched
    return None if recorded is None else {class_name(study, label) for label in recorded}


def _class_rows(study: StudyRecord, zero_shot: Trial, after: Sequence[Trial]) -> list[dict[str, Any]]:
    before_K = _recalls(zero_shot)
    after_SK = [_recalls(trial) for trial in after]
    rows = []
    for label, before in enumerate(before_K):
        values = [recall_K[label] for recall_K in after_SK if label < len(recall_K)]
        mean = statistics.mean([value for value in values if value is not None])
        name = class_name(study, label)
        rows.append(
            {
                "class": name,
                "recall_before": before,
                "recall_after": mean,
                "recall_change": None if before is None or mean is None else mean - before,
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
        # Every seed must list the pair: a mean over only the seeds where it is among the worst would be too high.
        mean = statistics.mean(seen) if len(seen) == len(after_S) else None
        if key not in before and mean is None:
            continue
        rows.append(
            {
                "class": class_name(study, key[0]),
                "predicted_as": class_name(study, key[1]),
                "before": before.get(key),
                "after": mean,
                "change": None if key not in before or mean is None else mean - before[key],
            }
        )
    return rows
