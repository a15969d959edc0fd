"""What a worker of a private cluster does before it has a trial: it imports what trials need, and says so by files.

Every worker imports this module to call `begin` (`captune.tuning.ray_internals.workers_ready`), so it must import
nothing heavy itself.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from pathlib import Path

MODULES, READY = "CAPTUNE_WORKER_MODULES", "CAPTUNE_WORKERS_READY"


def begin() -> None:
    """Import the modules that the environment names; before and after, create a file in the folder that it names.

    It never raises, since Ray would end the worker. A module that cannot be imported fails again where it is needed.
    """
    _leave_word("begun")
    for module in os.environ.get(MODULES, "").split(","):
        with contextlib.suppress(Exception):
            importlib.import_module(module)
    _leave_word("ready")


def _leave_word(what: str) -> None:
    with contextlib.suppress(OSError, KeyError):
        (Path(os.environ[READY]) / f"{os.getpid()}.{what}").touch()


def words_left(folder: Path) -> tuple[int, int]:
    """How many workers have begun to import, and how many have finished."""
    return len(list(folder.glob("*.begun"))), len(list(folder.glob("*.ready")))
