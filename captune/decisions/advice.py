"""What to do with a pool of images, from predictions alone: a blend of methods, or zero-shot, and how sure that is.

All candidates predict the same unlabelled images, so they are compared on all of them and in pairs. The steps:

1. score every candidate by its agreement with the nearest images and with balanced zero-shot, and by how many classes
   it predicts (`captune.decisions.scores`);
2. blend: average the candidates' probabilities; one point of score less divides a candidate's weight by e;
3. expect: a linear model predicts the gain from a few facts about the images on which the blend and zero-shot differ;
   the errors that it made on datasets it was not fitted on give the interval and the risk (`expected_gain`);
4. advise: the blend where it is expected to gain enough at a small enough risk, else zero-shot; neither where the
   backbone does not know the classes (`advise`).

The only labels read are those of the validation images, in tasks that have them (ssl, trzsl). What was learned from
development data stands in `captune.decisions.learned`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from captune.decisions.evidence import Evidence, Validation, effective_classes
from captune.decisions.learned import GAIN_MODEL, LABELLED_GAIN_MODEL, SCORE_MODEL
from captune.decisions.learning import GainModel, ScoreModel
from captune.decisions.neighbours import neighbour_consistency
from captune.decisions.scores import Scorer, blend_weights
from captune.records import BALANCED, ZERO_SHOT

BLEND = "blend"
LEAST_GAIN = 1.0
"""Smallest expected gain, in points, for which a blend is advised: a smaller one is not worth the risk."""
MOST_RISK = 0.3
"""Largest chance of being worse than zero-shot at which a blend is still advised."""
_VALIDATION_IMAGES = 50
# Members of an ensemble that a sentence names; tables list all.
_NAMED = 2


@dataclass(frozen=True)
class Expectation:
    """What a prediction is expected to gain over zero-shot, in points of accuracy.

    Attributes:
        gain: the expected gain.
        low, high: ends of the 80 % interval.
        risk: chance that it is worse than zero-shot.
    """

    gain: float
    low: float
    high: float
    risk: float


@dataclass(frozen=True)
class Advice:
    """What to use and what to expect of it.

    Attributes:
        weights: candidate → its share in the mean of probabilities; one entry of 1 for a single candidate.
        expectation: what this is expected to gain over zero-shot.
        scores: label-free score of every candidate, zero-shot's 0.
        reason: why, in a sentence.
        knows: whether the backbone knows the classes.
        considered: what the best blend is expected to gain, advised or not.
        blend: the shares of that blend.
        blend_score: its own label-free score.
    """

    weights: dict[str, float]
    expectation: Expectation
    scores: dict[str, float]
    reason: str
    knows: bool = True
    considered: Expectation | None = None
    blend: dict[str, float] = field(default_factory=dict)
    blend_score: float = 0.0

    @property
    def name(self) -> str:
        """The candidate, or "blend"."""
        return next(iter(self.weights)) if len(self.weights) == 1 else BLEND

    @property
    def sentence(self) -> str:
        """The advice in plain words."""
        return self.say({})

    def say(self, labels: Mapping[str, str]) -> str:
        """The advice in plain words, candidates called as `labels` say."""
        if not self.knows:
            return f"This backbone does not know these classes: {self.reason}. Use another backbone or other names."
        if self.name == ZERO_SHOT:
            return f"Keep zero-shot: {self.reason}."
        first = next(iter(self.weights))
        what = f"the ensemble of {self._members(labels)}" if self.name == BLEND else labels.get(first, first)
        seen = self.expectation
        return (
            f"Use {what}: expect {seen.gain:+.1f} points over zero-shot (80 % interval {seen.low:+.1f} to "
            f"{seen.high:+.1f}); the chance of being worse than zero-shot is {100 * max(0.01, seen.risk):.0f} %."
        )

    def _members(self, labels: Mapping[str, str]) -> str:
        """The members that weigh most, each with its share, and how many there are besides."""
        ranked = sorted(self.weights, key=lambda name: -self.weights[name])
        told = [f"{100 * self.weights[name]:.0f} % {labels.get(name, name)}" for name in ranked[:_NAMED]]
        rest = len(ranked) - len(told)
        told += [f"{rest} {'other' if rest == 1 else 'others'}"] if rest else []
        return ", ".join(told[:-1]) + f" and {told[-1]}"


def blend(probs: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The weighted mean of the members' probabilities (N, K)."""
    return torch.stack([weight * probs[name].float() for name, weight in weights.items()]).sum(0)


def gain_facts(evidence: Evidence, probs_NK: Tensor, validation_VK: Tensor | None = None) -> dict[str, float]:
    """Facts from which the gain of a prediction over zero-shot is expected, each a mean over all images, in points.

    Where the prediction and zero-shot agree there is nothing to gain; of zero-shot itself all facts are zero.

    Args:
        evidence: what is known of the pool.
        probs_NK: the prediction.
        validation_VK: of the same model on the validation images, where there are any.

    Returns:
        - `neighbours`: its agreement with the nearest images less zero-shot's;
        - `balanced`: its agreement with balanced zero-shot less zero-shot's;
        - `support`: the share of nearest images that are predicted to be of the class that it gives the image, less the
          share that are predicted to be of zero-shot's class;
        - `votes`: the share of other candidates that give the image its class, less the share that give zero-shot's;
        - `moved`: total variation between its class shares and zero-shot's;
        - `differ_few`: share of images on which the two differ × the share of classes that seem absent;
        - `differ_sure`: share of images on which the two differ × zero-shot's mean confidence;
        - `validation`: the gain on the V validation images × V / (V + 50), since on few images much of it is chance; 0
          without validation images.
    """
    zero_NK = evidence.probs[ZERO_SHOT].float()
    zero_N, predicted_N = zero_NK.argmax(-1), probs_NK.argmax(-1)
    balanced_N = evidence.probs[BALANCED].argmax(-1)
    near_Nk, num_classes = predicted_N[evidence.neighbours_Nk], evidence.num_classes
    differ = float((predicted_N != zero_N).float().mean())
    ballots: dict[str, list[float]] = {}
    for name, other_NK in evidence.probs.items():
        if name != ZERO_SHOT:
            other_N = other_NK.argmax(-1)
            vote = (other_N == predicted_N).float().mean() - (other_N == zero_N).float().mean()
            ballots.setdefault(evidence.families.get(name, name), []).append(float(vote))
    votes = [sum(ballot) / len(ballot) for ballot in ballots.values()]
    shares_K, zero_K = (
        torch.bincount(labels_N, minlength=num_classes) / len(labels_N) for labels_N in (predicted_N, zero_N)
    )
    consistency = [
        neighbour_consistency(labels_N, evidence.neighbours_Nk, num_classes) for labels_N in (predicted_N, zero_N)
    ]
    support = (near_Nk == predicted_N[:, None]).float().mean() - (near_Nk == zero_N[:, None]).float().mean()
    agrees = (predicted_N == balanced_N).float().mean() - (zero_N == balanced_N).float().mean()
    facts = {
        "neighbours": consistency[0] - consistency[1],
        "balanced": float(agrees),
        "support": float(support),
        "votes": sum(votes) / len(votes),
        "moved": 0.5 * float((shares_K - zero_K).abs().sum()),
        "differ_few": differ * (1 - effective_classes(zero_NK) / num_classes),
        "differ_sure": differ * float(zero_NK.max(-1).values.mean()),
        "validation": _validation_gain(evidence.validation, validation_VK),
    }
    return {name: 100 * value for name, value in facts.items()}


def _validation_gain(labelled: Validation | None, probs_VK: Tensor | None) -> float:
    if labelled is None or probs_VK is None or not len(labelled.labels_V):
        return 0.0
    gain = labelled.accuracy(probs_VK) - labelled.accuracy(labelled.probs[ZERO_SHOT])
    count = len(labelled.labels_V)
    return 0.0 if math.isnan(gain) else gain * count / (count + _VALIDATION_IMAGES)


def largest_gain(evidence: Evidence, probs_NK: Tensor, validation_VK: Tensor | None = None) -> float:
    """The most that a prediction can gain or lose against zero-shot, as a fraction; arguments as of `gain_facts`.

    It is the share of images on which the two differ: of the unlabelled or of the validation images, whichever is
    larger. A harmonic mean (trzsl) moves by up to twice as much as one of its parts.
    """
    differ = [_differ(evidence.probs[ZERO_SHOT], probs_NK)]
    labelled = evidence.validation
    if labelled is None or validation_VK is None or not len(labelled.labels_V):
        return differ[0]
    differ.append(_differ(labelled.probs[ZERO_SHOT], validation_VK))
    return min(1.0, max(differ) * (2 if labelled.unseen_K.any() else 1))


def _differ(first_NK: Tensor, second_NK: Tensor) -> float:
    return float((first_NK.argmax(-1) != second_NK.argmax(-1)).float().mean())


def expected_gain(facts: Mapping[str, float], largest: float, model: GainModel = GAIN_MODEL) -> Expectation:
    """The gain over zero-shot that the learned model expects, with the interval and the risk that its errors give.

    Args:
        facts: `gain_facts` of the prediction.
        largest: the fraction that neither a gain nor a loss can exceed (`largest_gain`).
        model: what was learned.
    """
    most = 100 * largest
    gain = min(most, max(-most, sum(model.coefficients[name] * facts[name] for name in model.coefficients)))
    scale = model.error_base + model.error_slope * most
    errors = torch.tensor(model.errors, dtype=torch.float64)
    low, high = (gain + scale * float(torch.quantile(errors, level)) for level in (0.1, 0.9))
    # Half an error is added to each side, so that no sample of errors makes anything certain.
    risk = (float((gain + scale * errors < 0).sum()) + 0.5) / (len(errors) + 1)
    return Expectation(gain, max(low, -most), min(high, most), risk if most > 0 else 0.0)


def gain_model_for(evidence: Evidence) -> GainModel:
    """The gain model learned from development tasks with validation labels, or without, as this evidence has them."""
    return GAIN_MODEL if evidence.validation is None else LABELLED_GAIN_MODEL


def advise(evidence: Evidence, model: GainModel | None = None, scoring: ScoreModel = SCORE_MODEL) -> Advice:
    """The advice for a pool of images.

    Args:
        evidence: predictions of all candidates.
        model: what was learned of gains from development data; default: that of `gain_model_for`.
        scoring: what was learned of scores from development data.
    """
    model = model or gain_model_for(evidence)
    scorer = Scorer(evidence, scoring)
    scores = scorer.candidates()
    weights = blend_weights(scores, evidence.families)
    blended_NK = blend(evidence.probs, weights)
    validation_VK = None if evidence.validation is None else blend(evidence.validation.probs, weights)
    score = scorer.score(blended_NK, validation_VK)
    nothing = Expectation(0.0, 0.0, 0.0, 0.0)
    seen, confidence = evidence.knowledge, float(evidence.probs[ZERO_SHOT].float().max(-1).values.mean())
    if seen is not None and not seen.known(confidence):
        unknown = Advice({ZERO_SHOT: 1.0}, nothing, scores, seen.evidence, knows=False)
        return replace(unknown, blend=weights, blend_score=score)
    largest = largest_gain(evidence, blended_NK, validation_VK)
    expectation = expected_gain(gain_facts(evidence, blended_NK, validation_VK), largest, model)
    kept = Advice({ZERO_SHOT: 1.0}, nothing, scores, "", considered=expectation, blend=weights, blend_score=score)
    if largest == 0:
        return replace(kept, reason="the best ensemble of all methods predicts the same", considered=nothing)
    if expectation.gain < LEAST_GAIN or expectation.risk > MOST_RISK:
        reason = (
            f"the best ensemble is expected to gain {expectation.gain:+.1f} points (80 % interval "
            f"{expectation.low:+.1f} to {expectation.high:+.1f}), with a chance of {100 * expectation.risk:.0f} % "
            "to be worse"
        )
        return replace(kept, reason=reason)
    return replace(kept, weights=weights, expectation=expectation, reason="expected to gain")
