"""Lean towers against open_clip's own forward and against MaPLe written out, for every supported family."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from captune.errors import ModelError
from captune.model.backbone import load_backbone
from captune.model.blocks import LeanOptions
from tests.model.families import REFUSED, SUPPORTED, backbone, build, pixels, tokenizer
from tests.reference.maple import maple_image, maple_text
from tests.slow import slow_but

TEXTS = ["ab cat.", "ab dog.", "ab elephant.", "ab ox."]
LOOPS = [LeanOptions(attention=attention) for attention in ("sdpa", "matmul")]
supported = pytest.mark.parametrize("family", SUPPORTED.values(), ids=SUPPORTED.keys())


def vectors(layers: int, num: int, width: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(layers, num, width, generator=torch.Generator().manual_seed(seed))
    return (0.5 * drawn).requires_grad_()


@supported
def test_without_prompts_features_are_open_clips_own(family: dict[str, Any]) -> None:
    model = backbone(family)
    with torch.no_grad():
        texts_KD = model.model.encode_text(tokenizer(TEXTS), normalize=True)
        images_BD = model.model.encode_image(pixels(), normalize=True)
    torch.testing.assert_close(model.encode_texts(TEXTS), texts_KD, rtol=1e-6, atol=2e-6)
    torch.testing.assert_close(model.encode_images(pixels()), images_BD, rtol=1e-6, atol=2e-6)


@supported
@pytest.mark.parametrize(
    ("options", "depth"),
    slow_but(lambda options, depth: (options.attention == "sdpa") == (depth == 3), itertools.product(LOOPS, (1, 3))),
)
def test_prompted_towers_are_maple(family: dict[str, Any], options: LeanOptions, depth: int) -> None:
    model = backbone(family, options=options)
    assert model.text_tower is not None and model.image_tower is not None
    text_JnW, image_JnW = vectors(depth, 2, 32), vectors(depth, 2, 48, seed=1)
    with torch.no_grad():
        lean_KD = model.text_tower(model.text_tower.plan(tokenizer(TEXTS), 2), text_JnW)
        lean_BD = model.image_tower(pixels(), image_JnW)
        torch.testing.assert_close(lean_KD, maple_text(model.model, tokenizer(TEXTS), text_JnW), rtol=0, atol=1e-5)
        torch.testing.assert_close(lean_BD, maple_image(model.model, pixels(), image_JnW), rtol=0, atol=1e-5)


@supported
def test_gradients_are_those_of_the_plain_forward(family: dict[str, Any]) -> None:
    model = backbone(family)
    assert model.text_tower is not None and model.image_tower is not None
    weights_BK = torch.randn(3, len(TEXTS), generator=torch.Generator().manual_seed(5))
    plan = model.text_tower.plan(tokenizer(TEXTS), 2)

    def gradients(lean: bool) -> list[Tensor]:
        text_JnW, image_JnW = vectors(3, 2, 32), vectors(3, 2, 48, seed=1)
        if lean:
            text_KD, image_BD = model.text_tower(plan, text_JnW), model.image_tower(pixels(), image_JnW)
        else:
            text_KD = maple_text(model.model, tokenizer(TEXTS), text_JnW)
            image_BD = maple_image(model.model, pixels(), image_JnW)
        (image_BD @ text_KD.T * weights_BK).sum().backward()
        assert text_JnW.grad is not None and image_JnW.grad is not None
        return [text_JnW.grad, image_JnW.grad]

    for lean, plain in zip(gradients(True), gradients(False), strict=True):
        assert float(plain.norm()) > 0
        assert float((lean - plain).norm() / plain.norm()) < 1e-4


@pytest.mark.parametrize(
    "options",
    [LeanOptions(share_prefix=False), LeanOptions(text_chunk=1), LeanOptions(text_chunk=3)],
    ids=["nothing shared", "chunks of one", "chunks of three"],
)
def test_sharing_and_chunks_change_neither_features_nor_gradients(options: LeanOptions) -> None:
    def run(chosen: LeanOptions) -> tuple[Tensor, Tensor]:
        tower = backbone({}, options=chosen).text_tower
        assert tower is not None
        text_JnW = vectors(3, 2, 32)
        text_KD = tower(tower.plan(tokenizer(TEXTS), 2), text_JnW)
        (text_KD * torch.arange(text_KD.numel()).view_as(text_KD)).sum().backward()
        assert text_JnW.grad is not None
        return text_KD.detach(), text_JnW.grad

    for chosen, plain in zip(run(options), run(LeanOptions()), strict=True):
        torch.testing.assert_close(chosen, plain, rtol=1e-4, atol=1e-5)


def test_a_plan_is_cut_at_the_longest_end_and_shares_the_beginning() -> None:
    tower = backbone({}).text_tower
    assert tower is not None
    plan = tower.plan(tokenizer(["ab cat", "ab horse"]), 2)
    # start a b | c a t END 0 0 and h o r s e END: three shared tokens, six own, ends at 3 and 5.
    assert len(plan.shared_P) == 3
    assert plan.own_KS.shape == (2, 6)
    assert plan.pooled_K.tolist() == [3, 5]


def test_one_class_or_equal_names_still_work() -> None:
    model = backbone({})
    assert model.text_tower is not None
    text_JnW = vectors(2, 2, 32)
    for texts in (["ab cat."], ["ab cat.", "ab cat."]):
        lean_KD = model.text_tower(model.text_tower.plan(tokenizer(texts), 2), text_JnW)
        torch.testing.assert_close(lean_KD, maple_text(model.model, tokenizer(texts), text_JnW), rtol=0, atol=1e-5)


def test_prompts_that_begin_differently_are_not_shared() -> None:
    model = backbone({})
    assert model.text_tower is not None
    texts, text_JnW = ["cat", "dog"], vectors(2, 2, 32)
    lean_KD = model.text_tower(model.text_tower.plan(tokenizer(texts), 2), text_JnW)
    torch.testing.assert_close(lean_KD, maple_text(model.model, tokenizer(texts), text_JnW), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", LOOPS, ids=lambda options: options.attention)
@pytest.mark.parametrize("residual", ["fp32", "same"])
def test_bf16_stays_close_and_its_gradient_points_the_same_way(options: LeanOptions, residual: Any) -> None:
    chosen = LeanOptions(attention=options.attention, residual=residual)

    def run(precision: str) -> tuple[Tensor, Tensor, Tensor]:
        model = backbone({"quick_gelu": True}, options=chosen, precision=precision)
        assert model.text_tower is not None and model.image_tower is not None
        image_JnW = vectors(3, 2, 48, seed=1)
        text_KD = model.text_tower(model.text_tower.plan(tokenizer(TEXTS), 2), vectors(3, 2, 32))
        image_BD = model.image_tower(pixels(), image_JnW)
        (image_BD @ text_KD.detach().T)[:, 0].sum().backward()
        assert image_JnW.grad is not None
        return text_KD.detach(), image_BD.detach(), image_JnW.grad

    for low, full in zip(run("bf16")[:2], run("fp32")[:2], strict=True):
        assert low.dtype == torch.float32
        assert float(F.cosine_similarity(low, full).min()) > 0.999
    low_grad, full_grad = run("bf16")[2].flatten(), run("fp32")[2].flatten()
    assert float(F.cosine_similarity(low_grad, full_grad, dim=0)) > 0.98


def test_fp32_towers_are_views_of_the_models_own_memory() -> None:
    model = backbone({})
    assert model.text_tower is not None and model.image_tower is not None
    own = {parameter.untyped_storage().data_ptr() for parameter in model.model.parameters()}
    for blocks in (model.text_tower.blocks, model.image_tower.blocks):
        for layer in blocks._layers:
            for weight in (layer.qkv_weight, layer.out_weight, layer.fc_weight, layer.proj_weight):
                assert weight.untyped_storage().data_ptr() in own
    assert model.text_tower.embedding_VW.untyped_storage().data_ptr() in own


@pytest.mark.parametrize(("family", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_other_towers_are_refused_by_name_and_still_serve_features(family: dict[str, Any], words: str) -> None:
    model = backbone(family)
    assert not model.supports_prompts
    assert model.prompt_refusal is not None
    assert words in model.prompt_refusal
    assert "small" in model.prompt_refusal and "tuning: features" in model.prompt_refusal
    with torch.no_grad():
        images_BD = F.normalize(build(**family).encode_image(pixels()), dim=-1)
    torch.testing.assert_close(model.encode_images(pixels()), images_BD, rtol=0, atol=1e-5)
    assert model.encode_texts(TEXTS).shape == (4, images_BD.shape[1])


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ModelError, match=r"\(B, 3, 32, 32\)"):
        backbone({}).encode_images(torch.zeros(2, 3, 24, 24))


@pytest.mark.slow
def test_vit_b_32_itself_is_maple() -> None:
    model = load_backbone("ViT-B-32", "random")
    assert model.text_tower is not None and model.image_tower is not None
    images_B3SS = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    tokens_KL = model.tokenize(["a photo of a cat.", "a photo of a highway or road."])
    text_JnW, image_JnW = vectors(8, 2, 512), vectors(8, 2, 768, seed=1)
    with torch.no_grad():
        lean_KD = model.text_tower(model.text_tower.plan(tokens_KL, 2), text_JnW)
        torch.testing.assert_close(lean_KD, maple_text(model.model, tokens_KL, text_JnW), rtol=0, atol=1e-5)
        lean_BD = model.image_tower(images_B3SS, image_JnW)
        torch.testing.assert_close(lean_BD, maple_image(model.model, images_B3SS, image_JnW), rtol=0, atol=1e-5)
