"""Consoles for the commands: a user's names and paths are shown as text, whatever brackets or colons they contain."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from captune.interruption import write_nowhere
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


class _Output:
    """A file whose loss is told once on standard error; what is written afterwards goes nowhere."""

    def __init__(self, file: IO[str], consequence: str) -> None:
        self._file, self._consequence = file, consequence
        self._lost = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        with self._expecting_loss():
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with self._expecting_loss():
            self._file.flush()

    @contextlib.contextmanager
    def _expecting_loss(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            with contextlib.suppress(OSError):
                # Python would try again to write what it has buffered, and fail with exit code 120 at the end.
                write_nowhere(self._file.fileno())
            if not self._lost:
                self._lost = True
                with contextlib.suppress(OSError):
                    print(f"warning: output cannot be written ({error.strerror}). {self._consequence}", file=sys.stderr)


@contextlib.contextmanager
def outlived(console: Console, consequence: str) -> Iterator[None]:
    """Let the block go on if its output can no longer be written, as where `| head` has closed the pipe.

    Args:
        console: writes the output.
        consequence: told on standard error when that happens.
    """
    before = console.file
    console.file = _Output(before, consequence)  # type: ignore[assignment]
    try:
        yield
    finally:
        console.file = before


def say(console: Console, text: str | Text, *, style: str | None = None) -> None:
    """Print prose, wrapped between words on a terminal. Elsewhere lines stay whole, so that logs can be searched."""
    console.print(text, style=style, highlight=False, soft_wrap=not console.is_terminal)


def labelled(label: str, text: str, style: str) -> Text:
    """`label: text` with the label in a style."""
    return Text.assemble((label, style), ": ", text)
