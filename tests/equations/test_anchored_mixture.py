"""The text-anchored mixture: text counts as some images of every class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from captune.equations.anchored_mixture import AnchoredMixture, fit_anchored_mixture
from tests.reference import anchored as reference
from tests.slow import in_one_test

SCALE = 6.0


def clouds(sizes: tuple[int, ...], seed: int = 0, width: int = 6, noise: float = 0.25) -> tuple[Tensor, Tensor, Tensor]:
    """Features around unit vectors, their labels, and texts that stand somewhat off."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    centres = torch.eye(len(sizes), width).double()
    features = centres[labels] + noise * torch.randn(len(labels), width, generator=generator).double()
    texts = centres + 0.35 * torch.randn(len(sizes), width, generator=generator).double()
    return torch.nn.functional.normalize(features, dim=1), labels, torch.nn.functional.normalize(texts, dim=1)


def logits(mixture: AnchoredMixture, features: Tensor) -> Tensor:
    return features @ mixture.weights_KD.double().T + mixture.bias_K.double()


@in_one_test("num_labelled", [0, 2])
@in_one_test("closed", [False, True])
@in_one_test(("kappa", "pool_prior", "num_steps"), [(None, True, 3), (5.0, False, 2), (None, True, 1)])
def test_the_fit_equals_the_loops(
    num_labelled: int, closed: bool, kappa: float | None, pool_prior: bool, num_steps: int
) -> None:
    features, _, texts = clouds((7, 5, 3))
    labelled = [(features[row].numpy() + 0.02, label) for row, label in ((0, 0), (13, 2))][:num_labelled]
    open_classes = [True, True, not closed]
    mixture = fit_anchored_mixture(
        features,
        texts,
        logit_scale=SCALE,
        open_K=torch.tensor(open_classes),
        labelled_features_MD=torch.tensor(np.array([v for v, _ in labelled])).reshape(-1, 6),
        labels_M=torch.tensor([label for _, label in labelled], dtype=torch.long),
        text_images=kappa,
        pool_prior=pool_prior,
        num_steps=num_steps,
    )
    expected, prior, used, _ = reference.fit(
        features.numpy(), texts.numpy(), SCALE, open_classes=open_classes, labelled=labelled, kappa=kappa,
        pool_prior=pool_prior, shrinkage=0.5, num_steps=num_steps,
    )  # fmt: skip
    ours = logits(mixture, features).numpy()
    centred = [values - values.mean(1, keepdims=True) for values in (ours, expected)]
    np.testing.assert_allclose(*centred, atol=2e-4)
    np.testing.assert_allclose(mixture.prior_K.numpy(), prior, atol=1e-5)
    assert mixture.text_images == pytest.approx(used, rel=1e-5)


def test_text_that_counts_for_countless_images_is_zero_shot() -> None:
    features, _, texts = clouds((20, 10, 5))
    mixture = fit_anchored_mixture(features, texts, logit_scale=SCALE, text_images=1e9)
    zero_shot = (SCALE * features @ texts.T).log_softmax(1)
    torch.testing.assert_close(logits(mixture, features).log_softmax(1), zero_shot, atol=1e-4, rtol=0)


def test_a_class_without_an_image_keeps_its_text() -> None:
    """With n_k = 0 the text's share is 1: the class's logit is s·v·(t_k - t̄), up to what all classes share."""
    features, labels, texts = clouds((30, 30, 0))
    open_K = torch.tensor([True, True, False])
    mixture = fit_anchored_mixture(features, texts, logit_scale=SCALE, open_K=open_K)
    text = SCALE * (texts - texts.mean(0))[2]
    # The other classes' weights share an offset of Sigma⁻¹c with it only through the centre: compare directions.
    torch.testing.assert_close(mixture.weights_KD[2].double(), text, atol=1e-4, rtol=0)
    assert bool((logits(mixture, features)[:, :2].argmax(1) == labels).double().mean() > 0.9)


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_images_right_a_text_that_leans_on_its_neighbour(seed: int) -> None:
    features, labels, texts = clouds((60, 60, 60), seed=seed, noise=0.2)
    texts[0] = torch.nn.functional.normalize(texts[0] + 1.2 * texts[1], dim=0)
    zero_shot = float(((features @ texts.T).argmax(1) == labels).double().mean())
    mixture = fit_anchored_mixture(features, texts, logit_scale=SCALE)
    righted = float((logits(mixture, features).argmax(1) == labels).double().mean())
    assert zero_shot < righted - 0.01 and righted > 0.95


def test_the_pools_shares_are_found() -> None:
    features, _, texts = clouds((90, 30, 6), noise=0.15)
    prior_K = fit_anchored_mixture(features, texts, logit_scale=SCALE).prior_K
    torch.testing.assert_close(prior_K, torch.tensor([91.0, 31.0, 7.0]) / 129, atol=0.03, rtol=0)


def test_classes_in_another_order_get_the_same_in_that_order() -> None:
    features, _, texts = clouds((20, 10, 5))
    order = torch.tensor([2, 0, 1])
    plain = fit_anchored_mixture(features, texts, logit_scale=SCALE)
    turned = fit_anchored_mixture(features, texts[order], logit_scale=SCALE)
    torch.testing.assert_close(turned.weights_KD, plain.weights_KD[order], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(turned.prior_K, plain.prior_K[order], atol=1e-5, rtol=0)


def test_fewer_images_than_dimensions_stay_finite() -> None:
    features, _, texts = clouds((2, 1, 1), width=12)
    mixture = fit_anchored_mixture(features, texts, logit_scale=100.0)
    assert bool(torch.isfinite(logits(mixture, features)).all())


@pytest.mark.parametrize(
    ("values", "message"),
    [({"shrinkage": 0.0}, "0 < shrinkage"), ({"text_images": 0.0}, "0 < text_images"), ({"num_steps": 0}, "num_steps")],
)
def test_values_out_of_range_are_refused(values: dict[str, float], message: str) -> None:
    features, _, texts = clouds((3, 3, 3))
    with pytest.raises(ValueError, match=message):
        fit_anchored_mixture(features, texts, logit_scale=1.0, **values)  # type: ignore[arg-type]
