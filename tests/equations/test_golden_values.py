"""One fixed case whose numbers are on record, so that code and oracle cannot drift together."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from captune.equations.alignment import alignment_loss
from captune.equations.confusion import soft_confusion
from captune.equations.margin import calibrated_margin
from captune.equations.objective import margin_cross_entropy, self_training_loss
from captune.equations.prior import sinkhorn_bias
from captune.equations.pseudolabels import top_k_leaderboard
from captune.equations.reweighting import class_weights
from tests.golden.make_method_values import PATH, boards


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    values = json.loads(PATH.read_text())
    return {
        name: torch.tensor(value) for part in values.values() for name, value in part.items() if "boards" not in name
    }


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_margins_weights_and_losses_are_those_on_record(golden: dict[str, Any]) -> None:
    margin = calibrated_margin(golden["similarity"], golden["counts"], scale=12)
    weights = class_weights(golden["counts"], strength=0.5)
    loss, labels, mask = self_training_loss(golden["weak"], golden["strong"], margin, threshold=0.6, weights_K=weights)
    close(margin, golden["published_margin"])
    close(calibrated_margin(golden["similarity"], golden["counts"], scale=12, form="paper"), golden["paper_margin"])
    close(weights, golden["class_weights"])
    close(margin_cross_entropy(golden["strong"], labels, margin), golden["margin_loss"])
    close(loss, golden["self_training_loss"])
    assert torch.equal(labels, golden["labels"])
    assert torch.equal(mask, golden["mask"])


def test_alignment_confusion_and_priors_are_those_on_record(golden: dict[str, Any]) -> None:
    close(alignment_loss(golden["text"], golden["prototypes"], temperature=0.1), golden["alignment_loss"])
    probs = golden["weak"].softmax(dim=1)
    close(soft_confusion(probs, golden["labels"], 6), golden["soft_confusion"])
    close(sinkhorn_bias(golden["weak"], num_steps=20, tol=0), golden["sinkhorn_bias"])


@pytest.mark.parametrize("rule", ["published", "exclusive"])
def test_leaderboards_are_those_on_record(golden: dict[str, Any], rule: str) -> None:
    expected = json.loads(PATH.read_text())["outputs"][f"{rule}_boards"]
    assert boards(top_k_leaderboard(golden["scores"], 4, rule=rule)) == expected
