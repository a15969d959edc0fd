"""The score of a candidate from predictions alone, and its weight in the ensemble.

Candidates are scored on the same unlabelled images by three facts, with weights learned from development data:

1. agreement with the nearest images, chance-corrected, as log-odds: a step from .80 to .90 counts as much as one from
   .30 to .50;
2. agreement with balanced zero-shot, which counts more where balanced and plain zero-shot agree with one another, and
   less the more images there are per class, since then the images themselves say more than the texts;
3. how many classes it predicts, since merging classes raises the agreement with the nearest images, right or wrong.

Where the task has validation labels (ssl, trzsl), the accuracy on them takes the place of these facts, the more so the
more labels there are. They are few, but they measure what is wanted, and the ensemble evens out their noise.

Agreement enters as log-odds, because with a plain share balanced zero-shot held back candidates that are far better on
weak backbones (analysis/measurements/advice_exam.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from captune.decisions.evidence import Evidence, effective_classes
from captune.decisions.learned import SCORE_MODEL
from captune.decisions.learning import ScoreModel
from captune.decisions.neighbours import neighbour_consistency
from captune.records import BALANCED, ZERO_SHOT

SMALLEST_WEIGHT = 0.02
"""Members with a smaller share of the ensemble are left out."""
_SMOOTHING = 0.1
"""Added to the agreement and to its complement in the log-odds: a few hundred images cannot tell less from nothing."""


def agreement_log_odds(consistency: float) -> float:
    """log((a + 0.1) / (1.1 - a)) of a chance-corrected agreement a; one below 0 counts as 0."""
    return math.log((max(consistency, 0.0) + _SMOOTHING) / (1 + _SMOOTHING - consistency))


@dataclass(frozen=True)
class Scorer:
    """Scores predictions on a pool by one model: those of candidates and those of their ensemble.

    Attributes:
        evidence: what is known of the pool.
        model: what was learned of scores.
    """

    evidence: Evidence
    model: ScoreModel = SCORE_MODEL

    @cached_property
    def _balanced_N(self) -> Tensor:
        return self.evidence.probs[BALANCED].argmax(-1)

    @cached_property
    def _trusted(self) -> float:
        """Share of images on which balanced and plain zero-shot agree."""
        return float((self._balanced_N == self.evidence.probs[ZERO_SHOT].argmax(-1)).float().mean())

    def facts(self, probs_NK: Tensor, validation_VK: Tensor | None) -> dict[str, float]:
        """The facts whose weighted sum is a score.

        Args:
            probs_NK: predictions on the unlabelled images.
            validation_VK: those of the same model on the validation images, where there are any.

        Returns:
            - `agreement`: `agreement_log_odds` of the agreement with the nearest images;
            - `classes`: log of the share of classes that it effectively predicts;
            - `balanced`: share of images predicted as by balanced zero-shot;
            - `balanced_trusted`: `balanced` × share of images on which balanced and plain zero-shot agree;
            - `balanced_images`: `balanced` × log of the unlabelled images per class (at most `images_a_class`);
            - `validation`: accuracy on the validation images, 0 without any.
        """
        predicted_N, num_classes = probs_NK.argmax(-1), self.evidence.num_classes
        neighbours_Nk = self.evidence.neighbours_Nk
        balanced = float((predicted_N == self._balanced_N).float().mean())
        classes = effective_classes(torch.nn.functional.one_hot(predicted_N, num_classes))
        images = math.log(min(len(predicted_N) / num_classes, self.model.images_a_class))
        return {
            "agreement": agreement_log_odds(neighbour_consistency(predicted_N, neighbours_Nk, num_classes)),
            "classes": math.log(classes / num_classes),
            "balanced": balanced,
            "balanced_trusted": balanced * self._trusted,
            "balanced_images": balanced * images,
            "validation": self._validation(validation_VK),
        }

    def _validation(self, probs_VK: Tensor | None) -> float:
        labelled = self.evidence.validation
        return 0.0 if labelled is None or probs_VK is None or not self.validation_share else labelled.accuracy(probs_VK)

    @cached_property
    def validation_share(self) -> float:
        """The weight of the validation images, a fraction; 0 where they are of seen or of unseen classes only."""
        labelled = self.evidence.validation
        if labelled is None or math.isnan(labelled.accuracy(labelled.probs[ZERO_SHOT])):
            return 0.0
        count = len(labelled.labels_V)
        return count / (count + self.model.validation_images)

    @cached_property
    def candidate_facts(self) -> dict[str, dict[str, float]]:
        """Candidate → its facts."""
        validation = {} if self.evidence.validation is None else self.evidence.validation.probs
        return {name: self.facts(probs_NK, validation.get(name)) for name, probs_NK in self.evidence.probs.items()}

    def candidates(self) -> dict[str, float]:
        """Candidate → its score less zero-shot's: one point is a factor of e in the ensemble."""
        return {name: self._against_zero_shot(facts) for name, facts in self.candidate_facts.items()}

    def score(self, probs_NK: Tensor, validation_VK: Tensor | None = None) -> float:
        """The same of any predictions; arguments as of `facts`."""
        return self._against_zero_shot(self.facts(probs_NK, validation_VK))

    def _against_zero_shot(self, facts: Mapping[str, float]) -> float:
        zero, score = self.candidate_facts[ZERO_SHOT], 0.0
        for fact, weight in self.model.coefficients.items():
            share = self.validation_share if fact == "validation" else 1 - self.validation_share
            score += share * weight * (facts[fact] - zero[fact])
        return score


def blend_weights(scores: Mapping[str, float], families: Mapping[str, str] | None = None) -> dict[str, float]:
    """Shares of the candidates in the blend, ∝ exp(score); they sum to 1, and the smallest are left out.

    A family weighs as much as its best member would alone, and its members share that likewise: ten configurations of
    one method are not ten opinions.
    """
    best = max(scores.values())
    alone = {name: math.exp(score - best) for name, score in scores.items()}
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
