"""Options made from the fields of configuration classes, in one place for every command.

An option's help text is the description of its field in captune/config.py, its type is that of the field, and the
field's panel is the heading in `--help`. Every field there is an option unless it is marked `NO_OPTION`: of `run` and
`compare`; of `adapt` too if it says what is trained on what (TaskConfig, TrialConfig); of `resume` if it says how it
runs (MachineConfig). A method's own settings (captune/algorithms/configs.py) are no options: `--set NAME=VALUE` gives
them.

What a study.yaml says can be undone: a flag by `--no-NAME`, an option that may be left empty by `none`.
"""

from __future__ import annotations

import functools
import inspect
import os
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo
from rich.console import Console

from captune.cli.console import labelled, say
from captune.cli.metavars import WORDS
from captune.config import COMMAND_LINE as COMMAND_LINE
from captune.config import (
    PARADIGM_ALIASES,
    PARADIGMS,
    Config,
    MachineConfig,
    Panel,
    StudyConfig,
    TaskConfig,
    TrialConfig,
)
from captune.errors import UsageError, did_you_mean
from captune.plain_yaml import parse_yaml

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=MachineConfig.panel)]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads; default: PyTorch's choice.", rich_help_panel=MachineConfig.panel)
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SETTING=VALUE",
        help="Fix any setting of the method, for example margin_scale=8; may be repeated.",
        rich_help_panel=TrialConfig.panel,
    ),
]
C = TypeVar("C", bound=Config)
NONE = "none"
"""Typed as the value of an option that may be left empty: it undoes an earlier value."""


@dataclass(frozen=True)
class Given:
    """The options that were typed, by the configuration class they belong to; others are missing.

    A value of None means that `none` was typed: the option counts as not given by anybody.
    """

    task: dict[str, Any] = field(default_factory=dict)
    trial: dict[str, Any] = field(default_factory=dict)
    study: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)


_GROUPS: dict[str, type[Config]] = {
    "task": TaskConfig,
    "study": StudyConfig,
    "trial": TrialConfig,
    "machine": MachineConfig,
}
_Command = Callable[..., Any]


def with_options(
    *groups: str,
    only: Iterable[str] | None = None,
    without: Iterable[str] = (),
    notes: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Callable[[_Command], _Command]:
    """Give a command the options of configuration classes; they arrive together in its argument `given`.

    Args:
        groups: attributes of `Given`; the fields of their classes become options.
        only: the fields that become options; all if None.
        without: fields that do not become options.
        notes: field → what this command adds to its help text.
        defaults: field → this command's own default.
    """
    wanted = None if only is None else set(only)
    left_out = set(without)

    def decorate(function: _Command) -> _Command:
        signature = inspect.signature(function, eval_str=True)
        own = [parameter for name, parameter in signature.parameters.items() if name != "given"]
        left_out.update(parameter.name for parameter in own)
        owners: dict[str, str] = {}
        opposites: set[str] = set()
        undone: dict[str, type] = {}
        made: list[inspect.Parameter] = []
        for group in groups:
            cls = _GROUPS[group]
            for name, info in cls.model_fields.items():
                panel = next((mark for mark in info.metadata if isinstance(mark, Panel)), Panel(cls.panel))
                if panel.name is None or name in left_out or (wanted is not None and name not in wanted):
                    continue
                owners[name] = group
                default = (defaults or {}).get(name, None if group == "trial" else info.get_default())
                note = (notes or {}).get(name, "")
                made.append(_parameter(name, info, panel.name, note, default))
                if _takes_none(info):
                    undone[name] = _typed(info.annotation)[0]
                elif _is_off(info, default):
                    made.append(_opposite(name))
                    opposites.add(name)

        @functools.wraps(function)
        def command(**values: Any) -> Any:
            given = Given()
            for name, group in owners.items():
                value = values.pop(name)
                if name in opposites and values.pop(f"no_{name}", False):
                    value = _turned_off(name, value)
                value = (defaults or {}).get(name) if value is None else value
                if value is not None:
                    getattr(given, group)[name] = _value(undone[name], value) if name in undone else value
            return function(**values, given=given)

        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in [*made, *own]]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def _parameter(name: str, info: FieldInfo, panel: str, note: str, default: Any) -> inspect.Parameter:
    kind, choices = _typed(info.annotation)
    flag = f"--{name.replace('_', '-')}"
    text = (info.description or "") + note
    shown = isinstance(default, (str, int, float)) and kind is not bool
    option = typer.Option(
        # Help shows both spellings of a flag that is on by default, but only one of the others: two of each would leave
        # no room for the text. `_opposite` makes the other one.
        f"{flag}/--no-{flag[2:]}" if kind is bool and default is True else flag,
        help=f"{text[:1].upper()}{text[1:]}." + (f" Default: {default}." if shown else ""),
        rich_help_panel=panel,
        metavar="|".join(choices) or WORDS[kind],
        show_default=False,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        # As text, since the parser would refuse `none` for a number; `_value` converts it.
        annotation=Annotated[(str if _takes_none(info) else kind) | None, option],
    )


def _takes_none(info: FieldInfo) -> bool:
    """Whether `none` undoes the option's value, because the setting may be left empty."""
    return info.get_default() is None


def _value(kind: type, text: str) -> Any:
    """The value that was typed for an option that takes `none`. Any other text is left to the configuration class."""
    if text == NONE:
        return None
    try:
        return kind(text)
    except ValueError:
        return text


def _is_off(info: FieldInfo, default: Any) -> bool:
    return _typed(info.annotation)[0] is bool and default is not True


def _opposite(name: str) -> inspect.Parameter:
    """`--no-NAME` of a flag that is off by default; it undoes what a study.yaml says. Help mentions it at its end."""
    option = typer.Option(f"--no-{name.replace('_', '-')}", hidden=True)
    return inspect.Parameter(
        f"no_{name}", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option]
    )


def _turned_off(name: str, value: bool | None) -> bool:
    """False, as `--no-NAME` says.

    Raises:
        UsageError: `--NAME` was given as well.
    """
    if value:
        flag = name.replace("_", "-")
        raise UsageError("a flag or its opposite must be given", got=f"--{flag} and --no-{flag}", where=COMMAND_LINE)
    return False


def _typed(annotation: Any) -> tuple[type, tuple[str, ...]]:
    """The type of a field's option, and its choices if it has a list of them. Pydantic checks the value itself."""
    if get_origin(annotation) is Annotated:
        kind, *marks = get_args(annotation)
        # An option whose value a validator parses is typed as text.
        return (str, ()) if any(isinstance(mark, BeforeValidator) for mark in marks) else _typed(kind)
    if get_origin(annotation) in (Union, types.UnionType):
        return _typed(next(part for part in get_args(annotation) if part is not type(None)))
    if get_origin(annotation) is Literal:
        return str, tuple(str(choice) for choice in get_args(annotation))
    if annotation in (str, int, float, bool, Path):
        return annotation, ()
    raise TypeError(f"no option can be made of a field of type {annotation}: give it Panel(None)")


def settings(given: Mapping[str, Any], pairs: Iterable[str] | None) -> dict[str, Any]:
    """Trial settings: those with an option of their own, and `--set SETTING=VALUE`, the value read as YAML.

    Raises:
        UsageError: a pair without `=`, or a setting given twice.
    """
    values = dict(given)
    for pair in pairs or ():
        name, equals, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise UsageError("--set must be SETTING=VALUE", got=f"'{pair}'", next_step="Say --set margin_scale=8.")
        if name in values:
            raise UsageError("a setting must be given once", got=f"'{name}' twice", where=COMMAND_LINE)
        values[name] = parse_yaml(text, where=f"--set {name}", what="the value of a setting")
    return values


def check_writable(file: Path) -> None:
    """Check that a file can be written before anything is computed for it.

    Raises:
        UsageError: it is a folder, lies in no folder, or may not be written.
    """
    if file.is_dir():
        raise UsageError("--out must be a file", got="a folder", where=file)
    if not file.absolute().parent.is_dir():
        raise UsageError("--out must lie in a folder that is there", got="none", where=file.absolute().parent)
    if not os.access(file if file.exists() else file.absolute().parent, os.W_OK):
        raise UsageError("--out must be writable", got="no permission", where=file)


def say_notes(console: Console, notes: Iterable[str]) -> None:
    """Print, once each, what a person should know before reading numbers."""
    for note in dict.fromkeys(notes):
        say(console, labelled("note", note, "yellow"))


def names_in(text: str, option: str) -> list[str]:
    """The parts of an option that is a list with commas.

    Raises:
        UsageError: there is none.
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise UsageError(f"{option} must name something", got=f"'{text}'")
    return names


def resolve_paradigm(name: str) -> str:
    """A paradigm's key from a key or alias.

    Raises:
        UsageError: unknown, with the nearest known one.
    """
    key = PARADIGM_ALIASES.get(name, name)
    if key not in PARADIGMS:
        known = [*PARADIGMS, *PARADIGM_ALIASES]
        raise UsageError("--paradigm must name a paradigm", got=f"'{name}'", next_step=did_you_mean(name, known))
    return key


def required(given: Mapping[str, Any], *names: str) -> None:
    """Check that options were given.

    Raises:
        UsageError: one was not.
    """
    for name in names:
        if given.get(name) is None:
            raise UsageError(
                f"--{name.replace('_', '-')} must be given", got="none", where=COMMAND_LINE,
                next_step="Try `--help`." if name != "dataset" else "`captune datasets` lists them.",
            )  # fmt: skip
