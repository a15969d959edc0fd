"""The word that `--help` shows for an option's value: one that a person would use, not the name of a Python type."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from typer.models import OptionInfo

WORDS = {bool: "", int: "N", float: "X", str: "TEXT", Path: "PATH"}


def with_metavars(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give each option that has no metavar of its own one by its type; a flag gets none."""
    annotations = {
        name: parameter.annotation for name, parameter in inspect.signature(function, eval_str=True).parameters.items()
    }
    for annotation in annotations.values():
        for option in (mark for mark in getattr(annotation, "__metadata__", ()) if isinstance(mark, OptionInfo)):
            if option.metavar is None:
                option.metavar = WORDS.get(_plain_type(annotation))
    function.__annotations__ = annotations
    return function


def opposites_sentence(function: Callable[..., Any]) -> str | None:
    """The sentence on `--no-…` and `none` that ends `--help`, with one of the command's own options as the example.

    None if the command has no such option. Only settings have an opposite, and only a study's file can have turned one
    on before.
    """
    signature = inspect.signature(function)
    hidden = next((name for name in signature.parameters if name.startswith("no_")), None)
    if hidden is None:
        return None
    flag = hidden.removeprefix("no_").replace("_", "-")
    undoes = " that undoes what a study.yaml says" if "study_file" in signature.parameters else ""
    none = " The value none does so for an option that needs no value: --shots none." if undoes else ""
    return f"Each flag that is a setting has an opposite{undoes}: --no-{flag} for --{flag}.{none}"


def _plain_type(annotation: Any) -> Any:
    """`int` of `Annotated[int | None, …]`, `str` of `list[str]`."""
    while get_args(annotation):
        annotation = next(part for part in get_args(annotation) if part is not type(None))
    return annotation
