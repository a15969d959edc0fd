"""Descriptions, prototypes and the contrastive alignment loss."""

from __future__ import annotations

import math

import pytest
import torch

from captune.equations.alignment import (
    alignment_loss,
    choose_description,
    choose_descriptions_together,
    class_prototypes,
    ema_update,
    nearest_images,
)
from tests.reference import losses as reference
from tests.slow import in_one_test


def features(seed: int, rows: int, width: int = 8) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_loss_by_hand() -> None:
    # Orthogonal texts, each with its own prototype, tau = 1: both ways CE((1, 0), 0) = log(1 + e^-1).
    loss = alignment_loss(torch.eye(2), 3 * torch.eye(2), temperature=1.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)))


@in_one_test("temperature", [0.01, 0.07, 1.0, 10.0])
@in_one_test("absent", [[], [2], [0, 3, 4]])
def test_loss_equals_the_loops(absent: list[int], temperature: float) -> None:
    text, prototypes = features(0, 5), features(1, 5)
    present = torch.ones(5, dtype=torch.bool)
    present[absent] = False
    prototypes[absent] = 0
    loss = alignment_loss(text, prototypes, temperature=temperature, present_K=present)
    expected = reference.alignment(text.tolist(), prototypes.tolist(), temperature, present.tolist())
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_absent_classes_get_no_gradient() -> None:
    text, prototypes = features(0, 4).requires_grad_(), features(1, 4)
    alignment_loss(text, prototypes, temperature=0.1, present_K=torch.tensor([True, False, True, True])).backward()
    assert text.grad is not None
    assert text.grad[1].abs().max() == 0
    assert text.grad[0].abs().max() > 0


@pytest.mark.parametrize("present", [[False, False, False], [False, True, False]])
def test_one_class_or_none_gives_zero_with_finite_gradients(present: list[bool]) -> None:
    text = features(0, 3).requires_grad_()
    loss = alignment_loss(text, torch.zeros(3, 8), temperature=0.05, present_K=torch.tensor(present))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert text.grad is not None
    assert torch.isfinite(text.grad).all()


@in_one_test("dtype", [torch.float32, torch.float64, torch.bfloat16])
@in_one_test("temperature", [1e-4, 1e-2, 1.0, 1e3])
@in_one_test("scale", [1e-6, 1.0, 1e6])
def test_loss_and_gradients_are_finite_over_decades(scale: float, temperature: float, dtype: torch.dtype) -> None:
    text = (features(0, 5) * scale).to(dtype).requires_grad_()
    loss = alignment_loss(text, features(1, 5).to(dtype), temperature=temperature)
    loss.backward()
    assert torch.isfinite(loss)
    assert text.grad is not None
    assert torch.isfinite(text.grad).all()


def test_loss_does_not_change_when_classes_are_permuted() -> None:
    text, prototypes, order = features(0, 6), features(1, 6), torch.tensor([5, 2, 0, 4, 1, 3])
    present = torch.tensor([True, True, False, True, True, True])
    torch.testing.assert_close(
        alignment_loss(text[order], prototypes[order], temperature=0.1, present_K=present[order]),
        alignment_loss(text, prototypes, temperature=0.1, present_K=present),
    )


def test_loss_falls_as_texts_move_to_their_prototypes() -> None:
    text, prototypes = features(0, 6), features(1, 6)
    losses = [alignment_loss(text + pull * prototypes, prototypes, temperature=0.1).item() for pull in (0.0, 1.0, 10.0)]
    assert losses == sorted(losses, reverse=True)


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"0 < temperature must hold, but got \(temperature=0\.0\)"):
        alignment_loss(torch.eye(2), torch.eye(2), temperature=0.0)


def test_prototypes_by_hand() -> None:
    # Class 0: mean of (1, 0) and (0, 1) (lengths do not matter) points at 45 degrees. Class 1 has no sample.
    prototypes, present = class_prototypes(
        torch.tensor([[5.0, 0.0], [0.0, 1.0], [0.0, -2.0]]), torch.tensor([0, 0, 2]), 3
    )
    half = math.sqrt(0.5)
    torch.testing.assert_close(prototypes, torch.tensor([[half, half], [0.0, 0.0], [0.0, -1.0]]))
    assert present.tolist() == [True, False, True]


def test_prototypes_equal_the_loop_and_pass_gradients() -> None:
    points, labels = features(2, 20).requires_grad_(), torch.arange(20) % 3
    prototypes, _ = class_prototypes(points, labels, 4)
    for label in range(3):
        mean = torch.stack([row / row.norm() for row, at in zip(points, labels, strict=True) if at == label]).mean(0)
        torch.testing.assert_close(prototypes[label], mean / mean.norm())
    prototypes.sum().backward()
    assert points.grad is not None
    assert torch.isfinite(points.grad).all()


def test_ema_moves_only_classes_known_to_both_sides() -> None:
    old, new = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]), torch.zeros(4, 2)
    new[0], new[2] = torch.tensor([0.0, 1.0]), torch.tensor([-1.0, 0.0])
    mixed, present = ema_update(
        old, torch.tensor([True, True, False, False]), new, torch.tensor([True, False, True, False]), momentum=0.9
    )
    # .9·(1, 0) + .1·(0, 1), normalised by sqrt(.82).
    expected = torch.tensor([[0.9 / math.sqrt(0.82), 0.1 / math.sqrt(0.82)], [0, 1], [-1, 0], [0, 0]])
    torch.testing.assert_close(mixed, expected)
    assert present.tolist() == [True, True, True, False]


@pytest.mark.parametrize(("momentum", "expected"), [(0.0, "new"), (1.0, "old")])
def test_ema_limits(momentum: float, expected: str) -> None:
    sides = {"old": torch.nn.functional.normalize(features(0, 3)), "new": torch.nn.functional.normalize(features(1, 3))}
    here = torch.ones(3, dtype=torch.bool)
    mixed, _ = ema_update(sides["old"], here, sides["new"], here, momentum=momentum)
    torch.testing.assert_close(mixed, sides[expected])


def test_description_nearest_to_the_cluster_is_chosen_by_direction() -> None:
    descriptions = torch.tensor([[10.0, 10.0], [0.1, 0.0], [0.0, 5.0]])
    assert choose_description(descriptions, torch.tensor([2.0, 0.1])) == 1
    assert choose_description(torch.ones(3, 2), torch.tensor([1.0, 0.0])) == 0
    with pytest.raises(ValueError, match="number of descriptions"):
        choose_description(torch.zeros(0, 2), torch.tensor([1.0, 0.0]))


def test_descriptions_decide_together_which_cluster_is_whose() -> None:
    # Best cosines: class 4 has .6 and 1.0 with the clusters of 4 and 7; class 7 has .8 (its third description) and .9
    # (its first). Alone, both prefer the cluster of 7; together 1.0 + .8 beats .6 + .9, so class 7 takes the other.
    centres = {4: torch.tensor([0.6, 0.8]), 7: torch.tensor([1.0, 0.0])}
    descriptions = {
        4: torch.tensor([[0.0, -1.0], [2.0, 0.0]]),
        7: torch.tensor([[0.9, -(0.19**0.5)], [-1.0, 0.0], [0.0, 1.0]]),
    }
    assert choose_descriptions_together(descriptions, centres) == {4: (1, 7), 7: (2, 4)}
    assert choose_descriptions_together({7: descriptions[7]}, centres) == {7: (0, 7)}
    assert choose_descriptions_together({}, centres) == {}
    with pytest.raises(ValueError, match="number of classes <= number of centres"):
        choose_descriptions_together(descriptions, {4: centres[4]})


def test_nearest_images_fall_by_cosine_then_by_index() -> None:
    images = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 1.0], [7.0, 0.0], [-1.0, 0.0]])
    text = torch.tensor([3.0, 0.0])
    assert nearest_images(images, text, 3) == [3, 1, 2]
    eligible = torch.tensor([True, True, True, False, True])
    assert nearest_images(images, text, 2, eligible) == [1, 2]
    assert nearest_images(images, text, 99, eligible) == [1, 2, 0, 4]
    assert nearest_images(images, text, 0) == []
