"""How the cells of a table are shown to a person: percent, points, plain numbers, names in words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePath
from typing import Any

import pandas as pd

NOTHING = "–"
MINUS = "−"
_NAMES = {
    "zero_shot": "zero-shot",
    "balanced": "balanced zero-shot",
    "anchored": "anchored zero-shot",
    "text_mixture": "the text mixture",
    "ensemble": "the ensemble of the confirmed configurations",
    "blend": "the blend of candidates",
}


def is_known(value: Any) -> bool:
    """Whether a table cell holds something."""
    return value is not None and not (isinstance(value, float) and value != value) and value is not pd.NA


def percent(value: Any) -> str:
    """A fraction as percent with one decimal, a dash for nothing."""
    return _with_minus(f"{100 * float(value):.1f}") if is_known(value) else NOTHING


def points(value: Any) -> str:
    """A difference of fractions in points with its sign."""
    return _with_minus(f"{100 * float(value):+.1f}") if is_known(value) else NOTHING


def fixed(value: Any) -> str:
    """A number with two decimals."""
    return _with_minus(f"{float(value):.2f}") if is_known(value) else NOTHING


def plain(value: Any) -> str:
    """A number without needless digits, or text."""
    if not is_known(value):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        whole = float(value) == round(float(value))
        return _with_minus(str(round(float(value))) if whole else f"{value:.4g}")
    return str(value)


def _with_minus(text: str) -> str:
    """Turn Python's hyphen into a minus sign, also in an exponent, and drop the sign of a zero."""
    text = re.sub(r"^[-+](0(?:\.0*)?)$", r"\1", text)
    return text.replace("-", MINUS)


def sentence(text: Any) -> str:
    """Text as a sentence: a capital at the start, a full stop at the end."""
    said = plain(text).strip()
    return said if not said or said == NOTHING else f"{said[0].upper()}{said[1:]}{'' if said[-1] in '.!?' else '.'}"


def in_words(name: Any) -> str:
    """A candidate in words, as the object of a sentence: `c7` is "configuration c7"."""
    text = plain(name)
    if text in _NAMES:
        return _NAMES[text]
    if re.fullmatch(r"c\d+", text):
        return f"configuration {text}"
    return f"the configuration of trial {text}" if re.fullmatch(r"t\d+", text) else text


def short_name(name: Any) -> str:
    """A candidate's name in a table or a figure."""
    text = plain(name)
    return text if text in ("ensemble", "blend") else _NAMES.get(text, text).removeprefix("the ")


def short_datasets(names: Iterable[str]) -> dict[str, str]:
    """Short names of datasets: `features:/data/whu19.npz` becomes "whu19" unless another one would be "whu19" too."""
    known = list(dict.fromkeys(names))
    short = {name: PurePath(name.partition(":")[2]).stem or name for name in known}
    times = Counter(short.values())
    return {name: short[name] if times[short[name]] == 1 else name for name in known}


def duration(seconds: Any) -> str:
    """A duration in the two largest units that it fills."""
    if not is_known(seconds):
        return NOTHING
    total = round(float(seconds))
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    return f"{total // 3600} h {total % 3600 // 60} min"
