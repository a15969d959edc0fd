"""The score of a candidate from predictions alone, and its weight in the ensemble.

Candidates are scored on the same unlabelled images by three facts, weighed by what development data taught:

1. agreement with the nearest images, chance-corrected, as log-odds: from .80 to .90 tells as much as from .30 to .50;
2. agreement with balanced zero-shot, which weighs more where balanced and plain zero-shot agree with one another, and
   less the more images a class has: many images outweigh the texts, few do not;
3. how many classes it predicts: merging classes raises the agreement with the nearest images, whatever is true.

Agreement as a plain share let balanced zero-shot hold back what is far better on weak backbones
(analysis/measurements/advice_exam.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from captune.decisions.evidence import Evidence, effective_classes
from captune.decisions.learned import SCORE_MODEL
from captune.decisions.learning import ScoreModel
from captune.decisions.neighbours import neighbour_consistency
from captune.records import BALANCED, ZERO_SHOT

SMALLEST_WEIGHT = 0.02
"""Members below this share of the ensemble are left out."""
_SMOOTHING = 0.1
"""Of the log-odds of agreement: what a few hundred images cannot tell from 0 or 1."""


def agreement_log_odds(consistency: float) -> float:
    """log((a + 0.1) / (1.1 - a)) of a chance-corrected agreement a; one below 0 counts as 0."""
    return math.log((max(consistency, 0.0) + _SMOOTHING) / (1 + _SMOOTHING - consistency))


def score_facts(evidence: Evidence, *, most_images_a_class: float = math.inf) -> dict[str, dict[str, float]]:
    """Candidate → the facts its score is a weighted sum of.

    Returns:
        `agreement`: `agreement_log_odds` of the agreement with the nearest images; `classes`: log of the share of
        classes that it effectively predicts; `balanced`: share of images predicted as balanced zero-shot does;
        `balanced_trusted`: that × the share on which balanced and plain zero-shot agree; `balanced_images`: that × log
        of the unlabelled images a class (at most `most_images_a_class`).
    """
    predicted = {name: probs_NK.argmax(-1) for name, probs_NK in evidence.probs.items()}
    balanced_N, num_classes = predicted[BALANCED], evidence.num_classes
    trusted = float((balanced_N == predicted[ZERO_SHOT]).float().mean())
    images = math.log(min(len(balanced_N) / num_classes, most_images_a_class))
    facts = {}
    for name, predicted_N in predicted.items():
        balanced = float((predicted_N == balanced_N).float().mean())
        classes = effective_classes(torch.nn.functional.one_hot(predicted_N, num_classes))
        facts[name] = {
            "agreement": agreement_log_odds(neighbour_consistency(predicted_N, evidence.neighbours_Nk, num_classes)),
            "classes": math.log(classes / num_classes),
            "balanced": balanced,
            "balanced_trusted": balanced * trusted,
            "balanced_images": balanced * images,
        }
    return facts


def candidate_scores(evidence: Evidence, model: ScoreModel = SCORE_MODEL) -> dict[str, float]:
    """Candidate → its score, zero-shot's taken off: one unit is a factor of e in the ensemble."""
    facts = score_facts(evidence, most_images_a_class=model.images_a_class)
    whole = {
        name: sum(model.coefficients[fact] * own[fact] for fact in model.coefficients) for name, own in facts.items()
    }
    return {name: score - whole[ZERO_SHOT] for name, score in whole.items()}


def blend_weights(scores: Mapping[str, float], families: Mapping[str, str] | None = None) -> dict[str, float]:
    """Shares of the candidates in the blend, ∝ exp(score); they sum to 1, the smallest are left out.

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
