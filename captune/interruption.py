"""Ctrl-C, SIGTERM, and SIGHUP of a terminal that was closed: the same for every command.

All raise KeyboardInterrupt where they arrive. That is not enough while a library is busy: the library may swallow the
exception (an `except:`, a destructor), or be left half started and never end. Therefore a signal is also remembered,
and `check` raises it again at the end of a stage. Inside `noted` the first signal only calls a function. A second
SIGTERM or SIGHUP within seconds of the first is taken for the same request: Slurm sends SIGTERM to every process of a
job and the job's script passes it on as well, and the kernel and the shell both send SIGHUP.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SAME_REQUEST_SECONDS = 5.0
_received = 0
_last_request = float("-inf")
_notes: list[Callable[[], None]] = []


def _interrupt(number: int, _frame: FrameType | None) -> None:
    global _received, _last_request
    if number == signal.SIGHUP:
        _leave_terminal()
    if number != signal.SIGINT:
        since, _last_request = time.monotonic() - _last_request, time.monotonic()
        if since < _SAME_REQUEST_SECONDS:
            return
    _received += 1
    if _notes and _received == 1:
        _notes[-1]()
        return
    raise KeyboardInterrupt


def _leave_terminal() -> None:
    """Write to nowhere from now on if the terminal is gone, since writing to it would fail."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            # A terminal that was hung up is still a device, but no terminal any more.
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                write_nowhere(descriptor)


def write_nowhere(descriptor: int) -> None:
    """Let what is written to a file descriptor from now on go nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """While this block runs, Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt; only the main thread can do this.

    SIGHUP stays ignored where it is, as under nohup.
    """
    global _received, _last_request
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is _interrupt:
        yield
        return
    ours = [number for number in _SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _interrupt) for number in ours}
    _received, _last_request = 0, float("-inf")
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _received = 0


def check() -> None:
    """Raise KeyboardInterrupt if a signal has arrived since `handled` began, even if its exception was swallowed."""
    if _received and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


@contextlib.contextmanager
def noted(note: Callable[[], None] = lambda: None) -> Iterator[None]:
    """While this block runs, the first Ctrl-C, SIGTERM or SIGHUP calls `note` and does not raise.

    The second raises KeyboardInterrupt, even if the first arrived before the block.
    """
    with handled():
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        _notes.append(note)
        try:
            yield
        finally:
            _notes.pop()
