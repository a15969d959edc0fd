"""Selection criteria on hand-worked cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from captune.decisions.neighbours import neighbour_consistency, neighbour_gain_error
from captune.training import selection


def reference(zero_shot: list[int], balanced: list[int]) -> selection.Reference:
    nobody = torch.zeros(len(zero_shot), 0, dtype=torch.long)
    return selection.Reference(torch.tensor(zero_shot), torch.tensor(balanced), nobody)


def test_agreement_counts_equal_predictions() -> None:
    probs_NK = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    scores = selection.label_free_scores(
        probs_NK,
        reference([0, 1, 1, 1], [0, 0, 1, 0]),
        strong_probs_NK=probs_NK.flip(0),
        clusters_N=np.array([5, 2, 5, 2]),
    )
    assert scores["agree-zero-shot"] == pytest.approx(0.75)
    assert scores["agree-balanced"] == pytest.approx(0.25)
    assert scores["stability"] == pytest.approx(0.0)
    assert scores["ami"] == pytest.approx(1.0)


def test_diagnostics_of_certain_and_balanced_predictions() -> None:
    scores = selection.label_free_scores(
        torch.eye(2).repeat(3, 1), reference([0] * 6, [0] * 6), strong_probs_NK=None, clusters_N=None
    )
    assert scores["entropy"] == pytest.approx(0.0)
    assert scores["infomax"] == pytest.approx(np.log(2))
    assert scores["bnm"] == pytest.approx(2 * np.sqrt(3) / 6)  # singular values √3 and √3
    assert scores["corr-c"] == pytest.approx(2 / np.sqrt(2))  # PᵀP = 3·I: trace 6, norm 3√2


def test_no_held_out_images_give_no_scores() -> None:
    assert (
        selection.label_free_scores(torch.zeros(0, 3), reference([], []), strong_probs_NK=None, clusters_N=None) == {}
    )


def test_neighbours_count_what_chance_does_not_explain() -> None:
    # Two clusters of two, each image its cluster-mate's neighbour. Predictions 0 0 1 1: o = 1, e = 1/4 + 1/4, kappa 1.
    mates_41 = torch.tensor([[1], [0], [3], [2]])
    assert neighbour_consistency(torch.tensor([0, 0, 1, 1]), mates_41, 2) == pytest.approx(1.0)
    # 0 1 0 1: never as the neighbour, o = 0, kappa (0 - 1/2) / (1/2) = -1.
    assert neighbour_consistency(torch.tensor([0, 1, 0, 1]), mates_41, 2) == pytest.approx(-1.0)
    # 0 0 1 0: o = 1/2, e = 9/16 + 1/16, kappa (1/2 - 5/8) / (3/8) = -1/3.
    assert neighbour_consistency(torch.tensor([0, 0, 1, 0]), mates_41, 2) == pytest.approx(-1 / 3)


def test_a_collapsed_model_has_no_neighbour_consistency() -> None:
    assert neighbour_consistency(torch.zeros(4, dtype=torch.long), torch.tensor([[1], [0], [3], [2]]), 2) == 0.0


def test_references_come_from_the_frozen_features() -> None:
    features_HD = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), dim=-1)
    logits_pool_NK = torch.tensor([[3.0, 0.0], [2.0, 1.0], [0.0, 5.0], [9.0, 0.0]])
    reference = selection.Reference.from_features(logits_pool_NK, features_HD)
    assert reference.zero_shot_N.tolist() == [0, 0, 1]
    assert reference.neighbours_Nk[:, 0].tolist() == [1, 0, 1]


def test_jackknife_of_the_gain_in_neighbours_against_a_loop() -> None:
    """Every image left out in turn, as a judged image and as a neighbour, against the closed form."""
    generator = torch.Generator().manual_seed(3)
    num_images, num_classes = 24, 4
    adapted_N, baseline_N = (torch.randint(num_classes, (num_images,), generator=generator) for _ in range(2))
    shifts_N2 = torch.stack([torch.randperm(num_images - 1, generator=generator)[:2] for _ in range(num_images)])
    neighbours_N2 = (torch.arange(num_images)[:, None] + 1 + shifts_N2) % num_images

    def without(left_out: int, predicted_N: torch.Tensor) -> float:
        kept = [image for image in range(num_images) if image != left_out]
        pairs = [(i, j) for i in kept for j in neighbours_N2[i].tolist() if j != left_out]
        observed = sum(predicted_N[i] == predicted_N[j] for i, j in pairs) / len(pairs)
        expected = sum((torch.sum(predicted_N[kept] == k) / len(kept)) ** 2 for k in range(num_classes))
        return float((observed - expected) / (1 - expected))

    gains = np.array([without(i, adapted_N) - without(i, baseline_N) for i in range(num_images)])
    expected = np.sqrt((num_images - 1) / num_images * ((gains - gains.mean()) ** 2).sum())
    error = neighbour_gain_error(adapted_N, baseline_N, neighbours_N2, num_classes)
    assert error == pytest.approx(expected, rel=1e-4)
    assert neighbour_gain_error(adapted_N, adapted_N, neighbours_N2, num_classes) == 0


def test_jackknife_error_is_the_spread_over_samples_of_images() -> None:
    """200 pools of 150 images of three clusters: the mean estimated error against the real spread of the gain."""
    generator = torch.Generator().manual_seed(0)
    gains, errors = [], []
    for _ in range(200):
        labels_N = torch.randint(3, (150,), generator=generator)
        distance_NN = (labels_N[:, None] != labels_N).float() + torch.rand(150, 150, generator=generator)
        neighbours_N5 = distance_NN.fill_diagonal_(9.0).topk(5, largest=False).indices
        flips = [torch.rand(150, generator=generator) < share for share in (0.1, 0.3)]
        better_N, worse_N = (torch.where(flip, (labels_N + 1) % 3, labels_N) for flip in flips)
        gains.append(
            neighbour_consistency(better_N, neighbours_N5, 3) - neighbour_consistency(worse_N, neighbours_N5, 3)
        )
        errors.append(neighbour_gain_error(better_N, worse_N, neighbours_N5, 3))
    assert np.mean(errors) == pytest.approx(np.std(gains), rel=0.25)


def test_too_few_images_have_no_jackknife() -> None:
    assert neighbour_gain_error(torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([[1], [0]]), 2) is None
