"""Keep what Ray prints off the screen, and what it logs out of the logs."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from captune import own_process

_LOGGERS = ("ray", "ray.tune", "ray._private", "ray.data", "ray.train")


class _Divided:
    """A stream that drops what one thread writes and passes on what others write."""

    def __init__(self, stream: IO[str], sink: IO[str], thread: int) -> None:
        self._stream, self._sink, self._thread = stream, sink, thread

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sink if threading.get_ident() == self._thread else self._stream, name)


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """Drop what is printed in the block; the progress view keeps a handle on the terminal.

    In a user's own program (a notebook) only what this thread prints is dropped: a study may run in a thread beside
    code that prints.
    """
    with Path(os.devnull).open("w") as sink:
        streams = [sys.stdout, sys.stderr]
        if not own_process.is_own():
            here = threading.get_ident()
            out, errors = (sink if stream is None else _Divided(stream, sink, here) for stream in streams)
        else:
            out = errors = sink
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            yield


@contextlib.contextmanager
def unlogged() -> Iterator[None]:
    """Let Ray's loggers say nothing; in a user's own program only while the block runs."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        if not own_process.is_own():
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
