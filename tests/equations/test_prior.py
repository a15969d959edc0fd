"""Biases that balance a pool."""

from __future__ import annotations

import math

import pytest
import torch

from captune.equations.prior import (
    half_sinkhorn,
    logit_adjustment_bias,
    sinkhorn_bias,
)
from tests.reference import priors as reference
from tests.slow import in_one_test


def pool(seed: int, num_images: int = 60, num_classes: int = 5, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(num_images, num_classes, generator=generator) + torch.arange(num_classes)


@in_one_test("scale", [1e-3, 1.0, 30.0])
@in_one_test("prior", [None, [0.1, 0.3, 0.2, 0.25, 0.15]])
def test_sinkhorn_meets_its_prior(prior: list[float] | None, scale: float) -> None:
    logits = pool(0, scale=scale)
    prior_K = None if prior is None else torch.tensor(prior)
    bias = sinkhorn_bias(logits, prior_K=prior_K, tol=1e-5, num_steps=20000)
    shares = (logits + bias).softmax(dim=1).mean(dim=0)
    torch.testing.assert_close(shares, torch.full((5,), 0.2) if prior_K is None else prior_K, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("num_steps", [0, 1, 7])
def test_sinkhorn_steps_equal_the_loops(num_steps: int) -> None:
    logits = pool(1)
    prior = [0.1, 0.3, 0.2, 0.25, 0.15]
    bias = sinkhorn_bias(logits, num_steps=num_steps, tol=0, prior_K=torch.tensor(prior))
    expected = reference.sinkhorn_bias(logits.tolist(), prior, num_steps)
    torch.testing.assert_close(bias, torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_sinkhorn_by_hand() -> None:
    # Two mirror images are balanced already; a bias of (a, -a) on the logits is undone by (-a, a).
    mirrored = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    torch.testing.assert_close(sinkhorn_bias(mirrored), torch.zeros(2))
    undone = sinkhorn_bias(mirrored + torch.tensor([1.5, -1.5]), tol=1e-6)
    torch.testing.assert_close(undone, torch.tensor([-1.5, 1.5]), atol=1e-4, rtol=0)


def test_half_sinkhorn_adds_half_of_the_bias() -> None:
    logits = pool(2)
    torch.testing.assert_close(half_sinkhorn(logits), logits + sinkhorn_bias(logits) / 2)
    torch.testing.assert_close(half_sinkhorn(logits, strength=0), logits)


def test_logit_adjustment_by_hand() -> None:
    # Rows (.75, .25) and (.25, .75) have the mean (.5, .5): -.5·log .5 for both. One row alone gives its own logs.
    third = math.log(3)
    both = logit_adjustment_bias(torch.tensor([[third, 0.0], [0.0, third]]))
    torch.testing.assert_close(both, torch.full((2,), 0.5 * math.log(2)))
    one = logit_adjustment_bias(torch.tensor([[third, 0.0]]), strength=1.0)
    torch.testing.assert_close(one, torch.tensor([-math.log(0.75), -math.log(0.25)]))


def test_logit_adjustment_equals_its_formula() -> None:
    logits = pool(3).double()
    expected = -0.5 * logits.softmax(dim=1).mean(dim=0).log()
    torch.testing.assert_close(logit_adjustment_bias(logits), expected)


@pytest.mark.parametrize("function", ["sinkhorn", "adjustment"])
def test_results_permute_with_the_classes(function: str) -> None:
    run = {
        "sinkhorn": lambda z: sinkhorn_bias(z, num_steps=50),
        "adjustment": logit_adjustment_bias,
    }[function]
    logits, order = pool(6), torch.tensor([4, 0, 3, 1, 2])
    torch.testing.assert_close(run(logits[:, order]), run(logits)[order], atol=1e-5, rtol=1e-4)


@in_one_test("dtype", [torch.float32, torch.float64, torch.bfloat16])
@in_one_test("scale", [1e-6, 1.0, 1e2, 1e4])
def test_results_are_finite_over_decades(scale: float, dtype: torch.dtype) -> None:
    logits = (pool(7) * scale).to(dtype)
    empty_class = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0])
    for result in (
        sinkhorn_bias(logits, num_steps=100),
        sinkhorn_bias(logits, num_steps=100, prior_K=empty_class),
        logit_adjustment_bias(logits),
    ):
        assert torch.isfinite(result).all()


@in_one_test(
    ("call", "message"),
    [
        (lambda: sinkhorn_bias(torch.zeros(0, 3)), "1 <= N"),
        (lambda: sinkhorn_bias(torch.zeros(2, 3), prior_K=torch.ones(2)), "prior_K must have shape"),
        (lambda: sinkhorn_bias(torch.zeros(2, 3), prior_K=torch.zeros(3)), "0 < sum"),
        (lambda: logit_adjustment_bias(torch.zeros(3)), "logits_NK must have shape"),
    ],
)
def test_wrong_arguments_say_what_must_hold(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()
