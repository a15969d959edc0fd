"""The search space as a journal records it: domains, their unit coordinates, and their borders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from captune.records import Phase, StudyRecord, number_or_none

BORDER = 0.02
"""A value within this share of its range from an end lies on the border."""


@dataclass(frozen=True)
class Domain:
    """One searched setting: a numeric range (linear or log) or a set of choices."""

    name: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    integer: bool = False
    choices: tuple[Any, ...] = ()

    def to_unit(self, value: Any) -> float:
        """A value's coordinate in [0, 1]: its place in the range, or its choice's index over the number of choices − 1.

        0.5 for a value that is missing or no member: the forest then learns nothing from it.
        """
        if self.choices:
            return self.choices.index(value) / max(1, len(self.choices) - 1) if value in self.choices else 0.5
        number = number_or_none(value)
        if number is None or self.high <= self.low:
            return 0.5
        if self.log:
            number = max(number, self.low)
            return min(1.0, math.log(number / self.low) / math.log(self.high / self.low))
        return min(1.0, max(0.0, (number - self.low) / (self.high - self.low)))

    def from_unit(self, unit: float) -> Any:
        """The value at a coordinate in [0, 1]; the inverse of `to_unit`."""
        if self.choices:
            return self.choices[round(unit * (len(self.choices) - 1))]
        value = self.low * (self.high / self.low) ** unit if self.log else self.low + unit * (self.high - self.low)
        return round(value) if self.integer else value

    def on_border(self, value: Any) -> bool:
        """Whether a numeric value lies at an end of its range that could be widened.

        A choice has no border, and a lower end of 0 is none: it is where a weight or a strength is switched off.
        """
        if self.choices or number_or_none(value) is None or self.high <= self.low:
            return False
        unit = self.to_unit(value)
        reach = 0.0 if self.integer else BORDER
        return unit >= 1 - reach or (unit <= reach and self.low != 0)


def searched_space(study: StudyRecord) -> dict[str, Any]:
    """The recorded space without the fields it fixes."""
    return {
        name: spec for name, spec in study.space.items() if not (isinstance(spec, dict) and spec.get("role") == "fixed")
    }


def domains_of(study: StudyRecord) -> list[Domain]:
    """The domains of a study's space; a setting whose recorded domain cannot be read gets the range of the values that
    were tried.
    """
    domains = []
    names = dict.fromkeys(
        [*searched_space(study), *(name for trial in study.of_phase(Phase.SEARCH) for name in trial.params)]
    )
    for name in names:
        values = [trial.params[name] for trial in study.of_phase(Phase.SEARCH) if name in trial.params]
        domain = _declared(name, study.space.get(name)) or _observed(name, values)
        if domain is not None:
            domains.append(domain)
    return domains


def _declared(name: str, spec: Any) -> Domain | None:
    """From `Parameter.describe`; None where the recorded text was edited beyond reading."""
    if not isinstance(spec, dict) or spec.get("role") == "fixed":
        return None
    choices = spec.get("choices")
    if isinstance(choices, list) and choices:
        return Domain(name, choices=tuple(choices))
    low, high = number_or_none(spec.get("low")), number_or_none(spec.get("high"))
    if low is None or high is None:
        return None
    return Domain(name, low, high, log=spec.get("log") is True and low > 0, integer=spec.get("type") == "int")


def _observed(name: str, values: Sequence[Any]) -> Domain | None:
    if not values:
        return None
    numbers = [number for value in values if (number := number_or_none(value)) is not None]
    if len(numbers) == len(values):
        integer = all(isinstance(value, int) for value in values)
        return Domain(name, min(numbers), max(numbers), integer=integer)
    return Domain(name, choices=tuple(dict.fromkeys(_hashable(value) for value in values)))


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
