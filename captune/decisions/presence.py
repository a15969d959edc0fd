"""Which of the asked-for classes a pool seems to hold no image of, from predictions alone.

A class that is hardly ever predicted is either not there, or its name does not fit its images. What the rest of the
pool looks like tells the two apart: where classes are missing, predictions crowd into few classes and yet agree with
those of the nearest images; where names do not fit, or the backbone is weak, they crowd and do not agree. A logistic
model of five numbers weighs this up. No label is read. The constants come from development data (`python -m
tests.tools.exam presence`); analysis/measurements/absent_names.md says how well they do on datasets that were left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from captune.decisions.evidence import Evidence
from captune.records import ANCHORED, ZERO_SHOT

CONFIDENCE = 0.9
"""Smallest probability of absence at which a name is called absent."""
MOST_IMAGES = 0.5
"""A class of which the mixture expects more images than this is never called absent."""
SMALLEST = 5e-4
"""Smaller probabilities are tails of the softmax; over many images they would add up to images that are not there."""
# Of a class: log of the images that zero-shot and the mixture expect. Of the pool: log of the share of classes that the
# mixture effectively predicts, and how often predictions are those of the nearest images.
FACTS = ("zero_shot_images", "mixture_images", "spread", "agreement", "mixture_agreement")
# Mean, standard deviation and weight of each.
MODEL = {
    "zero_shot_images": (1.0065, 2.3187, -0.1666),
    "mixture_images": (0.3626, 3.0873, -1.3251),
    "spread": (-0.7543, 0.7797, -0.8693),
    "agreement": (0.4218, 0.2733, -0.4850),
    "mixture_agreement": (0.4867, 0.2991, 1.3270),
}
INTERCEPT = -2.1084


@dataclass(frozen=True)
class Absent:
    """A class that seems to have no image in the pool.

    Attributes:
        label: its place among the class names.
        probability: that it has none.
        images: how many images zero-shot expects of it (the sum of its probabilities).
    """

    label: int
    probability: float
    images: float


def presence_facts(zero_shot_NK: Tensor, mixture_NK: Tensor, neighbours_Nk: Tensor) -> Tensor:
    """The numbers the model reads, (K, F) in the order of `FACTS`.

    Args:
        zero_shot_NK: zero-shot probabilities of all unlabelled images.
        mixture_NK: their probabilities by the anchored mixture (the method `anchored`).
        neighbours_Nk: every image's nearest others among them, by the cosine of frozen features.

    Raises:
        ValueError: shapes do not fit.
    """
    num_images, num_classes = zero_shot_NK.shape
    if mixture_NK.shape != zero_shot_NK.shape or len(neighbours_Nk) != num_images or num_images == 0:
        raise ValueError(
            "zero_shot_NK and mixture_NK must be (N, K) with N > 0 and N rows of neighbours, but got "
            f"{tuple(zero_shot_NK.shape)}, {tuple(mixture_NK.shape)} and {tuple(neighbours_Nk.shape)}"
        )

    def expected(probs_NK: Tensor) -> Tensor:
        probs_NK = probs_NK.double()
        return torch.where(probs_NK < SMALLEST, 0.0, probs_NK).sum(0)

    def agreement(probs_NK: Tensor) -> float:
        predicted_N = probs_NK.argmax(-1)
        return float((predicted_N[:, None] == predicted_N[neighbours_Nk]).double().mean())

    by_zero_shot_K, by_mixture_K = expected(zero_shot_NK), expected(mixture_NK)
    shares_K = by_mixture_K / by_mixture_K.sum()
    entropy = -float(torch.special.xlogy(shares_K, shares_K).sum())
    of_pool = (entropy - math.log(num_classes), agreement(zero_shot_NK), agreement(mixture_NK))
    columns = [torch.log(by_zero_shot_K + 1e-3), torch.log(by_mixture_K + 1e-3)]
    return torch.stack([*columns, *(torch.full_like(by_mixture_K, value) for value in of_pool)], dim=1)


def absent_classes(zero_shot_NK: Tensor, mixture_NK: Tensor, neighbours_Nk: Tensor) -> list[Absent]:
    """The classes that seem to have no image among these, the surest first; arguments as of `presence_facts`.

    Where the backbone does not know the classes (`Knowledge` of captune.decisions.evidence) nothing should be said of
    names.
    """
    facts_KF = presence_facts(zero_shot_NK, mixture_NK, neighbours_Nk)
    logits_K = torch.full_like(facts_KF[:, 0], INTERCEPT)
    for values_K, (mean, spread, weight) in zip(facts_KF.T, (MODEL[name] for name in FACTS), strict=True):
        logits_K = logits_K + weight * (values_K - mean) / spread
    probability_K = absence_probabilities(logits_K, facts_KF)
    images_K = facts_KF[:, 0].exp() - 1e-3
    found = [
        Absent(label, float(probability_K[label]), float(images_K[label]))
        for label in (probability_K >= CONFIDENCE).nonzero()[:, 0].tolist()
    ]
    return sorted(found, key=lambda absent: (-absent.probability, absent.label))


def absent_in(evidence: Evidence) -> list[Absent]:
    """The same from what a study's candidates predict.

    None are named where the anchored mixture is not among them, or where it is not established that the backbone knows
    the classes (`Evidence.knowledge` is None with labelled images and with very few images or classes).
    """
    zero_shot_NK, mixture_NK = evidence.probs[ZERO_SHOT].float(), evidence.probs.get(ANCHORED)
    confidence = float(zero_shot_NK.amax(-1).mean())
    if mixture_NK is None or evidence.knowledge is None or not evidence.knowledge.known(confidence):
        return []
    return absent_classes(zero_shot_NK, mixture_NK.float(), evidence.neighbours_Nk)


def absence_probabilities(logits_K: Tensor, facts_KF: Tensor) -> Tensor:
    """What the model says, but 0 for a class of which the mixture expects images (`MOST_IMAGES`)."""
    return torch.where(facts_KF[:, 1].exp() > MOST_IMAGES, 0.0, logits_K.sigmoid())


def absent_sentence(found: Sequence[Absent], class_names: Sequence[str], *, most: int = 8) -> str | None:
    """A sentence that names them, with the evidence; None where all names seem to be there."""
    if not found:
        return None
    named = ", ".join(class_names[absent.label] for absent in found[:most])
    more = f" and {len(found) - most} more" if len(found) > most else ""
    images = sum(absent.images for absent in found)
    expects = "less than one image" if images < 1 else f"about {images:.0f} image{'s' * (round(images) != 1)}"
    one = len(found) == 1
    return (
        f"{len(found)} of the {len(class_names)} asked-for names seem{'s' * one} absent: {named}{more} (zero-shot "
        f"expects {expects} of {'it' if one else 'them together'}, and what it takes the others for agrees with their "
        "nearest images)"
    )
