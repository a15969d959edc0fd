"""The classifier: what it learns, what it leaves alone, what it keeps, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from captune.config import TrialConfig
from captune.errors import CheckpointError, ConfigError, ModelError
from captune.model.classifier import Classifier, build_classifier
from tests.model.families import REFUSED, backbone, pixels
from tests.reference.maple import maple_image, maple_text

NAMES = ["cat", "dog_house", "ox"]
KINDS = ["text", "image", "multimodal"]


def build(model: Any, names: list[str] | None = None, *, seed: int = 0, **values: Any) -> Classifier:
    return build_classifier(model, names or NAMES, "ab {}.", TrialConfig(**values), seed=seed)


def train_a_little(classifier: Classifier, inputs_B: Tensor) -> None:
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        image_BD = classifier.adapt_images(classifier.encode_images(inputs_B), "main")
        logits_BK = classifier.logit_scale * image_BD @ classifier.adapt_texts(classifier.encode_texts()).T
        optimizer.zero_grad()
        F.cross_entropy(logits_BK, torch.arange(len(inputs_B)) % classifier.num_classes).backward()
        optimizer.step()


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_maple_written_out(kind: str) -> None:
    model = backbone({"quick_gelu": True})
    classifier = build(model, prompts=kind, prompt_depth=3)
    assert classifier.prompts is not None
    with torch.no_grad():
        text_JnW, image_JnW = classifier.prompts.vectors()
        tokens_KL = model.tokenize(["ab cat.", "ab dog house.", "ab ox."])
        torch.testing.assert_close(
            classifier.encode_texts(), maple_text(model.model, tokens_KL, text_JnW), rtol=0, atol=1e-5
        )
        torch.testing.assert_close(
            classifier.encode_images(pixels()), maple_image(model.model, pixels(), image_JnW), rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("kind", KINDS)
def test_training_leaves_the_backbone_bit_identical(kind: str) -> None:
    model = backbone({})
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    texts_KD, images_BD = model.encode_texts(NAMES), model.encode_images(pixels())
    classifier = build(model, prompts=kind)
    learned = classifier.learned_state()
    train_a_little(classifier, pixels())
    assert any(not torch.equal(tensor, learned[name]) for name, tensor in classifier.learned_state().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.model.state_dict().items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.model.parameters())
    assert torch.equal(model.encode_texts(NAMES), texts_KD)
    assert torch.equal(model.encode_images(pixels()), images_BD)


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_learned_is_a_parameter(kind: str) -> None:
    classifier = build(backbone({}), prompts=kind)
    roots = {name.split(".")[0] for name, _ in classifier.named_parameters()}
    assert roots == {"prompts", "adapters"}
    assert set(classifier.state_dict()) == set(classifier.learned_state())


def test_every_learned_tensor_gets_a_gradient() -> None:
    classifier = build(backbone({}))
    weak_BD = classifier.encode_images(pixels())
    image_BD = classifier.adapt_images(weak_BD, "main") + classifier.adapt_images(weak_BD, "pseudo")
    (image_BD @ classifier.adapt_texts(classifier.encode_texts()).T).sum().backward()
    assert all(parameter.grad is not None for parameter in classifier.parameters())


def test_text_features_are_kept_until_a_parameter_changes() -> None:
    classifier = build(backbone({}))
    with torch.no_grad():
        first_KD = classifier.encode_texts()
        assert classifier.encode_texts() is first_KD
        assert not torch.equal(classifier.encode_images(pixels()), torch.zeros(3, 24))
        next(classifier.prompts.parameters()).add_(0.1)  # type: ignore[union-attr]
        second_KD = classifier.encode_texts()
        assert second_KD is not first_KD
        assert not torch.equal(second_KD, first_KD)
    train_a_little(classifier, pixels())
    with torch.no_grad():
        assert not torch.equal(classifier.encode_texts(), second_KD)


def test_adapters_at_work_do_not_drop_the_kept_text_features() -> None:
    classifier = build(backbone({}))
    with torch.no_grad():
        first_KD = classifier.encode_texts()
        next(classifier.adapters.parameters()).add_(0.1)
        assert classifier.encode_texts() is first_KD


def test_image_prompts_leave_the_text_features_those_of_the_frozen_tower() -> None:
    model = backbone({})
    classifier = build(model, prompts="image")
    train_a_little(classifier, pixels())
    torch.testing.assert_close(classifier.encode_texts(), model.encode_texts(["ab cat.", "ab dog house.", "ab ox."]))


def test_features_start_as_zero_shot_and_images_pass_unchanged() -> None:
    text_KD = F.normalize(torch.randn(3, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    config = TrialConfig(tuning="features")
    classifier = build_classifier(None, NAMES, "", config, seed=0, text_features_KD=text_KD, logit_scale=50.0)
    image_BD = F.normalize(torch.randn(4, 6, generator=torch.Generator().manual_seed(1)), dim=-1)
    assert classifier.encode_images(image_BD) is image_BD
    torch.testing.assert_close(classifier.encode_texts(), text_KD)
    torch.testing.assert_close(classifier.adapt_images(image_BD, "pseudo"), image_BD)
    assert classifier.adapt_images(image_BD, None) is image_BD
    assert classifier.logit_scale == 50.0
    train_a_little(classifier, image_BD)
    by_hand = F.normalize(text_KD + classifier.learned_state()["residual_KD"], dim=-1)
    torch.testing.assert_close(classifier.encode_texts(), by_hand)
    assert float((by_hand - text_KD).abs().max()) > 1e-3


@pytest.mark.parametrize("values", [{"prompts": kind} for kind in KINDS] + [{"tuning": "features"}])
def test_a_saved_state_makes_the_same_classifier(values: dict[str, Any]) -> None:
    model = backbone({})
    inputs_B = model.encode_images(pixels()) if "tuning" in values else pixels()
    trained = build(model, **values)
    train_a_little(trained, inputs_B)
    other = build(model, seed=1, **values)
    other.encode_texts()
    other.load_learned_state(trained.learned_state())
    with torch.no_grad():
        assert torch.equal(other.encode_texts(), trained.encode_texts())
        first_BD, second_BD = (
            classifier.adapt_images(classifier.encode_images(inputs_B), "main") for classifier in (trained, other)
        )
        assert torch.equal(first_BD, second_BD)


def test_a_state_of_other_classes_or_another_backbone_is_refused() -> None:
    model = backbone({})
    features = build(model, tuning="features")
    with pytest.raises(CheckpointError, match="residual_KD has shape"):
        build(model, ["one", "two"], tuning="features").load_learned_state(features.learned_state())
    with pytest.raises(CheckpointError, match="is missing"):
        build(model).load_learned_state(features.learned_state())
    wider = backbone({"vision": {"width": 60}})
    with pytest.raises(CheckpointError, match=r"prompts.projection has shape \(4, 32, 48\), not \(4, 32, 60\)"):
        build(wider).load_learned_state(build(model).learned_state())


def test_the_seed_decides_the_start() -> None:
    model = backbone({})
    first, second, other = build(model, seed=1), build(model, seed=1), build(model, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.prompts.deep, other.prompts.deep)  # type: ignore[union-attr]


def test_a_permutation_of_classes_permutes_the_text_features() -> None:
    model = backbone({})
    with torch.no_grad():
        forward_KD = build(model).encode_texts()
        backward_KD = build(model, NAMES[::-1]).encode_texts()
    torch.testing.assert_close(backward_KD.flip(0), forward_KD, rtol=0, atol=1e-6)


def test_refusals_say_what_works() -> None:
    with pytest.raises(ModelError, match=r"--tuning features"):
        build(backbone(REFUSED["ResNet"][0]))
    with pytest.raises(ModelError, match="needs a backbone"):
        build_classifier(None, NAMES, "{}", TrialConfig(tuning="features"), seed=0)
    with pytest.raises(ConfigError, match=r"exactly one \{\}"):
        build_classifier(backbone({}), NAMES, "no place", TrialConfig(), seed=0)
    assert build(backbone(REFUSED["ResNet"][0]), tuning="features").num_classes == 3
