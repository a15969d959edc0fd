"""captune stop: end running studies in order, from another shell or another machine."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from captune.cli.console import plain_console
from captune.cli.places import studies_in
from captune.cli.status import read_standing
from captune.plain_text import resume_command
from captune.records.layout import STOP
from captune.tuning.lock import drivers_of, is_alive, read_lock
from captune.tuning.stopping import request_stop

_LOOK_SECONDS = 0.5


def stop(
    studies: Annotated[list[Path], typer.Argument(help="Directories of running studies.")],
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the end; 0: do not wait.")] = 120.0,
) -> None:
    """Ask running studies to stop: what is finished is kept, and `captune resume` goes on with the rest.

    Studies that one command runs stop together.

    Example: captune stop runs/digits-ul-cap
    """
    console = plain_console()
    for directory, holder in drivers_of([path.absolute() for path in studies_in(studies)]).items():
        if holder is None:
            console.print(f"{directory.name}: nobody runs it.", highlight=False, soft_wrap=True)
            continue
        if read_lock(directory) is not None:  # else it has stopped with the one before
            request_stop(directory)
        ended = _ends(directory, holder, wait)
        if ended:
            (directory / STOP).unlink(missing_ok=True)  # it came to its end without hearing the request
        now, record = read_standing(directory, running=not ended)
        done = ended and now.phase == "done" and record.closed
        told = "stopped" if ended else "asked to stop; trials end with the epoch they are in"
        told = "it had come to its end" if done else told
        console.print(f"{directory.name} on {holder['host']}: {told}.", highlight=False, soft_wrap=True)
        if done:
            continue
        console.print(f"Continue with: {resume_command(directory)}", highlight=False, soft_wrap=True)


def _ends(directory: Path, holder: dict[str, Any], seconds: float) -> bool:
    """Whether a driver gives its study back, or dies, within `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        now = read_lock(directory)
        if now is None or now["pid"] != holder["pid"] or (now["host"] == platform.node() and not is_alive(now)):
            return True
        time.sleep(_LOOK_SECONDS)
    return False
