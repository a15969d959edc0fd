"""The `captune` command: its subcommands, and errors shown as sentences."""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from captune import __version__, interruption, own_process
from captune.cli.console import labelled, plain_console, say
from captune.cli.metavars import opposites_sentence, with_metavars
from captune.errors import CaptuneError, UsageError, unwritable
from captune.plain_text import on_one_line

# What the parser raises for wrong usage: click's class, or that of the copy of click in newer versions of typer.
_WRONG_USAGE: type[Exception] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")

# Faults of the machine or of a path, beside those of a disk; libraries raise the exceptions without a number, too.
_OF_THE_MACHINE = {errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EMFILE, errno.ENFILE}
_OF_FILES = (FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError)


class _Commands(TyperGroup):
    """The group of commands; its help shows flags without a type."""

    def get_params(self, ctx: Any) -> Any:
        params: list[Any] = super().get_params(ctx)
        for param in params:
            param.metavar = ""
        return params


app = typer.Typer(
    name="captune",
    cls=_Commands,
    help="Find out how to adapt CLIP to images without labels, whether that helps, and how sure that is.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _version(show: bool) -> None:
    if show:
        from captune.revision import git_revision

        revision = git_revision()
        print(f"captune {__version__}" + (f" (revision {revision})" if revision else ""))
        raise typer.Exit


class _Command(TyperCommand):
    """A command; its help shows `--help` as a flag, without a type."""

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:
            option.metavar = ""
        return option


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print version and revision."
    ),
) -> None:
    pass


# In the order in which a newcomer needs them, with the first line of their help. Most commands import torch or Ray, so
# each is imported only when it is called, and the list appears at once.
COMMANDS = {
    "demo": "Run a study of handwritten digits in a minute or two, with a sentence at each step.",
    "doctor": "Check this machine, or every node of a cluster: PyTorch, GPUs, Ray, directories, disk, memory.",
    "run": "Search for the configuration that adapts best, confirm it over seeds, report on sealed labels.",
    "resume": (
        "Go on with studies: nothing that finished is lost or repeated, running trials go on from their last epoch."
    ),
    "status": "Show how far studies are.",
    "stop": "Ask running studies to stop: what is finished is kept, and `captune resume` goes on with the rest.",
    "report": "Write every table, figure and page the records support: one study, many, finished or not.",
    "compare": (
        "Run a study of each method with the same search budget; say who won, by how much, and how sure that is."
    ),
    "adapt": "Adapt a model with one configuration.",
    "predict": "Classify images, or image features that were computed before, with an adapted model.",
    "export": ("Write an adapted model for other programs: class weights, open_clip, ONNX, Hugging Face, or a bundle."),
    "serve": "Serve an adapted model on this machine: POST an image, get classes; and a page to drop an image on.",
    "mismatch": "Find class names that CLIP does not connect with their images.",
    "datasets": (
        "List every dataset: found or not, where, layout, classes, images of each split, licence, how to get it."
    ),
    "bench": "Measure how fast this machine trains prompts, and what a trial and a study would cost.",
}


_PANELS = {
    "Start here": ("demo", "doctor"),
    "Studies": ("run", "resume", "status", "stop", "report", "compare"),
    "Models": ("adapt", "predict", "export", "serve"),
    "Before a study": ("mismatch", "datasets", "bench"),
}


def command(name: str) -> Callable[..., None]:
    """The function of a subcommand; imports what that needs."""
    found: Callable[..., None] = getattr(import_module(f"captune.cli.{name}"), name)
    return with_metavars(found)


def _register(arguments: Sequence[str]) -> None:
    """Register the subcommand that was typed; if none was, the names and first lines of all."""
    asked = next((argument for argument in arguments if not argument.startswith("-")), None)
    if asked in COMMANDS:
        function = command(asked)
        app.command(asked, cls=_Command, epilog=opposites_sentence(function))(function)
        return
    for name, text in COMMANDS.items():
        panel = next(panel for panel, names in _PANELS.items() if name in names)
        app.command(name, help=text, rich_help_panel=panel)(_listed)


def _listed() -> None:
    """Stands in for a command that is only listed."""


def command_line() -> None:
    """The process `captune`: `main`, then an exit that skips the teardown of imported modules.

    The teardown of PyTorch, Ray and their like takes three seconds, to free memory that the system takes back anyway.
    All other exit handlers still run, since what is registered with `atexit` first runs last.
    """
    codes: list[int] = []
    atexit.register(_end_at_once, codes)
    try:
        main()
    except SystemExit as end:
        codes.append(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise


def _end_at_once(codes: Sequence[int]) -> None:
    """Exit at once with the last code. Without one, or if output cannot be written, Python exits as usual."""
    if codes:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(codes[-1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
        os.environ["CAPTUNE_DEBUG"] = "1"
    own_process.declare()
    _make_writable()
    console = plain_console(stderr=True)
    arguments = _seeds_joined(arguments)
    try:
        _refuse_empty(arguments)
        with interruption.handled():
            # Tests call this many times in one process; without this, the commands of all calls would add up.
            app.registered_commands.clear()
            _register(arguments)
            code = app(arguments, standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except CaptuneError as error:
        if debug:
            raise
        say(console, labelled("error", str(error), "bold red"))
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
        say(console, labelled("error", _unforeseen(error), "bold red"))
        sys.exit(1)


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Refuse an argument without a character, and `--option=`: such a path would mean the working directory.

    Raises:
        UsageError: there is one.
    """
    empty = re.compile(r"(--[^=]+=)?")
    at = next((place for place, argument in enumerate(arguments) if empty.fullmatch(argument)), None)
    if at is not None:
        before = " ".join(["captune", *arguments[:at], *filter(None, [arguments[at]])])
        raise UsageError(
            "no argument may be empty", got=f"one after '{before}'", next_step="Is a variable of the shell not set?"
        )


def _unforeseen(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        try:
            Path.cwd()
        except FileNotFoundError:
            return str(CaptuneError("the working directory must exist", got="one that was removed"))
    if isinstance(error, _OF_FILES) or (
        isinstance(error, OSError) and (unwritable(error) or error.errno in _OF_THE_MACHINE)
    ):
        return str(
            CaptuneError(
                "files must be there, readable and writable",
                got=on_one_line(error.strerror or str(error)),
                where=None if error.filename is None else on_one_line(os.fsdecode(error.filename)),
                next_step="Run again with --debug to see where it comes from.",
            )
        )
    return (
        f"{type(error).__name__}: {error}\n"
        "This is not an error captune foresaw; run again with --debug to see where it comes from."
    )


def _make_writable() -> None:
    """Let any text be printed: to a stream that the caller closed (`>&-`), and in a locale that lacks its letters."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 - to the process's end
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _seeds_joined(arguments: Sequence[str]) -> list[str]:
    """`--seeds 0 1 2` as `--seeds 0,1,2`, because the option parser takes one value per option."""
    joined: list[str] = []
    for argument in arguments:
        if len(joined) > 1 and joined[-2] == "--seeds" and argument.isdecimal():
            joined[-1] += f",{argument}"
        else:
            joined.append(argument)
    return joined
