"""Directories that a node builds once and then only reads: built under a lock, and renamed into place when complete.

A second builder waits for the first. A killed one leaves a `.part` folder, which nobody opens and the next one removes.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from captune.errors import DataError

if sys.platform != "win32":
    import fcntl


@dataclass(frozen=True)
class Work:
    """How many images were decoded into a store, and how many encoded into a bank of features."""

    decoded: int = 0
    encoded: int = 0

    def __sub__(self, other: Work) -> Work:
        return Work(self.decoded - other.decoded, self.encoded - other.encoded)


class _Counter:
    def __init__(self) -> None:
        self.done = Work()


_COUNTER = _Counter()


def work_done() -> Work:
    """What this process has decoded and encoded so far. A study records the part that was done for it."""
    return _COUNTER.done


def note_work(*, decoded: int = 0, encoded: int = 0) -> None:
    """Count images that a builder has just made."""
    done = _COUNTER.done
    _COUNTER.done = Work(done.decoded + decoded, done.encoded + encoded)


def build_once(target: Path, *, is_whole: Callable[[Path], bool], build: Callable[[Path], None]) -> None:
    """Make sure that the directory `target` exists and is complete.

    Args:
        target: the directory; its parent is created.
        is_whole: whether a directory holds everything that it should (a damaged one is built again).
        build: fills the empty directory it is given.

    Raises:
        DataError: the place cannot be written, or is full.
    """
    if is_whole(target):
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.parent / f".{target.name}.lock"):
            if is_whole(target):  # another process built it meanwhile
                return
            _build(target, is_whole, build)
    except OSError as error:
        raise DataError(
            "the cache directory must be writable and have room",
            got=error.strerror or str(error),
            where=target.parent,
            next_step="Free space, or set another place with $CAPTUNE_CACHE.",
        ) from error


def _build(target: Path, is_whole: Callable[[Path], bool], build: Callable[[Path], None]) -> None:
    for leftover in target.parent.glob(f".{target.name}.*.part"):
        # This process holds the lock, so the process that began this folder has died.
        shutil.rmtree(leftover, ignore_errors=True)
    if target.exists():
        shutil.rmtree(target)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        part.chmod(0o755)
        build(part)
        for file in part.iterdir():
            _sync(file)
        try:
            part.rename(target)
        except OSError:
            if not is_whole(target):  # without file locks (Windows) another process may have built it meanwhile
                raise
        _sync(target.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; the system releases it when the process dies."""
    with path.open("ab") as file:
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sync(path: Path) -> None:
    if sys.platform == "win32" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
