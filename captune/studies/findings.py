"""findings.json: what the chosen candidate changes on pool and test images, with small pictures, for the report.

Made from stored predictions when the study is closed, so that a report needs neither the dataset nor PyTorch. Changes
in the pool need no label; findings on test images are written only once test labels may be read.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from captune.algorithms.configs import CapConfig
from captune.algorithms.main_samples import first_boards
from captune.config import TaskConfig
from captune.data.catalog import load_dataset
from captune.data.dataset import Dataset
from captune.data.labelling import image_names
from captune.data.thumbnails import has_pictures, thumbnail
from captune.records import ZERO_SHOT, Phase, Role, State, StudyRecord, Trial, atomic_write
from captune.records.layout import FINDINGS, trial_directory
from captune.results.best import compared_candidate
from captune.training.context import open_context
from captune.training.evaluation import MeasuredChanges, measured_changes
from captune.training.near_duplicates import near_duplicates
from captune.training.pool_changes import PoolChanges, pool_changes

MOST_BYTES = 1_100_000
"""Limit for all JPEGs together: as text in the page they take a third more, and a page should stay below 2 MB."""
_CLASSES, _SUREST, _LEAST_SURE = 4, 6, 3
_MISMATCHED, _MAIN_SAMPLES = 4, 6
_PAIRS, _EXAMPLES = 4, 5
Picture = dict[str, Any]


def write_findings(record: StudyRecord) -> list[Path]:
    """Write the file for a study that has made its choice, unless it has no candidate to compare with zero-shot."""
    name, zero_shot = compared_candidate(record), record.find(ZERO_SHOT)
    if name is None or zero_shot is None or zero_shot.state is not State.COMPLETE:
        return []
    task = TaskConfig.parse(record.task)
    frozen = trial_directory(record.directory, ZERO_SHOT)
    own = [trial for trial in record.complete() if trial.name == name and trial.phase is not Phase.STRESS]
    pool = pool_changes(task, frozen, _directories(record, own, Role.SCORE))
    role = Role.REPORT if any(trial.role is Role.REPORT for trial in own) else Role.SCORE
    trials = _directories(record, own, role)
    measured = measured_changes(task, role, frozen, trials) if record.sealed_opened and trials else None
    found: dict[str, Any] = {"candidate": name, "images": record.settings.get("images", True)}
    if pool is not None:
        before_K, after_K = pool.shares()
        found["shares"] = [[_short(before), _short(after)] for before, after in zip(before_K, after_K, strict=True)]
        found["num_pool"] = len(pool.images_N)
    if measured is not None:
        found["confusion"] = [[true, said, _short(a), _short(b)] for true, said, a, b in measured.confusion]
        found["reliability"] = [[which, *(_short(value) for value in row)] for which, *row in measured.reliability]
        found["gain"], found["gain_error"] = _short(measured.gain), _short(measured.gain_error)
    dataset = load_dataset(task)
    if found["images"] and has_pictures(dataset):
        found["pictures"] = _taken(dataset, _chosen(record, pool, measured))
    path = record.directory / FINDINGS
    atomic_write(path, json.dumps(found, separators=(",", ":")) + "\n")
    return [path]


def _directories(record: StudyRecord, trials: Sequence[Trial], role: Role) -> list[Path]:
    return [trial_directory(record.directory, trial.key) for trial in trials if trial.role is role]


def _short(value: float) -> float:
    return float(f"{float(value):.6g}")


def _chosen(record: StudyRecord, pool: PoolChanges | None, measured: MeasuredChanges | None) -> Iterator[Picture]:
    """The images to show, taken from the sections in turn, so that a limit on their size cuts all sections alike."""
    sections = []
    if pool is not None:
        sections.append(list(_of_changed_classes(pool)))
    sections.append(list(_main_samples(record)))
    if measured is not None:
        sections.append(list(_mistakes(measured)))
    sections.append(list(_duplicates(record)))
    for turn in range(max((len(section) for section in sections), default=0)):
        yield from (section[turn] for section in sections if turn < len(section))


def _of_changed_classes(pool: PoolChanges) -> Iterator[Picture]:
    """Images that moved into or out of the classes whose shares changed most: the surest and least sure of each."""
    shown: set[int] = set()
    for label in pool.most_changed(_CLASSES):
        # An image moves between two classes: it is shown with the one that changed more.
        rows = [row for row in pool.moved(label).tolist() if row not in shown]
        shown.update(rows)
        sure = rows[:_SUREST]
        unsure = rows[_SUREST:][-_LEAST_SURE:]
        for order, kept in (("surest", sure), ("least sure", unsure)):
            for place, row in enumerate(kept):
                yield {
                    "section": "changed",
                    "class": label,
                    "order": order,
                    "place": place,
                    "index": int(pool.images_N[row]),
                    "before": int(pool.before_N[row]),
                    "after": int(pool.after_N[row]),
                    "probability": _short(pool.probability_N[row]),
                }


def _main_samples(record: StudyRecord) -> Iterator[Picture]:
    """The first main samples of CAP for the classes whose names CLIP does not connect with their images."""
    flagged = record.mismatch.mismatched if record.mismatch is not None else None
    if not flagged:
        return
    context = open_context(TaskConfig.parse(record.task), Role.REPORT)
    boards = first_boards(context, CapConfig.parse({}))
    for label in flagged[:_MISMATCHED]:
        for place, (image, score) in enumerate(boards.get(label, [])[:_MAIN_SAMPLES]):
            yield {"section": "mismatched", "class": label, "place": place, "index": int(image),
                   "probability": _short(score)}  # fmt: skip


def _mistakes(measured: MeasuredChanges) -> Iterator[Picture]:
    """The surest mistakes of the candidate in the pairs of classes that it confuses most."""
    mistakes = [(after, true, said) for true, said, _, after in measured.confusion if true != said and after > 0]
    worst = [(true, said) for _, true, said in sorted(mistakes, key=lambda one: (-one[0], one[1:]))[:_PAIRS]]
    shown: Counter[tuple[int, int]] = Counter()
    for true, said, index, probability in measured.examples:
        if (true, said) in worst and shown[true, said] < _EXAMPLES:
            yield {"section": "confused", "class": true, "after": said, "place": shown[true, said], "index": index,
                   "probability": _short(probability)}  # fmt: skip
            shown[true, said] += 1


def _duplicates(record: StudyRecord) -> Iterator[Picture]:
    """Test images, each beside a training image that nearly equals it; only for the user's own images."""
    if not record.dataset.startswith(("folder:", "csv:")):
        return
    found = near_duplicates(TaskConfig.parse(record.task))
    for place, (test, other, cosine) in enumerate(found.pairs[: min(found.count, _PAIRS)]):
        yield {"section": "duplicates", "index": test, "second": other, "probability": _short(cosine), "place": place}


def _taken(dataset: Dataset, chosen: Iterator[Picture]) -> list[Picture]:
    """The pictures with their JPEGs as text, up to MOST_BYTES in all; pictures that cannot be read are left out."""
    found: list[Picture] = []
    taken: dict[int, bytes | None] = {}
    size = 0
    for picture in chosen:
        indices = [picture.pop("index"), *([picture.pop("second")] if "second" in picture else [])]
        for index in indices:
            taken.setdefault(index, thumbnail(dataset, index))
        jpegs = [taken[index] for index in indices]
        readable = [jpeg for jpeg in jpegs if jpeg is not None]
        if len(readable) < len(jpegs):
            continue
        size += sum(len(jpeg) for jpeg in readable)
        if size > MOST_BYTES:
            break
        names = image_names(dataset, np.array(indices))
        found.append(picture | {"images": names, "jpegs": [base64.b64encode(jpeg).decode() for jpeg in readable]})
    return found
