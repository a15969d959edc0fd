"""CPU seconds of a command's processes while it runs, by kind: the command itself, its workers, Ray's own."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

KINDS = ("driver", "workers", "dashboard and agents", "raylet, GCS, monitors")
_EVERY_SECONDS = 0.15
# Of a process's command line, the first that it holds.
_OF_NAME = {
    "ray::": "workers", "default_worker.py": "workers",
    "dashboard": "dashboard and agents", "runtime_env/agent": "dashboard and agents",
    "spawn_main": "dashboard and agents",
}  # fmt: skip


class Processes:
    """Watches a process and all that come of it as long as the block runs.

    Attributes:
        names: process → its command line, as it was seen last.
        seconds: process → CPU seconds when it was seen last; what a process does in its last moments is missed.
        looks: how often all processes have been looked at so far.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self.names: dict[int, str] = {root: "driver"}
        self.seconds: dict[int, float] = {root: 0.0}
        self.looks = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def by_kind(self) -> dict[str, float]:
        """CPU seconds of each of `KINDS`."""
        found: Counter[str] = Counter()
        for process, seconds in self.seconds.items():
            found[self._kind(process)] += seconds
        return {kind: found[kind] for kind in KINDS}

    def _kind(self, process: int) -> str:
        if process == self._root:
            return "driver"
        name = self.names.get(process, "")
        return next((kind for part, kind in _OF_NAME.items() if part in name), "raylet, GCS, monitors")

    def _watch(self) -> None:
        tick = os.sysconf("SC_CLK_TCK")
        while not self._over.wait(_EVERY_SECONDS):
            parents: dict[int, int] = {}
            spent: dict[int, float] = {}
            for entry in Path("/proc").iterdir():
                if not entry.name.isdigit():
                    continue
                with contextlib.suppress(OSError):
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    parents[int(entry.name)] = int(fields[1])
                    spent[int(entry.name)] = (int(fields[11]) + int(fields[12])) / tick
            # A child may have a lower number than its parent, so until there are no more.
            while new := [one for one, parent in parents.items() if one not in self.seconds and parent in self.seconds]:
                self.seconds |= dict.fromkeys(new, 0.0)
            for process in self.seconds.keys() & spent.keys():
                self.seconds[process] = spent[process]
                if process != self._root:
                    with contextlib.suppress(OSError):
                        name = Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ").strip()
                        self.names[process] = name or self.names.get(process, "")
            self.looks += 1
