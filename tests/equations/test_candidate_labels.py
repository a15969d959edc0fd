"""Candidate pseudolabels: sets, balanced selection, the partial-label loss."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from captune.equations.candidate_labels import balanced_selection, candidate_sets, partial_label_loss
from tests.reference import pseudolabelling as reference
from tests.slow import in_one_test


def pool(seed: int, num_images: int = 40, num_classes: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(num_images, num_classes, generator=generator)).softmax(1)


@in_one_test("seed", range(3))
@in_one_test(("alpha", "beta"), [(0.0, 0.0), (0.75, 0.6), (0.5, 0.9), (1.0, 1.0)])
def test_sets_and_selection_equal_the_loops(seed: int, alpha: float, beta: float) -> None:
    probs = pool(seed)
    sets = candidate_sets(probs, intra_quantile=alpha, inter_quantile=beta)
    expected = reference.candidates(probs.tolist(), alpha, beta, range(5))
    assert [set(row.nonzero()[:, 0].tolist()) for row in sets] == expected
    for size in (0, 1, 4, 100):
        assert balanced_selection(probs, sets, size) == reference.accept(probs.tolist(), expected, size)


def test_sets_by_hand() -> None:
    # Largest probabilities .6, .5, .9: their median is .6. Row 1: .6 <= .6, so its second class (.3) comes along;
    # row 2: .5, .4 (sum .9 passes .6); row 3: .9 passes at once. Medians of the columns: .5, .3, .1.
    probs = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.05, 0.05, 0.9]])
    sets = candidate_sets(probs, intra_quantile=0.5, inter_quantile=0.5)
    assert sets.tolist() == [[True, True, False], [True, True, False], [False, False, True]]


def test_an_image_turned_away_counts_under_its_next_candidate() -> None:
    # One place a class: both want class 0; the surer image 0 gets it, image 1 goes to its second wish.
    probs = torch.tensor([[0.9, 0.1], [0.6, 0.4]])
    assert balanced_selection(probs, torch.ones(2, 2, dtype=torch.bool), 1) == [0, 1]
    assert balanced_selection(probs, torch.tensor([[True, False], [True, False]]), 1) == [0]


@pytest.mark.parametrize("seed", range(3))
def test_selection_does_not_depend_on_the_order_of_classes(seed: int) -> None:
    probs = pool(seed)
    sets = candidate_sets(probs, intra_quantile=0.8, inter_quantile=0.5)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert balanced_selection(probs, sets, 4) == balanced_selection(probs[:, order], sets[:, order], 4)


def test_with_one_candidate_the_loss_is_cross_entropy() -> None:
    logits = pool(5).log() * 3
    labels = torch.arange(len(logits)) % 5
    torch.testing.assert_close(partial_label_loss(logits, F.one_hot(labels, 5).bool()), F.cross_entropy(logits, labels))


def test_with_all_candidates_there_is_nothing_to_learn() -> None:
    logits = (pool(6).log() * 3).requires_grad_()
    loss = partial_label_loss(logits, torch.ones(40, 5, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits.grad), atol=1e-7, rtol=0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0, 1e4])
def test_gradients_are_finite_at_every_scale(scale: float) -> None:
    logits = (pool(7).log() * scale).requires_grad_()
    sets = candidate_sets(pool(7), intra_quantile=0.5, inter_quantile=0.0)
    partial_label_loss(logits, sets).backward()
    assert logits.grad is not None and bool(torch.isfinite(logits.grad).all())


def test_an_empty_batch_costs_nothing() -> None:
    assert float(partial_label_loss(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool))) == 0


def test_quantiles_out_of_range_are_errors() -> None:
    with pytest.raises(ValueError, match=r"0 <= inter_quantile <= 1 must hold, but got \(inter_quantile=1.5\)"):
        candidate_sets(pool(0), intra_quantile=0.5, inter_quantile=1.5)
