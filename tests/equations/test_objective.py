"""The step's losses against hand-worked cases, loops and plain cross-entropy."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from captune.equations.objective import count_confident, margin_cross_entropy, self_training_loss
from tests.reference import losses as reference
from tests.slow import in_one_test


def random_case(seed: int, batch: int = 12, num_classes: int = 6, scale: float = 4.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weak": scale * torch.randn(batch, num_classes, generator=generator),
        "strong": scale * torch.randn(batch, num_classes, generator=generator),
        "labels": torch.randint(0, num_classes, (batch,), generator=generator),
        "margin": 6 * torch.rand(num_classes, num_classes, generator=generator),
        "weights": 0.2 + 2 * torch.rand(num_classes, generator=generator),
    }


def test_margin_raises_the_other_classes_by_hand() -> None:
    # z = (2, 0), label 0, M[0, 1] = 2: both logits are 2, so the loss is log 2. The diagonal 9 is ignored.
    loss = margin_cross_entropy(torch.tensor([[2.0, 0.0]]), torch.tensor([0]), torch.tensor([[9.0, 2.0], [0.0, 9.0]]))
    assert loss.item() == pytest.approx(math.log(2))


def test_weights_multiply_before_the_mean_over_the_batch() -> None:
    # Two losses of log 2, weights 3 and 1: (3 + 1)·log 2 / 2, not divided by the weights' sum.
    logits, labels = torch.zeros(2, 2), torch.tensor([0, 1])
    loss = margin_cross_entropy(logits, labels, torch.zeros(2, 2), weights_B=torch.tensor([3.0, 1.0]))
    assert loss.item() == pytest.approx(2 * math.log(2))


@pytest.mark.parametrize("seed", range(4))
def test_zero_margin_is_cross_entropy(seed: int) -> None:
    case = random_case(seed)
    loss = margin_cross_entropy(case["strong"], case["labels"], torch.zeros(6, 6))
    torch.testing.assert_close(loss, F.cross_entropy(case["strong"], case["labels"]))


@in_one_test("weighted", [False, True])
@in_one_test("seed", range(4))
def test_margin_loss_equals_the_loops(seed: int, weighted: bool) -> None:
    case = random_case(seed)
    weights = case["weights"][case["labels"]] if weighted else None
    loss = margin_cross_entropy(case["strong"], case["labels"], case["margin"], weights_B=weights)
    expected = reference.mean_margin_loss(
        case["strong"].tolist(),
        case["labels"].tolist(),
        case["margin"].tolist(),
        weights.tolist() if weighted else None,
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@in_one_test("weighted", [False, True])
@in_one_test("threshold", [0.0, 0.5, 0.85, 0.99, 1.0])
@in_one_test("seed", range(3))
def test_self_training_equals_the_loops(seed: int, threshold: float, weighted: bool) -> None:
    case = random_case(seed)
    weights = case["weights"] if weighted else None
    loss, labels, mask = self_training_loss(
        case["weak"], case["strong"], case["margin"], threshold=threshold, weights_K=weights
    )
    expected = reference.self_training(
        case["weak"].tolist(),
        case["strong"].tolist(),
        case["margin"].tolist(),
        threshold,
        weights.tolist() if weighted else None,
    )
    assert loss.item() == pytest.approx(expected[0], rel=1e-5)
    assert labels.tolist() == expected[1]
    assert mask.tolist() == expected[2]
    assert mask.dtype == torch.bool


def test_threshold_is_strict() -> None:
    # softmax((0, 0)) = (.5, .5): exactly at the threshold, so nothing counts and the loss is 0.
    loss, _, mask = self_training_loss(torch.zeros(1, 2), torch.randn(1, 2), torch.zeros(2, 2), threshold=0.5)
    assert (loss.item(), mask.tolist()) == (0.0, [False])


def test_mean_is_over_confident_images_only() -> None:
    # Image 0 is confident (p = .9975) with loss log 2, image 1 is not: the mean is log 2, not half of it.
    weak = torch.tensor([[6.0, 0.0], [0.0, 0.0]])
    loss, labels, mask = self_training_loss(weak, torch.zeros(2, 2), torch.zeros(2, 2), threshold=0.85)
    assert loss.item() == pytest.approx(math.log(2))
    assert (labels[0].item(), mask.tolist()) == (0, [True, False])


def test_no_gradient_reaches_the_weak_view_or_unconfident_images() -> None:
    weak = torch.tensor([[6.0, 0.0], [0.1, 0.0]], requires_grad=True)
    strong = torch.zeros(2, 2, requires_grad=True)
    loss, _, _ = self_training_loss(weak, strong, torch.zeros(2, 2), threshold=0.85)
    loss.backward()
    assert weak.grad is None
    assert strong.grad is not None
    # d CE / d z = softmax - onehot = (-.5, .5) for the confident image.
    torch.testing.assert_close(strong.grad, torch.tensor([[-0.5, 0.5], [0.0, 0.0]]))


def test_nothing_confident_gives_zero_with_zero_gradients() -> None:
    strong = torch.randn(4, 3, requires_grad=True)
    loss, _, mask = self_training_loss(torch.zeros(4, 3), strong, torch.zeros(3, 3), threshold=0.85)
    loss.backward()
    assert loss.item() == 0
    assert not mask.any()
    assert strong.grad is not None
    assert strong.grad.abs().max() == 0


def test_empty_batches_give_zero() -> None:
    empty, none = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, dtype=torch.long)
    loss = margin_cross_entropy(empty, none, torch.zeros(3, 3))
    loss.backward()
    assert loss.item() == 0
    assert self_training_loss(empty, empty, torch.zeros(3, 3), threshold=0.5)[0].item() == 0


@in_one_test("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@in_one_test("scale", [1e-6, 1e-3, 1.0, 1e2, 1e3])
def test_losses_and_gradients_are_finite_over_decades(scale: float, dtype: torch.dtype) -> None:
    case = random_case(0)
    weak, strong = ((case[name] * scale).to(dtype) for name in ("weak", "strong"))
    strong.requires_grad_()
    loss = margin_cross_entropy(strong, case["labels"], case["margin"])
    loss = loss + self_training_loss(weak, strong, case["margin"], threshold=0.5)[0]
    loss.backward()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.isfinite(loss)
    assert strong.grad is not None
    assert torch.isfinite(strong.grad).all()


def test_losses_do_not_change_when_classes_are_permuted() -> None:
    case = random_case(1)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    new = {
        "weak": case["weak"][:, order],
        "strong": case["strong"][:, order],
        "margin": case["margin"][order][:, order],
    }
    labels = order.argsort()[case["labels"]]
    torch.testing.assert_close(
        margin_cross_entropy(new["strong"], labels, new["margin"]),
        margin_cross_entropy(case["strong"], case["labels"], case["margin"]),
    )
    loss, _, _ = self_training_loss(
        new["weak"], new["strong"], new["margin"], threshold=0.6, weights_K=case["weights"][order]
    )
    plain, _, _ = self_training_loss(
        case["weak"], case["strong"], case["margin"], threshold=0.6, weights_K=case["weights"]
    )
    torch.testing.assert_close(loss, plain)


def test_a_larger_margin_never_lowers_the_loss() -> None:
    case = random_case(2)
    losses = [
        margin_cross_entropy(case["strong"], case["labels"], factor * case["margin"]).item()
        for factor in (0.0, 0.5, 1.0, 2.0)
    ]
    assert losses == sorted(losses)


def test_confident_predictions_are_counted_by_class() -> None:
    labels, mask = torch.tensor([2, 0, 2, 2]), torch.tensor([True, False, True, False])
    assert count_confident(labels, mask, 4).tolist() == [0, 0, 2, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"labels_B": torch.zeros(5, dtype=torch.long)},
            "labels_B must have shape \\[B\\] with B=4, but got shape \\[5\\]",
        ),
        ({"margin_KK": torch.zeros(3, 2)}, "margin_KK must have shape \\[K, K\\] with K=3"),
        ({"weights_B": torch.ones(3)}, "weights_B must have shape"),
        ({"logits_BK": torch.zeros(4)}, "logits_BK must have shape \\[B, K\\], but got shape \\[4\\]"),
    ],
)
def test_wrong_shapes_are_named(arguments: dict, message: str) -> None:
    fine = {
        "logits_BK": torch.zeros(4, 3),
        "labels_B": torch.zeros(4, dtype=torch.long),
        "margin_KK": torch.zeros(3, 3),
    }
    with pytest.raises(ValueError, match=message):
        margin_cross_entropy(**{**fine, **arguments})


def test_a_threshold_is_a_probability() -> None:
    with pytest.raises(ValueError, match="0 <= threshold <= 1 must hold, but got \\(threshold=85\\)"):
        self_training_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(2, 2), threshold=85)


@pytest.mark.gpu
def test_losses_never_wait_for_the_device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    case = {name: tensor.cuda() for name, tensor in random_case(0).items()}
    strong = case["strong"].requires_grad_()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss, labels, mask = self_training_loss(
            case["weak"], strong, case["margin"], threshold=0.85, weights_K=case["weights"]
        )
        loss = loss + margin_cross_entropy(strong, case["labels"], case["margin"])
        count_confident(labels, mask, 6)
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(loss)
