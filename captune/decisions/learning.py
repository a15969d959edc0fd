"""What the advice learns from development data, as it is stored: a model of scores and a model of gains."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ScoreModel:
    """A linear score of candidates (`captune.decisions.scores`), learned so that a choice by it gains the most.

    Attributes:
        coefficients: fact (`Scorer.facts`) → score points per unit of the fact. One point of score is a factor of e in
            the ensemble. "validation" is the fact about the validation labels; all others are about the pool.
        images_a_class: most unlabelled images per class in the development data; larger pools count as this many.
        validation_images: V validation images have the weight V / (V + this), the pool has the rest.
    """

    coefficients: dict[str, float]
    images_a_class: float
    validation_images: float = 5.0


@dataclass(frozen=True)
class GainModel:
    """A linear model of the gain over zero-shot, and the errors it made on datasets it was not fitted on.

    Attributes:
        coefficients: fact (`captune.decisions.advice.gain_facts`, points) → points of gain per point of the fact.
        error_base, error_slope: scale of an error: base + slope · percent of images on which the two differ.
        errors: quantiles 1 … 99 % of the errors in units of that scale, of predictions for left-out datasets.
        seen: the feature files it was fitted on.
        worlds: number of development tasks made of them.
    """

    coefficients: dict[str, float]
    error_base: float
    error_slope: float
    errors: tuple[float, ...]
    seen: tuple[str, ...]
    worlds: int
