"""Ctrl-C and SIGTERM, the same for every command.

Both raise KeyboardInterrupt where they arrive. That is not enough while a library is busy: the library may swallow the
exception (an `except:`, a destructor), or be left half started and never end. Therefore a signal is also remembered,
and `check` raises it again at the end of a stage. Inside `noted` the first signal only calls a function. A second
SIGTERM within seconds of the first is taken for the same request, because Slurm sends it to every process of a job and
the job's script passes it on as well.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_SAME_REQUEST_SECONDS = 5.0
_received = 0
_last_term = float("-inf")
_notes: list[Callable[[], None]] = []


def _interrupt(number: int, _frame: FrameType | None) -> None:
    global _received, _last_term
    if number == signal.SIGTERM:
        since, _last_term = time.monotonic() - _last_term, time.monotonic()
        if since < _SAME_REQUEST_SECONDS:
            return
    _received += 1
    if _notes and _received == 1:
        _notes[-1]()
        return
    raise KeyboardInterrupt


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """While this block runs, Ctrl-C and SIGTERM raise KeyboardInterrupt; only the main thread can do this."""
    global _received, _last_term
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is _interrupt:
        yield
        return
    before = {number: signal.signal(number, _interrupt) for number in _SIGNALS}
    _received, _last_term = 0, float("-inf")
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _received = 0


def check() -> None:
    """Raise KeyboardInterrupt if a signal has arrived since `handled` began, even if its exception was swallowed."""
    if _received and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


@contextlib.contextmanager
def noted(note: Callable[[], None] = lambda: None) -> Iterator[None]:
    """While this block runs, the first Ctrl-C or SIGTERM calls `note` and does not raise.

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
