"""YAML as people mean it: numbers are numbers, words are words; what is ambiguous is refused, and its line is named.

PyYAML reads YAML 1.1, where `1e-4` is text, `no` is false, `12:30` is 750, and the second of two equal keys replaces
the first. Here `1e-4` is a number, true and false are the only truth values, times and dates are text, and a repeated
key is refused.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

from captune.errors import ConfigError, first_line

_MAX_NODES = 200_000
_MAX_DEPTH = 100
_YES_AND_NO = {"yes", "no", "on", "off"}
_STRING, _BOOL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:bool"
_FIRST = "-+0123456789."


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's safe loader with the scalars of YAML 1.2."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """PyYAML's safe dumper, which here also quotes text that only YAML 1.2 reads as a number."""


_RULES = (
    (_BOOL, r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("tag:yaml.org,2002:int", r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", _FIRST),
    ("tag:yaml.org,2002:float",
     r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+|[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?)"
     r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", _FIRST),
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", "~nN\0"),
    ("tag:yaml.org,2002:merge", r"<<", "<"),
)  # fmt: skip
_Dumper.add_implicit_resolver(_RULES[2][0], re.compile(f"^(?:{_RULES[2][1]})$"), list(_FIRST))
for _tag, _pattern, _letters in _RULES:
    # The empty text is null as well; the resolver looks it up under "".
    _firsts = [letter for letter in _letters if letter != "\0"] + [""] * ("\0" in _letters)
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _firsts)


def parse_yaml(text: str, *, where: object, what: str, words: bool = False) -> Any:
    """The content of a YAML text: dicts, lists, text, numbers, true, false, None.

    Args:
        text: the YAML.
        where: the file, for messages.
        what: what the file is ("a search space"), for messages.
        words: whether yes, no, on and off are read as words, as in class names; otherwise they are refused, because
            YAML 1.1 and 1.2 read them differently.

    Raises:
        ConfigError: the text is not YAML, repeats a key, holds yes, no, on or off where `words` is false, or unfolds to
            too many values.
    """
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            _check(root, words=words)
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except _Refused as refused:
        raise ConfigError(
            f"{what} must be unambiguous YAML", got=refused.got, where=where, next_step=refused.next
        ) from None
    except yaml.MarkedYAMLError as error:
        got, next_step = _explained(error, text)
        raise ConfigError(f"{what} must be valid YAML", got=got, where=where, next_step=next_step) from None
    except Exception as error:  # PyYAML's constructors raise half a dozen kinds of exceptions for malformed values
        got = first_line(error)
        raise ConfigError(f"{what} must be valid YAML", got=got, where=where) from None


def dump_yaml(values: Any) -> str:
    """Plain values as YAML that `parse_yaml` reads back unchanged, keys in their order."""
    # Every trial writes such a text. libyaml's emitter, where PyYAML has it, is ten times as fast.
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


class _Refused(Exception):
    def __init__(self, node: Any, got: str, next_step: str) -> None:
        super().__init__(got)
        self.got, self.next = f"line {node.start_mark.line + 1}: {got}", next_step


def _explained(error: yaml.MarkedYAMLError, text: str) -> tuple[str, str | None]:
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context or "cannot be read"
    if mark is None:
        return problem, None
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())] or "'\\t'" in problem:
        return f"line {mark.line + 1}: a tab", "Indent with spaces."
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}", None


def _check(root: Any, *, words: bool) -> None:
    sizes: dict[int, int] = {}
    _size(root, sizes, 0, words)


def _size(node: Any, sizes: dict[int, int], depth: int, words: bool) -> int:
    """The number of nodes that a node unfolds to; a part that an anchor repeats counts each time.

    Raises:
        _Refused: the node holds itself, is too deep or too large, repeats a key, or is yes or no against `words`.
    """
    known = sizes.get(id(node))
    if known is not None:
        if known < 0:
            raise _Refused(node, "a part that holds itself", "Write it out.")
        return known
    if depth > _MAX_DEPTH:
        raise _Refused(node, f"more than {_MAX_DEPTH} brackets within each other", "Write it flatter.")
    sizes[id(node)] = -1
    total = 1
    if isinstance(node, yaml.ScalarNode):
        if not words and not node.style and node.value.lower() in _YES_AND_NO and node.tag == _STRING:
            truth = "true" if node.value.lower() in ("yes", "on") else "false"
            raise _Refused(node, f"'{node.value}'", f"Write {truth}, or quote it if it is a word.")
    elif isinstance(node, yaml.SequenceNode):
        total += sum(_size(item, sizes, depth + 1, words) for item in node.value)
    else:
        seen: dict[str, Any] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                first = seen.setdefault(key.value, key)
                if first is not key and key.value != "<<":
                    again = f"'{key.value}' again, first in line {first.start_mark.line + 1}"
                    raise _Refused(key, again, "Keep one of them.")
            total += _size(key, sizes, depth + 1, words) + _size(value, sizes, depth + 1, words)
    if total > _MAX_NODES:
        raise _Refused(node, f"more than {_MAX_NODES} values once unfolded", "Write out what is meant.")
    sizes[id(node)] = total
    return total
