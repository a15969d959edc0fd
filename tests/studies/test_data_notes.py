"""What only the opened weights and the decoded images tell: recorded once, in the journal, study.yaml and the notes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from captune.config import TaskConfig, read_yaml
from captune.model.sources import TINY_DIR
from captune.records import JOURNAL, Journal, StudyRecord
from captune.records.events import StudyOpened
from captune.records.layout import STUDY
from captune.results.load import load_study
from captune.studies.closing import note_data


def _photos(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("a", "b"):
            (folder / split / name).mkdir(parents=True)
            for number in range(60):
                pixels = generator.integers(0, 256, (4, 4, 3)).astype(np.uint8)
                Image.fromarray(pixels).resize((32, 32)).save(folder / split / name / f"{number}.png")
    with Image.open(folder / "train" / "a" / "1.png") as image:
        image.save(folder / "test" / "a" / "same.png", compress_level=0)  # the same pixels in other bytes
    (folder / "train" / "a" / "unreadable-looking name.png").write_bytes(b"\x89PNG\r\n\x1a\nno")


def _study(directory: Path, task: TaskConfig) -> StudyRecord:
    (directory / STUDY).write_text("spent: {seconds: 1.0}\n")
    opened = StudyOpened(study={"task": task.model_dump(mode="json")}, notes=("known before",))
    with Journal(directory / JOURNAL) as journal:
        return StudyRecord(directory, [journal.append(opened)])


@pytest.fixture
def noted(tmp_path: Path) -> Path:
    """A study whose weights had to be read in a way that is worth a note, and whose images hold what must be said."""
    _photos(tmp_path / "photos")
    state = safetensors.torch.load_file(next(TINY_DIR.glob("*.safetensors")))
    scale = torch.tensor(math.exp(float(state["logit_scale"])))
    safetensors.torch.save_file(state | {"logit_scale": scale}, tmp_path / "w.safetensors")
    task = TaskConfig.parse(
        {"dataset": f"folder:{tmp_path / 'photos'}", "paradigm": "ul", "backbone": f"local-dir:{TINY_DIR}",
         "pretrained": str(tmp_path / "w.safetensors"), "cache_dir": tmp_path / "cache"}
    )  # fmt: skip
    record = _study(tmp_path, task)
    for _ in range(2):  # the second time nothing is left to do
        with Journal(tmp_path / JOURNAL) as journal:
            note_data(record, lambda event: record.apply(journal.append(event)))
    return tmp_path


def test_what_weights_and_images_tell_is_noted_once_and_stands_in_study_yaml(noted: Path) -> None:
    record = load_study(noted)
    assert record.num_events == 2 and record.data_notes is not None
    found = record.data_notes
    (scale,) = [note for note in found.notes if "logit_scale" in note]
    (broken,) = [note for note in found.notes if note.startswith("1 unreadable image left out")]
    assert {scale, broken} <= set(record.notes) and "known before" in record.notes
    near = found.near_duplicates
    assert near is not None and near["num_test"] == 121 and near["threshold"] == 0.99 and 1 <= near["count"] <= 121
    assert len(near["closest"]) == 10
    first = near["closest"][0]
    assert first["cosine"] == pytest.approx(1, abs=1e-4)
    assert first["test"].endswith("test/a/same.png") and first["train"].endswith("train/a/1.png")
    assert [pair["cosine"] for pair in near["closest"]] == sorted((p["cosine"] for p in near["closest"]), reverse=True)
    content = read_yaml(noted / STUDY)
    assert content["spent"] == {"seconds": 1.0}
    assert content["found_in_data"] == {"notes": list(found.notes), "near_duplicates": near}


def test_a_study_that_was_killed_before_study_yaml_was_written_catches_up(noted: Path) -> None:
    (noted / STUDY).write_text("spent: {seconds: 2.0}\n")
    record = load_study(noted)
    note_data(record, lambda event: pytest.fail("the journal holds it"))
    assert read_yaml(noted / STUDY)["found_in_data"]["near_duplicates"] == record.data_notes.near_duplicates  # type: ignore[union-attr]


def test_embedded_digits_are_not_looked_through(tmp_path: Path) -> None:
    record = _study(tmp_path, TaskConfig.parse({"dataset": "digits", "paradigm": "ul", "cache_dir": tmp_path}))
    with Journal(tmp_path / JOURNAL) as journal:
        note_data(record, lambda event: record.apply(journal.append(event)))
    assert record.data_notes is not None and record.data_notes.near_duplicates is None
