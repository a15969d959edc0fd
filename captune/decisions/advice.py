"""What to do with a pool of images, from predictions alone: a blend of methods, or zero-shot, and how sure that is.

All candidates predict the same unlabelled images, so they are compared on all of them and in pairs. The steps:

1. score every candidate: agreement with the nearest images, agreement with balanced zero-shot, classes that it merges
   (`captune.decisions.scores`);
2. blend: the mean of the candidates' probabilities; one whose score is lower by one weighs a factor of e less;
3. expect: a linear model of a few facts about the images on which the blend and zero-shot differ gives the expected
   gain, and the errors that it made on datasets it was not fitted on give the interval and the risk (`expected_gain`);
4. advise: the blend where it is expected to gain enough at a small enough risk, else zero-shot; neither where the
   backbone does not know the classes (`advise`).

No label is read. What was learned from development data stands in `captune.decisions.learned`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from captune.decisions.evidence import Evidence, effective_classes
from captune.decisions.learned import GAIN_MODEL, SCORE_MODEL
from captune.decisions.learning import GainModel, ScoreModel
from captune.decisions.neighbours import neighbour_consistency
from captune.decisions.scores import blend_weights, candidate_scores
from captune.records import BALANCED, ZERO_SHOT

BLEND = "blend"
LEAST_GAIN = 1.0
"""Points that a blend must be expected to gain: below, the costs of a mistake outweigh it."""
MOST_RISK = 0.3
"""Most chance of being worse than zero-shot that is still advised."""


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
        expectation: of that against zero-shot.
        scores: label-free score of every candidate, zero-shot's 0.
        reason: why, in a sentence.
        knows: whether the backbone knows the classes.
        considered: what the best blend is expected to gain, advised or not.
        blend: the shares of that blend.
    """

    weights: dict[str, float]
    expectation: Expectation
    scores: dict[str, float]
    reason: str
    knows: bool = True
    considered: Expectation | None = None
    blend: dict[str, float] = field(default_factory=dict)

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
        members = [f"{labels.get(name, name)} {100 * share:.0f} %" for name, share in self.weights.items()]
        first = next(iter(self.weights))
        what = f"the ensemble ({', '.join(members)})" if self.name == BLEND else labels.get(first, first)
        seen = self.expectation
        return (
            f"Use {what}: expected {seen.gain:+.1f} points over zero-shot (80 %: {seen.low:+.1f} to {seen.high:+.1f}); "
            f"chance of being worse than zero-shot {100 * max(0.01, seen.risk):.0f} %."
        )


def blend(probs: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The weighted mean of the members' probabilities (N, K)."""
    return torch.stack([weight * probs[name].float() for name, weight in weights.items()]).sum(0)


def gain_facts(evidence: Evidence, probs_NK: Tensor) -> dict[str, float]:
    """Facts that the gain of a prediction over zero-shot follows from, each a mean over all images, in points.

    Where the prediction and zero-shot agree there is nothing to gain; all facts are zero of zero-shot itself.

    Returns:
        `neighbours`: its agreement with the nearest images less zero-shot's; `balanced`: the same of the agreement with
        balanced zero-shot; `support`: on images where they differ, the share of nearest images predicted as it says
        less that predicted as zero-shot says; `votes`: the same share of the other candidates; `moved`: total variation
        between their class shares; `differ_few`: images that differ × the share of classes that seem absent;
        `differ_sure`: images that differ × zero-shot's mean confidence.
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
    }
    return {name: 100 * value for name, value in facts.items()}


def expected_gain(facts: Mapping[str, float], differ: float, model: GainModel = GAIN_MODEL) -> Expectation:
    """The gain over zero-shot that the learned model expects, with its errors on unseen datasets.

    Args:
        facts: `gain_facts` of the prediction.
        differ: share of the images on which it differs from zero-shot: no gain or loss can be larger.
        model: what was learned.
    """
    most = 100 * differ
    gain = min(most, max(-most, sum(model.coefficients[name] * facts[name] for name in model.coefficients)))
    scale = model.error_base + model.error_slope * most
    errors = torch.tensor(model.errors, dtype=torch.float64)
    low, high = (gain + scale * float(torch.quantile(errors, level)) for level in (0.1, 0.9))
    # Half an image more on either side, so that no sample of errors calls anything certain.
    risk = (float((gain + scale * errors < 0).sum()) + 0.5) / (len(errors) + 1)
    return Expectation(gain, max(low, -most), min(high, most), risk if most > 0 else 0.0)


def advise(evidence: Evidence, model: GainModel = GAIN_MODEL, scoring: ScoreModel = SCORE_MODEL) -> Advice:
    """The advice for a pool of images.

    Args:
        evidence: predictions of all candidates.
        model: what was learned of gains on development data.
        scoring: what was learned of scores.
    """
    scores = candidate_scores(evidence, scoring)
    weights = blend_weights(scores, evidence.families)
    nothing = Expectation(0.0, 0.0, 0.0, 0.0)
    seen, confidence = evidence.knowledge, float(evidence.probs[ZERO_SHOT].float().max(-1).values.mean())
    if seen is not None and not seen.known(confidence):
        return Advice({ZERO_SHOT: 1.0}, nothing, scores, seen.evidence, knows=False, blend=weights)
    blended_NK = blend(evidence.probs, weights)
    differ = float((blended_NK.argmax(-1) != evidence.probs[ZERO_SHOT].argmax(-1)).float().mean())
    expectation = expected_gain(gain_facts(evidence, blended_NK), differ, model)
    kept = Advice({ZERO_SHOT: 1.0}, nothing, scores, "", considered=expectation, blend=weights)
    if differ == 0:
        return replace(kept, reason="the best ensemble of all methods predicts the same", considered=nothing)
    if expectation.gain < LEAST_GAIN or expectation.risk > MOST_RISK:
        reason = (
            f"the best ensemble is expected to gain {expectation.gain:+.1f} points (80 %: {expectation.low:+.1f} to "
            f"{expectation.high:+.1f}), with a chance of {100 * expectation.risk:.0f} % to be worse"
        )
        return replace(kept, reason=reason)
    return Advice(weights, expectation, scores, "expected to gain", considered=expectation, blend=weights)
