"""Values from and to JSON, leniently: what is not of its type becomes None or empty, never something else."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from captune.records.enums import Phase, Role, State


def number_or_none(value: Any) -> float | None:
    """A finite float, or None: what is not a number never becomes one."""
    if type(value) is float:  # the usual case first: a long journal has hundreds of thousands of numbers
        return value if math.isfinite(value) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def jsonable(value: Any) -> Any:
    """A value as JSON can hold it: NaN and infinities become null, arrays lists, paths text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    return str(value) if isinstance(value, Path) else value


def _whole_number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def mapping(value: Any) -> dict[str, Any]:
    """A mapping, or an empty one."""
    return value if isinstance(value, dict) else {}


def _numbers(value: Any) -> dict[str, float]:
    return {name: number for name, item in mapping(value).items() if (number := number_or_none(item)) is not None}


def _items(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else ()


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(str(item) for item in _items(value))


def _mappings(value: Any) -> tuple[dict[str, Any], ...]:
    return tuple(item for item in _items(value) if isinstance(item, dict))


def _required_text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a text is needed, but got {value!r}")
    return value


def _required_whole_number(value: Any) -> int:
    if (number := _whole_number(value)) is None:
        raise ValueError(f"a whole number is needed, but got {value!r}")
    return number


CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "str": _required_text,
    "int": _required_whole_number,
    "bool": bool,
    "str | None": _text,
    "int | None": _whole_number,
    "float | None": number_or_none,
    "dict[str, Any]": mapping,
    "dict[str, Any] | None": lambda value: value if isinstance(value, dict) else None,
    "dict[str, float]": _numbers,
    "tuple[str, ...]": _texts,
    "tuple[dict[str, Any], ...]": _mappings,
    "tuple[int, ...] | None": lambda value: None if value is None else tuple(_items(value)),
    "Phase": Phase,
    "State": State,
    "Role": Role,
}
"""From JSON, by the annotation of a field."""
