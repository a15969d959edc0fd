"""Consoles for the commands: a user's names and paths are shown as text, whatever brackets or colons they contain."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from captune.plain_text import visible


class _PlainConsole(Console):
    """Shows the control characters of a text instead of sending them to the terminal."""

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(visible(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        if isinstance(renderable, Text) and (shown := visible(renderable.plain)) != renderable.plain:
            renderable = renderable.copy()
            renderable.plain = shown  # as long as before, so that the styles stay where they are
        return super().render(renderable, options)


def plain_console(*, stderr: bool = False, file: IO[str] | None = None) -> Console:
    """A console that reads no markup (`[b]`) and no emoji (`:cat:`) in what it prints, not even in tables.

    Characters of a name that would act on the terminal (escape codes) are shown and not sent. Coloured text is passed
    as `rich.text.Text` or with the argument `style`.
    """
    return _PlainConsole(stderr=stderr, file=file, markup=False, emoji=False)


def say(console: Console, text: str | Text, *, style: str | None = None) -> None:
    """Print prose, wrapped between words on a terminal. Elsewhere lines stay whole, so that logs can be searched."""
    console.print(text, style=style, highlight=False, soft_wrap=not console.is_terminal)


def labelled(label: str, text: str, style: str) -> Text:
    """`label: text` with the label in a style."""
    return Text.assemble((label, style), ": ", text)
