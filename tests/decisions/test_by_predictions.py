"""What a choice says of how its candidates were compared."""

from __future__ import annotations

import pytest
import torch

from captune.decisions.by_predictions import compared_by
from captune.decisions.evidence import Evidence, Validation

NEIGHBOURS_NK = torch.tensor([[1, 2], [0, 2], [0, 1]])


def evidence(labels_V: list[int] | None, *, unseen: bool = False) -> Evidence:
    """Three unlabelled images of two classes, beside validation images with these labels."""
    probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]])
    pool = {"zero_shot": probs, "balanced": probs}
    if labels_V is None:
        return Evidence(pool, NEIGHBOURS_NK)
    own_VK = torch.full((len(labels_V), 2), 0.5)
    labelled = Validation(dict.fromkeys(pool, own_VK), torch.tensor(labels_V).long(), torch.tensor([False, unseen]))
    return Evidence(pool, NEIGHBOURS_NK, validation=labelled)


# V labels weigh V / (V + 5), as was learned.
@pytest.mark.parametrize(("count", "weight"), [(5, "50"), (20, "80"), (2000, "99.75")])
def test_the_weight_of_validation_images_is_said(count: int, weight: str) -> None:
    said = compared_by(evidence([0, 1] * (count // 2) + [0] * (count % 2)))
    assert said.startswith(
        f"accuracy on {count} validation images (which weighs {weight} %) and their predictions on 3 "
    )
    assert "few" not in said


def test_validation_images_that_do_not_count_are_not_said_to() -> None:
    said = compared_by(evidence([0, 0, 0], unseen=True))
    assert said.startswith("their predictions on 3 unlabelled images") and "accuracy" not in said
    assert said.endswith("not on the 3 validation images, which are all of seen or all of unseen classes")
    assert "which weighs" in compared_by(evidence([0, 1], unseen=True))


@pytest.mark.parametrize("labels_V", [None, []])
def test_without_validation_images_none_are_spoken_of(labels_V: list[int] | None) -> None:
    assert "validation" not in compared_by(evidence(labels_V))
