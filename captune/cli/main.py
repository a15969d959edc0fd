"""The `captune` command: subcommands, and errors as people want to read them."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib import import_module
from types import FrameType

import typer
from rich.console import Console

from captune import __version__
from captune.errors import CaptuneError

# What the parser raises for wrong usage: click's own class, or that of the copy that newer versions of typer bring.
_WRONG_USAGE: type[Exception] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")

app = typer.Typer(
    name="captune",
    help="Hyperparameter studies of CAP: which configuration adapts CLIP to your images, at what cost, how sure.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(show: bool) -> None:
    if show:
        print(f"captune {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


# In the order a newcomer meets them; imported on demand, since most of them bring torch or Ray along.
COMMANDS = (
    "run",
    "resume",
    "status",
    "report",
    "compare",
    "adapt",
    "predict",
    "export",
    "mismatch",
    "datasets",
    "bench",
)


def _register(arguments: Sequence[str]) -> None:
    """Add the subcommand that is asked for, or all of them where help lists them."""
    asked = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name in (asked,) if asked in COMMANDS else COMMANDS:
        app.command(name)(getattr(import_module(f"captune.cli.{name}"), name))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
        os.environ["CAPTUNE_DEBUG"] = "1"
    console = Console(stderr=True)
    arguments = _seeds_joined(arguments)
    try:
        with _term_interrupts():
            _register(arguments)
            code = app(arguments, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except CaptuneError as error:
        if debug:
            raise
        console.print(f"[bold red]error[/]: {_escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except _WRONG_USAGE as error:
        error.show()  # type: ignore[attr-defined]
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        console.print("interrupted")
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        console.print(
            f"[bold red]error[/]: {type(error).__name__}: {_escape(str(error))}\n"
            "This is not an error captune foresaw; run again with --debug to see where it comes from.",
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(1)


@contextlib.contextmanager
def _term_interrupts() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does, from the first import on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _seeds_joined(arguments: Sequence[str]) -> list[str]:
    """`--seeds 0 1 2` as `--seeds 0,1,2`: the option parser takes one value an option."""
    joined: list[str] = []
    for argument in arguments:
        if len(joined) > 1 and joined[-2] == "--seeds" and argument.isdecimal():
            joined[-1] += f",{argument}"
        else:
            joined.append(argument)
    return joined


def _escape(text: str) -> str:
    return text.replace("[", r"\[")
