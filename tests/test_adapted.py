"""Adapted models from elsewhere: what a checkpoint may name, and what is opened only when the user names it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from captune.adapted import open_adapted
from captune.errors import CheckpointError, ModelError, UsageError
from captune.model.backbone import load_backbone
from captune.model.sources import TINY_DIR
from captune.training.checkpoint import save_checkpoint


def checkpoint(folder: Path, backbone: list[str | None]) -> Path:
    """Class weights whose header says which backbone they were made on."""
    meta = {"class_names": ["a", "b"], "logit_scale": 100.0, "backbone": backbone, "fingerprint": None}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "class_weights.safetensors"
    width = load_backbone("tiny", device="cpu").embed_dim
    save_checkpoint(path, {"class_weights": torch.eye(2, width), "bias": torch.zeros(2)}, meta)
    return path


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY_DIR, tmp_path / "outside"))


@pytest.mark.parametrize(
    "recorded",
    [
        lambda place: [f"local-dir:{place}", None],
        lambda place: [str(place), None],
        lambda place: [None, f"local-dir:{place}"],
        lambda place: ["ViT-B-32", str(next(place.glob("*.safetensors")))],
        lambda place: ["ViT-B-32", str(place)],
        lambda place: ["tiny", str(next(place.glob("*.safetensors")))],
        lambda place: [f"local-dir:{place}/../outside", None],
    ],
)
def test_a_path_in_a_header_is_not_opened(
    tmp_path: Path, outside: Path, recorded: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint(tmp_path / "stranger", recorded(outside))  # type: ignore[operator]

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("a recorded path was opened")

    monkeypatch.setattr("captune.model.recorded.load_backbone", opened)
    with pytest.raises(CheckpointError, match="only where you name it yourself") as caught:
        open_adapted(path, device="cpu")
    assert "outside" in str(caught.value) and "--" in str(caught.value.next_step)


def test_a_path_that_the_user_names_is_opened(tmp_path: Path, outside: Path) -> None:
    path = checkpoint(tmp_path / "own", [f"local-dir:{outside}", None])
    model = open_adapted(path, backbone=f"local-dir:{outside}", device="cpu")
    assert model.class_names == ("a", "b")
    model = open_adapted(path, pretrained=f"local-dir:{outside}", device="cpu")
    assert model.class_names == ("a", "b")


def test_a_recorded_architecture_is_not_opened_beside_weights_that_the_user_names(
    tmp_path: Path, outside: Path
) -> None:
    path = checkpoint(tmp_path / "stranger", [f"local-dir:{outside}", None])
    with pytest.raises(UsageError, match="a backbone must be named"):
        open_adapted(path, pretrained=str(next(outside.glob("*.safetensors"))), device="cpu")


def test_a_path_inside_the_folder_of_the_checkpoint_is_opened(tmp_path: Path) -> None:
    inside = Path(shutil.copytree(TINY_DIR, tmp_path / "bundle" / "clip"))
    path = checkpoint(tmp_path / "bundle", [f"local-dir:{inside}", None])
    assert open_adapted(path, device="cpu").class_names == ("a", "b")


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_link_in_a_bundle_that_leads_out_of_it_is_not_followed(tmp_path: Path, outside: Path, what: str) -> None:
    path = checkpoint(tmp_path / "bundle", ["tiny", None])
    if what == "folder":
        (tmp_path / "bundle" / "backbone").symlink_to(outside)
    else:
        shutil.copytree(outside, tmp_path / "bundle" / "backbone")
        weights = next((tmp_path / "bundle" / "backbone").glob("*.safetensors"))
        weights.unlink()
        weights.symlink_to(outside / weights.name)
    with pytest.raises(CheckpointError, match="must lie in its own folder"):
        open_adapted(path, device="cpu")


@pytest.mark.parametrize(
    ("part", "key", "value", "says"),
    [
        ("text_cfg", "tokenizer_kwargs", {"trust_remote_code": True}, "but got trust_remote_code"),
        ("text_cfg", "hf_tokenizer_name", "/etc", "not a path"),
        ("text_cfg", "hf_model_name", "../elsewhere", "not a path"),
        ("vision_cfg", "timm_model_name", "local-dir:/etc", "not a path"),
    ],
)
def test_a_bundle_whose_configuration_asks_for_code_or_paths_is_refused(
    tmp_path: Path, part: str, key: str, value: object, says: str
) -> None:
    path = checkpoint(tmp_path / "bundle", ["tiny", None])
    backbone = Path(shutil.copytree(TINY_DIR, tmp_path / "bundle" / "backbone"))
    config = json.loads((backbone / "open_clip_config.json").read_text())
    config["model_cfg"][part][key] = value
    (backbone / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=says):
        open_adapted(path, device="cpu")
