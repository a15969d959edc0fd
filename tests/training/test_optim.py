"""The learning-rate schedule and the optimiser."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from captune.training.optim import Sgd, warmup_cosine


def test_schedule_by_hand() -> None:
    # w = 4, T = 12: 0, 1/4, 1/2, 3/4, then ½(1 + cos(π·(j - 4)/8)): 1 at 4, .5 half-way at 8, 0 at the end.
    factors = [warmup_cosine(step, warmup_steps=4, total_steps=12) for step in (0, 1, 2, 3, 4, 6, 8, 12)]
    assert factors == pytest.approx([0, 0.25, 0.5, 0.75, 1, 0.5 * (1 + math.sqrt(0.5)), 0.5, 0])


def test_schedule_stays_within_bounds_and_falls_after_the_warm_up() -> None:
    factors = [warmup_cosine(step, warmup_steps=50, total_steps=2500) for step in range(2500)]
    assert factors[50] == 1 == max(factors)
    assert factors[50:] == sorted(factors[50:], reverse=True)
    assert min(factors[1:]) > 0


@pytest.mark.parametrize(("warmup_steps", "total_steps"), [(0, 1), (1, 1), (5, 5), (0, 0)])
def test_schedule_without_warm_up_or_without_anything_else(warmup_steps: int, total_steps: int) -> None:
    factors = [warmup_cosine(step, warmup_steps=warmup_steps, total_steps=total_steps) for step in range(8)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert factors[total_steps:] == [0.0] * (8 - total_steps)
    assert warmup_steps or not total_steps or factors[0] == 1


@pytest.mark.parametrize("arguments", [(-1, 0, 5), (0, -1, 5), (0, 6, 5)])
def test_schedule_refuses_a_warm_up_longer_than_the_training(arguments: tuple[int, int, int]) -> None:
    step, warmup_steps, total_steps = arguments
    with pytest.raises(ValueError, match="0 <= warmup_steps <= total_steps must hold"):
        warmup_cosine(step, warmup_steps=warmup_steps, total_steps=total_steps)


def test_sgd_by_hand() -> None:
    # g = 2 + .1·1 = 2.1, w = 1 - .01·2.1 = .979; then g = 2 + .0979, v = .9·2.1 + 2.0979 = 3.9879.
    weight, frozen = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1), requires_grad=False)
    optimizer = Sgd([weight, frozen], learning_rate=0.01, weight_decay=0.1)
    for expected in (0.979, 0.979 - 0.01 * 3.9879):
        optimizer.zero_grad()
        (2 * weight).sum().backward()
        optimizer.step()
        assert weight.item() == pytest.approx(expected, rel=1e-6)
    assert frozen.item() == 1
    assert len(optimizer.parameters) == 1


def test_sgd_is_torchs_own_and_skips_what_has_no_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(3, 2, generator=generator), torch.randn(4, generator=generator)]
    ours, theirs = ([nn.Parameter(values.clone()) for values in start] for _ in range(2))
    settings = {"weight_decay": 0.1, "momentum": 0.9}
    optimizer, oracle = Sgd(ours, learning_rate=0.1, **settings), torch.optim.SGD(theirs, lr=0.1, **settings)
    for step in range(5):
        used = (0, 1) if step != 2 else (0,)
        for each, parameters in ((optimizer, ours), (oracle, theirs)):
            each.zero_grad()
            sum(parameters[index].square().sum() for index in used).backward()
            each.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_learning_rate_is_set_for_the_next_step() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = Sgd([weight], learning_rate=0.01, weight_decay=0.0)
    optimizer.learning_rate = 0.0
    weight.sum().backward()
    optimizer.step()
    assert weight.item() == 1


def test_nothing_to_learn_and_impossible_settings_are_refused() -> None:
    weight = nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match="are all frozen"):
        Sgd([nn.Parameter(torch.ones(1), requires_grad=False)], learning_rate=0.1, weight_decay=0.0)
    for settings in ({"learning_rate": -1.0}, {"weight_decay": -1.0}, {"momentum": 1.0}):
        with pytest.raises(ValueError, match="must hold, but got"):
            Sgd([weight], **{"learning_rate": 0.1, "weight_decay": 0.0, **settings})
