"""Processes and their sockets, as the kernel shows them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import time
from collections.abc import Iterable
from pathlib import Path

PROC = Path("/proc")
_LISTEN = "0A"


def descendants(pid: int) -> dict[int, str]:
    """Processes below one, by number, with their command lines."""
    parents: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        for child in parents.get(waiting.pop(), []):
            try:
                found[child] = (PROC / str(child) / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            waiting.append(child)
    return found


def alive(pid: int) -> bool:
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def assert_gone(pids: Iterable[int], *, seconds: float = 60) -> None:
    """Nothing of these processes is left after a while."""
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < deadline, f"processes left: {left}"
        time.sleep(0.1)


def listening(pid: int) -> set[tuple[str, int]]:
    """Addresses and ports on which a process and those below it take connections."""
    inodes = set()
    for process in [pid, *descendants(pid)]:
        with contextlib.suppress(OSError):  # the process has ended
            for link in (PROC / str(process) / "fd").iterdir():
                with contextlib.suppress(OSError):  # closed meanwhile, as the one by which this folder was read
                    target = str(link.readlink())
                    if target.startswith("socket:["):
                        inodes.add(target[len("socket:[") : -1])
    found = set()
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in (PROC / "net" / name).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN and fields[9] in inodes:
                address, port = fields[1].split(":")
                # Words of four bytes, each in the machine's order.
                raw = b"".join(struct.pack("=I", int(address[at : at + 8], 16)) for at in range(0, len(address), 8))
                found.add((socket.inet_ntop(family, raw).removeprefix("::ffff:"), int(port, 16)))
    return found
