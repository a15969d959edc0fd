"""Waiting for an event instead of for a time, which would be too short on some machine; and ports for a test alone."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Callable
from pathlib import Path

_PORTS_OF_KERNEL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST_PORT, _WORKERS = 21_000, 16


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for something to become true; the limit only bounds a hang.

    Raises:
        TimeoutError: it did not.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"still not true after {seconds} s")
        time.sleep(0.05)


def free_port() -> int:
    """A port of loopback that is free, for a program that is started later and must be told its port.

    It is not one of those that the kernel hands out by itself: between this call and the program's start another test
    could be given it, for Ray takes dozens. Tests that run beside each other have ranges of their own.
    """
    first = int(_PORTS_OF_KERNEL.read_text().split()[0]) if _PORTS_OF_KERNEL.exists() else 32_768
    share = max(0, (first - _LOWEST_PORT) // _WORKERS)
    begin = _LOWEST_PORT + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % _WORKERS * share
    own = random.SystemRandom().sample(range(begin, begin + share), share)
    for port in [*own, 0]:  # at last any, as where the kernel's ports begin low
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no port of loopback is free")
