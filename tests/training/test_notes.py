"""What a person is told of a cell before its numbers: of weights, class names, and the scale of a features file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from captune.config import TaskConfig
from captune.errors import DataError
from captune.model.sources import TINY_DIR
from captune.training.context import open_context
from captune.training.notes import cell_notes

LONG = "a very long name that goes on and on and on and on and on and on and on and on"


def features(path: Path, *, width: int = 8, **more: object) -> TaskConfig:
    generator = np.random.default_rng(0)
    rows = {
        "image_features": generator.normal(size=(24, width)).astype(np.float32),
        "labels": np.arange(24) % 2,
        "split": np.array(["train"] * 16 + ["test"] * 8),
        "text_features": generator.normal(size=(2, width)).astype(np.float32),
    }
    np.savez(path, **rows, **more)  # type: ignore[arg-type]
    return TaskConfig(dataset=f"features:{path}", paradigm="ul")


@pytest.mark.parametrize(("scale", "said"), [(4.6052, True), (9.9, True), (10.0, False), (100.0, False), (None, False)])
def test_a_logarithm_in_a_features_file_is_noted(tmp_path: Path, scale: float | None, said: bool) -> None:
    task = features(tmp_path / "f.npz", **({} if scale is None else {"logit_scale": scale}))
    noted = [note for note in cell_notes(task) if "logit_scale" in note and "looks like the logarithm" in note]
    assert bool(noted) is said
    if scale == 4.6052:
        assert "exponentiated 100" in noted[0]


def test_what_the_weight_file_tells_is_a_note_of_the_context(tmp_path: Path) -> None:
    state = safetensors.torch.load_file(next(TINY_DIR.glob("*.safetensors")))
    safetensors.torch.save_file(state | {"logit_scale": torch.tensor(100.0)}, tmp_path / "w.safetensors")
    values = {"dataset": "digits", "paradigm": "ul", "cache_dir": str(tmp_path / "cache")}
    weights = {"backbone": f"local-dir:{TINY_DIR}", "pretrained": str(tmp_path / "w.safetensors")}
    context = open_context(TaskConfig.parse(values | weights), "report", "cpu")
    assert any("logit_scale is 100, which was saved exponentiated" in note for note in context.notes)


def test_class_names_that_cannot_be_told_apart_stop_before_the_images(tmp_path: Path) -> None:
    names = tmp_path / "names.yaml"
    names.write_text("\n".join(f"- {name}" for name in [f"{LONG} zero", f"{LONG} one", *"abcdefgh"]))
    task = TaskConfig.parse(
        {"dataset": "digits", "paradigm": "ul", "cache_dir": str(tmp_path / "cache"), "class_names": str(names)}
    )
    with pytest.raises(DataError, match="class names must differ"):
        open_context(task, "report", "cpu")
    assert not (tmp_path / "cache").exists()
