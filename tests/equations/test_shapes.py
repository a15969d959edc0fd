"""Shapes are read from names; cosines are computed in full precision."""

from __future__ import annotations

import pytest
import torch

from captune.equations.cosine import cosines, unit
from captune.equations.shapes import check_shapes, require


def test_sizes_are_returned_by_letter_and_none_is_passed_over() -> None:
    assert check_shapes(probs_NK=torch.zeros(4, 3), eligible_N=None, prior_K=torch.zeros(3)) == {"N": 4, "K": 3}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a_NK": torch.zeros(4)}, r"a_NK must have shape \[N, K\], but got shape \[4\]\."),
        ({"a_KK": torch.zeros(2, 3)}, r"a_KK must have shape \[K, K\], but got shape \[2, 3\]\."),
        (
            {"a_NK": torch.zeros(4, 3), "b_K": torch.zeros(5)},
            r"b_K must have shape \[K\] with K=3, but got shape \[5\]\.",
        ),
    ],
)
def test_a_shape_that_does_not_fit_its_name_is_an_error(tensors: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_shapes(**tensors)


def test_an_invariant_is_quoted_with_its_values() -> None:
    require(True, "low <= high", low=1, high=3)
    with pytest.raises(ValueError, match=r"^low <= high must hold, but got \(low=3, high=1\)\.$"):
        require(False, "low <= high", low=3, high=1)


def test_zero_vectors_stay_zero_with_finite_gradients() -> None:
    features = torch.zeros(2, 3, requires_grad=True)
    unit(features).sum().backward()
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()


def test_cosines_ignore_autocast_and_lengths() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(5, 64, generator=generator), torch.randn(4, 64, generator=generator)
    plain = torch.nn.functional.cosine_similarity(left[:, None], right[None], dim=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(cosines(7 * left, 0.01 * right), plain)
