"""Conditions in search spaces: when a parameter is part of a configuration (`when:`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from captune.config import TrialConfig
from captune.errors import did_you_mean

METHOD = "method"
"""In a space over several methods, the parameter that chooses the method."""


@dataclass(frozen=True)
class Condition:
    """A parameter is part of a configuration only if another one has one of some values, or exceeds a number.

    Attributes:
        name: the other parameter, which comes before it in the space.
        values: values that the other parameter may have; empty if `above` is given.
        above: number that it must exceed; None if `values` are given.
    """

    name: str
    values: tuple[Any, ...] = ()
    above: float | None = None

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether a configuration meets it; the other parameter may be absent from the configuration."""
        value = values.get(self.name)
        if self.above is None:
            return value in self.values
        return isinstance(value, (int, float)) and value > self.above

    def describe(self) -> Any:
        """Its entry under `when:`."""
        return list(self.values) if self.above is None else {"above": self.above}

    @classmethod
    def read(cls, name: str, entry: Any) -> Condition:
        """Read a condition from an entry under `when:`.

        Raises:
            ValueError: the entry has another form.
        """
        if isinstance(entry, dict):
            above = entry.get("above")
            if set(entry) != {"above"} or isinstance(above, bool) or not isinstance(above, (int, float)):
                raise ValueError(f"must be a value, a list of values or {{above: NUMBER}}, but got {entry!r}")
            return cls(name, above=float(above))
        return cls(name, tuple(entry) if isinstance(entry, list) else (entry,))


def conditions_of(
    name: str,
    entry: Any,
    before: Sequence[str],
    base: TrialConfig,
    fixed: Mapping[str, Any],
    methods: Mapping[str, TrialConfig],
) -> tuple[tuple[Condition, ...] | None, list[str]]:
    """The conditions of an entry on searched parameters, and the problems found in them.

    A condition on a setting that is not searched is decided at once. If it is not met, the conditions are None.
    """
    when = entry.get("when", {}) if isinstance(entry, dict) else {}
    if not isinstance(when, dict):
        return (), [f"{name}: when must be `{{name: value}}`, but got {when!r}"]
    kept: list[Condition] = []
    problems: list[str] = []
    for other, wanted in when.items():
        try:
            condition = Condition.read(str(other), wanted)
        except ValueError as error:
            problems.append(f"{name}: when: {other}: {error}")
            continue
        if other == METHOD and methods and not set(condition.values) & set(methods):
            return None, problems
        if other in before:
            kept.append(condition)
        elif other in fixed or other in type(base).model_fields:
            if not condition.holds({other: fixed.get(other, getattr(base, other, None))}):
                return None, problems
        else:
            problems.append(f"{name}: when: '{other}' must stand before it: {did_you_mean(str(other), before)}")
    return tuple(kept), problems
