"""Whether a process is captune's own: the command line, and the workers that captune starts on Ray.

Only in its own processes does captune change settings that other code could notice, to save memory and time; a notebook
that imports captune belongs to its user. The mark of an own process is an environment variable, which the processes
that it starts inherit.
"""

from __future__ import annotations

import os

VARIABLES = {"CAPTUNE_OWN_PROCESS": "1"}
"""The mark, as environment variables for a process that is to be started."""


def declare() -> None:
    """Mark this process, before it imports PyTorch."""
    os.environ.update(VARIABLES)


def is_own() -> bool:
    """Whether this process, or one that started it, was marked."""
    return all(os.environ.get(name) == value for name, value in VARIABLES.items())


def wait_passively() -> None:
    """Let waiting threads sleep; must be called before PyTorch is imported.

    By default a thread that waits for others spins, and spinning counts as CPU time. On a busy machine a step of many
    short products then seems to cost more than it does.
    """
    for name, value in (("OMP_WAIT_POLICY", "PASSIVE"), ("GOMP_SPINCOUNT", "0"), ("KMP_BLOCKTIME", "0")):
        os.environ.setdefault(name, value)
