"""Whether two openings are of one study: which settings must be the same, and where its data may lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from captune.config import TaskConfig, own_images
from captune.records.events import StudyOpened

# Settings that may change when a study is continued: how much is done, and paths on this machine.
_FREE = (
    "trials", "stop_when_settled", "confirm_top", "confirm_seeds", "stress", "max_failures", "storage", "space",
    "images",
)  # fmt: skip
_FREE_TASK = ("data_root", "cache_dir")


def is_moved(before: StudyOpened, after: StudyOpened) -> bool:
    """Whether own data lie elsewhere now: nothing is where they were, and as much of the same classes is here.

    Args:
        before: the opening before.
        after: the one that follows, which names the new place.
    """
    places = [dataset_of(header).partition(":") for header in (before, after)]
    if places[0] == places[1]:
        return True  # an earlier driver found them there already
    facts = [
        (list(header.class_names), header.num_pool, header.num_scored, header.num_test) for header in (before, after)
    ]
    return places[0][0] == places[1][0] and not Path(places[0][2]).exists() and facts[0] == facts[1]


def dataset_of(header: StudyOpened) -> str:
    """The dataset of an opening; own images by absolute path, although captune recorded relative ones once."""
    return own_images(str(header.study["task"].get("dataset")))


def study_differences(before: StudyOpened, after: StudyOpened) -> list[tuple[str, Any, Any]]:
    """What differs between two openings among the settings that must not change: (key, before, after)."""
    first, second = _fixed_settings(before), _fixed_settings(after)
    missing = "not there"
    return [
        (key, first.get(key, missing), second.get(key, missing))
        for key in sorted(first.keys() | second.keys())
        if first.get(key, missing) != second.get(key, missing)
    ]


def _fixed_settings(header: StudyOpened) -> dict[str, Any]:
    study = {key: value for key, value in header.study.items() if key not in _FREE}
    # A setting that captune did not have when the study was begun has its default.
    usual = {name: field.default for name, field in TaskConfig.model_fields.items() if not field.is_required()}
    task = {key: value for key, value in (usual | study.pop("task")).items() if key not in _FREE_TASK}
    task["dataset"] = dataset_of(header)
    screen = header.screen or {}
    groups = {
        "study": study,
        "task": task,
        "space": header.space,
        "paper": header.base,
        "screen space": screen.get("space", {}),
        "screen paper": screen.get("base", {}),
    }
    return {f"{group}.{key}": value for group, values in groups.items() for key, value in values.items()}
