"""Class weights against hand-worked cases and the loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captune.equations.reweighting import class_weights
from tests.reference import losses as reference
from tests.slow import in_one_test


def test_full_strength_by_hand() -> None:
    # Mean count 4; 4/(8, 2, 2) = (.5, 2, 2), mean 1.5: (1/3, 4/3, 4/3).
    torch.testing.assert_close(class_weights(torch.tensor([8, 2, 2]), strength=1), torch.tensor([1 / 3, 4 / 3, 4 / 3]))


def test_clipping_comes_before_the_mean_is_set_to_one() -> None:
    # Mean 500.5; (500.5/1000, 500.5/1) = (.5005, 500.5), clipped to (.5005, 10), mean 5.25025.
    weights = class_weights(torch.tensor([1000, 1]), strength=1)
    torch.testing.assert_close(weights, torch.tensor([0.5005, 10.0]) / 5.25025)


def test_a_prior_is_the_target_instead_of_uniform() -> None:
    # Σσ = 12, π = (2/3, 1/6, 1/6): wanted (8, 2, 2) is what there is, so nothing is reweighted.
    prior = torch.tensor([4.0, 1.0, 1.0])
    torch.testing.assert_close(class_weights(torch.tensor([8, 2, 2]), strength=1, target_K=prior), torch.ones(3))


def test_seen_classes_weigh_one_and_do_not_enter_the_mean() -> None:
    # Among the last two: mean 5; 5/(8, 2) = (.625, 2.5), mean 1.5625: (.4, 1.6).
    member = torch.tensor([False, True, True])
    weights = class_weights(torch.tensor([100, 8, 2]), strength=1, pseudolabelled_K=member)
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.4, 1.6]))


@in_one_test("strength", [0.0, 0.3, 1.0, 3.0])
@in_one_test("with_prior", [False, True])
def test_weights_equal_the_loops(with_prior: bool, strength: float) -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 60, (8,), generator=generator)
    prior = torch.rand(8, generator=generator) if with_prior else None
    weights = class_weights(counts, strength=strength, target_K=prior)
    expected = reference.class_weights(counts.tolist(), strength, 10.0, None if prior is None else prior.tolist())
    torch.testing.assert_close(weights, torch.tensor(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("counts", [[5, 0, 70], [0, 0, 0], [3, 3, 3]])
def test_strength_zero_or_equal_counts_give_ones(counts: list[int]) -> None:
    torch.testing.assert_close(class_weights(torch.tensor(counts), strength=0), torch.ones(3))
    if len(set(counts)) == 1:
        torch.testing.assert_close(class_weights(torch.tensor(counts), strength=2), torch.ones(3))


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.floats(0, 1e6), min_size=1, max_size=12),
    strength=st.floats(0, 5),
    clip=st.floats(1, 100),
)
def test_weights_are_positive_with_mean_one_and_never_favour_the_frequent(
    counts: list[float], strength: float, clip: float
) -> None:
    counts_K = torch.tensor(counts)
    weights = class_weights(counts_K, strength=strength, clip=clip)
    assert weights.min() > 0
    assert weights.mean().item() == pytest.approx(1, rel=1e-4)
    assert (weights.max() / weights.min()).item() <= clip**2 * 1.0001
    by_count = weights[counts_K.argsort()]
    assert (by_count.diff() <= 1e-5 * by_count.max()).all()


def test_weights_permute_with_the_classes() -> None:
    counts, order = torch.tensor([9, 1, 4, 0, 2]), torch.tensor([4, 2, 0, 3, 1])
    torch.testing.assert_close(class_weights(counts[order], strength=0.7), class_weights(counts, strength=0.7)[order])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": -0.1}, "0 <= strength"),
        ({"clip": 0.5}, "1 <= clip"),
        ({"counts_K": torch.tensor([-1.0, 2.0])}, "0 <= counts_K"),
        ({"target_K": torch.tensor([-1.0, 2.0])}, "0 <= target_K"),
        ({"target_K": torch.ones(3)}, "target_K must have shape"),
    ],
)
def test_wrong_arguments_say_what_must_hold(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_weights(**{"counts_K": torch.ones(2), "strength": 1.0, **arguments})
