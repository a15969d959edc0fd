"""What to do with a pool of images, from predictions alone: a blend of methods, or zero-shot, and how sure that is.

All candidates predict the same unlabelled images, so they are compared on all of them and in pairs. The steps:

1. score every candidate: two thirds chance-corrected agreement with the nearest images, one third agreement with
   balanced zero-shot (`smooth_scores`);
2. blend: the mean of the candidates' probabilities, a candidate whose score is lower by `TEMPERATURE` weighing a factor
   of e less (`blend_weights`);
3. expect: a linear model of a few facts about the images on which the blend and zero-shot differ gives the expected
   gain, and the errors that it made on datasets it was not fitted on give the interval and the risk (`expected_gain`);
4. advise: the blend where it is expected to gain enough at a small enough risk, else zero-shot; neither where the
   backbone does not know the classes (`advise`).

No label is read. What was learned from development data stands in `captune.decisions.learned`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from captune.decisions.learned import GAIN_MODEL, GainModel
from captune.decisions.neighbours import jackknife_consistency, neighbour_consistency

ZERO_SHOT, BALANCED, BLEND = "zero_shot", "balanced", "blend"
NUM_NEIGHBOURS = 10
TEMPERATURE = 0.01
"""Score difference at which a candidate weighs a factor of e less in the blend."""
SMALLEST_WEIGHT = 0.02
"""Members below this share of the blend are left out."""
LEAST_GAIN = 1.0
"""Points that a blend must be expected to gain: below, the costs of a mistake outweigh it."""
MOST_RISK = 0.3
"""Most chance of being worse than zero-shot that is still advised."""
_CROWDED, _NO_LEAD, _UNSURE = 0.8, 0.1, 0.5
"""When a backbone is said not to know the classes (`Knowledge.known`)."""


@dataclass(frozen=True)
class Evidence:
    """What a decision may know: predictions on unlabelled images, and which images are alike.

    Attributes:
        probs: candidate → probabilities (N, K) of all unlabelled images; "zero_shot" and "balanced" among them.
        neighbours_Nk: every image's nearest others by cosine of the frozen features, nearest first.
        knowledge: what random texts would do on the same images, where that was measured.
        families: candidate → its method; candidates of one method share its weight and its vote. One that is not named
            is a family of its own.
    """

    probs: Mapping[str, Tensor]
    neighbours_Nk: Tensor
    knowledge: Knowledge | None = None
    families: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = {ZERO_SHOT, BALANCED} - set(self.probs)
        shapes = {tuple(probs.shape) for probs in self.probs.values()}
        if missing or len(shapes) != 1 or len(self.neighbours_Nk) != len(self.probs[ZERO_SHOT]):
            raise ValueError(
                f"probs must hold {ZERO_SHOT} and {BALANCED}, all of one shape (N, K) with N rows of neighbours, but "
                f"got {sorted(self.probs)} of shapes {sorted(shapes)} with {len(self.neighbours_Nk)} rows"
            )

    @property
    def num_classes(self) -> int:
        """K."""
        return self.probs[ZERO_SHOT].shape[1]


@dataclass(frozen=True)
class Knowledge:
    """How zero-shot's predictions compare with those of random texts on the same images (`measure_knowledge`).

    Attributes:
        consistency: agreement of zero-shot's predictions with those of the nearest images, chance-corrected.
        random_consistency: the same of random texts, mean of several draws.
        num_classes: how many classes zero-shot effectively predicts (exponential of the entropy of their shares).
        random_num_classes: the same of random texts.
        of_classes: K.
    """

    consistency: float
    random_consistency: float
    num_classes: float
    random_num_classes: float
    of_classes: int

    @property
    def evidence(self) -> str:
        """The numbers in words."""
        return (
            f"zero-shot's predictions agree with their nearest images as little ({self.consistency:.2f}) and crowd "
            f"into as few classes ({self.num_classes:.0f} of {self.of_classes}) as those of random texts "
            f"({self.random_consistency:.2f}, {self.random_num_classes:.0f})"
        )

    def known(self, confidence: float) -> bool:
        """False where the texts say no more about the images than random ones would.

        Three things must meet for that: zero-shot's mean `confidence` is low, its predictions are hardly smoother on
        the features than those of random texts, and they crowd into few classes as those of random texts do. One alone
        also happens to a good model: few images a class have no smooth neighbours, and a pool of few classes is
        predicted as few.
        """
        spread = max(self.of_classes - self.random_num_classes, 1e-9)
        crowded = (self.of_classes - self.num_classes) / spread > _CROWDED
        return not (crowded and confidence < _UNSURE and self.consistency - self.random_consistency < _NO_LEAD)


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
        scores: label-free score of every candidate.
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


def effective_classes(probs_NK: Tensor) -> float:
    """How many classes a pool's mean prediction is spread over: exp(entropy), between 1 and K."""
    shares_K = probs_NK.double().mean(0)
    return float(torch.special.entr(shares_K / shares_K.sum()).sum().exp())


def smooth_scores(evidence: Evidence) -> dict[str, float]:
    """(2·neighbours + agreement with balanced zero-shot)/3 of every candidate, on all unlabelled images."""
    balanced_N = evidence.probs[BALANCED].argmax(-1)
    scores = {}
    for name, probs_NK in evidence.probs.items():
        predicted_N = probs_NK.argmax(-1)
        near = neighbour_consistency(predicted_N, evidence.neighbours_Nk, evidence.num_classes)
        scores[name] = (2 * near + float((predicted_N == balanced_N).float().mean())) / 3
    return scores


def score_covariance(evidence: Evidence) -> tuple[list[str], Tensor]:
    """Covariance (C, C) of `smooth_scores` over images, by the jackknife: paired, as all score the same images.

    Cov = (N - 1)/N · Σ_i (θ_(i) - θ̄)(θ_(i) - θ̄)ᵀ with θ_(i) the scores without image i, neither judged nor a neighbour
    (Efron & Stein 1981). The variance of a difference of two scores is C_aa + C_bb - 2·C_ab.

    Returns:
        the candidates in the order of rows, and the covariance.
    """
    names = list(evidence.probs)
    balanced_N = evidence.probs[BALANCED].argmax(-1)
    rows = []
    for name in names:
        predicted_N = evidence.probs[name].argmax(-1)
        agrees_N = (predicted_N == balanced_N).double()
        without_N = (agrees_N.sum() - agrees_N) / (len(agrees_N) - 1)
        near_N = jackknife_consistency(predicted_N, evidence.neighbours_Nk, evidence.num_classes)
        rows.append((2 * near_N + without_N) / 3)
    scores_CN = torch.stack(rows)
    apart_CN = scores_CN - scores_CN.mean(1, keepdim=True)
    num_images = scores_CN.shape[1]
    return names, (num_images - 1) / num_images * apart_CN @ apart_CN.T


def blend_weights(
    scores: Mapping[str, float], families: Mapping[str, str] | None = None, *, temperature: float = TEMPERATURE
) -> dict[str, float]:
    """Shares of the candidates in the blend, ∝ exp(score/temperature); they sum to 1, the smallest are left out.

    A family weighs as much as its best member would alone, and its members share that likewise: ten configurations of
    one method are not ten opinions.
    """
    best = max(scores.values())
    alone = {name: math.exp((score - best) / temperature) for name, score in scores.items()}
    groups: dict[str, list[float]] = {}
    for name, weight in alone.items():
        groups.setdefault((families or {}).get(name, name), []).append(weight)
    raw = {}
    for name, weight in alone.items():
        group = groups[(families or {}).get(name, name)]
        raw[name] = weight * max(group) / sum(group) if weight > 0 else 0.0
    total = sum(raw.values())
    kept = {name: weight for name, weight in raw.items() if weight / total >= SMALLEST_WEIGHT}
    ordered = sorted(kept, key=lambda name: (-kept[name], name))
    return {name: kept[name] / sum(kept.values()) for name in ordered}


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


def advise(evidence: Evidence, model: GainModel = GAIN_MODEL) -> Advice:
    """The advice for a pool of images.

    Args:
        evidence: predictions of all candidates.
        model: what was learned of gains on development data.
    """
    scores = smooth_scores(evidence)
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


def measure_knowledge(
    image_features_ND: Tensor,
    text_features_KD: Tensor,
    neighbours_Nk: Tensor,
    generator: torch.Generator,
    *,
    num_draws: int = 10,
) -> Knowledge:
    """Compare zero-shot's predictions with those of the same texts turned at random about their mean.

    Turning keeps the texts' distances from one another, so only what they have to do with the images is lost.

    Args:
        image_features_ND: normalised features of the unlabelled images.
        text_features_KD: normalised text features.
        neighbours_Nk: nearest images.
        generator: of the turns.
        num_draws: turns that are averaged.
    """
    num_classes, width = text_features_KD.shape
    mean_D = text_features_KD.mean(0)

    def measured(text_KD: Tensor) -> tuple[float, float]:
        predicted_N = (image_features_ND @ torch.nn.functional.normalize(text_KD, dim=-1).T).argmax(-1)
        one_hot_NK = torch.nn.functional.one_hot(predicted_N, num_classes)
        return neighbour_consistency(predicted_N, neighbours_Nk, num_classes), effective_classes(one_hot_NK)

    turned = []
    for _ in range(num_draws):
        turn_DD, _ = torch.linalg.qr(torch.randn(width, width, generator=generator).to(text_features_KD))
        turned.append(measured(mean_D + (text_features_KD - mean_D) @ turn_DD))
    consistency, classes = measured(text_features_KD)
    random_consistency, random_classes = (sum(column) / num_draws for column in zip(*turned, strict=True))
    return Knowledge(consistency, random_consistency, classes, random_classes, num_classes)
