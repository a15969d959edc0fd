"""The base of all configurations: frozen, no unknown keys, all mistakes reported at once. Also reads YAML files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from captune.errors import ConfigError, did_you_mean, did_you_mean_path, nearest
from captune.plain_yaml import dump_yaml, parse_yaml

COMMAND_LINE = "the command line"
"""How error messages name the source of an option."""


@dataclass(frozen=True)
class Panel:
    """The heading under which `--help` lists a field; written beside the type: `Annotated[int, Panel("Model")]`.

    Attributes:
        name: the heading of the panel; None for a field that is no option.
    """

    name: str | None


class Config(BaseModel):
    """Base of all configurations: frozen, no unknown keys.

    `panel` is the heading in `--help` of fields without a `Panel` of their own.
    """

    panel: ClassVar[str] = "Options"
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, values: dict[str, Any], *, where: object = "configuration") -> Self:
        """Validate `values`, raising one `ConfigError` that lists every problem.

        Raises:
            ConfigError: unknown keys (with the nearest known one) or values out of range.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = _problems(error, cls)
            if where == COMMAND_LINE:
                problems = [re.sub(r"^[a-z_]+(?=: )", _as_option, problem) for problem in problems]
                raise ConfigError("options must be valid", got="\n  " + "\n  ".join(problems)) from None
            raise ConfigError(
                f"{cls.__name__} must be valid", got="\n  " + "\n  ".join(problems), where=where
            ) from None

    def to_yaml(self) -> str:
        """The configuration as YAML, paths as text, fields in the order they are declared."""
        return dump_yaml(self.model_dump(mode="json"))


def _as_option(name: re.Match[str]) -> str:
    return f"--{name.group().replace('_', '-')}"


def _problems(error: ValidationError, cls: type[BaseModel]) -> list[str]:
    lines = []
    places = [problem["loc"] for problem in error.errors()]
    for problem in error.errors():
        own = problem["loc"]
        if problem["type"] == "too_short" and any(at[: len(own)] == own and at != own for at in places):
            continue  # pydantic counts only the items without a problem, and these are listed
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            owner = _owner(cls, problem["loc"][:-1])
            lines.append(f"unknown option '{key}': {did_you_mean(str(problem['loc'][-1]), owner.model_fields)}")
        elif not key:  # a rule over several fields
            lines.append(problem["msg"].removeprefix("Value error, "))
        else:
            line = f"{key}: {_wording(problem)}, got {problem['input']!r}"
            if problem["type"] == "literal_error":
                line += _nearest(str(problem["input"]), problem.get("ctx", {}).get("expected", ""))
            lines.append(line)
    return lines


def _nearest(value: str, expected: str) -> str:
    """A sentence that suggests the nearest of the values that pydantic lists as allowed; empty if none is near."""
    near = nearest(value, re.findall(r"'([^']+)'", expected))
    return f". Did you mean '{near}'?" if near else ""


def _wording(problem: Any) -> str:
    """Pydantic's message about a value, in the form of captune's errors."""
    limits = problem.get("ctx", {})
    for kind, key, words in (
        ("greater_than_equal", "ge", "at least"),
        ("greater_than", "gt", "more than"),
        ("less_than_equal", "le", "at most"),
        ("less_than", "lt", "less than"),
    ):
        if problem["type"] == kind:
            return f"must be {words} {limits[key]:g}"
    for kind, words in (("int", "a whole number"), ("float", "a number")):
        if problem["type"] in (f"{kind}_parsing", f"{kind}_type", f"{kind}_from_float"):
            return f"must be {words}"
    return str(problem["msg"])


def _owner(cls: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel]:
    for part in path:
        annotation = cls.model_fields[str(part)].annotation if str(part) in cls.model_fields else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            cls = annotation
    return cls


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping, with the safe loader.

    Raises:
        ConfigError: the file is missing, is not YAML, or holds no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except IsADirectoryError:
        inside = sorted(str(file) for file in path.glob("*.yaml"))
        raise ConfigError(
            "a configuration must be a file", got="a folder", where=path,
            next_step=f"Give a file in it: {', '.join(inside[:3])}." if inside else None,
        ) from None  # fmt: skip
    except OSError as error:
        raise ConfigError(
            "a configuration file must be readable", got=error.strerror, where=path, next_step=did_you_mean_path(path)
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError("a configuration file must be UTF-8 text", got=f"byte {error.start}", where=path) from None
    values = parse_yaml(text, where=path, what="a configuration file")
    if not isinstance(values, dict):
        got = "nothing" if values is None else "a list" if isinstance(values, list) else "a single value"
        raise ConfigError("a configuration file must hold `key: value` pairs", got=got, where=path)
    return values
