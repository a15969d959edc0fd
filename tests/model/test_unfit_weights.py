"""Weight files of which single tensors are wrong: refused by the tensor's name, with a step that helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from captune.cli.main import main
from captune.errors import ModelError
from captune.model.backbone import Backbone, load_backbone
from captune.model.sources import TINY_DIR

ARCHITECTURE = f"local-dir:{TINY_DIR}"
LAYER = "transformer.resblocks.0.mlp.c_fc.weight"


def state() -> dict[str, Tensor]:
    read = safetensors.torch.load_file(next(TINY_DIR.glob("*.safetensors")))
    return {name: tensor.float() for name, tensor in read.items()}


def opened(folder: Path, changed: dict[str, Any], without: str = "") -> Backbone:
    path = folder / "w.pt"
    torch.save({name: value for name, value in (state() | changed).items() if name != without}, path)
    return load_backbone(ARCHITECTURE, str(path), device="cpu")


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """No backbone is remembered from one test to the next."""
    from captune.model import backbone as module

    monkeypatch.setattr("captune.model.backbone._load", module._load.__wrapped__)


@pytest.mark.parametrize(
    ("changed", "without", "says"),
    [
        ({}, LAYER, f"1 problem, first: {LAYER} is missing"),
        ({}, "logit_scale", "1 problem, first: logit_scale is missing"),
        ({LAYER: state()[LAYER].T.contiguous()}, "", f"{LAYER} has shape (64, 256), not (256, 64)"),
        ({LAYER: torch.zeros(0)}, "", f"{LAYER} has shape (0,), not (256, 64)"),
        ({"logit_scale": torch.ones(2)}, "", "logit_scale has shape (2,), not ()"),
        ({"head\n\x1b[2J": torch.ones(2)}, "", "head\u240a\u241b[2J has no place"),
    ],
)
def test_a_file_of_the_right_architecture_is_not_sent_to_look_for_another(
    tmp_path: Path, changed: dict[str, Any], without: str, says: str
) -> None:
    with pytest.raises(ModelError) as caught:
        opened(tmp_path, changed, without)
    message = str(caught.value)
    assert says in message and "tensors fit, so this is the architecture" in message
    assert "--backbone" not in message and "state_dict()" in message


def test_half_a_model_is_another_architecture(tmp_path: Path) -> None:
    torch.save({name: value for name, value in state().items() if not name.startswith("visual")}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"56 problems, first: visual.*Name the architecture"):
        load_backbone(ARCHITECTURE, str(tmp_path / "w.pt"), device="cpu")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"logit_scale": torch.tensor(True)}, "floating-point numbers, but got bool in 1"),
        ({"logit_scale": torch.tensor(4.6 + 1j)}, "floating-point numbers, but got complex64 in 1"),
        ({LAYER: state()[LAYER].double() * 1e200}, f"finite in 32 bits, but got larger numbers in 1 .*: {LAYER}"),
    ],
)
def test_numbers_that_loading_would_change_are_refused(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        opened(tmp_path, changed)


@pytest.mark.filterwarnings("error")
def test_parameters_are_read_as_their_tensors(tmp_path: Path) -> None:
    whole = {name: torch.nn.Parameter(tensor) for name, tensor in state().items()}
    assert opened(tmp_path, whole).fingerprint == opened(tmp_path, {}).fingerprint


def test_a_scale_far_above_clips_is_said(tmp_path: Path) -> None:
    (note,) = [note for note in opened(tmp_path, {"logit_scale": torch.tensor(7.0)}).notes if "logit_scale" in note]
    assert "a scale of 1.1e+03, where CLIP's is 100" in note
    assert not [note for note in opened(tmp_path, {"logit_scale": torch.tensor(4.8)}).notes if "logit_scale" in note]


@pytest.mark.parametrize(
    ("changed", "of"),
    [
        ({LAYER: state()[LAYER] * 1e30}, "texts"),
        ({"text_projection": torch.zeros_like(state()["text_projection"])}, "texts"),
        ({"visual.proj": torch.zeros_like(state()["visual.proj"])}, "images"),
    ],
)
def test_weights_that_give_no_features_are_refused_not_counted_as_guesses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any], of: str
) -> None:
    torch.save(state() | changed, tmp_path / "w.pt")
    arguments = [
        "adapt",
        "--dataset",
        "digits",
        "--paradigm",
        "ul",
        "--method",
        "zero_shot",
        "--backbone",
        ARCHITECTURE,
    ]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--pretrained", str(tmp_path / "w.pt"), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert ended.value.code == 1 and f"the features of {of} must be finite and not zero" in said
    assert "the weights are damaged" in said.lower() and not (tmp_path / "out" / "predictions.csv").exists()


def test_a_picture_named_pt_is_told_before_a_study_starts_ray(tmp_path: Path) -> None:
    from PIL import Image

    from captune.config import StudyConfig, TaskConfig
    from captune.studies.checks import fetch_weights_here
    from captune.studies.planning import plan_study

    Image.new("RGB", (8, 8)).save(tmp_path / "w.pt", format="JPEG")
    task = TaskConfig(dataset="digits", paradigm="ul", backbone=ARCHITECTURE, pretrained=str(tmp_path / "w.pt"))
    plan = plan_study(StudyConfig(task=task, method="cap"), tmp_path / "study")
    with pytest.raises(ModelError, match=r"tensors.*JPEG"):
        fetch_weights_here([plan])
