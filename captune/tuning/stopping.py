"""Ask a running study to stop in order, from any machine that sees its directory."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path

from captune.records import atomic_write
from captune.records.layout import STOP

_EVERY_SECONDS = 1.0


def request_stop(directory: Path) -> None:
    """Ask the driver that runs the study in a directory to stop."""
    atomic_write(directory / STOP, json.dumps({"host": platform.node(), "time": time.time()}))


class StopRequests:
    """Tells whether somebody has asked one of a driver's studies to stop. Older requests are deleted first.

    Args:
        directories: of the studies.
    """

    def __init__(self, directories: Sequence[Path]) -> None:
        self._paths = [directory / STOP for directory in directories]
        self._looked = 0.0
        for path in self._paths:
            path.unlink(missing_ok=True)

    def came(self) -> bool:
        """Whether a request has arrived. Looks at most once a second, and deletes the requests it finds."""
        now = time.monotonic()
        if now - self._looked < _EVERY_SECONDS:
            return False
        self._looked = now
        heard = [path for path in self._paths if path.exists()]
        for path in heard:
            path.unlink(missing_ok=True)
        return bool(heard)
