"""Similarity of classes from features and from predictions."""

from __future__ import annotations

import pytest
import torch

from captune.equations.confusion import (
    class_similarity,
    confusion_sums,
    confusion_to_similarity,
    soft_confusion,
)
from captune.equations.margin import calibrated_margin
from tests.reference import losses as reference


def random_predictions(seed: int, num_images: int, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    probs = (2 * torch.randn(num_images, num_classes, generator=generator)).softmax(dim=1)
    return probs, probs.argmax(dim=1)


def test_similarity_is_the_larger_of_the_two_cosines() -> None:
    # cos(t0, t1) = 0; cos(v0, v1) = 0.6 (3-4-5).
    text = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    prototypes = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    torch.testing.assert_close(class_similarity(text, prototypes), torch.tensor([[1.0, 0.6], [0.6, 1.0]]))


def test_a_class_without_prototype_is_represented_by_its_text() -> None:
    text = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    prototypes = torch.tensor([[0.6, 0.8], [0.0, 0.0]])
    # v0·t1 = 0.8 stands in for v0·v1, and is larger than t0·t1 = 0.
    torch.testing.assert_close(class_similarity(text, prototypes), torch.tensor([[1.0, 0.8], [0.8, 1.0]]))


def test_similarity_is_full_precision_under_autocast_and_for_low_precision_features() -> None:
    text = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    prototypes = torch.randn(6, 64, generator=torch.Generator().manual_seed(1))
    plain = class_similarity(text, prototypes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(class_similarity(text, prototypes), plain, atol=0, rtol=0)
    assert class_similarity(text.bfloat16(), prototypes).dtype == torch.float32


def test_soft_confusion_by_hand() -> None:
    probs = torch.tensor([[0.6, 0.3, 0.1], [0.8, 0.1, 0.1], [0.4, 0.5, 0.1]])
    # C_0 = (.7, .2, .1), C_1 = (.4, .5, .1), C_2 = 0 (never predicted).
    # Symmetrised off the diagonal: 01: .3, 02: .05, 12: .05. Row maxima .3, .3, .05.
    expected = torch.tensor([[0, 1, 1 / 6], [1, 0, 1 / 6], [1, 1, 0]])
    torch.testing.assert_close(soft_confusion(probs, torch.tensor([0, 0, 1]), 3), expected)


@pytest.mark.parametrize("seed", range(4))
def test_soft_confusion_equals_the_loops(seed: int) -> None:
    probs, labels = random_predictions(seed, 40, 7)
    expected = torch.tensor(reference.confusion(probs.tolist(), labels.tolist(), 7))
    torch.testing.assert_close(soft_confusion(probs, labels, 7), expected, atol=1e-5, rtol=1e-5)


def test_confusion_adds_up_over_batches() -> None:
    probs, labels = random_predictions(3, 60, 5)
    parts = [confusion_sums(probs[at : at + 20], labels[at : at + 20], 5) for at in (0, 20, 40)]
    sums = torch.stack([part[0] for part in parts]).sum(0)
    counts = torch.stack([part[1] for part in parts]).sum(0)
    torch.testing.assert_close(confusion_to_similarity(sums, counts), soft_confusion(probs, labels, 5))


def test_soft_confusion_permutes_with_the_classes() -> None:
    probs, labels = random_predictions(1, 50, 6)
    order = torch.tensor([2, 0, 5, 1, 4, 3])
    permuted = soft_confusion(probs[:, order], order.argsort()[labels], 6)
    torch.testing.assert_close(permuted, soft_confusion(probs, labels, 6)[order][:, order])


def test_no_predictions_or_certain_ones_give_no_margin_and_no_nan() -> None:
    for probs, labels in [
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)),
        (torch.eye(3), torch.arange(3)),
    ]:
        s = soft_confusion(probs, labels, 3)
        assert s.abs().max() == 0
        assert calibrated_margin(s, torch.tensor([5, 1, 0]), scale=12).abs().max() == 0


def test_two_classes_can_be_confused() -> None:
    s = soft_confusion(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([0, 0]), 2)
    torch.testing.assert_close(s, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert calibrated_margin(s, torch.tensor([2, 0]), scale=12)[1, 0] == 12


def test_columns_must_be_the_classes() -> None:
    with pytest.raises(ValueError, match="K == num_classes"):
        soft_confusion(torch.rand(4, 3), torch.zeros(4, dtype=torch.long), 5)
