"""What may stand in a tensor's place: floats; indices that older versions of the libraries saved are left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from captune.errors import ModelError
from captune.model.backbone import Backbone, load_backbone
from captune.model.sources import TINY_DIR

INDEX = torch.arange(49).reshape(7, 7)


def tiny_state() -> dict[str, Tensor]:
    return safetensors.torch.load_file(next(TINY_DIR.glob("*.safetensors")))


def loaded(tmp_path: Path, changed: dict[str, Tensor]) -> Backbone:
    """The embedded model from a file of its own tensors and these."""
    safetensors.torch.save_file(tiny_state() | changed, tmp_path / "w.safetensors")
    return load_backbone(f"local-dir:{TINY_DIR}", str(tmp_path / "w.safetensors"), device="cpu")


def test_indices_of_an_older_file_are_no_quantised_weights(tmp_path: Path) -> None:
    model = loaded(tmp_path, {"visual.blocks.0.attn.relative_position_index": INDEX}).model
    held = model.state_dict()
    assert all(torch.equal(held[name], tensor.float()) for name, tensor in tiny_state().items())


def test_whole_numbers_without_a_place_are_named_and_not_called_quantised(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"visual\.table has no place") as caught:
        loaded(tmp_path, {"visual.table": INDEX})
    assert "quantised" not in str(caught.value)


@pytest.mark.parametrize("name", ["visual.conv1.weight", "visual.ln_post.bias"])
def test_whole_numbers_are_not_loaded_as_weights(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match=f"floating-point numbers, but got int64 in 1 of 98 tensors: {name}"):
        loaded(tmp_path, {name: tiny_state()[name].long()})
