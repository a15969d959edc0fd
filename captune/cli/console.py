"""Where commands write: names and paths of users are text, whatever brackets or colons they hold."""

from __future__ import annotations

from typing import IO

from rich.console import Console
from rich.text import Text


def plain_console(*, stderr: bool = False, file: IO[str] | None = None) -> Console:
    """A console that reads no markup (`[b]`) and no emoji (`:cat:`) in what it prints, also in tables.

    What has a colour is written as `rich.text.Text`, or with the argument `style`.
    """
    return Console(stderr=stderr, file=file, markup=False, emoji=False)


def say(console: Console, text: str | Text, *, style: str | None = None) -> None:
    """Print prose: broken between words on a terminal; elsewhere each line stays whole, as logs are searched."""
    console.print(text, style=style, highlight=False, soft_wrap=not console.is_terminal)


def labelled(label: str, text: str, style: str) -> Text:
    """`label: text` with the label in a style."""
    return Text.assemble((label, style), ": ", text)
