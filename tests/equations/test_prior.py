"""Biases that balance a pool, and the pool's prior by EM."""

from __future__ import annotations

import math

import pytest
import torch

from captune.equations.prior import (
    em_prior,
    half_sinkhorn,
    logit_adjustment_bias,
    prior_bias,
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


@in_one_test("train", [None, [0.1, 0.3, 0.2, 0.25, 0.15]])
@in_one_test("pseudocount", [0.0, 2.0])
@in_one_test("num_steps", [0, 1, 25])
def test_em_steps_equal_the_loops(num_steps: int, pseudocount: float, train: list[float] | None) -> None:
    probs = pool(4).softmax(dim=1)
    train_K = None if train is None else torch.tensor(train)
    prior = em_prior(probs, train_K, num_steps=num_steps, tol=0, pseudocount=pseudocount)
    expected = reference.em_prior(probs.tolist(), train or [0.2] * 5, num_steps, pseudocount)
    torch.testing.assert_close(prior, torch.tensor(expected), atol=1e-5, rtol=1e-4)


def test_em_by_hand() -> None:
    # One step from (.5, .5): the mean of the posteriors, (.9 + .9 + .3)/3 = .7.
    probs = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7]])
    torch.testing.assert_close(em_prior(probs, num_steps=1), torch.tensor([0.7, 0.3]))
    # One image added to each class: (2.1 + 1)/5 = .62.
    torch.testing.assert_close(em_prior(probs, num_steps=1, pseudocount=1.0), torch.tensor([0.62, 0.38]))


def test_em_finds_the_prior_that_a_calibrated_classifier_was_not_made_for() -> None:
    # x ~ N(±1, 1) with prior .85; the classifier has the likelihoods right and thinks the classes are equal.
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(20000, generator=generator) < 0.85
    x = torch.randn(20000, generator=generator) + torch.where(labels, 1.0, -1.0)
    probs = torch.stack([2 * x, torch.zeros_like(x)], dim=1).softmax(dim=1)
    assert probs.mean(dim=0)[0].item() < 0.8
    assert em_prior(probs)[0].item() == pytest.approx(labels.float().mean().item(), abs=0.015)


def test_em_never_lowers_the_likelihood() -> None:
    probs = pool(5).softmax(dim=1).double()
    likelihoods = [
        (probs @ (em_prior(probs, num_steps=steps, tol=0) * 5)).log().sum().item() for steps in (0, 1, 2, 5, 20, 100)
    ]
    assert likelihoods == sorted(likelihoods)


def test_prior_bias_turns_one_prior_into_another() -> None:
    probs = torch.tensor([[0.6, 0.4]])
    # Bayes: (.6·.2/.5, .4·.8/.5) = (.24, .64), normalised (3/11, 8/11).
    adjusted = (probs.log() + prior_bias(torch.tensor([0.2, 0.8]))).softmax(dim=1)
    torch.testing.assert_close(adjusted, torch.tensor([[3 / 11, 8 / 11]]))
    same = prior_bias(torch.tensor([0.2, 0.8]), torch.tensor([2.0, 8.0]))
    torch.testing.assert_close(same, torch.zeros(2))
    assert torch.isfinite(prior_bias(torch.tensor([0.0, 1.0]))).all()


@pytest.mark.parametrize("function", ["sinkhorn", "adjustment", "em"])
def test_results_permute_with_the_classes(function: str) -> None:
    run = {
        "sinkhorn": lambda z: sinkhorn_bias(z, num_steps=50),
        "adjustment": logit_adjustment_bias,
        "em": lambda z: em_prior(z.softmax(dim=1), num_steps=50),
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
        em_prior(logits.softmax(dim=1), num_steps=100),
    ):
        assert torch.isfinite(result).all()


@in_one_test(
    ("call", "message"),
    [
        (lambda: sinkhorn_bias(torch.zeros(0, 3)), "1 <= N"),
        (lambda: sinkhorn_bias(torch.zeros(2, 3), prior_K=torch.ones(2)), "prior_K must have shape"),
        (lambda: sinkhorn_bias(torch.zeros(2, 3), prior_K=torch.zeros(3)), "0 < sum"),
        (lambda: em_prior(torch.ones(2, 3), pseudocount=-1), "0 <= pseudocount"),
        (lambda: em_prior(torch.ones(2, 3), torch.tensor([1.0, -1.0, 1.0])), "0 <= prior_K"),
        (lambda: logit_adjustment_bias(torch.zeros(3)), "logits_NK must have shape"),
    ],
)
def test_wrong_arguments_say_what_must_hold(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()
