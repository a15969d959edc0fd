"""The score of a candidate: its facts by hand, what each is there for, and the weights that follow."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from captune.decisions.evidence import Evidence, Validation, validation_accuracy
from captune.decisions.learned import SCORE_MODEL
from captune.decisions.learning import ScoreModel
from captune.decisions.scores import Scorer, agreement_log_odds, blend_weights

# Two classes, each with its own circle of neighbours: 0-1-2 and 3-4-5.
NOTHING = ScoreModel({}, math.inf)
NEIGHBOURS_NK = torch.tensor([[1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4]])


def says(*labels: int) -> Tensor:
    """Probabilities of two classes that say these labels."""
    return torch.nn.functional.one_hot(torch.tensor(labels), 2).float()


def six_images() -> Evidence:
    """Zero-shot errs in image 2, balanced in none, and one candidate merges both classes."""
    probs = {"zero_shot": says(0, 0, 1, 1, 1, 1), "balanced": says(0, 0, 0, 1, 1, 1), "merged": says(1, 1, 1, 1, 1, 1)}
    return Evidence(probs, NEIGHBOURS_NK)


def test_the_facts_of_six_images_by_hand() -> None:
    facts = Scorer(six_images(), NOTHING).candidate_facts
    assert set(facts) == {"zero_shot", "balanced", "merged"}
    # All neighbours agree: chance-corrected 1, log(1.1 / 0.1). Two classes of three images: all classes are predicted.
    assert facts["balanced"] == pytest.approx(
        {
            "agreement": math.log(11),
            "classes": 0.0,
            "balanced": 1.0,
            # Balanced and zero-shot agree on five of six images; there are three images a class.
            "balanced_trusted": 5 / 6,
            "balanced_images": math.log(3),
            "validation": 0.0,
        },
        abs=1e-6,
    )
    # Of zero-shot's 12 pairs 8 agree; by chance (1/3)² + (2/3)² = 5/9 would: (2/3 - 5/9) / (4/9) = 1/4.
    assert facts["zero_shot"]["agreement"] == pytest.approx(math.log(0.35 / 0.85), abs=1e-6)
    entropy = -(math.log(1 / 3) / 3 + 2 * math.log(2 / 3) / 3)
    assert facts["zero_shot"]["classes"] == pytest.approx(entropy - math.log(2), abs=1e-6)
    # One class for all: no agreement beyond chance, one of two classes.
    assert facts["merged"]["agreement"] == pytest.approx(math.log(0.1 / 1.1))
    assert facts["merged"]["classes"] == pytest.approx(-math.log(2), abs=1e-6)


def test_agreement_tells_more_near_one_than_in_the_middle_and_is_finite_everywhere() -> None:
    assert agreement_log_odds(0.9) - agreement_log_odds(0.8) > agreement_log_odds(0.5) - agreement_log_odds(0.4)
    values = [agreement_log_odds(value) for value in np.linspace(-1, 1, 41)]
    assert values == sorted(values) and all(map(math.isfinite, values))


def test_more_images_a_class_than_were_learned_from_count_as_so_many() -> None:
    facts = Scorer(six_images(), ScoreModel({}, 2.0)).candidate_facts
    assert facts["balanced"]["balanced_images"] == pytest.approx(math.log(2))


def test_a_score_is_the_weighted_sum_of_its_facts_less_zero_shots() -> None:
    evidence = six_images()
    facts = Scorer(evidence, NOTHING).candidate_facts
    scorer = Scorer(evidence, ScoreModel({"agreement": 2.0, "balanced": 3.0}, 100.0))
    scores = scorer.candidates()
    gained = {fact: facts["balanced"][fact] - facts["zero_shot"][fact] for fact in ("agreement", "balanced")}
    assert scores["balanced"] == pytest.approx(2 * gained["agreement"] + 3 * gained["balanced"])
    assert scores["zero_shot"] == 0 and scorer.score(evidence.probs["balanced"]) == scores["balanced"]


def test_labels_for_selection_count_by_accuracy_and_harmonically_over_unseen_classes() -> None:
    evidence = six_images()
    right, wrong = says(0, 0, 1, 1), says(1, 1, 0, 0)
    labels_V, none_K = torch.tensor([0, 0, 1, 1]), torch.tensor([False, False])
    validation = Validation({"zero_shot": wrong, "balanced": right, "merged": says(0, 0, 0, 0)}, labels_V, none_K)
    labelled = Evidence(evidence.probs, NEIGHBOURS_NK, validation=validation)
    facts = Scorer(labelled, NOTHING).candidate_facts
    # All, none and half of four images are right.
    assert [facts[name]["validation"] for name in ("balanced", "zero_shot", "merged")] == [1.0, 0.0, 0.5]
    # Four labels count 4 / (4 + 12), what the pool says the rest.
    model = ScoreModel({"validation": 3.0, "classes": 8.0}, 1.0, validation_images=12.0)
    gained = facts["merged"]["classes"] - facts["zero_shot"]["classes"]
    assert Scorer(labelled, model).candidates()["merged"] == pytest.approx(0.25 * 3 * 0.5 + 0.75 * 8 * gained)
    unlabelled = Scorer(evidence, model).candidates()["merged"]
    assert unlabelled == pytest.approx(8 * gained)
    unseen_K = torch.tensor([False, True])
    assert validation_accuracy(torch.tensor([0, 1, 1, 1]), labels_V, unseen_K) == pytest.approx(2 * 0.5 / 1.5)
    assert math.isnan(validation_accuracy(labels_V[:2], labels_V[:2], unseen_K)), "no image of an unseen class"


def test_what_was_learned_prefers_agreement_and_classes_and_trusts_the_texts_less_the_more_images_there_are() -> None:
    evidence = six_images()
    learned = SCORE_MODEL.coefficients
    assert set(learned) == set(Scorer(evidence).candidate_facts["balanced"]) and learned["validation"] > 0
    assert learned["agreement"] > 0 and learned["classes"] > 0 and learned["balanced_images"] < 0
    # Agreement with balanced zero-shot is worth something up to the most images a class that were seen.
    trusted = learned["balanced"] + learned["balanced_trusted"] * 0.5
    assert trusted + learned["balanced_images"] * math.log(SCORE_MODEL.images_a_class) > 0
    scores = Scorer(evidence).candidates()
    assert scores["balanced"] > 0 > scores["merged"]


def test_a_candidate_one_behind_weighs_a_factor_of_e_less() -> None:
    weights = blend_weights({"a": 5.0, "b": 4.0, "c": 0.1})
    assert list(weights) == ["a", "b"] and sum(weights.values()) == pytest.approx(1)
    assert weights["a"] / weights["b"] == pytest.approx(np.e, rel=1e-4)


def test_ten_configurations_of_one_method_weigh_as_one() -> None:
    scores = {f"c{number}": 1.0 for number in range(10)} | {"other": 1.0}
    weights = blend_weights(scores, {f"c{number}": "cap" for number in range(10)})
    assert weights["other"] == pytest.approx(0.5)
