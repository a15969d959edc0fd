"""Algorithm 1: against a loop version, by hand, and on names that are wrong on purpose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from captune.equations.mismatch import MismatchReport, detect_mismatch, mismatch_threshold
from tests.reference.mismatching import algorithm_one

FEATURES = Path(__file__).parents[3] / "shared" / "data" / "features" / "caltech101_59.npz"


def blobs(seed: int, sizes: list[int], width: int = 24, noise: float = 0.35) -> tuple[Tensor, Tensor, Tensor]:
    """Images around class directions, those directions, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.nn.functional.normalize(torch.randn(len(sizes), width, generator=generator), dim=1)
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    images = means[labels] + noise * torch.randn(len(labels), width, generator=generator) / width**0.5
    return torch.nn.functional.normalize(images, dim=1), means, labels


def farthest_first(features: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """A clustering without randomness: centres far apart, then three rounds of means."""
    chosen = [0]
    for _ in range(n - 1):
        chosen.append(int((features @ features[chosen].T).amax(1).argmin()))
    centres = features[chosen]
    for _ in range(3):
        labels = (features @ centres.T).argmax(1)
        centres = torch.stack([features[labels == j].mean(0) if (labels == j).any() else centres[j] for j in range(n)])
    return labels, centres


def test_threshold_is_a_tenth_rounded_up() -> None:
    assert [mismatch_threshold(k) for k in (1, 10, 11, 47, 1000)] == [1, 1, 2, 5, 100]


def test_one_round_by_hand() -> None:
    # Two classes on two axes, six images, quota 3. The clusters are given: images 0-2 and 3-5.
    images = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.3], [0.1, 1.0], [0.0, 1.0], [0.7, 0.6]])
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]])

    def cluster(features: Tensor, n: int) -> tuple[Tensor, Tensor]:
        if n == 2:
            return torch.tensor([0, 0, 1, 1, 1, 1]), torch.tensor([[1.0, 0.0], [0.3, 0.9]])
        return torch.zeros(len(features), dtype=torch.long), features.mean(0, keepdim=True)

    report = detect_mismatch(images, texts, logit_scale=10, threshold=1, cluster=cluster)
    # cos: class 0 = (1, .316), class 1 = (0, .949). Differences .684 and .949: class 1 with cluster 1 is surest.
    # Its images by confidence: 4, 3 (image 5 is nearer to class 0). Nobody else is predicted as class 1.
    assert report.removal_order == [1]
    assert report.chosen_cluster == [1]
    assert report.assigned == {0: [], 1: [4, 3]}
    assert report.num_removed == [2]
    assert report.candidates == [0]
    # Zero-shot predicts class 0 four times and class 1 twice: the candidate is not the rarest.
    assert report.zero_shot_counts == [4, 2]
    assert report.mismatched == []
    # Images 0, 1, 2 and 5 are left, and clustered once more.
    left = torch.nn.functional.normalize(images[[0, 1, 2, 5]], dim=1).mean(0)
    torch.testing.assert_close(report.centres[0], left / left.norm())
    assert report.cluster_similarity[0] == pytest.approx((left[0] / left.norm()).item())


def test_images_outside_the_cluster_fill_the_quota_after_those_inside() -> None:
    # All are predicted as class 0, quota 5 // 1 = 5 with one class; inside cluster 1 first, whatever the confidence.
    images = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.5, 0.5], [0.4, 0.5], [0.99, 0.0]])

    def cluster(features: Tensor, n: int) -> tuple[Tensor, Tensor]:
        return torch.tensor([5, 5, 0, 0, 5]), features[:1]

    report = detect_mismatch(images, torch.tensor([[1.0, 0.0]]), logit_scale=1, threshold=0, cluster=cluster)
    # One class left: every confidence is 1, so the order is cluster, then falling index.
    assert report.assigned[0] == [3, 2, 4, 1, 0]
    assert report.candidates == []
    assert report.mismatched == []


@pytest.mark.parametrize("logit_scale", [1.0, 20.0, 100.0])
@pytest.mark.parametrize("threshold", [0, 1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_detection_equals_the_loops(seed: int, threshold: int, logit_scale: float) -> None:
    images, texts, _ = blobs(seed, [9, 14, 6, 11, 8, 12, 3], noise=0.8)
    report = detect_mismatch(images, texts, logit_scale=logit_scale, threshold=threshold, cluster=farthest_first)
    expected = algorithm_one(images, texts, logit_scale, threshold, farthest_first)
    assert report.removal_order == expected["order"]
    assert report.chosen_cluster == expected["clusters"]
    assert [report.assigned[label] for label in report.removal_order] == expected["taken"]
    assert report.candidates == expected["left"]


def test_saturated_confidences_tie_and_the_lowest_class_is_taken_first() -> None:
    # At s = 1e4 every class is certain of its cluster: the order is that of the classes.
    images, texts, _ = blobs(0, [10] * 6)
    report = detect_mismatch(images, texts, logit_scale=1e4, threshold=0, cluster=farthest_first)
    assert report.removal_order == [0, 1, 2, 3, 4, 5]


def check_books(report: MismatchReport, num_images: int, num_classes: int) -> None:
    taken = [image for images in report.assigned.values() for image in images]
    assert len(taken) == len(set(taken)) == sum(report.num_removed)
    assert all(0 <= image < num_images for image in taken)
    assert max(report.num_removed, default=0) <= num_images // num_classes
    assert sorted(report.removal_order + report.candidates) == list(range(num_classes))
    assert set(report.centres) == set(report.candidates) == set(report.cluster_similarity)
    assert sum(report.zero_shot_counts) == num_images
    for centre in report.centres.values():
        assert centre.norm().item() == pytest.approx(1, abs=1e-5)


def test_a_class_with_a_wrong_name_is_found_and_left_with_its_own_images() -> None:
    images, texts, labels = blobs(1, [20] * 10)
    wrong = texts.clone()
    wrong[6] = torch.nn.functional.normalize(torch.randn(24, generator=torch.Generator().manual_seed(9)), dim=0)
    report = detect_mismatch(images, wrong, logit_scale=20)
    check_books(report, 200, 10)
    assert report.mismatched == [6]
    own = torch.nn.functional.normalize(images[labels == 6].mean(0), dim=0)
    assert (report.centres[6] @ own).item() > 0.95


def test_default_clustering_is_repeatable() -> None:
    images, texts, _ = blobs(2, [12] * 8, noise=1.0)
    first, second = (detect_mismatch(images, texts, logit_scale=50, seed=3) for _ in range(2))
    assert first.removal_order == second.removal_order
    assert first.assigned == second.assigned


def test_default_clustering_permutes_nothing_but_labels() -> None:
    images, texts, _ = blobs(3, [15] * 8, noise=0.3)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    plain = detect_mismatch(images, texts, logit_scale=20, threshold=2)
    permuted = detect_mismatch(images, texts[order], logit_scale=20, threshold=2)
    assert [int(order[label]) for label in permuted.removal_order] == plain.removal_order


@pytest.mark.parametrize(("num_images", "num_classes"), [(1, 1), (3, 8), (8, 8), (25, 8)])
@pytest.mark.parametrize("threshold", [None, 0, 99])
def test_small_pools_are_taken_as_they_are(num_images: int, num_classes: int, threshold: int | None) -> None:
    images, texts, _ = blobs(0, [4] * 8)
    report = detect_mismatch(images[:num_images], texts[:num_classes], logit_scale=100, threshold=threshold)
    check_books(report, num_images, num_classes)


def test_identical_images_end_without_a_warning() -> None:
    report = detect_mismatch(torch.ones(30, 4), torch.randn(5, 4), logit_scale=100, threshold=0)
    check_books(report, 30, 5)


def test_large_pools_use_mini_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    import captune.equations.mismatch as module

    def never(**_: object) -> None:
        raise AssertionError("full k-means past the limit")

    monkeypatch.setattr(module, "MANY_IMAGES", 1)
    monkeypatch.setattr(module, "KMeans", never)
    images, texts, _ = blobs(1, [30] * 6)
    report = detect_mismatch(images, texts, logit_scale=20, threshold=1)
    check_books(report, 180, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"logit_scale": 0.0}, "0 < logit_scale"),
        ({"threshold": -1}, "0 <= threshold"),
        ({"image_features_ND": torch.zeros(0, 4)}, "1 <= N and 1 <= K"),
        ({"text_features_KD": torch.ones(3, 5)}, "text_features_KD must have shape \\[K, D\\] with D=4"),
        ({"image_features_ND": torch.full((5, 4), float("nan"))}, "finite features"),
    ],
)
def test_wrong_arguments_say_what_must_hold(arguments: dict, message: str) -> None:
    fine = {"image_features_ND": torch.ones(5, 4), "text_features_KD": torch.ones(3, 4), "logit_scale": 100.0}
    with pytest.raises(ValueError, match=message):
        detect_mismatch(**{**fine, **arguments})


@pytest.mark.skipif(not FEATURES.is_file(), reason="the precomputed Caltech features are not beside this checkout")
def test_wrong_names_among_real_features_are_mostly_found() -> None:
    stored = np.load(FEATURES)
    images = torch.from_numpy(stored["image_features"]).float()[stored["split"] == "test"]
    texts = torch.from_numpy(stored["text_features"]).float()
    wrong = [5, 20, 33]
    generator = torch.Generator().manual_seed(0)
    # Names of nothing in the pool: mixtures of all texts, so that they stay in CLIP's narrow cone of text features.
    texts[wrong] = torch.rand(3, len(texts), generator=generator) @ texts / len(texts)
    report = detect_mismatch(images, texts, logit_scale=100)
    check_books(report, len(images), len(texts))
    assert len(set(wrong) & set(report.mismatched)) >= 2
