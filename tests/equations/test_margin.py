"""The calibrated margin: both forms against hand-worked cases and loops, and every degenerate case."""

from __future__ import annotations

import pytest
import torch

from captune.equations.confusion import class_similarity
from captune.equations.margin import calibrated_margin
from tests.reference import losses as reference
from tests.slow import in_one_test

FORMS = ["published", "paper"]


def similarity(num_classes: int, seed: int = 0) -> torch.Tensor:
    features = torch.randn(num_classes, 16, generator=torch.Generator().manual_seed(seed)) + 1
    return class_similarity(features, torch.zeros_like(features))


def test_published_form_by_hand() -> None:
    # r = (1, 1/2, 0), max - min = 1, Δ = 12; (1 - r)/(1 + r) = (0, 1/3, 1); so rows are 0, 4·S and 12·S.
    s = torch.tensor([[1.0, 0.5, 0.2], [0.5, 1.0, 0.3], [0.2, 0.3, 1.0]])
    margin = calibrated_margin(s, torch.tensor([20, 10, 0]), scale=12)
    torch.testing.assert_close(margin, torch.tensor([[0.0, 0.0, 0.0], [2.0, 4.0, 1.2], [2.4, 3.6, 12.0]]))


def test_paper_form_by_hand() -> None:
    # δ = (0, 1/2, 3/4), Δ = 3/4; m·Δ·δ = 12·(3/4)·(0, 1/2, 3/4) = (0, 4.5, 6.75).
    s = torch.tensor([[1.0, 0.5, 0.2], [0.5, 1.0, 0.4], [0.2, 0.4, 1.0]])
    margin = calibrated_margin(s, torch.tensor([20, 10, 5]), scale=12, form="paper")
    torch.testing.assert_close(margin, torch.tensor([[0.0, 0.0, 0.0], [2.25, 4.5, 1.8], [1.35, 2.7, 6.75]]))


def test_seen_classes_count_as_fully_predicted() -> None:
    # Class 0 is seen: r = 1 whatever its count. r = (1, 1, 1/4): (1 - r)/(1 + r) = (0, 0, .6), Δ = .75·10 = 7.5: 4.5·S.
    s = torch.tensor([[1.0, 0.5, 0.2], [0.5, 1.0, 0.4], [0.2, 0.4, 1.0]])
    member = torch.tensor([False, True, True])
    margin = calibrated_margin(s, torch.tensor([0, 8, 2]), scale=10, pseudolabelled_K=member)
    torch.testing.assert_close(margin, torch.tensor([[0.0, 0, 0], [0, 0, 0], [0.9, 1.8, 4.5]]))


@in_one_test("form", FORMS)
@in_one_test("with_seen", [False, True])
@in_one_test("seed", range(5))
def test_both_forms_equal_the_loops(seed: int, with_seen: bool, form: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 40, (9,), generator=generator).float()
    member = torch.rand(9, generator=generator) < 0.6 if with_seen else None
    s = similarity(9, seed)
    margin = calibrated_margin(s, counts, scale=12, pseudolabelled_K=member, form=form)
    expected = reference.margin(s.tolist(), counts.tolist(), 12, form, None if member is None else member.tolist())
    torch.testing.assert_close(margin, torch.tensor(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("counts", [[7, 7, 7, 7], [0, 0, 0, 0]])
def test_margin_is_zero_when_counts_are_equal_or_zero(counts: list[int], form: str) -> None:
    margin = calibrated_margin(similarity(4), torch.tensor(counts), scale=12, form=form)
    torch.testing.assert_close(margin, torch.zeros(4, 4), atol=0, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_margin_of_one_class_is_zero(form: str) -> None:
    assert calibrated_margin(torch.ones(1, 1), torch.tensor([3]), scale=12, form=form).item() == 0


@pytest.mark.parametrize("form", FORMS)
def test_only_a_constant_row_has_no_margin(form: str) -> None:
    s = similarity(3)
    s[2] = 0.7
    margin = calibrated_margin(s, torch.tensor([9, 3, 0]), scale=12, form=form)
    assert margin[2].abs().max() == 0
    assert margin[1].min() > 0


@pytest.mark.parametrize("form", FORMS)
def test_identical_classes_are_a_constant_row_in_spite_of_rounding(form: str) -> None:
    features = torch.randn(1, 512, generator=torch.Generator().manual_seed(0)).repeat(5, 1)
    s = class_similarity(features * torch.tensor([[1.0], [3.0], [7.0], [0.1], [11.0]]), features)
    margin = calibrated_margin(s, torch.tensor([9, 3, 0, 1, 2]), scale=12, form=form)
    assert margin.abs().max() == 0


@in_one_test("form", FORMS)
@in_one_test("factor", [1e-30, 1e-6, 1.0, 1e6, 1e30])
def test_margin_depends_on_shares_not_on_the_size_of_counts(factor: float, form: str) -> None:
    counts = torch.tensor([4.0, 2.0, 1.0, 0.0])
    margin = calibrated_margin(similarity(4), counts * factor, scale=12, form=form)
    torch.testing.assert_close(margin, calibrated_margin(similarity(4), counts, scale=12, form=form))


@pytest.mark.parametrize("form", FORMS)
def test_margin_permutes_with_the_classes(form: str) -> None:
    s, counts, order = similarity(6), torch.tensor([5, 1, 9, 0, 3, 2]), torch.tensor([3, 0, 5, 1, 4, 2])
    margin = calibrated_margin(s, counts, scale=12, form=form)
    permuted = calibrated_margin(s[order][:, order], counts[order], scale=12, form=form)
    torch.testing.assert_close(permuted, margin[order][:, order])


def test_low_precision_similarity_is_computed_in_float32() -> None:
    s = similarity(5)
    counts = torch.tensor([5, 1, 9, 0, 3])
    margin = calibrated_margin(s.bfloat16(), counts, scale=12)
    assert margin.dtype == torch.float32
    torch.testing.assert_close(margin, calibrated_margin(s.bfloat16().float(), counts, scale=12))


@in_one_test(
    ("arguments", "message"),
    [
        ({"form": "thesis"}, "form in"),
        ({"scale": -1.0}, "0 <= scale"),
        ({"counts_K": torch.tensor([1.0, -1.0, 0.0])}, "0 <= counts_K"),
        ({"counts_K": torch.tensor([1.0, float("nan"), 0.0])}, "0 <= counts_K"),
        ({"counts_K": torch.ones(4)}, "counts_K must have shape \\[K\\] with K=3, but got shape \\[4\\]"),
        ({"similarity_KK": torch.full((3, 3), float("nan"))}, "finite similarity_KK"),
        ({"similarity_KK": torch.ones(3, 4)}, "similarity_KK must have shape"),
    ],
)
def test_wrong_arguments_say_what_must_hold(arguments: dict, message: str) -> None:
    fine = {"similarity_KK": similarity(3), "counts_K": torch.ones(3), "scale": 12.0}
    with pytest.raises(ValueError, match=message):
        calibrated_margin(**{**fine, **arguments})
