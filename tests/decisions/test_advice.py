"""The advice follows from predictions alone, is the same however images and classes are ordered, and keeps its word."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from captune.decisions import advice
from captune.decisions.evidence import Evidence, Knowledge, Validation, measure_knowledge
from captune.decisions.learned import GAIN_MODEL, LABELLED_GAIN_MODEL
from captune.decisions.learning import GainModel

NUM_CLASSES, WIDTH = 6, 16
MODEL = GainModel({"support": 1.0}, 1.0, 0.1, tuple(np.linspace(-2, 2, 99).tolist()), ("made up",), 10)


def one_hot(labels_N: Tensor, sure: float = 0.9) -> Tensor:
    """Probabilities that say a label and are not certain of it."""
    rest = (1 - sure) / (NUM_CLASSES - 1)
    return torch.full((len(labels_N), NUM_CLASSES), rest).scatter(1, labels_N[:, None], sure)


def pool(*, seed: int = 0, wrong: float = 0.3) -> tuple[Tensor, Tensor, Evidence]:
    """Clustered features, their classes, and evidence: a zero-shot that errs at random, a method that errs less."""
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.arange(NUM_CLASSES).repeat(30)
    means_KD = 3 * torch.randn(NUM_CLASSES, WIDTH, generator=generator)
    features_ND = means_KD[labels_N] + torch.randn(len(labels_N), WIDTH, generator=generator)
    features_ND = torch.nn.functional.normalize(features_ND, dim=-1)
    similarity_NN = features_ND @ features_ND.T
    similarity_NN.fill_diagonal_(float("-inf"))

    def erring(share: float) -> Tensor:
        other_N = torch.randint(NUM_CLASSES, labels_N.shape, generator=generator)
        return one_hot(torch.where(torch.rand(len(labels_N), generator=generator) < share, other_N, labels_N))

    probs = {"zero_shot": erring(wrong), "balanced": erring(wrong), "good": erring(0.05), "bad": erring(0.8)}
    return features_ND, labels_N, Evidence(probs, similarity_NN.topk(5).indices)


def test_a_prediction_equal_to_zero_shot_has_no_facts_and_no_risk() -> None:
    _, _, evidence = pool()
    facts = advice.gain_facts(evidence, evidence.probs["zero_shot"])
    assert all(facts[name] == 0 for name in ("neighbours", "balanced", "support", "moved", "differ_few", "differ_sure"))
    same = replace(evidence, probs=dict.fromkeys(evidence.probs, evidence.probs["zero_shot"]))
    said = advice.advise(same, MODEL)
    assert said.weights == {"zero_shot": 1.0} and said.expectation.risk == 0 and said.name == "zero_shot"


def test_the_learned_facts_are_those_that_are_computed() -> None:
    _, _, evidence = pool()
    computed = set(advice.gain_facts(evidence, evidence.probs["good"]))
    assert (
        set(GAIN_MODEL.coefficients) == computed - {"validation"} and set(LABELLED_GAIN_MODEL.coefficients) == computed
    )
    for model in (GAIN_MODEL, LABELLED_GAIN_MODEL):
        assert list(model.errors) == sorted(model.errors)


def test_no_gain_is_larger_than_what_differs_and_a_larger_gain_is_less_risky() -> None:
    risks = []
    for support in (-5.0, 0.0, 5.0, 40.0):
        seen = advice.expected_gain({"support": support}, 0.1, MODEL)
        assert -10 <= seen.low <= seen.gain <= seen.high <= 10
        risks.append(seen.risk)
    assert risks == sorted(risks, reverse=True) and 0 < risks[-1] < 0.5 < risks[0] < 1


def test_labels_for_selection_tell_of_gains_and_a_harmonic_mean_moves_twice_as_far() -> None:
    _, labels_N, evidence = pool()
    shown = torch.arange(50)
    seen_K, half_K = torch.zeros(NUM_CLASSES, dtype=torch.bool), torch.arange(NUM_CLASSES) < 3
    probs = {name: probs_NK[shown] for name, probs_NK in evidence.probs.items()}
    good_NK, good_VK = evidence.probs["good"], probs["good"]
    labelled = replace(evidence, validation=Validation(probs, labels_N[shown], seen_K))
    right = [float((probs[name].argmax(-1) == labels_N[shown]).double().mean()) for name in ("good", "zero_shot")]
    # Fifty images: half of what they say.
    assert advice.gain_facts(labelled, good_NK, good_VK)["validation"] == pytest.approx(50 * (right[0] - right[1]))
    assert advice.gain_facts(evidence, good_NK)["validation"] == 0
    differ = [float((a.argmax(-1) != b.argmax(-1)).float().mean())
              for a, b in ((good_NK, evidence.probs["zero_shot"]), (good_VK, probs["zero_shot"]))]  # fmt: skip
    assert advice.largest_gain(evidence, good_NK) == pytest.approx(differ[0])
    assert advice.largest_gain(labelled, good_NK, good_VK) == pytest.approx(max(differ))
    unseen = replace(evidence, validation=Validation(probs, labels_N[shown], half_K))
    assert advice.largest_gain(unseen, good_NK, good_VK) == pytest.approx(2 * max(differ))


def test_a_better_blend_is_advised_and_is_better() -> None:
    _, labels_N, evidence = pool()
    said = advice.advise(evidence, MODEL)
    correct = {
        name: float((probs.argmax(-1) == labels_N).float().mean())
        for name, probs in {**evidence.probs, "blend": advice.blend(evidence.probs, said.weights)}.items()
    }
    assert "good" in said.weights and "bad" not in said.weights
    assert correct["blend"] > correct["zero_shot"] + 0.1
    assert said.sentence.startswith("Use ") and "chance of being worse than zero-shot" in said.sentence


def test_zero_shot_is_kept_where_nothing_better_is_there() -> None:
    _, _, evidence = pool()
    worse = replace(evidence, probs={name: evidence.probs[name] for name in ("zero_shot", "balanced", "bad")})
    model = replace(MODEL, coefficients={"neighbours": 0.0})
    said = advice.advise(worse, model)
    assert said.name == "zero_shot" and said.sentence.startswith("Keep zero-shot") and said.considered is not None


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_of_images_and_of_classes_does_not_matter(seed: int) -> None:
    _, _, evidence = pool(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    images, classes = torch.randperm(180, generator=generator), torch.randperm(NUM_CLASSES, generator=generator)
    place = torch.argsort(images)
    moved = Evidence(
        {name: probs[images][:, classes] for name, probs in evidence.probs.items()},
        place[evidence.neighbours_Nk[images]],
    )
    first, second = advice.advise(evidence, MODEL), advice.advise(moved, MODEL)
    assert first.weights.keys() == second.weights.keys()
    assert list(first.weights.values()) == pytest.approx(list(second.weights.values()), abs=1e-6)
    assert first.expectation.gain == pytest.approx(second.expectation.gain, abs=1e-4)


def test_texts_that_say_nothing_of_the_images_are_noticed() -> None:
    generator = torch.Generator().manual_seed(3)
    centres_KD = torch.nn.functional.normalize(torch.randn(40, 64, generator=generator), dim=-1)
    labels_N = torch.arange(40).repeat(10)
    features_ND = torch.nn.functional.normalize(
        centres_KD[labels_N] + 0.05 * torch.randn(400, 64, generator=generator), dim=-1
    )
    similarity_NN = features_ND @ features_ND.T
    similarity_NN.fill_diagonal_(float("-inf"))
    neighbours_Nk = similarity_NN.topk(5).indices
    right = measure_knowledge(features_ND, centres_KD, neighbours_Nk, generator)
    assert right.known(0.1) and right.num_classes == pytest.approx(40, rel=0.01)
    # All texts alike: every image is predicted as one of few classes, and turning the texts changes nothing.
    alike_KD = torch.nn.functional.normalize(centres_KD[:1] + 0.01 * torch.randn(40, 64, generator=generator), dim=-1)
    assert right.consistency > measure_knowledge(features_ND, alike_KD, neighbours_Nk, generator).consistency
    nothing = Knowledge(0.31, 0.25, 3.0, 3.2, 40)
    assert not nothing.known(0.3) and nothing.known(0.9)
    _, _, evidence = pool()
    unsure = {name: one_hot(probs.argmax(-1), 0.3) for name, probs in evidence.probs.items()}
    said = advice.advise(replace(evidence, probs=unsure, knowledge=nothing), MODEL)
    assert not said.knows and said.sentence.startswith("This backbone does not know these classes")


def test_evidence_without_zero_shot_is_refused() -> None:
    _, _, evidence = pool()
    with pytest.raises(ValueError, match="zero_shot and balanced"):
        replace(evidence, probs={"balanced": evidence.probs["balanced"]})
