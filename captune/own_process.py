"""Whether a process is captune's own: the command line, and the workers that captune starts on Ray.

Only there may captune change what other code of the process would see, to save memory and time. A notebook that imports
captune belongs to its user. The mark is an environment variable, so that processes started from a marked one have it.
"""

from __future__ import annotations

import os

VARIABLES = {"CAPTUNE_OWN_PROCESS": "1"}
"""The mark, for the environment of a process that is to be started."""


def declare() -> None:
    """Mark this process, before it imports PyTorch."""
    os.environ.update(VARIABLES)


def is_own() -> bool:
    """Whether this process, or one that started it, was marked."""
    return all(os.environ.get(name) == value for name, value in VARIABLES.items())


def wait_passively() -> None:
    """Let threads that wait sleep; must be called before PyTorch is imported.

    By default a thread that waits for the others spins, which counts as its CPU time: on a busy machine a step of many
    short products then looks dearer than it is.
    """
    for name, value in (("OMP_WAIT_POLICY", "PASSIVE"), ("GOMP_SPINCOUNT", "0"), ("KMP_BLOCKTIME", "0")):
        os.environ.setdefault(name, value)
