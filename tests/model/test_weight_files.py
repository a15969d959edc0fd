"""Weight files as people have them: transformers' form, wrappers, prefixes, and what is refused by name."""

from __future__ import annotations

import json
import math
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from captune.errors import ModelError, UsageError
from captune.model import backbone
from captune.model.backbone import load_backbone
from captune.model.sources import TINY_DIR, find_source
from captune.model.weight_files import read_weights
from tests.slow import in_one_test

ARCHITECTURE = f"local-dir:{TINY_DIR}"


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """No backbone is remembered from one test to the next."""
    monkeypatch.setattr(backbone, "_load", backbone._load.__wrapped__)


def tiny_state() -> dict[str, Tensor]:
    stored = safetensors.torch.load_file(next(TINY_DIR.glob("*.safetensors")))
    return {name: tensor.float() for name, tensor in stored.items()}


def as_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The embedded model as transformers' CLIPModel writes it, told by hand."""
    heads = {
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "ln_final.weight": "text_model.final_layer_norm.weight",
        "ln_final.bias": "text_model.final_layer_norm.bias",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
        "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
        "visual.ln_post.weight": "vision_model.post_layernorm.weight",
        "visual.ln_post.bias": "vision_model.post_layernorm.bias",
        "logit_scale": "logit_scale",
    }
    written: dict[str, Tensor] = {heads[name]: tensor for name, tensor in state.items() if name in heads}
    written["text_projection.weight"] = state["text_projection"].T.contiguous()
    written["visual_projection.weight"] = state["visual.proj"].T.contiguous()
    for ours, theirs in (("transformer", "text_model"), ("visual.transformer", "vision_model")):
        for number in range(sum(name.startswith(f"{ours}.resblocks") and name.endswith("ln_1.bias") for name in state)):
            block, layer = f"{ours}.resblocks.{number}", f"{theirs}.encoder.layers.{number}"
            for kind in ("weight", "bias"):
                query, key, value = state[f"{block}.attn.in_proj_{kind}"].chunk(3)
                written |= {
                    f"{layer}.self_attn.q_proj.{kind}": query.clone(),
                    f"{layer}.self_attn.k_proj.{kind}": key.clone(),
                    f"{layer}.self_attn.v_proj.{kind}": value.clone(),
                    f"{layer}.self_attn.out_proj.{kind}": state[f"{block}.attn.out_proj.{kind}"],
                    f"{layer}.layer_norm1.{kind}": state[f"{block}.ln_1.{kind}"],
                    f"{layer}.layer_norm2.{kind}": state[f"{block}.ln_2.{kind}"],
                    f"{layer}.mlp.fc1.{kind}": state[f"{block}.mlp.c_fc.{kind}"],
                    f"{layer}.mlp.fc2.{kind}": state[f"{block}.mlp.c_proj.{kind}"],
                }
    return written


def hugging_face_folder(folder: Path, activation: str = "gelu", name: str = "model.safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    state = as_transformers(tiny_state())
    if name.endswith(".safetensors"):
        safetensors.torch.save_file(state, folder / name)
    else:
        torch.save(state | {"text_model.embeddings.position_ids": torch.arange(16)[None]}, folder / name)
    config = {
        "model_type": "clip",
        "text_config": {"hidden_act": activation},
        "vision_config": {"hidden_act": activation},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def zero_shot(pretrained: Path | None) -> Tensor:
    """Probabilities of three class names for four fixed images."""
    model = load_backbone(ARCHITECTURE, None if pretrained is None else str(pretrained), device="cpu")
    size = model.preprocessing.image_size
    images_BD = model.encode_images(torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0)))
    texts_KD = model.encode_texts(["a photo of a one.", "a photo of a two.", "a photo of a seven."])
    return (model.logit_scale * images_BD @ texts_KD.T).softmax(-1)


embedded = cache(lambda: zero_shot(None))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_the_form_of_transformers_gives_the_same_probabilities(tmp_path: Path, name: str) -> None:
    folder = hugging_face_folder(tmp_path / "hf", name=name)
    torch.testing.assert_close(zero_shot(folder), embedded(), atol=1e-6, rtol=0)
    assert any("CLIPModel with GELU" in note for note in load_backbone(ARCHITECTURE, str(folder), device="cpu").notes)


@pytest.mark.slow
@in_one_test("activation", ["gelu", "quick_gelu"])
def test_transformers_itself_gives_the_same_probabilities(tmp_path: Path, activation: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPConfig(
        text_config={"vocab_size": 786, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3,
                     "num_attention_heads": 2, "max_position_embeddings": 16, "hidden_act": activation,
                     "projection_dim": 64, "eos_token_id": 785, "bos_token_id": 784},
        vision_config={"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 3,
                       "image_size": 32, "patch_size": 8, "hidden_act": activation, "projection_dim": 64},
        projection_dim=64,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.CLIPModel(config).eval()
    for parameter in theirs.parameters():
        parameter.data = parameter.data + 0.02 * torch.randn_like(parameter)  # no zeros and ones that hide a swap
    theirs.save_pretrained(tmp_path)
    ours = load_backbone(ARCHITECTURE, str(tmp_path), device="cpu")
    pixels_B3SS = torch.randn(4, 3, 32, 32)
    texts = ["a photo of a one.", "two", "a seven of the sea"]
    with torch.no_grad():
        images_BD = theirs.visual_projection(theirs.vision_model(pixels_B3SS).pooler_output)
        texts_KD = theirs.text_projection(theirs.text_model(ours.tokenize(texts)).pooler_output)
        logits = torch.nn.functional.normalize(images_BD) @ torch.nn.functional.normalize(texts_KD).T
        expected = (theirs.logit_scale.exp() * logits).softmax(-1)
    got = (ours.logit_scale * ours.encode_images(pixels_B3SS) @ ours.encode_texts(texts).T).softmax(-1)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_the_activation_of_transformers_is_that_of_its_configuration(tmp_path: Path) -> None:
    quick = hugging_face_folder(tmp_path / "quick", "quick_gelu")
    assert float((zero_shot(quick) - embedded()).abs().max()) > 1e-4
    hugging_face_folder(tmp_path / "odd", "gelu_new")
    with pytest.raises(ModelError, match="both towers must have GELU, or both QuickGELU, but got gelu_new"):
        zero_shot(tmp_path / "odd")


def test_the_images_are_prepared_as_preprocessor_config_says(tmp_path: Path) -> None:
    folder = hugging_face_folder(tmp_path / "hf")
    config: dict[str, Any] = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    preprocessing = load_backbone(ARCHITECTURE, str(folder), device="cpu").preprocessing
    assert preprocessing.mean == (0.1, 0.2, 0.3) and preprocessing.std == (0.4, 0.5, 0.6)
    assert (preprocessing.interpolation, preprocessing.resize_mode) == ("bilinear", "shortest")
    (folder / "preprocessor_config.json").write_text(json.dumps(config | {"resample": 0}))
    with pytest.raises(ModelError, match="bilinear or bicubic resampling"):
        zero_shot(folder)


def test_a_tower_of_transformers_alone_is_named(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in as_transformers(tiny_state()).items() if name.startswith("vision_model")}
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="whole CLIPModel, but got a vision_model alone"):
        zero_shot(tmp_path / "w.safetensors")


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tiny_state().items()}


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ({"epoch": 3, "model_state_dict": tiny_state(), "optimizer_state_dict": {}, "loss": torch.tensor(1.0)}, None),
        ({"model": tiny_state()}, None),
        ({"net": prefixed("module.")}, None),
        ({"state_dict_ema": tiny_state()}, None),
        ({"state_dict": {"model": prefixed("_orig_mod.")}}, None),
        ({"weights_of_the_best_epoch": tiny_state(), "epoch": 2}, None),
        ({"state_dict": tiny_state(), "state_dict_ema": tiny_state()}, "not those under 'state_dict_ema'"),
        (prefixed("clip_model."), None),
        (prefixed("module._orig_mod.model."), None),
        (
            {**prefixed("clip."), "head.weight": torch.ones(2, 2)},
            "under 'clip.' are left alone: head",
        ),
        ({**tiny_state(), "epoch": 4, "name": "mine"}, "beside the tensors is left alone: epoch, name"),
    ],
)
def test_wrappers_and_prefixes_come_off(tmp_path: Path, content: dict[str, Any], note: str | None) -> None:
    torch.save(content, tmp_path / "w.pt")
    weights = read_weights(tmp_path / "w.pt")
    assert set(weights.state) == set(tiny_state())
    assert (note or "") in " ".join(weights.notes)
    assert bool(weights.notes) == (note is not None)
    torch.testing.assert_close(zero_shot(tmp_path / "w.pt"), embedded(), atol=1e-6, rtol=0)


def test_parts_named_by_an_index_are_one_model(tmp_path: Path) -> None:
    state = as_transformers(tiny_state())
    names = sorted(state)
    halves = {"model-1.safetensors": names[:40], "model-2.safetensors": names[40:]}
    for file, part in halves.items():
        safetensors.torch.save_file({name: state[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.testing.assert_close(zero_shot(tmp_path), embedded(), atol=1e-6, rtol=0)
    index["weight_map"][names[0]] = "../elsewhere.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="does not lie beside the index"):
        zero_shot(tmp_path)


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        zero_shot(path)
    return str(caught.value)


def test_numpy_scalars_are_named_and_the_line_that_saves_anew_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "best model.pt"
    torch.save({"state_dict": tiny_state(), "accuracy": np.float64(0.5)}, path)
    message = refused(path)
    assert "scalar" in message and "numpy" in message and "If you trust whoever made the file" in message
    command = message[message.index("python -c ") :].removesuffix(".")
    python, dash_c, program = shlex.split(command)
    assert (python, dash_c) == ("python", "-c")
    monkeypatch.chdir(tmp_path)
    exec(program, {})
    (saved,) = tmp_path.glob("*-tensors.pt")
    torch.testing.assert_close(zero_shot(saved), embedded(), atol=1e-6, rtol=0)


def test_tensors_that_are_not_finite_are_named(tmp_path: Path) -> None:
    for value in (math.nan, math.inf, -math.inf):
        for kind in (torch.float16, torch.bfloat16, torch.float32):
            state = {name: tensor.to(kind) for name, tensor in tiny_state().items()}
            state["visual.conv1.weight"][3, 1] = value
            safetensors.torch.save_file(state, tmp_path / "w.safetensors")
            assert "NaN or infinity in 1 of 98 tensors: visual.conv1.weight" in refused(tmp_path / "w.safetensors")


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused_by_name(tmp_path: Path, kind: torch.dtype) -> None:
    state = tiny_state()
    name = "visual.conv1.weight"
    safetensors.torch.save_file(state | {name: state[name].to(kind)}, tmp_path / "w.safetensors")
    said = refused(tmp_path / "w.safetensors")
    assert f"but got {str(kind).removeprefix('torch.')} in 1 of 98 tensors: {name}" in said


@pytest.mark.parametrize("name", ["w", "w.pt", "w.bin", "w.safetensors", "w.weights"])
@pytest.mark.parametrize("save", [safetensors.torch.save_file, torch.save])
def test_the_kind_of_a_weight_file_is_known_by_what_it_holds(tmp_path: Path, name: str, save: Any) -> None:
    save(tiny_state(), str(tmp_path / name))
    assert read_weights(tmp_path / name).state.keys() == tiny_state().keys()


def test_no_message_passes_on_an_advice_to_load_a_file_unsafely(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"\x80\x02K\x01.")
    (tmp_path / "w").write_bytes(b"\x0e\0\0\0 something else")
    assert "weights_only" not in refused(tmp_path / "w.pt") + refused(tmp_path / "w")


def with_scale(path: Path, value: float) -> Path:
    safetensors.torch.save_file(tiny_state() | {"logit_scale": torch.tensor(value)}, path)
    return path


def test_an_exponentiated_logit_scale_is_taken_as_that_and_said(tmp_path: Path) -> None:
    path = with_scale(tmp_path / "w.safetensors", math.exp(float(tiny_state()["logit_scale"])))
    torch.testing.assert_close(zero_shot(path), embedded(), atol=1e-5, rtol=0)
    assert any("logit_scale is 13.97" in note for note in load_backbone(ARCHITECTURE, str(path), device="cpu").notes)
    assert "logit_scale must be the logarithm" in refused(with_scale(tmp_path / "w.safetensors", 1e5))
    low = load_backbone(ARCHITECTURE, str(with_scale(tmp_path / "w.safetensors", 0.01)), device="cpu")
    assert any("Was a temperature saved in its place?" in note for note in low.notes)


def test_position_embeddings_of_another_length_are_refused_unless_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    state = tiny_state()
    places = torch.cat([state["visual.positional_embedding"][:1], torch.randn(36, 96)])
    safetensors.torch.save_file(state | {"visual.positional_embedding": places}, path)
    message = refused(path)
    assert "37 places of the image tower" in message and "it has 17" in message and "--interpolate-positions" in message
    model = load_backbone(ARCHITECTURE, str(path), device="cpu", interpolate_positions=True)
    assert model.model.visual.positional_embedding.shape == (17, 96)
    assert any("interpolated, 37 to 17" in note for note in model.notes)
    longer = torch.cat([state["positional_embedding"], torch.randn(232, 64)])
    safetensors.torch.save_file(state | {"positional_embedding": longer}, path)
    assert "248 places of the text tower" in refused(path) and "context_length 248" in refused(path)


def test_the_right_architecture_is_named(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = {
            "visual.conv1.weight": torch.empty(768, 3, 16, 16),
            "visual.positional_embedding": torch.empty(197, 768),
            "visual.proj": torch.empty(768, 512),
            "token_embedding.weight": torch.empty(49408, 512),
            "positional_embedding": torch.empty(77, 512),
            **{f"transformer.resblocks.{number}.ln_1.bias": torch.empty(512) for number in range(12)},
            **{f"visual.transformer.resblocks.{number}.ln_1.bias": torch.empty(768) for number in range(12)},
        }
    from captune.model.published_weights import architectures_like

    assert architectures_like(shapes) == ["ViT-B-16"]
    assert architectures_like({}) == []


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["base_model.model.visual.q_proj.lora_A.weight", "base_model.model.visual.q_proj.lora_B.weight"], "LoRA"),
        (["lora_unet_down.weight", *tiny_state()], "LoRA"),
        (["prompt_learner.ctx", "prompt_learner.token_prefix"], "prompt"),
        (["adapter.fc.0.weight", "adapter.fc.2.weight"], "adapter"),
    ],
)
def test_what_was_learned_beside_a_clip_is_named(tmp_path: Path, names: list[str], kind: str) -> None:
    safetensors.torch.save_file({name: torch.ones(2) for name in names}, tmp_path / "w.safetensors")
    assert f"whole CLIP, but got a {kind} file" in refused(tmp_path / "w.safetensors")


@in_one_test(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 605143316\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"", "an empty file"),
        (b"PK\x03\x04 cut short", "whole and hold nothing but tensors"),
    ],
)
@in_one_test("suffix", [".safetensors", ".bin", ".pt"])
def test_what_is_no_weight_file_is_named(tmp_path: Path, content: bytes, says: str, suffix: str) -> None:
    (path := tmp_path / f"model{suffix}").write_bytes(content)
    assert says in refused(path)


def test_a_file_without_weights_names_its_keys(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "arguments": {"lr": 0.1}}, tmp_path / "w.pt")
    assert "'epoch', 'arguments'" in refused(tmp_path / "w.pt")
    torch.save({"student": prefixed("student."), "x": prefixed("teacher.")}, tmp_path / "w.pt")
    assert "'student', 'x'" in refused(tmp_path / "w.pt")
    torch.save(prefixed("student.") | prefixed("teacher."), tmp_path / "w.pt")
    assert "one CLIP, but got 2, under student., teacher." in refused(tmp_path / "w.pt")


def test_a_tensor_that_takes_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    torch.save(tiny_state() | {"huge": torch.zeros(1).expand(1 << 40)}, tmp_path / "w.pt")
    assert "huge of shape (1099511627776,) over 4 bytes" in refused(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("name", "model", "tag"),
    [
        ("openai/clip-vit-base-patch32", "ViT-B-32", "openai"),
        ("openai/clip-vit-large-patch14-336", "ViT-L-14-336", "openai"),
        ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "ViT-B-32", "laion2b_s34b_b79k"),
        ("google/siglip-base-patch16-224", "ViT-B-16-SigLIP", "webli"),
    ],
)
def test_names_of_the_hub_lead_to_open_clips(name: str, model: str, tag: str) -> None:
    for arguments in ((name, None), ("ViT-B-16", name), (f"hf-hub:{name}", None))[: 3 if "laion" not in name else 2]:
        source = find_source(*arguments)
        assert (source.name, source.tag) == (model, tag)
        assert any(f"{model} with the weights '{tag}'" in note for note in source.notes)


def test_every_name_of_the_hub_stands_in_open_clips_table() -> None:
    import open_clip

    from captune.model.published_weights import _HUB_NAMES

    for model, tag in _HUB_NAMES.values():
        assert open_clip.get_pretrained_cfg(model, tag), (model, tag)


def test_a_weight_file_takes_the_preprocessing_that_all_published_ones_agree_on(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").touch()
    source = find_source("ViT-B-16-SigLIP", str(tmp_path / "w.safetensors"))
    assert source.preprocessing["mean"] == (0.5, 0.5, 0.5) and source.preprocessing["resize_mode"] == "squash"
    assert any("all its published weights" in note for note in source.notes)
    # Those of ViT-L-14 differ: LAION's were trained with mean 0.5.
    unsure = find_source("ViT-L-14", str(tmp_path / "w.safetensors"))
    assert not unsure.preprocessing and any(
        "published weights differ in preprocessing" in note for note in unsure.notes
    )
    named = tmp_path / "laion2b_s32b_b82k.safetensors"
    named.touch()
    assert find_source("ViT-L-14", str(named)).preprocessing["mean"] == (0.5, 0.5, 0.5)
    usual = find_source("ViT-B-32", str(tmp_path / "w.safetensors"))
    assert not any("prepared" in note or "preprocessing" in note for note in usual.notes)


def test_a_name_without_weights_says_how_a_hub_is_named() -> None:
    with pytest.raises(UsageError, match="existing file"):
        find_source("ViT-B-32", "someone/some-model")
