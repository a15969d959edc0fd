"""Files that are written whole or not at all, and what killed processes leave behind."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import secrets
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

# A temporary file of another machine may still be in use; after a day it is taken for abandoned.
_FOREIGN_SECONDS = 86_400.0
_LEFTOVER = re.compile(r"\..+?\.((?P<host>[0-9a-f]{8})-(?P<pid>\d+)-[0-9a-f]{8}|(?P<old>\d+)|[a-z]+)\.part")


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all: next to it under a name of its own, fsynced, then renamed over it."""
    data = content.encode() if isinstance(content, str) else content
    with replacing(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file for the block to write; it takes the place of `path` when the block ends without an error.

    No two writers share a temporary name, so a file can be written by several processes at once: the last one wins.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_name(path: Path) -> Path:
    """A hidden name next to `path` that tells whose it is: host, process, and a random number."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.part")


def remove_leftovers(directory: Path) -> list[Path]:
    """Remove temporary files that killed processes left in a directory (not in its folders).

    A file of a process that runs on this host stays; one of another host stays until it is a day old.

    Returns:
        What was removed.
    """
    removed = []
    for path in directory.iterdir() if directory.is_dir() else ():
        match = _LEFTOVER.fullmatch(path.name) or re.fullmatch(r"\.probe\.(?P<old>\d+)", path.name)
        if match is not None and _is_stale(path, match):
            with contextlib.suppress(OSError):
                path.unlink()
                removed.append(path)
    return removed


def missing_folders(directory: Path) -> list[Path]:
    """A folder and those above it that do not exist, the folder itself first."""
    return [place for place in (directory, *directory.parents) if not place.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of some folders that exist and are empty, in the order given."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _is_stale(path: Path, match: re.Match[str]) -> bool:
    known = match.groupdict()
    pid = known.get("pid") or known.get("old")
    if pid is not None and known.get("host") in (None, _host()) and not _runs(int(pid)):
        return True
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime > _FOREIGN_SECONDS
    return False


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _host() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"
