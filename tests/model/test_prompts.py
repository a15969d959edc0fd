"""Prompts: what they start as, how many numbers they learn, where they stand."""

from __future__ import annotations

import pytest
import torch

from captune.config import TrialConfig
from captune.errors import ModelError
from captune.model.backbone import load_backbone
from captune.model.classifier import build_classifier
from captune.model.prompts import ImagePrompts, MultimodalPrompts, TextPrompts, build_prompts, class_tokens
from captune.seeding import torch_generator
from tests.model.families import END, REFUSED, backbone, tokenizer
from tests.slow import in_one_test


def generator() -> torch.Generator:
    return torch_generator(0, "prompts")


def test_projections_start_as_copies_and_deep_vectors_small() -> None:
    prompts = MultimodalPrompts(torch.ones(2, 64), 5, 96, generator())
    assert prompts.projection.shape == (5, 64, 96)
    assert all(torch.equal(weight, prompts.projection[0]) for weight in prompts.projection)
    assert all(torch.equal(bias, prompts.projection_bias[0]) for bias in prompts.projection_bias)
    assert prompts.deep.shape == (4, 2, 64)
    assert prompts.deep.detach().std().item() == pytest.approx(0.02, rel=0.2)
    assert float(prompts.projection.abs().max()) <= 64**-0.5


def test_image_vectors_are_linear_projections_of_the_text_vectors() -> None:
    prompts = MultimodalPrompts(torch.randn(2, 8, generator=generator()), 3, 6, generator())
    text_JnW, image_JnW = prompts.vectors()
    assert text_JnW is not None and image_JnW is not None
    for layer in range(3):
        by_hand = text_JnW[layer] @ prompts.projection[layer] + prompts.projection_bias[layer]
        torch.testing.assert_close(image_JnW[layer], by_hand)


@in_one_test(
    ("kind", "depth", "expected"),
    [
        ("multimodal", 9, [3, 4]),
        ("multimodal", 4, [3, 4]),
        ("multimodal", 3, [3, 3]),
        ("multimodal", 2, [2, 2]),
        ("text", 9, [3]),
        ("image", 9, [4]),
    ],
)
def test_depth_is_cut_to_each_tower_by_itself(kind: str, depth: int, expected: list[int]) -> None:
    model = backbone({})  # three text layers, four image layers
    prompts = build_prompts(model, kind, context_nW=torch.zeros(2, 32), depth=depth, generator=generator())  # type: ignore[arg-type]
    assert [len(vectors) for vectors in prompts.vectors() if vectors is not None] == expected


def test_every_vector_is_learned_where_one_tower_is_deeper_than_the_other() -> None:
    model = backbone({})  # three text layers, four image layers
    classifier = build_classifier(model, ["cat", "dog"], "a photo of a {}.", TrialConfig(prompt_depth=8), seed=0)
    images_B3SS = torch.randn(2, 3, model.preprocessing.image_size, model.preprocessing.image_size)
    (classifier.encode_images(images_B3SS) @ classifier.encode_texts().T).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in classifier.prompts.named_parameters()}  # type: ignore[union-attr]
    for name in ("context", "deep", "projection", "projection_bias"):
        rows = gradients[name]
        assert rows is not None
        assert bool((rows.flatten(1).abs().amax(1) > 0).all()), name
    assert len(gradients["deep"]) == 3 and len(gradients["projection"]) == 4  # type: ignore[arg-type]


def test_each_kind_prompts_its_own_tower() -> None:
    model, context_nW = backbone({}), torch.zeros(2, 32)
    kinds = {
        kind: [
            vectors is not None
            for vectors in build_prompts(model, kind, context_nW=context_nW, depth=2, generator=generator()).vectors()  # type: ignore[arg-type]
        ]
        for kind in ("text", "image", "multimodal")
    }
    assert kinds == {"text": [True, False], "image": [False, True], "multimodal": [True, True]}


def test_context_starts_as_the_embeddings_it_replaces() -> None:
    model = backbone({})
    tokens_KL, context_nW = class_tokens(model, ["abc x.", "abc y."], "abc ", 2)
    assert torch.equal(tokens_KL, tokenizer(["abc x.", "abc y."]))
    embedding = model.model.token_embedding.weight
    ids = [2 + ord(letter) % 100 for letter in "ab"]
    torch.testing.assert_close(context_nW, embedding[ids])


def test_the_context_never_covers_the_name() -> None:
    model = backbone({})
    tokens_KL, context_nW = class_tokens(model, ["ax.", "ay."], "a", 3)
    plain_KL = tokenizer(["ax.", "ay."])
    # Two places put in behind the start token; then "a", the name, the dot and the end as they were.
    assert torch.equal(tokens_KL[:, 3:], plain_KL[:, 1:-2])
    assert torch.equal(tokens_KL[:, 0], plain_KL[:, 0])
    embedding = model.model.token_embedding.weight
    torch.testing.assert_close(context_nW[2], embedding[2 + ord("a") % 100])


def test_a_prompt_that_grows_too_long_keeps_its_end_token() -> None:
    tokens_KL, _ = class_tokens(backbone({}), ["abcdefghijklmnop", "b"], "", 4)
    assert tokens_KL.shape == (2, 16)
    assert int(tokens_KL[0, -1]) == END
    assert tokens_KL[1].tolist().count(END) == 1


def test_the_real_tokenizer_leaves_of_a_and_the_name_in_place() -> None:
    model = load_backbone("tiny")
    names = ["a photo of a seven.", "a photo of a twelve."]
    tokens_KL, context_nW = class_tokens(model, names, "a photo of a ", 2)
    assert torch.equal(tokens_KL, model.tokenize(names))
    start, first, second = tokens_KL[0, :3].tolist()
    assert start == model.tokenize([""])[0, 0]
    torch.testing.assert_close(context_nW, model.model.token_embedding.weight[[first, second]])


@pytest.mark.slow
def test_vit_b_32_learns_the_papers_number_of_parameters() -> None:
    model = load_backbone("ViT-B-32", "random")
    classifier = build_classifier(model, ["cat", "dog"], "a photo of a {}.", TrialConfig(), seed=0)
    counts = {name: sum(p.numel() for p in child.parameters()) for name, child in classifier.named_children()}
    # Context 2·512, deep 7·2·512, projections 8·(512·768 + 768); adapters 3·(2·512·128 + 128 + 512).
    assert counts == {"prompts": 1_024 + 7_168 + 3_151_872, "adapters": 395_136}
    assert counts["prompts"] == 3_160_064


def test_towers_that_cannot_be_prompted_are_refused_with_what_works() -> None:
    model = backbone(REFUSED["ResNet"][0])
    with pytest.raises(ModelError, match=r"ResNet.*tuning: features"):
        build_prompts(model, "text", context_nW=torch.zeros(2, 32), depth=2, generator=generator())


def test_kinds_have_stable_names() -> None:
    context_nW = torch.zeros(2, 8)
    assert set(TextPrompts(context_nW, 2, generator()).state_dict()) == {"context", "deep"}
    assert set(ImagePrompts(2, 2, 8, generator()).state_dict()) == {"visual"}
    names = set(MultimodalPrompts(context_nW, 2, 8, generator()).state_dict())
    assert names == {"context", "deep", "projection", "projection_bias"}
