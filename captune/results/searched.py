"""The settings that a study searched, as its journal records them: their ranges, and where a value lies in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from captune.records import Phase, StudyRecord, number_or_none
from captune.space import Kind, Parameter

BORDER = 0.02
"""A value lies on the border if it is within this share of its range from an end."""


def searched_names(study: StudyRecord) -> list[str]:
    """Names of the searched settings: those of the recorded space, then any others that a trial has."""
    names = dict.fromkeys(
        name for name, spec in study.space.items() if not (isinstance(spec, dict) and spec.get("role") == "fixed")
    )
    for trial in study.of_phase(Phase.SEARCH):
        names |= dict.fromkeys(trial.params)
    return list(names)


def searched_parameters(study: StudyRecord) -> list[Parameter]:
    """The parameters of a study's space. A parameter that cannot be read gets the range of the values tried."""
    parameters = []
    for name in searched_names(study):
        values = [trial.params[name] for trial in study.of_phase(Phase.SEARCH) if name in trial.params]
        parameter = _declared(name, study.space.get(name)) or _observed(name, values)
        if parameter is not None:
            parameters.append(parameter)
    return parameters


def place(parameter: Parameter, value: Any) -> float:
    """Where a recorded value lies in its parameter's range, in [0, 1].

    0.5 if the value is missing or is none of the choices, so that a forest learns nothing from it.
    """
    if parameter.kind == "categorical":
        return parameter.unit(value) if value in parameter.choices else 0.5
    number = number_or_none(value)
    return 0.5 if number is None or parameter.high <= parameter.low else parameter.unit(number)


def on_border(parameter: Parameter, value: Any) -> bool:
    """Whether a numeric value lies at an end of its range that could be widened.

    A choice has no border. A lower end of 0 does not count: there a weight or a strength is switched off.
    """
    if parameter.kind == "categorical" or number_or_none(value) is None or parameter.high <= parameter.low:
        return False
    unit = place(parameter, value)
    reach = 0.0 if parameter.kind == "int" else BORDER
    return unit >= 1 - reach or (unit <= reach and parameter.low != 0)


def _declared(name: str, spec: Any) -> Parameter | None:
    """A parameter from what `Parameter.describe` wrote; None if that was edited and cannot be read."""
    if not isinstance(spec, dict) or spec.get("role") == "fixed":
        return None
    choices = spec.get("choices")
    if isinstance(choices, list) and choices:
        return Parameter(name, "categorical", "nuisance", choices=tuple(choices))
    low, high, step = (number_or_none(spec.get(key)) for key in ("low", "high", "step"))
    if low is None or high is None:
        return None
    kind: Kind = "int" if spec.get("type") == "int" else "float"
    log = spec.get("log") is True and low > 0
    return Parameter(name, kind, "nuisance", low, high, log, step if step is not None and step > 0 else None)


def _observed(name: str, values: Sequence[Any]) -> Parameter | None:
    if not values:
        return None
    numbers = [number for value in values if (number := number_or_none(value)) is not None]
    if len(numbers) == len(values):
        kind: Kind = "int" if all(isinstance(value, int) for value in values) else "float"
        return Parameter(name, kind, "nuisance", min(numbers), max(numbers))
    return Parameter(name, "categorical", "nuisance", choices=tuple(dict.fromkeys(_hashable(v) for v in values)))


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
