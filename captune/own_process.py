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
