"""The text-guided mixture (TransCLIP)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from captune.equations.transduction import fit_text_guided_mixture
from tests.reference import mixtures as reference
from tests.slow import in_one_test


def clouds(seed: int, per_class: int = 6, width: int = 4, noise: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of three clouds around unit vectors, and log-probabilities that know them vaguely."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.eye(3, width).repeat_interleave(per_class, 0)
    features = centres + noise * torch.randn(3 * per_class, width, generator=generator)
    logits = 1.5 * centres[:, :3] + torch.randn(3 * per_class, 3, generator=generator)
    return features.double(), logits.double().log_softmax(1)


def real_features(name: str, shots: int) -> tuple[torch.Tensor, ...]:
    """Some 300 test images, their zero-shot logits and labels; `shots` training images a class and their labels."""
    file = Path(__file__).parents[3] / "shared/data/features" / f"{name}.npz"
    if not file.exists():
        pytest.skip(f"no precomputed features at {file}")
    held = np.load(file)
    features = torch.from_numpy(held["image_features"]).float()
    text = torch.nn.functional.normalize(torch.from_numpy(held["text_features"]).float(), dim=1)
    labels, is_test = torch.from_numpy(held["labels"]).long(), torch.from_numpy(held["split"] == "test")
    features = torch.nn.functional.normalize(features, dim=1)
    chosen = [(labels == k).logical_and(~is_test).nonzero()[:shots, 0] for k in range(len(text))]
    rows, tested = torch.cat(chosen), is_test.nonzero()[:, 0]
    tested = tested[:: max(1, len(tested) // 300)]
    return features[tested], 100 * features[tested] @ text.T, labels[tested], features[rows], labels[rows]


@in_one_test("form", ["published", "paper"])
@in_one_test("num_labelled", [0, 2])
@in_one_test(("num_steps", "num_neighbors", "text_strength"), [(0, 3, 1.0), (1, 0, 0.5), (4, 3, 2.0)])
def test_block_updates_equal_the_loops(
    num_steps: int, num_neighbors: int, text_strength: float, num_labelled: int, form: str
) -> None:
    features, log_text = clouds(0)
    # Not images of the pool themselves: a twin would tie with its original as a neighbour.
    labelled, labels = features[[1, 13]][:num_labelled] + 0.01, torch.tensor([0, 2])[:num_labelled]
    settings = {"num_inner": 2, "num_confident": 3, "labelled_weight": 0.2, "num_steps": num_steps, "form": form}
    fitted = fit_text_guided_mixture(
        features,
        log_text,
        text_strength=text_strength,
        num_neighbors=num_neighbors,
        labelled_features_MD=labelled,
        labels_M=labels,
        **settings,  # type: ignore[arg-type]
    )
    z, means, variances = reference.fit(
        features.numpy(),
        log_text.numpy(),
        text_strength=text_strength,
        num_neighbors=num_neighbors,
        labelled=labelled.numpy(),
        labels=labels.numpy(),
        **settings,  # type: ignore[arg-type]
    )
    torch.testing.assert_close(fitted.assignments_NK, torch.from_numpy(z), atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(fitted.means_KD, torch.from_numpy(means), atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(fitted.variances_D, torch.from_numpy(variances), atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("name", ["whu19", "pets24", "caltech101_59"])
@pytest.mark.parametrize("shots", [0, 2])
def test_real_features_are_assigned_as_the_algorithm_says(name: str, shots: int) -> None:
    features, logits, labels, shot_features, shot_labels = real_features(name, shots)
    settings = {"num_neighbors": 3, "num_steps": 10, "num_inner": 5, "num_confident": 8, "labelled_weight": 0.02}
    fitted = fit_text_guided_mixture(
        features,
        logits.log_softmax(1),
        text_strength=0.5 if shots else 1.0,
        labelled_features_MD=shot_features,
        labels_M=shot_labels,
        **settings,  # type: ignore[arg-type]
    )
    z, _, _ = reference.fit(
        features.double().numpy(),
        logits.double().log_softmax(1).numpy(),
        text_strength=0.5 if shots else 1.0,
        labelled=shot_features.double().numpy(),
        labels=shot_labels.numpy(),
        **settings,  # type: ignore[arg-type]
    )
    assert float((fitted.assignments_NK.double() - torch.from_numpy(z)).abs().max()) < 1e-4
    # What the text alone gets right is what the neighbours and means add to.
    assert (fitted.assignments_NK.argmax(1) == labels).float().mean() > (
        logits.argmax(1) == labels
    ).float().mean() - 0.03


def test_the_linear_form_is_the_gaussian_log_density_up_to_a_constant() -> None:
    features, log_text = clouds(1)
    fitted = fit_text_guided_mixture(features, log_text)
    weights, bias = fitted.linear()
    probe = torch.randn(5, 4, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    density = torch.stack(
        [
            torch.distributions.Normal(mean, fitted.variances_D.sqrt()).log_prob(probe).sum(1)
            for mean in fitted.means_KD
        ],
        dim=1,
    )
    torch.testing.assert_close((probe @ weights.T + bias).softmax(1), density.softmax(1))


def test_clusters_correct_text_that_errs() -> None:
    # Every cloud has an image that the text misnames; its neighbours and the cloud's mean bring it back.
    features, _ = clouds(3, per_class=8, noise=0.1)
    labels = torch.arange(3).repeat_interleave(8)
    text = torch.full((24, 3), 0.2).scatter(1, labels[:, None], 0.6)
    for row in (0, 8, 16):
        text[row] = text[row].roll(1)
    fitted = fit_text_guided_mixture(features, text.double().log(), likelihood_weight=1.0)
    assert fitted.assignments_NK.argmax(1).tolist() == labels.tolist()


def test_a_class_that_text_rules_out_gets_nothing_and_stays_finite() -> None:
    features, log_text = clouds(4)
    log_text[:, 1] = float("-inf")
    fitted = fit_text_guided_mixture(features, log_text.log_softmax(1))
    assert float(fitted.assignments_NK[:, 1].max()) == 0
    assert all(bool(torch.isfinite(t).all()) for t in (fitted.assignments_NK, fitted.means_KD, fitted.variances_D))


def test_permuted_classes_permute_the_result() -> None:
    features, log_text = clouds(5)
    order = torch.tensor([2, 0, 1])
    one = fit_text_guided_mixture(features, log_text).assignments_NK[:, order]
    torch.testing.assert_close(fit_text_guided_mixture(features, log_text[:, order]).assignments_NK, one)


def test_one_image_and_values_out_of_range() -> None:
    fitted = fit_text_guided_mixture(torch.ones(1, 4), torch.tensor([[0.5, 0.5]]).log())
    assert bool(torch.isfinite(fitted.assignments_NK).all())
    with pytest.raises(ValueError, match="0 <= text_strength must hold"):
        fit_text_guided_mixture(torch.ones(1, 4), torch.zeros(1, 2), text_strength=-1)
