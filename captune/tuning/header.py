"""study.yaml read back: a study's settings and search space, without anything that trains or searches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from captune.conditions import Condition
from captune.config import StudyConfig, read_yaml
from captune.errors import StudyError
from captune.records.layout import STUDY
from captune.space import Parameter, Space


def read_study(directory: Path) -> tuple[StudyConfig, Space]:
    """The settings and space of the study in a directory.

    Raises:
        StudyError: there is no study.
    """
    path = directory / STUDY
    if not path.exists():
        raise StudyError(
            f"a study's directory must hold {STUDY}", got="none", where=directory,
            next_step="Give the directory that `captune run` wrote.",
        )  # fmt: skip
    header = read_yaml(path)
    space = space_from(header.get("space") or {}, str(path))
    if header.get("screen"):
        space = replace(space, screen=space_from(header["screen"]["space"], str(path)))
    return StudyConfig.parse(header.get("study") or {}, where=path), space


def space_from(description: dict[str, Any], source: str) -> Space:
    """A space from its description in study.yaml, because the file it came from may have changed since."""
    parameters, fixed = [], {}
    for name, entry in description.items():
        if entry["role"] == "fixed":
            fixed[name] = entry["value"]
            continue
        when = tuple(Condition.read(other, wanted) for other, wanted in (entry.get("when") or {}).items())
        if entry["type"] == "categorical":
            choices = tuple(entry["choices"])
            parameters.append(Parameter(name, "categorical", entry["role"], choices=choices, when=when))
        else:
            bounds = float(entry["low"]), float(entry["high"])
            parameters.append(
                Parameter(name, entry["type"], entry["role"], *bounds, entry["log"], entry["step"], when=when)
            )
    return Space(tuple(parameters), fixed, source)
