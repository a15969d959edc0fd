"""What the advice has learned from development data, and which data that was.

Written by `python -m tests.tools.exam judge --learned`; analysis/measurements/advice_exam.md says how well it holds on
datasets that were left out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GainModel:
    """A linear model of the gain over zero-shot, and the errors it made on datasets it was not fitted on.

    Attributes:
        coefficients: fact (`captune.decisions.advice.gain_facts`, points) → points of gain a point of it.
        error_base, error_slope: scale of an error: base + slope · percent of images on which the two differ.
        errors: quantiles 1 … 99 % of the errors in units of that scale, of predictions for left-out datasets.
        seen: the feature files it was fitted on.
        worlds: how many worlds they make.
    """

    coefficients: dict[str, float]
    error_base: float
    error_slope: float
    errors: tuple[float, ...]
    seen: tuple[str, ...]
    worlds: int


GAIN_MODEL = GainModel(
    coefficients={
        "neighbours": 0.0441,
        "balanced": 0.0845,
        "support": 0.6113,
        "votes": 0.1073,
        "moved": 0.1284,
        "differ_few": -0.0577,
        "differ_sure": 0.1356,
    },
    error_base=1.0,
    error_slope=0.2,
    errors=(
        -2.965,
        -2.269,
        -2.005,
        -1.763,
        -1.689,
        -1.604,
        -1.523,
        -1.423,
        -1.329,
        -1.273,
        -1.269,
        -1.222,
        -1.187,
        -1.175,
        -1.138,
        -1.106,
        -1.099,
        -1.067,
        -1.057,
        -1.054,
        -1.03,
        -1.022,
        -0.951,
        -0.917,
        -0.891,
        -0.883,
        -0.848,
        -0.837,
        -0.818,
        -0.761,
        -0.682,
        -0.634,
        -0.613,
        -0.586,
        -0.58,
        -0.563,
        -0.552,
        -0.466,
        -0.442,
        -0.428,
        -0.404,
        -0.394,
        -0.372,
        -0.355,
        -0.329,
        -0.28,
        -0.252,
        -0.207,
        -0.143,
        -0.087,
        -0.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.035,
        0.071,
        0.087,
        0.115,
        0.129,
        0.16,
        0.188,
        0.266,
        0.308,
        0.361,
        0.367,
        0.376,
        0.415,
        0.48,
        0.518,
        0.549,
        0.57,
        0.576,
        0.598,
        0.62,
        0.635,
        0.719,
        0.745,
        0.826,
        0.935,
        1.0,
        1.053,
        1.143,
        1.17,
        1.199,
        1.405,
        1.497,
        1.508,
        1.833,
        1.878,
        1.968,
        2.032,
        2.042,
        2.14,
        2.329,
        2.534,
        2.633,
        2.831,
        3.703,
    ),
    seen=(
        "caltech101_59",
        "digits_tiny",
        "dogs118",
        "pets24",
        "semi_dtd47",
        "semi_flowers102",
        "whu19",
    ),
    worlds=177,
)
