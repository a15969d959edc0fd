"""The text-initialised linear probe (CLAP)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from captune.equations.linear_probe import fit_text_initialised_probe, text_penalties
from tests.equations.test_anchored_mixture import clouds

REAL = Path(__file__).parents[3] / "shared" / "data" / "features"


def objective(weights: Tensor, features: Tensor, labels: Tensor, texts: Tensor, scale: float) -> float:
    """By loops over images and classes."""
    total = 0.0
    for v, label in zip(features, labels, strict=True):
        logits = [scale * float(v @ w) for w in weights]
        total += float(np.log(np.exp(logits).sum())) - logits[int(label)]
    total /= len(features)
    probs = (scale * features @ texts.T).softmax(1)
    for k in range(len(texts)):
        own = [float(probs[i, k]) for i in range(len(features)) if int(labels[i]) == k]
        total += sum(own) / len(own) * float((weights[k] - texts[k]).square().sum())
    return total


def test_penalties_by_hand() -> None:
    """Class 0 has images of 0.9 and 0.5, class 1 one of 0.4, class 2 none."""
    probs = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.3, 0.2], [0.5, 0.4, 0.1]])
    torch.testing.assert_close(text_penalties(probs, torch.tensor([0, 0, 1])), torch.tensor([0.7, 0.4, 0.0]))


def test_two_images_by_hand() -> None:
    """t = v = (1, 0), (0, 1), s = 1: by symmetry w_k = t_k ± a·(1, -1), and lambda = 1/(1 + e⁻¹) for both. The
    objective log(1 + e^-(1 + 2a)) + 4·lambda·a² is stationary where 2/(1 + e^(1 + 2a)) = 8·lambda·a.
    """
    eye = torch.eye(2, dtype=torch.double)
    a = float(fit_text_initialised_probe(eye, torch.tensor([0, 1]), eye, logit_scale=1.0)[0, 0]) - 1
    assert 2 / (1 + np.exp(1 + 2 * a)) == pytest.approx(8 / (1 + np.exp(-1)) * a, abs=1e-5) and a > 0.05


def test_no_step_away_from_the_solution_is_better() -> None:
    features, labels, texts = clouds((4, 3, 2))
    weights = fit_text_initialised_probe(features, labels, texts, logit_scale=6.0).double()
    best = objective(weights, features, labels, texts, 6.0)
    assert best < objective(texts, features, labels, texts, 6.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        step = 0.02 * torch.randn(weights.shape, generator=generator, dtype=torch.double)
        assert objective(weights + step, features, labels, texts, 6.0) > best


def test_classes_without_a_label_keep_their_text() -> None:
    features, labels, texts = clouds((4, 3, 2))
    rows = labels < 2
    weights = fit_text_initialised_probe(features[rows], labels[rows], texts, logit_scale=6.0)
    torch.testing.assert_close(weights[2], texts[2].float())
    nothing = fit_text_initialised_probe(features[:0], labels[:0], texts, logit_scale=6.0)
    torch.testing.assert_close(nothing, texts.float())


def test_a_heavy_penalty_is_zero_shot() -> None:
    features, labels, texts = clouds((4, 3, 2))
    weights = fit_text_initialised_probe(features, labels, texts, logit_scale=6.0, penalty=1e9)
    torch.testing.assert_close(weights, texts.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("values", "message"), [({"penalty": -1.0}, "0 <= penalty"), ({"num_steps": -1}, "num_steps")])
def test_values_out_of_range_are_refused(values: dict[str, float], message: str) -> None:
    features, labels, texts = clouds((3, 3, 3))
    with pytest.raises(ValueError, match=message):
        fit_text_initialised_probe(features, labels, texts, logit_scale=1.0, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["whu19", "semi_dtd47"])
def test_on_real_features_two_shots_gain(name: str) -> None:
    file = REAL / f"{name}.npz"
    if not file.exists():
        pytest.skip(f"{file} is not here: real features lie beside the repository, not in it")
    data = np.load(file)
    features = F.normalize(torch.tensor(data["image_features"].astype(np.float32)), dim=1)
    texts = F.normalize(torch.tensor(data["text_features"].astype(np.float32)), dim=1)
    labels, train = torch.tensor(data["labels"].astype(np.int64)), data["split"] == "train"
    shots = torch.tensor(np.concatenate([np.flatnonzero(train & (labels.numpy() == k))[:2] for k in range(len(texts))]))
    weights = fit_text_initialised_probe(
        features[shots], labels[shots], texts, logit_scale=float(data["logit_scale"]), num_steps=100
    )
    test = torch.tensor(~train)
    probe, zero_shot = (
        float(((features[test] @ w.T).argmax(1) == labels[test]).float().mean()) for w in (weights, texts)
    )
    assert probe > zero_shot + 0.02
