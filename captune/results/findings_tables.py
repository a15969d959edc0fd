"""What a study found on its pool and test images when it was closed, as tables: confusion, reliability, pictures.

The study wrote this to findings.json (`captune.studies.findings`); a study of an older captune, or a copied journal,
has no such file. What needs test labels is left out until they are opened, whatever the file holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pandas as pd

from captune.records import ZERO_SHOT, StudyRecord
from captune.records.layout import FINDINGS
from captune.results.best import compared_candidate

_CONFUSION_COLUMNS = ("study", "candidate", "class", "predicted_as", "before", "after", "change")
_RELIABILITY_COLUMNS = ("study", "of", "low", "high", "images", "confidence", "accuracy")
_PICTURE_COLUMNS = (
    "study", "section", "class", "order", "place", "image", "second_image", "before", "after", "probability",
)  # fmt: skip
_SEALED = ("confusion", "reliability", "gain", "gain_error")
ORDER = ("changed", "mismatched", "confused", "duplicates")
"""The sections of pictures, in the order in which a page shows them."""


def findings_of(study: StudyRecord) -> dict[str, Any]:
    """The findings about the candidate that is compared with zero-shot; empty if the file has none about it."""
    try:
        found = json.loads((study.directory / FINDINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict) or found.get("candidate") != compared_candidate(study):
        return {}
    if not study.sealed_opened:
        found = {name: value for name, value in found.items() if name not in _SEALED}
        pictures = [one for one in found.get("pictures", []) if one.get("section") != "confused"]
        found |= {"pictures": pictures}
    return found


def class_name(study: StudyRecord, label: Any) -> str:
    """The name of the class with this index; the index itself, as text, if the study has no name for it."""
    names = study.opened.class_names
    return names[label] if isinstance(label, int) and 0 <= label < len(names) else str(label)


def confusion_table(studies: Iterable[StudyRecord]) -> pd.DataFrame:
    """One row per class and predicted class: the number of test images, by zero-shot and by the candidate."""
    rows = [
        {"study": study.name, "candidate": found["candidate"], "class": class_name(study, true),
         "predicted_as": class_name(study, predicted), "before": before, "after": after,
         "change": after - before}
        for study, found in _found(studies)
        for true, predicted, before, after in found.get("confusion", [])
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(_CONFUSION_COLUMNS))


def reliability_table(studies: Iterable[StudyRecord]) -> pd.DataFrame:
    """One row per bin of confidence: mean confidence and accuracy on test images, of zero-shot and of the candidate."""
    rows = [
        {"study": study.name, "of": ZERO_SHOT if which == "before" else found["candidate"], "low": low, "high": high,
         "images": images, "confidence": confidence, "accuracy": accuracy}
        for study, found in _found(studies)
        for which, low, high, images, confidence, accuracy in found.get("reliability", [])
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(_RELIABILITY_COLUMNS))


def pictures_table(studies: Iterable[StudyRecord]) -> pd.DataFrame:
    """One row per picture of the page: which image, and what it was taken for."""
    rows = [row for study, found in _found(studies) for row, _ in _pictures(study, found)]
    return pd.DataFrame(rows, columns=list(_PICTURE_COLUMNS))


def jpegs_of(study: StudyRecord) -> list[list[str]]:
    """The pictures as base64 JPEGs, in the order of the rows of `pictures_table`."""
    return [jpegs for _, jpegs in _pictures(study, findings_of(study))]


def _found(studies: Iterable[StudyRecord]) -> Iterable[tuple[StudyRecord, dict[str, Any]]]:
    return [(study, found) for study in studies if (found := findings_of(study))]


def _pictures(study: StudyRecord, found: dict[str, Any]) -> list[tuple[dict[str, Any], list[str]]]:
    shown = [one for one in found.get("pictures", []) if one.get("section") in ORDER]
    # Within a section, keep the order in which the study chose the classes: most changed or most confused first.
    groups = list(dict.fromkeys(_group(one) for one in shown))
    shown.sort(key=lambda one: (ORDER.index(one["section"]), groups.index(_group(one)), one.get("order") != "surest"))
    rows = []
    for one in shown:
        images = one.get("images", [])
        row = {
            "study": study.name,
            "section": one["section"],
            "class": class_name(study, one["class"]) if "class" in one else None,
            "order": one.get("order"),
            "place": one.get("place"),
            "image": images[0] if images else None,
            "second_image": images[1] if len(images) > 1 else None,
            "before": class_name(study, one["before"]) if "before" in one else None,
            "after": class_name(study, one["after"]) if "after" in one else None,
            "probability": one.get("probability"),
        }
        rows.append((row, one.get("jpegs", [])))
    return rows


def _group(one: dict[str, Any]) -> tuple[Any, ...]:
    return (one["section"], one.get("class"), one.get("after") if one["section"] == "confused" else None)
