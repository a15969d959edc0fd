"""The hand-written packed step, part by part, against autograd and the equations one configuration at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from captune.equations import reweighting
from captune.equations.alignment import alignment_loss, class_prototypes, ema_update
from captune.equations.candidate_labels import partial_label_loss
from captune.equations.confusion import class_similarity
from captune.equations.margin import calibrated_margin
from captune.equations.objective import margin_cross_entropy
from captune.equations.packed import (
    AdapterTensors,
    adapt,
    adapter_gradients,
    alignment_with_gradient,
    calibrated_margins,
    class_means,
    class_similarities,
    class_sums,
    class_weights,
    cross_entropy_with_gradient,
    input_gradient,
    margin_rows,
    move_prototypes,
    normalised,
    partial_label_with_gradient,
    through_normalised,
)
from captune.model.adapters import Adapter

P, N, D, H, K = 3, 7, 6, 5, 4


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def adapters() -> list[Adapter]:
    generator = torch.Generator().manual_seed(1)
    return [Adapter(D, H, residual, generator=generator, zero_last=False) for residual in (0.1, 1.0, 5.0)]


def stacked(each: list[Adapter], *, gradients: bool = False) -> AdapterTensors:
    names = ("down_weight", "down_bias", "up_weight", "up_bias")
    found = [[getattr(one, name).grad if gradients else getattr(one, name).detach() for one in each] for name in names]
    return AdapterTensors(*(torch.stack(tensors) for tensors in found))


def test_a_length_of_zero_divides_nothing_by_zero() -> None:
    unit, length = normalised(torch.zeros(1, 1, 2))
    assert (
        unit.tolist() == [[[0.0, 0.0]]] and torch.isfinite(through_normalised(torch.ones(1, 1, 2), unit, length)).all()
    )


def test_adapters_and_their_gradients_are_those_of_autograd() -> None:
    modules, residual = adapters(), torch.tensor([0.1, 1.0, 5.0])[:, None, None]
    features, gradient = normalised(numbers(P, N, D))[0].requires_grad_(True), numbers(P, N, D, seed=2)
    expected = torch.stack([module(rows) for module, rows in zip(modules, features, strict=True)])
    expected.backward(gradient)
    tensors = stacked(modules)
    with torch.no_grad():
        adapted = adapt(features, tensors, residual)
        out = AdapterTensors(*(torch.empty_like(tensor) for tensor in tensors))
        by_input = input_gradient(*adapter_gradients(gradient, adapted, features, tensors, residual, out), tensors)
    torch.testing.assert_close(adapted.features_PND, expected.detach())
    for found, wanted in zip(out, stacked(modules, gradients=True), strict=True):
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(by_input, features.grad)


def test_margin_cross_entropy_and_its_gradient_are_those_of_the_loss() -> None:
    logits, labels = numbers(P, N, K).requires_grad_(True), torch.arange(P * N).reshape(P, N) % K
    margin, weights = numbers(P, K, K, seed=3).abs(), numbers(P, N, seed=4).abs()
    losses = torch.stack(
        [margin_cross_entropy(logits[p], labels[p], margin[p], weights_B=weights[p]) for p in range(P)]
    )
    losses.sum().backward()
    margin.diagonal(dim1=1, dim2=2).zero_()
    with torch.no_grad():
        rows = margin_rows(margin, labels, K * torch.arange(P)[:, None])
        found, gradient = cross_entropy_with_gradient(logits + rows, labels, weights / N)
    torch.testing.assert_close(found, losses.detach())
    torch.testing.assert_close(gradient, logits.grad)


def test_a_row_without_a_share_adds_nothing_even_where_its_loss_is_infinite() -> None:
    logits = torch.tensor([[[0.0, float("-inf")], [1.0, 0.0]]])
    losses, gradient = cross_entropy_with_gradient(logits, torch.tensor([[1, 0]]), torch.tensor([[0.0, 1.0]]))
    # CE((1, 0), 0) = log(1 + e^-1).
    assert losses.item() == pytest.approx(0.3132617) and gradient[0, 0].tolist() == [0.0, 0.0]


def test_alignment_and_its_gradient_are_those_of_the_loss() -> None:
    text = normalised(numbers(P, K, D))[0].requires_grad_(True)
    prototypes = normalised(numbers(P, K, D, seed=5))[0]
    present = torch.tensor([[True] * K, [True, False, True, True], [False] * K])
    prototypes = prototypes * present[..., None]
    weight, temperature = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([0.1, 0.5, 1.0])
    losses = torch.stack(
        [
            weight[p] * alignment_loss(text[p], prototypes[p], temperature=float(temperature[p]), present_K=present[p])
            for p in range(P)
        ]
    )
    losses.sum().backward()
    with torch.no_grad():
        found, gradient = alignment_with_gradient(
            text, prototypes, present, temperature[:, None, None], weight[:, None, None]
        )
        # The loss normalises its texts itself, so its gradient has no part along them; later steps drop that part here.
        gradient = through_normalised(gradient, text, torch.ones(P, K, 1))
    torch.testing.assert_close(found, losses.detach())
    torch.testing.assert_close(gradient, text.grad)


def test_prototypes_move_as_one_by_one() -> None:
    old = normalised(numbers(P, K, D))[0]
    present = torch.tensor([[True] * K, [True, False, True, False], [False] * K])
    old = old * present[..., None]
    features, labels = normalised(numbers(P, N, D, seed=6))[0], torch.arange(P * N).reshape(P, N) % (K - 1)
    momentum = torch.tensor([0.0, 0.5, 0.9])
    found, there = old.clone(), present.clone()
    move_prototypes(found, there, features, labels, momentum[:, None, None], torch.tensor([[True], [True], [False]]))
    assert torch.equal(found[2], old[2]) and torch.equal(there[2], present[2])
    move_prototypes(found, there, features, labels, momentum[:, None, None], torch.tensor([[False], [False], [True]]))
    for p in range(P):
        new, in_batch = class_prototypes(features[p], labels[p], K)
        wanted, wanted_there = ema_update(old[p], present[p], new, in_batch, momentum=float(momentum[p]))
        torch.testing.assert_close(found[p], wanted)
        assert torch.equal(there[p], wanted_there)


def test_partial_labels_and_their_gradient_are_those_of_the_loss() -> None:
    logits, candidates = numbers(P, N, K).requires_grad_(True), numbers(P, N, K, seed=7) > 0
    candidates[..., 0] = True
    losses = torch.stack([partial_label_loss(logits[p], candidates[p]) for p in range(P)])
    losses.sum().backward()
    with torch.no_grad():
        found, gradient = partial_label_with_gradient(logits, candidates, torch.full((N,), 1 / N))
    torch.testing.assert_close(found, losses.detach())
    torch.testing.assert_close(gradient, logits.grad)


@pytest.mark.parametrize("form", ["published", "paper"])
def test_margins_and_weights_are_those_of_one_by_one(form: str) -> None:
    open_K = torch.tensor([True, True, True, False])
    counts = torch.tensor([[3.0, 9.0, 0.0, 0.0], [0.0] * K, [2.5, 2.5, 1.0, 4.0]])
    text, prototypes = normalised(numbers(P, K, D))[0], normalised(numbers(P, K, D, seed=5))[0]
    prototypes[0, 2] = 0.0  # a class without main samples
    scale, strength = torch.tensor([12.0, 4.0, 0.0]), torch.tensor([0.5, 1.0, 0.0])
    similarities = class_similarities(text, prototypes)
    published = torch.full((P, 1), form == "published")
    margins = calibrated_margins(similarities, counts, scale[:, None], published, open_K)
    weights = class_weights(counts, strength[:, None], open_K)
    for p in range(P):
        similarity = class_similarity(text[p], prototypes[p])
        torch.testing.assert_close(similarities[p], similarity)
        margin = calibrated_margin(similarity, counts[p], scale=float(scale[p]), pseudolabelled_K=open_K, form=form)
        torch.testing.assert_close(margins[p], margin.fill_diagonal_(0.0))
        one = reweighting.class_weights(counts[p], strength=float(strength[p]), pseudolabelled_K=open_K)
        torch.testing.assert_close(weights[p], one)
    assert margins[0].abs().max() > 0 and weights[0].max() > 1


def test_class_means_are_prototypes() -> None:
    features, labels = numbers(P, N, D), torch.arange(P * N).reshape(P, N) % K
    labels[:, -1] = K  # of no class
    found = class_means(*class_sums(normalised(features.clone())[0], labels, K))
    for p in range(P):
        wanted, _ = class_prototypes(features[p, :-1], labels[p, :-1], K)
        torch.testing.assert_close(found[p], wanted)
