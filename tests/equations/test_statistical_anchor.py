"""The mixture whose means and covariance are anchored at the text's statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from captune.equations.statistical_anchor import AnchoredGaussians, fit_anchored_gaussians
from tests.equations.test_anchored_mixture import clouds
from tests.reference import anchored_gaussians as reference
from tests.slow import in_one_test

SCALE = 6.0
REAL = Path(__file__).parents[3] / "shared" / "data" / "features"


def logits(mixture: AnchoredGaussians, features: Tensor) -> Tensor:
    return features @ mixture.weights_KD.to(features.dtype).T + mixture.bias_K.to(features.dtype)


@in_one_test("num_labelled", [0, 2])
@in_one_test("closed", [False, True])
@in_one_test(("kappa", "nu", "num_steps"), [(8.0, 1.0, 3), (1.0, 0.0, 1), (2.0, 5.0, 2)])
def test_the_fit_equals_the_loops(num_labelled: int, closed: bool, kappa: float, nu: float, num_steps: int) -> None:
    features, _, texts = clouds((7, 5, 3))
    labelled = [(features[row].numpy() + 0.02, label) for row, label in ((0, 0), (13, 2))][:num_labelled]
    open_classes = [True, True, not closed]
    mixture = fit_anchored_gaussians(
        features,
        texts,
        logit_scale=SCALE,
        open_K=torch.tensor(open_classes),
        labelled_features_MD=torch.tensor(np.array([v for v, _ in labelled])).reshape(-1, 6),
        labels_M=torch.tensor([label for _, label in labelled], dtype=torch.long),
        text_images=kappa,
        covariance_images=nu,
        likelihood_weight=0.4,
        text_strength=0.7,
        num_steps=num_steps,
    )
    expected, prior, counts = reference.fit(
        features.numpy(), texts.numpy(), SCALE, open_classes=open_classes, labelled=labelled, kappa=kappa, nu=nu,
        beta=0.4, text_strength=0.7, shrinkage=0.5, num_steps=num_steps,
    )  # fmt: skip
    ours = logits(mixture, features).numpy()
    # Densities are compared up to what all classes share.
    np.testing.assert_allclose(
        ours - ours.mean(1, keepdims=True), expected - expected.mean(1, keepdims=True), atol=2e-4
    )
    np.testing.assert_allclose(mixture.prior_K.numpy(), prior, atol=1e-5)
    np.testing.assert_allclose(mixture.counts_K.numpy(), counts, atol=1e-4)


def test_a_case_by_hand() -> None:
    """One dimension after centring is hard on the unit circle; so two classes, two images, images at their own means.

    v = (1, 0), (0, 1) = t, s large: p is one-hot, v̄ = v, c = (½, ½), the covariance S is R(0) = 1e-9/2·I, and the
    anchors are m_k = c + s·S(t_k - t̄) = c up to 1e-7. With kappa = 1, n_k = 1: mu_k = c + (v_k - c)/2 = c ± (¼, -¼).
    Scatter around mu: Σ_k (v_k - mu_k)(..)ᵀ = 2·[[1, -1], [-1, 1]]/16, its off-diagonal halved by R; the anchors'
    part: Σ_k (m_k - mu_k)(..)ᵀ = 2·[[1, -1], [-1, 1]]/16. Sum = [[4, -3], [-3, 4]]/16, over N + K = 4:
    Sigma = [[4, -3], [-3, 4]]/64. On (1, -1) it has the eigenvalue 7/64, so Sigma⁻¹(mu_k - c) = ±(16/7, -16/7), and
    the two classes' logits of v_1 differ by beta·(32/7, -32/7)·(v_1 - c) = beta·32/7.
    """
    features = torch.eye(2, dtype=torch.double)
    mixture = fit_anchored_gaussians(
        features, features, logit_scale=100.0, text_images=1.0, covariance_images=0.0,
        likelihood_weight=0.5, text_strength=0.0, num_steps=1,
    )  # fmt: skip
    difference = logits(mixture, features) @ torch.tensor([1.0, -1.0], dtype=torch.double)
    torch.testing.assert_close(difference, 0.5 * 32 / 7 * torch.tensor([1.0, -1.0]).double(), atol=1e-4, rtol=0)


def test_without_likelihood_it_is_zero_shot() -> None:
    features, _, texts = clouds((20, 10, 5))
    mixture = fit_anchored_gaussians(features, texts, logit_scale=SCALE, likelihood_weight=0.0)
    torch.testing.assert_close(logits(mixture, features), SCALE * features @ texts.T, atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_images_right_a_text_that_leans_on_its_neighbour(seed: int) -> None:
    features, labels, texts = clouds((60, 60, 60), seed=seed, noise=0.2)
    texts[0] = torch.nn.functional.normalize(texts[0] + 1.2 * texts[1], dim=0)
    zero_shot = float(((features @ texts.T).argmax(1) == labels).double().mean())
    mixture = fit_anchored_gaussians(features, texts, logit_scale=SCALE, likelihood_weight=1.0, text_images=1.0)
    righted = float((logits(mixture, features).argmax(1) == labels).double().mean())
    assert zero_shot < righted - 0.01


def test_absent_classes_get_hardly_a_share() -> None:
    features, _, texts = clouds((40, 40, 0, 0), noise=0.1)
    mixture = fit_anchored_gaussians(features, texts, logit_scale=20.0)
    assert float(mixture.prior_K[2:].sum()) < 0.02 and float(mixture.prior_K[:2].min()) > 0.4


def test_classes_in_another_order_get_the_same_in_that_order() -> None:
    features, _, texts = clouds((20, 10, 5))
    order = torch.tensor([2, 0, 1])
    plain = fit_anchored_gaussians(features, texts, logit_scale=SCALE)
    turned = fit_anchored_gaussians(features, texts[order], logit_scale=SCALE)
    torch.testing.assert_close(turned.weights_KD, plain.weights_KD[order], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(turned.prior_K, plain.prior_K[order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_images", [1, 4])
def test_fewer_images_than_dimensions_stay_finite(num_images: int) -> None:
    features, _, texts = clouds((2, 1, 1), width=12)
    mixture = fit_anchored_gaussians(features[:num_images], texts, logit_scale=100.0)
    assert bool(torch.isfinite(logits(mixture, features)).all())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shrinkage": 0.0}, "0 < shrinkage"),
        ({"text_images": 0.0}, "0 < text_images"),
        ({"covariance_images": -1.0}, "0 <= covariance_images"),
        ({"likelihood_weight": -1.0}, "0 <= likelihood_weight"),
        ({"num_steps": 0}, "num_steps"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, float], message: str) -> None:
    features, _, texts = clouds((3, 3, 3))
    with pytest.raises(ValueError, match=message):
        fit_anchored_gaussians(features, texts, logit_scale=1.0, **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["whu19", "pets24"])
def test_on_real_features_it_gains_with_all_classes_and_with_ten(name: str) -> None:
    file = REAL / f"{name}.npz"
    if not file.exists():
        pytest.skip(f"{file} is not here: real features lie beside the repository, not in it")
    data = np.load(file)
    test = data["split"] == "test"
    features = torch.nn.functional.normalize(torch.tensor(data["image_features"][test].astype(np.float32)), dim=1)
    texts = torch.nn.functional.normalize(torch.tensor(data["text_features"].astype(np.float32)), dim=1)
    labels, scale = torch.tensor(data["labels"][test].astype(np.int64)), float(data["logit_scale"])
    for classes in (np.arange(len(texts)), np.random.default_rng(0).permutation(len(texts))[:10]):
        rows = torch.tensor(np.isin(labels.numpy(), classes))
        pool, truth = features[rows], labels[rows]
        mixture = fit_anchored_gaussians(pool, texts, logit_scale=scale)
        gain = float((logits(mixture, pool).argmax(1) == truth).float().mean()) - float(
            ((pool @ texts.T).argmax(1) == truth).float().mean()
        )
        assert gain > 0.01
