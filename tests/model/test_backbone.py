"""Backbones by name and weights: found, matched with their activation, opened without pickle, refused clearly."""

from __future__ import annotations

import json
import logging
import pickle
import warnings
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors.torch
import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from captune.errors import ModelError, UsageError
from captune.model import sources
from captune.model.backbone import Backbone, load_backbone, save_backbone
from captune.model.sources import find_source
from tests.model.families import SIZE, backbone, build, pixels
from tests.slow import in_one_test

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 48, "head_width": 12, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 512, "width": 32, "heads": 4, "layers": 2},
}


@pytest.fixture(autouse=True)
def small_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An architecture `small-test` that open_clip knows, and no backbone kept from another test."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "small-test", CONFIG)
    monkeypatch.setattr("captune.model.backbone._load", _uncached())


def _uncached() -> Any:
    from captune.model import backbone as module

    return module._load.__wrapped__


def small(seed: int = 0, **options: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return open_clip.CLIP(**CONFIG, **options).eval()


def state() -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in small().state_dict().items()}


def is_quick(model: Backbone) -> bool:
    return any(isinstance(module, QuickGELU) for module in model.model.modules())


def assert_same_weights(model: Backbone) -> None:
    expected = state()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.model.state_dict().items())


def test_a_backbone_is_frozen_and_in_evaluation_mode() -> None:
    model = load_backbone("small-test", "random")
    assert not model.model.training
    assert not any(parameter.requires_grad for parameter in model.model.parameters())
    assert not model.encode_images(pixels()).requires_grad
    assert model.embed_dim == 24
    assert model.preprocessing.image_size == SIZE


def test_the_same_arguments_give_the_same_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert load_backbone("tiny") is load_backbone("tiny")


def test_random_weights_are_the_same_in_every_process_and_leave_the_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = load_backbone("small-test", "random")
    torch.testing.assert_close(torch.rand(3), expected)
    torch.manual_seed(8)
    assert load_backbone("small-test", "random").fingerprint == first.fingerprint


def test_fingerprints_tell_weights_and_activations_apart() -> None:
    plain, quick = Backbone(small(), name="a"), Backbone(small(quick_gelu=True), name="a")
    assert plain.fingerprint == Backbone(small(), name="b").fingerprint
    assert len({plain.fingerprint, quick.fingerprint, Backbone(small(1), name="a").fingerprint}) == 3


def write_safetensors(path: Path) -> None:
    safetensors.torch.save_file(state(), path)


def write_torch(path: Path) -> None:
    torch.save(state(), path)


def write_training_checkpoint(path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state().items()}}, path)


def write_torchscript(path: Path) -> None:
    class Released(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, child in small().named_children():
                self.add_module(name, _Holder(child))
            for name, parameter in small().named_parameters(recurse=False):
                self.register_parameter(name, nn.Parameter(parameter.detach().clone()))
            self.register_buffer("input_resolution", torch.tensor(SIZE))
            self.register_buffer("context_length", torch.tensor(16))
            self.register_buffer("vocab_size", torch.tensor(512))

        def forward(self, x: Tensor) -> Tensor:
            return x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Released(), torch.zeros(1)), str(path))


class _Holder(nn.Module):
    """A tree of parameters without any forward: all that TorchScript needs of the release's form."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for name, child in module.named_children():
            self.add_module(name, _Holder(child))
        for name, parameter in module.named_parameters(recurse=False):
            self.register_parameter(name, nn.Parameter(parameter.detach().clone()))

    def forward(self, x: Tensor) -> Tensor:
        return x


WRITERS = {
    "model.safetensors": write_safetensors,
    "model.pt": write_torch,
    "pytorch_model.bin": write_torch,
    "epoch_3.pt": write_training_checkpoint,
    "release.pt": write_torchscript,
}


@pytest.mark.parametrize("name", WRITERS)
def test_local_weights_are_read_in_every_form(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name)
    model = load_backbone("small-test", str(tmp_path / name))
    assert_same_weights(model)
    assert model.pretrained == str(tmp_path / name)
    folder = load_backbone("small-test", str(tmp_path))
    assert folder.fingerprint == model.fingerprint


def test_a_torchscript_archive_runs_with_quickgelu_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_torchscript(tmp_path / "release.pt")
    with caplog.at_level(logging.INFO, logger="captune"):
        model = load_backbone("small-test", str(tmp_path / "release.pt"))
    assert is_quick(model)
    assert any("QuickGELU" in note and "OpenAI" in note for note in model.notes)
    assert any("QuickGELU" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("name", "path", "quick"),
    [
        ("small-test", "weights.safetensors", False),
        ("small-test", "ViT-B-32-openai.safetensors", True),
        ("small-test", "vit_base_patch32_clip_224.openai/open_clip_model.safetensors", True),
        ("small-test", "vit_b_32-quickgelu-laion400m.safetensors", True),
        ("small-test-quickgelu", "weights.safetensors", True),
    ],
)
def test_the_activation_of_a_local_file_follows_the_stated_rule(
    tmp_path: Path, name: str, path: str, quick: bool
) -> None:
    file = tmp_path / path
    file.parent.mkdir(exist_ok=True)
    write_safetensors(file)
    model = load_backbone(name, str(file))
    assert is_quick(model) is quick
    assert_same_weights(model)
    if name == "small-test":
        assert any("GELU" in note for note in model.notes)


def test_activation_changes_features_so_the_rule_matters(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "w.safetensors")
    plain = load_backbone("small-test", str(tmp_path / "w.safetensors"))
    quick = load_backbone("small-test-quickgelu", str(tmp_path / "w.safetensors"))
    assert float((plain.encode_images(pixels()) - quick.encode_images(pixels())).abs().max()) > 1e-5


@in_one_test(
    ("name", "tag", "quick"),
    [
        ("ViT-B-32", "openai", True),
        ("ViT-B/32", "openai", True),
        ("ViT-B-16", "openai", True),
        ("ViT-L-14", "openai", True),
        ("ViT-B-32-quickgelu", "openai", True),
        ("ViT-B-32", "laion2b_s34b_b79k", False),
        ("ViT-B-16", "datacomp_xl_s13b_b90k", False),
        ("ViT-L-14", "laion2b_s32b_b82k", False),
    ],
)
def test_a_tag_brings_the_activation_it_was_trained_with(name: str, tag: str, quick: bool) -> None:
    source = find_source(name, tag)
    assert source.quick_gelu is quick
    assert source.tag == tag


def test_open_clip_is_told_to_use_quickgelu_for_openai_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_safetensors(tmp_path / "openai.safetensors")
    entry = {**open_clip.get_pretrained_cfg("ViT-B-32", "openai"), "file": str(tmp_path / "openai.safetensors")}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "small-test", {"openai": entry})
    model = load_backbone("small-test", "openai")
    assert is_quick(model)
    assert_same_weights(model)


def test_gelu_weights_under_a_quickgelu_name_are_refused() -> None:
    with pytest.raises(UsageError, match="trained with GELU"):
        sources._with_tag(sources.Source("ViT-B-32", quick_gelu=True), "ViT-B-32-quickgelu", "laion2b_s34b_b79k")


@pytest.mark.parametrize("preset", ["local-dir:{}", "{}"])
def test_a_saved_backbone_opens_again_with_the_same_features(tmp_path: Path, preset: str) -> None:
    original = load_backbone("small-test-quickgelu", "random")
    save_backbone(original, tmp_path / "saved")
    for arguments in ((None, preset.format(tmp_path / "saved")), (preset.format(tmp_path / "saved"), None)):
        again = load_backbone(*arguments)
        assert again.fingerprint == original.fingerprint
        assert again.preprocessing == original.preprocessing
        assert torch.equal(again.encode_images(pixels()), original.encode_images(pixels()))


def test_the_embedded_model_keeps_its_vocabulary_when_saved(tmp_path: Path) -> None:
    tiny = load_backbone("tiny")
    save_backbone(tiny, tmp_path)
    again = load_backbone(None, f"local-dir:{tmp_path}")
    assert torch.equal(again.tokenize(["a photo of a seven."]), tiny.tokenize(["a photo of a seven."]))
    assert again.preprocessing == tiny.preprocessing
    assert again.logit_scale == tiny.logit_scale


def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    save_backbone(load_backbone("tiny"), tmp_path)
    (tmp_path / sources.VOCABULARY).unlink()
    with pytest.raises(ModelError, match=r"49408 tokens, \d+ embeddings"):
        load_backbone(None, str(tmp_path)).tokenize(["a"])


def test_unknown_names_get_the_nearest_one() -> None:
    with pytest.raises(UsageError, match="Did you mean 'ViT-B-32'"):
        load_backbone("ViT-B-33", "openai")
    with pytest.raises(UsageError, match="Did you mean 'openai'"):
        load_backbone("ViT-B-32", "openia")
    with pytest.raises(UsageError, match=r"weights must be named.*openai"):
        load_backbone("ViT-B-32")
    with pytest.raises(UsageError, match="existing file"):
        load_backbone("ViT-B-32", "nowhere/model.safetensors")
    with pytest.raises(UsageError, match="brings its own weights"):
        load_backbone("tiny", "openai")
    with pytest.raises(UsageError, match="precision must be one of"):
        load_backbone("tiny", precision="fp64")  # type: ignore[arg-type]


def test_a_folder_without_a_configuration_or_with_two_weight_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"open_clip_config\.json"):
        load_backbone(f"local-dir:{tmp_path}")
    for name in ("a.pt", "b.pt"):
        write_torch(tmp_path / name)
    with pytest.raises(UsageError, match=r"one weight file, but got a\.pt, b\.pt"):
        load_backbone("small-test", str(tmp_path))


def test_weights_that_cannot_be_fetched_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr("open_clip.factory.download_pretrained", no_network)
    with pytest.raises(ModelError, match=r"ViT-B-32 openai must be on disk.*no route to host.*--pretrained"):
        load_backbone("ViT-B-32", "openai")


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"must fit ViT-S-32.*Name the architecture"):
        load_backbone("ViT-S-32", str(tmp_path / "w.safetensors"))


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize("name", ["bad.pt", "bad.bin", "cut.safetensors", "empty.pt", "numbers.pt"])
def test_damaged_or_dangerous_files_are_refused_and_never_run(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / name
    if name == "bad.pt":
        torch.save({"w": Malicious()}, file)
    elif name == "bad.bin":
        file.write_bytes(pickle.dumps(Malicious()))
    elif name == "cut.safetensors":
        write_safetensors(file)
        file.write_bytes(file.read_bytes()[:5000])
    elif name == "empty.pt":
        file.touch()
    else:
        torch.save([1, 2], file)
    with pytest.raises(ModelError, match="weight file must"):
        load_backbone("small-test", str(file))
    assert not (tmp_path / "executed").exists()


def test_what_a_pickle_would_run_is_named_and_the_next_step_can_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    old, bare = tmp_path / "old.pt", tmp_path / "bare.bin"
    torch.save({"w": torch.zeros(2), "x": Malicious()}, old, _use_new_zipfile_serialization=False)
    bare.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(ModelError, match=r"got objects of .*pathlib\.Path.*save its tensors anew: python -c"):
        load_backbone("small-test", str(old))
    with pytest.raises(ModelError, match=r"got objects of .*pathlib\.Path.*\. Fetch it again, or save"):
        load_backbone("small-test", str(bare))
    assert not (tmp_path / "executed").exists()


def test_low_precision_features_are_close_and_fp32() -> None:
    full = backbone({})
    for precision in ("bf16", "fp16"):
        low = backbone({}, precision=precision)
        features_BD = low.encode_images(pixels())
        assert features_BD.dtype == torch.float32
        cosines = torch.nn.functional.cosine_similarity(features_BD, full.encode_images(pixels()))
        assert float(cosines.min()) > 0.999
        assert next(low.model.parameters()).dtype == torch.float32


def test_loading_leaves_the_root_logger_alone() -> None:
    root = logging.getLogger()
    before = list(root.handlers), root.level
    load_backbone("small-test", "random")
    assert (list(root.handlers), root.level) == before


def test_images_that_are_not_square_are_refused() -> None:
    with pytest.raises(ModelError, match="must be square"):
        Backbone(build(vision={"image_size": [32, 16]}), name="wide")


def test_the_configuration_written_is_open_clips_own_form(tmp_path: Path) -> None:
    save_backbone(load_backbone("small-test-quickgelu", "random"), tmp_path)
    content = json.loads((tmp_path / "open_clip_config.json").read_text())
    assert content["model_cfg"]["quick_gelu"] is True
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    assert any(isinstance(module, QuickGELU) for module in model.modules())
