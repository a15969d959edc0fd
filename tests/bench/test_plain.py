"""The fast path against the plain way: losses, gradients, features, boards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from captune.algorithms.configs import CapConfig
from captune.equations.pseudolabels import top_k_leaderboard
from captune.errors import UsageError
from captune.model.backbone import Backbone, Precision
from captune.model.classifier import build_classifier
from tests.bench.plain import PlainModel, encode_one_by_one, first_boards
from tests.bench.workbench import FastStep, PlainStep, Workbench, class_names, in_precision, open_backbone
from tests.slow import slow_but


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return open_backbone("tiny", None, "cpu")


@pytest.fixture(scope="module")
def vit() -> Backbone:
    return open_backbone("ViT-B-32", "random", "cpu")


def gradients(step: FastStep | PlainStep, owner: FastStep) -> tuple[float, dict[str, Tensor]]:
    loss = float(step())
    classifier = owner.cap.classifier
    return loss, {name: parameter.grad.clone() for name, parameter in classifier.named_parameters()}


def perturbed(step: FastStep) -> FastStep:
    # Fresh adapters end in zeros, so that some gradients would be zero in any implementation.
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        for parameter in step.cap.classifier.adapters.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return step


def assert_same_step(bench: Workbench, **values: object) -> None:
    fast = perturbed(bench.fast("fp32", **values))
    plain_loss, plain = gradients(bench.plain(fast), fast)
    fast_loss, found = gradients(fast, fast)
    assert fast_loss == pytest.approx(plain_loss, rel=1e-5)
    assert found.keys() == plain.keys()
    for name, gradient in plain.items():
        assert float(gradient.norm()) > 0, name
        assert float((found[name] - gradient).norm() / gradient.norm()) < 1e-4, name


@pytest.mark.parametrize("num_classes", slow_but(lambda number: number < 100, [2, 10, 100]))
def test_a_step_on_tiny_has_the_plain_loss_and_gradients(tmp_path: Path, tiny: Backbone, num_classes: int) -> None:
    assert_same_step(Workbench(tmp_path, tiny, num_classes, batch_size=8, num_images=16))


@pytest.mark.parametrize("num_context", [1, 4])
def test_other_prompts_change_nothing_about_it(tmp_path: Path, tiny: Backbone, num_context: int) -> None:
    bench = Workbench(tmp_path, tiny, 3, batch_size=4, num_images=8)
    assert_same_step(bench, num_context=num_context, prompt_depth=2)


def test_leaving_out_unconfident_images_is_exact(tmp_path: Path, tiny: Backbone) -> None:
    bench = Workbench(tmp_path, tiny, 10, batch_size=16, num_images=32)
    step = bench.fast()
    step()
    confidences_B = step.seen["confidences"]
    threshold = float(confidences_B.sort().values[9:11].mean())
    assert 0 < int((confidences_B > threshold).sum()) < 16
    assert_same_step(bench, confidence_threshold=threshold)


def test_with_nothing_confident_only_main_samples_teach(tmp_path: Path, tiny: Backbone) -> None:
    bench = Workbench(tmp_path, tiny, 10, batch_size=4, num_images=8)
    fast = bench.fast(confidence_threshold=0.9999)
    plain_loss, plain = gradients(bench.plain(fast), fast)
    fast_loss, found = gradients(fast, fast)
    assert fast_loss == pytest.approx(plain_loss, rel=1e-5)
    assert float(plain["adapters.pseudo.up_weight"].norm()) == 0.0
    for name, gradient in plain.items():
        assert torch.allclose(found[name], gradient, rtol=1e-4, atol=1e-6), name


@pytest.mark.slow
def test_a_step_on_a_full_size_vit_has_the_plain_loss_and_gradients(tmp_path: Path, vit: Backbone) -> None:
    assert_same_step(Workbench(tmp_path, vit, 4, batch_size=2, num_images=4))


@pytest.mark.slow
def test_a_hundred_class_texts_of_a_full_size_vit_have_the_plain_features(vit: Backbone) -> None:
    template = "a photo of a {}."
    classifier = build_classifier(vit, class_names(100), template, CapConfig(), seed=0)
    with torch.no_grad():
        plain_KD = PlainModel(vit, classifier, template).text_features()
        fast_KD = classifier.encode_texts()
    assert torch.allclose(fast_KD, plain_KD, atol=2e-6)


@pytest.mark.slow
def test_a_hundred_class_step_of_a_full_size_vit_has_the_plain_loss_and_gradients(
    tmp_path: Path, vit: Backbone
) -> None:
    assert_same_step(Workbench(tmp_path, vit, 100, batch_size=2, num_images=100))


def test_bf16_gradients_point_the_plain_way(tmp_path: Path, tiny: Backbone) -> None:
    # Without the pool: a pseudolabel that rounding turns over is another loss, not an error of the gradient.
    bench = Workbench(tmp_path, tiny, 10, batch_size=16, num_images=32)
    exact, rough = bench.fast("fp32", self_training=False), bench.fast("bf16", self_training=False)
    rough.cap.classifier.load_learned_state(exact.cap.classifier.learned_state())
    vectors = []
    for step in (exact, rough):
        step()
        found = [parameter.grad for parameter in step.cap.classifier.parameters() if parameter.grad is not None]
        vectors.append(torch.cat([gradient.flatten() for gradient in found]))
    assert float(torch.nn.functional.cosine_similarity(*vectors, dim=0)) > 0.995


@pytest.mark.parametrize("precision, least", [("fp32", 1 - 1e-6), ("bf16", 0.999)])
def test_a_batch_of_images_is_encoded_as_one_by_one(
    tmp_path: Path, tiny: Backbone, precision: Precision, least: float
) -> None:
    pixels = Workbench(tmp_path, tiny, 2, batch_size=4, num_images=12).views.weak(np.arange(12))
    plain_ND = encode_one_by_one(tiny.model, pixels)
    fast_ND = in_precision(tiny, precision).encode_images(pixels)
    assert float((fast_ND * plain_ND).sum(-1).min()) > least


@pytest.mark.parametrize("num_classes", slow_but(lambda number: number < 100, [10, 100]))
def test_first_boards_are_the_published_walk(tmp_path: Path, tiny: Backbone, num_classes: int) -> None:
    bench = Workbench(tmp_path, tiny, num_classes, batch_size=8, num_images=3 * num_classes)
    pool = bench.context.task.pool
    pixels = bench.views.weak(pool)
    text_KD = bench.context.text_features_KD
    plain_NK = (tiny.logit_scale * encode_one_by_one(tiny.model, pixels) @ text_KD.T).softmax(-1)
    fast_NK = (tiny.logit_scale * tiny.encode_images(pixels) @ text_KD.T).softmax(-1)
    plain, fast = first_boards(plain_NK, 4), top_k_leaderboard(fast_NK, 4)
    assert {label: [image for image, _ in board] for label, board in plain.items()} == {
        label: [image for image, _ in board] for label, board in fast.items()
    }


def test_a_hand_worked_walk() -> None:
    # Image 0 fills class 0's only place; image 1 is surer and takes it; image 2 loses there and goes to class 1.
    probs_NK = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.7, 0.3]], dtype=torch.float64)
    assert first_boards(probs_NK, 1) == {0: [(1, 0.9)], 1: [(2, 0.3)]}


def test_the_plain_way_refuses_what_it_was_not_written_for(tmp_path: Path, tiny: Backbone) -> None:
    bench = Workbench(tmp_path, tiny, 2, batch_size=2, num_images=4)
    with pytest.raises(UsageError, match="multimodal prompts and an fp32 backbone, but got TextPrompts and fp32"):
        bench.plain(bench.fast(prompts="text"))
