"""Fill the templates. A page is one file: its only script is allowed by hash, and it requests nothing from elsewhere.

Jinja escapes every value. Only `svg` and the page's own style and script go in unescaped.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

_INK, _GRID, _PAPER = "#222222", "#e4e4e4", "#ffffff"
_THEMED = {
    "#0072b2": "blue", "#e69f00": "orange", "#009e73": "green", "#d55e00": "red", "#8a8a8a": "grey",
    _INK: "ink", "#000000": "ink", _GRID: "grid", _PAPER: "paper",
}  # fmt: skip
"""Colours of the figures that follow the reader's light or dark theme, with their names in the style sheet."""


@dataclass(frozen=True)
class ShownFigure:
    """A figure in a page."""

    svg: Markup
    caption: str


def render(template: str, **values: Any) -> str:
    """A page from one of the templates in `captune/results/templates`."""
    environment = _environment()
    script, style = _source("page.js"), _source("page.css")
    # A browser hashes everything between the tags, including the last line break.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    own: dict[str, Any] = {
        "broad": False,
        "script": Markup(script),
        "style": Markup(style),
        "script_hash": f"sha256-{digest}",
    }
    return environment.get_template(template).render(**(own | values))


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("captune.results"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["prose"] = prose
    return environment


@lru_cache(maxsize=2)
def _source(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


def prose(text: str) -> Markup:
    """Escaped text in which `code` is set as code, and no line breaks between a number and its per cent sign."""
    whole = re.sub(r"(?<=\d) %", "&nbsp;%", str(escape(text)))
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", whole))


def inline_svg(source: str, name: str, title: str) -> Markup:
    """A figure's SVG as part of a page: it gets a title for screen readers, and colours that follow the page's theme.

    Args:
        source: the file as matplotlib wrote it.
        name: unique in the page; put before each identifier, so that those of two figures differ.
        title: what a screen reader says.
    """
    body = source[source.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r"<title>.*?</title>\s*", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r"url\(#", f"url(#{name}-", body)
    body = re.sub(r'href="#', f'href="#{name}-', body)
    for colour, variable in _THEMED.items():
        body = re.sub(rf"(?<=: ){colour}\b", f"var(--{variable})", body, flags=re.IGNORECASE)
    heading = f'<title id="{name}-title">{escape(title)}</title>'
    return Markup(
        re.sub(r"<svg([^>]*)>", rf'<svg\1 role="img" aria-labelledby="{name}-title">{heading}', body, count=1)
    )


def shown_figures(files: Mapping[str, Path], captions: Mapping[str, str]) -> dict[str, ShownFigure]:
    """Figures by name, from their SVG files."""
    return {
        name: ShownFigure(inline_svg(path.read_text(encoding="utf-8"), name, captions[name]), captions[name])
        for name, path in files.items()
    }
