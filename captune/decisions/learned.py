"""What the advice has learned from development data, and which data that was.

Written by `python -m tests.tools.exam learn`; the page of the exam says how well it holds on datasets that were left
out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GainModel:
    """A linear model of the gain over zero-shot, and the errors it made on datasets it was not fitted on.

    Attributes:
        coefficients: fact (`captune.decisions.advice.gain_facts`, points) → points of gain a point of it.
        error_base, error_slope: scale of an error: base + slope · percent of images on which the two differ.
        errors: errors in units of that scale, rising, of predictions for left-out datasets.
        seen: the datasets it was fitted on.
        worlds: how many worlds they make.
    """

    coefficients: dict[str, float]
    error_base: float
    error_slope: float
    errors: tuple[float, ...]
    seen: tuple[str, ...]
    worlds: int


GAIN_MODEL = GainModel(
    coefficients={"neighbours": 0.0},
    error_base=1.0,
    error_slope=0.25,
    errors=(-1.0, 0.0, 1.0),
    seen=(),
    worlds=0,
)
