"""Label propagation over a graph of texts and images (ZLaP)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from captune.equations.label_propagation import propagate_labels
from tests.equations.test_anchored_mixture import clouds

REAL = Path(__file__).parents[3] / "shared" / "data" / "features"


def slow(
    images: Tensor, texts: Tensor, n: int, gamma: float, alpha: float, labels: list[int], allowed: set[int]
) -> Tensor:
    """The whole graph, pair by pair, and its inverse; labels of images are -1 where there is none."""
    count, num_classes = len(images), len(texts)
    graph = torch.zeros(count + num_classes, count + num_classes, dtype=torch.double)

    def may(i: int, label: int) -> bool:
        return labels[i] >= 0 or label in allowed

    for i in range(count):
        others = [
            j
            for j in range(count)
            if j != i
            and may(i, labels[j] if labels[j] >= 0 else next(iter(allowed)))
            and (labels[j] >= 0 or labels[i] < 0 or labels[i] in allowed)
        ]
        nearest = sorted(others, key=lambda j: -float(images[i] @ images[j]))[:n]
        names = sorted((k for k in range(num_classes) if may(i, k)), key=lambda k: -float(images[i] @ texts[k]))[:n]
        for j, cosine in [(j, float(images[i] @ images[j])) for j in nearest] + [
            (count + k, float(images[i] @ texts[k])) for k in names
        ]:
            weight = max(cosine, 0.0) ** gamma
            graph[i, j] += weight
            graph[j, i] += weight
    degree = [float(row.sum()) for row in graph]
    for i in range(len(graph)):
        for j in range(len(graph)):
            if graph[i, j]:
                graph[i, j] /= math.sqrt(degree[i] * degree[j])
    seeds = torch.zeros(len(graph), num_classes, dtype=torch.double)
    for i, label in enumerate(labels):
        if label >= 0:
            seeds[i, label] = 1
    for k in range(num_classes):
        seeds[count + k, k] = 1
    return torch.linalg.solve(torch.eye(len(graph), dtype=torch.double) - alpha * graph, seeds)


def test_one_image_between_two_texts_by_hand() -> None:
    """Cosines 0.8 and 0.6, gamma 1: degrees 1.4, 0.8, 0.6, so ties √(0.8/1.4) and √(0.6/1.4). With alpha = ½ the
    image's scores are ½·tie/(1 - ¼·(0.8 + 0.6)/1.4) = tie·⅔.
    """
    image = torch.tensor([[0.8, 0.6]])
    scores, _ = propagate_labels(image, torch.eye(2), gamma=1.0, alpha=0.5)
    expected = torch.tensor([[math.sqrt(0.8 / 1.4), math.sqrt(0.6 / 1.4)]], dtype=torch.double) * 2 / 3
    torch.testing.assert_close(scores, expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9])
def test_it_is_the_inverse_of_the_whole_graph(alpha: float) -> None:
    images, _, texts = clouds((6, 5, 4))
    images, texts = images.double(), texts.double()
    scores, _ = propagate_labels(images, texts, num_neighbors=3, gamma=4.0, alpha=alpha)
    expected = slow(images, texts, 3, 4.0, alpha, [-1] * len(images), set(range(len(texts))))
    torch.testing.assert_close(scores, expected[: len(images)], atol=1e-8, rtol=0)


def test_labelled_images_are_seeds_and_closed_classes_stay_apart() -> None:
    """As in trzsl: the pool may be of classes 1 and 2, the labelled images are of class 0."""
    images, labels, texts = clouds((6, 5, 4))
    images, texts = images.double(), texts.double()
    known = labels == 0
    scores, _ = propagate_labels(
        images[~known], texts, open_K=torch.tensor([False, True, True]), num_neighbors=3, gamma=4.0, alpha=0.5,
        labelled_features_MD=images[known], labels_M=labels[known],
    )  # fmt: skip
    order = torch.cat([images[~known], images[known]])
    given = [-1] * int((~known).sum()) + [0] * int(known.sum())
    expected = slow(order, texts, 3, 4.0, 0.5, given, {1, 2})
    torch.testing.assert_close(scores[:, 1:], expected[: len(scores), 1:], atol=1e-8, rtol=0)
    assert torch.equal(scores[:, 0], torch.zeros(len(scores), dtype=torch.double))


def test_another_image_gets_what_a_row_of_its_own_would() -> None:
    images, _, texts = clouds((6, 5, 4))
    images, texts = images.double(), texts.double()
    _, graph = propagate_labels(images[1:], texts, num_neighbors=3, gamma=4.0, alpha=0.5)
    whole = slow(images[1:], texts, 3, 4.0, 0.5, [-1] * (len(images) - 1), {0, 1, 2})
    degrees = torch.cat([graph.reach_MK, graph.text_reach_KK]) / whole
    cosines = torch.cat([images[:1] @ images[1:].T, images[:1] @ texts.T], dim=1)[0].clamp(min=0) ** 4.0
    near = cosines[: len(images) - 1].topk(3).indices.tolist() + [len(images) - 1 + k for k in range(3)]
    expected = sum(cosines[j] * degrees[j] * whole[j] for j in near)
    torch.testing.assert_close(graph.scores(images[:1])[0], expected, atol=1e-8, rtol=0)


def test_permuting_classes_and_images_permutes_the_scores() -> None:
    images, _, texts = clouds((6, 5, 4))
    plain, _ = propagate_labels(images, texts)
    rows, columns = torch.randperm(len(images)), torch.randperm(len(texts))
    moved, _ = propagate_labels(images[rows], texts[columns])
    torch.testing.assert_close(moved, plain[rows][:, columns], atol=1e-9, rtol=0)


def test_values_out_of_range_are_refused() -> None:
    images, _, texts = clouds((2, 2))
    with pytest.raises(ValueError, match="0 <= alpha < 1"):
        propagate_labels(images, texts, alpha=1.0)


@pytest.mark.skipif(not REAL.exists(), reason=f"no feature files at {REAL}")
def test_real_aerial_scenes_gain(tmp_path: Path) -> None:
    """WHU-RS19, tft: zero-shot has 75.6 %."""
    with np.load(REAL / "whu19.npz") as archive:
        test = archive["split"].astype(str) == "test"
        images, texts, labels = (
            torch.from_numpy(archive["image_features"][test]).float(),
            torch.from_numpy(archive["text_features"]).float(),
            torch.from_numpy(archive["labels"][test].astype(np.int64)),
        )
    scores, graph = propagate_labels(images, texts)
    assert (scores.argmax(1) == labels).float().mean() > 0.82
    # Each image left to the graph of all (its own row among its neighbours) says nearly the same.
    assert (graph.scores(images.double()).argmax(1) == scores.argmax(1)).float().mean() > 0.95
