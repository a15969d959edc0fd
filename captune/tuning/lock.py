"""Let only one driver at a time run a study, by a lock file with an owner and a heartbeat.

All changes of the file happen under an `flock` on a second file, so that two drivers that find a stale lock at the same
moment cannot both take it. An owner on another host is judged by its heartbeat. Clocks may differ, so a heartbeat that
looks old is watched for a while before the lock is taken over, and a driver that was suspended and missed its own
heartbeats checks whether it still holds the lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from captune.errors import StudyError
from captune.records import atomic_write
from captune.records.layout import GUARD, LOCK

HEARTBEAT_SECONDS = 10.0
_WATCH_SECONDS = 15.0
STALE_SECONDS = 60.0


class DriverLock:
    """Held by the driver of a study from its start to its end."""

    def __init__(self, directory: Path) -> None:
        """Take the lock.

        Raises:
            StudyError: another driver, alive as far as can be known, holds it.
        """
        self._path = directory / LOCK
        self._guard = directory / GUARD
        self._owner = {
            "host": platform.node(),
            "pid": os.getpid(),
            "boot": _boot_id(),
            "started": _process_start(os.getpid()),
        }
        self._lost = False
        self._last_beat = _clock()
        watched = _watched(directory)
        with self._guarded():
            holder = read_lock(directory)
            if holder is not None and (is_alive(holder) or holder != watched):
                raise StudyError(
                    "one driver at a time must run a study",
                    got=f"process {holder['pid']} on {holder['host']}, which is running it now",
                    where=directory,
                    next_step="Wait for it or end it; `captune status` shows how far it is.",
                )
            self._beat()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="captune-lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the lock back."""
        self._ended.set()
        self._thread.join(timeout=HEARTBEAT_SECONDS)
        with self._guarded():
            if not self._is_taken():
                self._path.unlink(missing_ok=True)

    def check(self) -> None:
        """Check that the lock is still held. The file is read only if heartbeats were missed for a while.

        Raises:
            StudyError: another driver has taken the study over.
        """
        if _clock() - self._last_beat > STALE_SECONDS / 2:
            with self._guarded():
                self._lost = self._lost or self._is_taken()
        if self._lost:
            raise StudyError(
                "one driver at a time must run a study",
                got="another that took this one over, since it gave no sign of life for a while",
                where=self._path.parent,
                next_step="Nothing is lost: the other one goes on.",
            )

    def _is_taken(self) -> bool:
        holder = read_lock(self._path.parent)
        return holder is not None and any(holder.get(key) != value for key, value in self._owner.items())

    def _beat(self) -> None:
        atomic_write(self._path, json.dumps({**self._owner, "heartbeat": time.time()}))
        self._last_beat = _clock()

    def _keep_beating(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            # A heartbeat that cannot be written (a full disk) must not end the study.
            with contextlib.suppress(OSError), self._guarded():
                self._lost = self._lost or self._is_taken()
                if not self._lost:
                    self._beat()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        with self._guard.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _watched(directory: Path) -> dict[str, Any] | None:
    """The lock's content; None if nobody holds it, or if it changed while it was watched."""
    holder = read_lock(directory)
    changed = holder is not None and _may_beat(holder) and drivers_of([directory])[directory] is not None
    return None if changed else holder


def drivers_of(directories: Sequence[Path]) -> dict[Path, dict[str, Any] | None]:
    """Who runs each of these studies now: the content of its lock, or None.

    The clocks of two hosts may differ by hours. If a heartbeat of another host does not look fresh, it is watched for
    longer than the pause between two heartbeats; those of all directories are watched at the same time.
    """
    holders = {directory: read_lock(directory) for directory in directories}
    found = {at: holder if holder is not None and is_alive(holder) else None for at, holder in holders.items()}
    doubtful = {at: holder for at, holder in holders.items() if holder is not None and _may_beat(holder)}
    deadline = time.monotonic() + _WATCH_SECONDS
    while doubtful and time.monotonic() < deadline:
        time.sleep(_WATCH_SECONDS / 30)
        for at, holder in list(doubtful.items()):
            if (later := read_lock(at)) != holder:
                found[at] = later
                del doubtful[at]
    return found


def _may_beat(holder: dict[str, Any]) -> bool:
    """Whether the lock must be watched to tell if its owner runs."""
    return holder["host"] != platform.node() and not is_alive(holder)


def _clock() -> float:
    """Seconds of a clock that also runs while the machine sleeps and cannot be set."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def read_lock(directory: Path) -> dict[str, Any] | None:
    """Who holds a study's lock, or None."""
    try:
        holder = json.loads((directory / LOCK).read_text())
    except (OSError, ValueError):
        return None
    return holder if isinstance(holder, dict) and {"host", "pid"} <= holder.keys() else None


def is_alive(holder: dict[str, Any]) -> bool:
    """Whether a lock's owner still runs, judged by its process on this host and by its heartbeat on another.

    A heartbeat from the future counts as old: that host's clock is ahead, so its driver may have ended.
    """
    if holder["host"] != platform.node():
        return abs(time.time() - float(holder.get("heartbeat", 0.0))) < STALE_SECONDS
    if holder.get("boot") != _boot_id():
        return False
    started = _process_start(int(holder["pid"]))
    # Process numbers are reused, so the time when the process started must be the same as well.
    return started is not None and (holder.get("started") is None or started == holder["started"])


def is_running(pid: int) -> bool:
    """Whether a process of this host runs."""
    return _process_start(pid) is not None


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _process_start(pid: int) -> str | None:
    """When a process started (ticks since boot; '' where that cannot be known), None if it does not run."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] == "Z" else fields[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return ""
    return ""
