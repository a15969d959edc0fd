"""Search spaces: which fields of a method's configuration are searched, over which domain, in which role.

The grammar is in search_spaces/README.md. A space is resolved against one cell: budgets become epochs, and a parameter
capped at the class size loses the values that would freeze the model at zero-shot.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, cast

from captune.conditions import METHOD, Condition, conditions_of
from captune.config import TrialConfig, read_yaml
from captune.errors import ConfigError, UsageError, did_you_mean

Kind = Literal["float", "int", "categorical"]
Role = Literal["scientific", "nuisance", "fixed"]
_KEYS = ("type", "low", "high", "log", "step", "choices", "role", "value", "unit", "max", "when", "note")
_KINDS = ("float", "int", "categorical")
_ROLES = ("scientific", "nuisance", "fixed")


@dataclass(frozen=True)
class Parameter:
    """One searched field.

    Attributes:
        name: the field of the method's configuration.
        kind: float, int or categorical.
        role: scientific (what the study asks about) or nuisance (tuned so that the comparison is fair).
        low, high: bounds, both inside the domain (numbers only).
        log: whether values are spread evenly on a logarithmic scale.
        step: distance between values, or None.
        choices: the values of a categorical parameter.
        when: all of these must hold for it to be part of a configuration.
    """

    name: str
    kind: Kind
    role: Role
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] = ()
    when: tuple[Condition, ...] = ()

    def active(self, values: Mapping[str, Any]) -> bool:
        """Whether it is part of a configuration with these values of the parameters before it."""
        return all(condition.holds(values) for condition in self.when)

    def clip(self, value: Any) -> Any:
        """The nearest value of the domain (a categorical value outside it becomes the first choice)."""
        if self.kind == "categorical":
            return value if value in self.choices else self.choices[0]
        value = min(max(float(value), self.low), self.high)
        if self.step is not None:
            steps = math.floor((self.high - self.low) / self.step + 1e-9)
            value = self.low + self.step * min(round((value - self.low) / self.step), steps)
        return round(value) if self.kind == "int" else value

    def at(self, unit: float) -> Any:
        """The value at a place in [0, 1]: the inverse of `unit`, up to the steps of the domain."""
        if self.kind == "categorical":
            return self.choices[round(unit * (len(self.choices) - 1))]
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = low + unit * (high - low)
        return self.clip(math.exp(value) if self.log else value)

    def unit(self, value: Any) -> float:
        """Where a value lies in the domain, in [0, 1] (on the log scale for a log parameter)."""
        if self.kind == "categorical":
            return self.choices.index(value) / max(len(self.choices) - 1, 1) if value in self.choices else 0.0
        low, high, value = self.low, self.high, float(self.clip(value))
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low) if high > low else 0.0

    def values(self, most: int) -> tuple[Any, ...] | None:
        """All its values in order; None if there are more than `most`, or infinitely many."""
        if self.kind == "categorical":
            return self.choices if len(self.choices) <= most else None
        step = self.step or (1.0 if self.kind == "int" else None)
        if step is None or (self.high - self.low) / step + 1 > most + 1e-9:
            return None
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        return tuple(dict.fromkeys(self.clip(self.low + step * index) for index in range(count)))

    def describe(self) -> dict[str, Any]:
        """The parameter as plain data, for records and for the comparison of two studies."""
        when = {"when": {condition.name: condition.describe() for condition in self.when}} if self.when else {}
        if self.kind == "categorical":
            return {"type": self.kind, "role": self.role, "choices": list(self.choices), **when}
        cast_number = int if self.kind == "int" else float
        return {
            **when,
            "type": self.kind,
            "role": self.role,
            "low": cast_number(self.low),
            "high": cast_number(self.high),
            "log": self.log,
            "step": self.step,
        }


@dataclass(frozen=True)
class Space:
    """A resolved search space.

    Attributes:
        parameters: the searched ones, in the file's order.
        fixed: fields the file sets to one value.
        source: the file, for messages.
        screen: the same parameters at the budget of screening trials; None if the study does not screen.
    """

    parameters: tuple[Parameter, ...]
    fixed: dict[str, Any] = field(default_factory=dict)
    source: str = "search space"
    screen: Space | None = None

    def describe(self) -> dict[str, Any]:
        """All parameters as plain data, the fixed ones with role and value."""
        searched = {parameter.name: parameter.describe() for parameter in self.parameters}
        return searched | {name: {"role": "fixed", "value": value} for name, value in self.fixed.items()}

    def points(self, most: int) -> list[dict[str, Any]] | None:
        """Every point of the space; None if there are more than `most`, or infinitely many."""
        columns = [parameter.values(most) for parameter in self.parameters]
        known = [column for column in columns if column is not None]
        if len(known) < len(columns) or math.prod(map(len, known)) > most:
            return None
        names = [parameter.name for parameter in self.parameters]
        points = [self.active(dict(zip(names, point, strict=True))) for point in itertools.product(*known)]
        return [point for place, point in enumerate(points) if point not in points[:place]] if self.when else points

    @property
    def when(self) -> bool:
        """Whether any parameter depends on another."""
        return any(parameter.when for parameter in self.parameters)

    def active(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the values whose parameters are part of the configuration, in the order of the parameters."""
        kept: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.name in values and parameter.active(kept):
                kept[parameter.name] = values[parameter.name]
        return kept

    def clip(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The nearest point of the space to (a part of) a configuration; absent fields are left out."""
        return {p.name: p.clip(values[p.name]) for p in self.parameters if p.name in values}

    def at(self, place: Sequence[float]) -> dict[str, Any]:
        """The configuration at a place in the unit cube."""
        return self.active({p.name: p.at(unit) for p, unit in zip(self.parameters, place, strict=True)})

    def unit(self, values: Mapping[str, Any]) -> list[float]:
        """A configuration's place in the unit cube; 0.5 for parameters that it does not have."""
        return [p.unit(values[p.name]) if p.name in values else 0.5 for p in self.parameters]


def shipped_space(method: str) -> Path | None:
    """The file `<method>.yaml` that comes with captune (in the wheel or the source tree); None if there is none."""
    for folder in (resources.files("captune") / "search_spaces", Path(__file__).parents[1] / "search_spaces"):
        path = Path(str(folder)) / f"{method}.yaml"
        if path.is_file():
            return path
    return None


def space_file(path: Path | None, method: str) -> Path:
    """The space a study uses: the user's, else the one shipped for the method.

    Raises:
        UsageError: no file for this method is shipped.
    """
    found = path or shipped_space(method)
    if found is None:
        raise UsageError(
            f"a search space for '{method}' must be given",
            got="none shipped for it",
            where="--space",
            next_step="Write one; the grammar is in search_spaces/README.md.",
        )
    return found


def load_space(
    path: Path,
    base: TrialConfig,
    *,
    fixed: Mapping[str, Any] | None = None,
    class_size: int | None = None,
    methods: Mapping[str, TrialConfig] | None = None,
) -> Space:
    """Read and resolve a search space.

    Args:
        path: the YAML file.
        base: the method's own configuration at the cell's budget; its class says which fields exist.
        methods: if the space chooses among methods, the configuration of each; a parameter is checked against the
            first method that it is for.
        fixed: fields set on the command line; they are not searched.
        class_size: estimated pool images per class, the cap of `max: class_size`.

    Raises:
        ConfigError: every problem of the file at once.
    """
    content = read_yaml(path)
    problems = [
        f"unknown key '{key}': {did_you_mean(str(key), ('method', 'parameters'))}"
        for key in content
        if key not in ("method", "parameters")
    ]
    entries = content.get("parameters")
    if not isinstance(entries, dict):
        problems.append("`parameters:` must hold `name: {type: …}` entries")
        entries = {}
    parameters: list[Parameter] = []
    constants: dict[str, Any] = {}
    for name, entry in entries.items():
        if name == METHOD and methods and isinstance(entry, dict):
            chosen = tuple(choice for choice in entry.get("choices", ()) if choice in methods)
            parameters.append(Parameter(METHOD, "categorical", "scientific", choices=chosen))
            continue
        searched = [parameter.name for parameter in parameters if parameter.name not in (fixed or {})]
        conditions, found = conditions_of(name, entry, searched, base, {**constants, **(fixed or {})}, methods or {})
        if conditions is None and not found:
            continue  # the parameter is in no configuration of this study
        own = _base_of(conditions or (), base, methods or {})
        found += _entry_problems(name, entry, type(own).model_fields)
        if not found:
            if entry.get("role") == "fixed":
                constants[name] = entry["value"]
                found = _value_problems(name, own, [entry["value"]])
            else:
                parameter = replace(_resolve(name, entry, own, class_size), when=conditions or ())
                found = _value_problems(name, own, _extremes(parameter))
                parameters.append(parameter)
        problems += found
    if problems:
        raise ConfigError("a search space must be valid", got="\n  " + "\n  ".join(problems), where=path)
    fixed = fixed or {}
    return Space(
        tuple(p for p in parameters if p.name not in fixed),
        {name: value for name, value in constants.items() if name not in fixed},
        str(path),
    )


def _base_of(conditions: Sequence[Condition], base: TrialConfig, methods: Mapping[str, TrialConfig]) -> TrialConfig:
    """The configuration that a parameter is checked against: that of the first method it is for."""
    named = next((condition.values for condition in conditions if condition.name == METHOD), ())
    return next((methods[name] for name in named if name in methods), base)


def _entry_problems(name: str, entry: Any, fields: Mapping[str, Any]) -> list[str]:
    """What is wrong with one entry before its numbers are resolved."""
    if name not in fields:
        return [f"'{name}' is no field of the configuration: {did_you_mean(str(name), fields)}"]
    if not isinstance(entry, dict):
        return [f"{name}: must be `{{type: …}}`, but got {entry!r}"]
    problems = [f"{name}: unknown key '{key}': {did_you_mean(str(key), _KEYS)}" for key in entry if key not in _KEYS]
    role = entry.get("role", "scientific")
    if role not in _ROLES:
        problems.append(f"{name}: role must be one of {', '.join(_ROLES)}, but got {role!r}")
    if role == "fixed":
        return problems if "value" in entry else [*problems, f"{name}: a fixed parameter must have a `value`"]
    kind = entry.get("type")
    if kind not in _KINDS:
        problems.append(f"{name}: type must be one of {', '.join(_KINDS)}, but got {kind!r}")
    elif kind == "categorical":
        choices = entry.get("choices")
        if not isinstance(choices, list) or not choices:
            problems.append(f"{name}: choices must be a list of at least one value, but got {choices!r}")
    else:
        problems += _range_problems(name, kind, entry)
    return problems


def _range_problems(name: str, kind: str, entry: Mapping[str, Any]) -> list[str]:
    problems = []
    budget = "unit" in entry
    if budget and entry["unit"] != "budget":
        problems.append(f"{name}: unit must be 'budget', but got {entry['unit']!r}")
    if "max" in entry and entry["max"] != "class_size":
        problems.append(f"{name}: max must be 'class_size', but got {entry['max']!r}")
    whole = kind == "int" and not budget
    bounds: dict[str, float] = {}
    for key in ("low", "high"):
        value = entry.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            problems.append(f"{name}: {key} must be a number, but got {value!r}")
        elif whole and value != int(value):
            problems.append(f"{name}: {key} must be a whole number, but got {value!r}")
        else:
            bounds[key] = value
    if len(bounds) == 2 and bounds["low"] > bounds["high"]:
        problems.append(f"{name}: low <= high must hold, but got (low={bounds['low']}, high={bounds['high']})")
    if not isinstance(entry.get("log", False), bool):
        problems.append(f"{name}: log must be true or false, but got {entry['log']!r}")
    elif entry.get("log") and bounds.get("low", 1) <= 0:
        problems.append(f"{name}: low > 0 must hold on a log scale, but got {bounds['low']}")
    step = entry.get("step")
    if step is not None and (isinstance(step, bool) or not isinstance(step, (int, float)) or step <= 0):
        problems.append(f"{name}: step must be a number above 0, but got {step!r}")
    if step is not None and entry.get("log"):
        problems.append(f"{name}: step must not be given on a log scale")
    return problems


def _resolve(name: str, entry: Mapping[str, Any], base: TrialConfig, class_size: int | None) -> Parameter:
    kind, role = cast(Kind, entry["type"]), cast(Role, entry.get("role", "scientific"))
    if kind == "categorical":
        return Parameter(name, kind, role, choices=tuple(entry["choices"]))
    low, high = float(entry["low"]), float(entry["high"])
    if entry.get("unit") == "budget":
        low, high = low * getattr(base, name), high * getattr(base, name)
        if kind == "int":
            low, high = max(1.0, math.floor(low)), max(1.0, math.ceil(high))
    if entry.get("max") == "class_size" and class_size is not None:
        # With more main samples than a class has images, the model stays at zero-shot.
        high = max(low, min(high, float(class_size)))
    return Parameter(name, kind, role, low, high, bool(entry.get("log", False)), entry.get("step"))


def _extremes(parameter: Parameter) -> list[Any]:
    if parameter.kind == "categorical":
        return list(parameter.choices)
    return [parameter.clip(parameter.low), parameter.clip(parameter.high)]


def _value_problems(name: str, base: TrialConfig, values: list[Any]) -> list[str]:
    """The problems that the configuration itself finds with values of one field."""
    problems = []
    for value in values:
        try:
            base.with_values({name: value})
        except ConfigError as error:
            problems.append(str(error.got).strip())
    return problems
