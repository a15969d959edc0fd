"""Ask a live cluster how far its studies are, and wait no longer than a limit.

Ray is used in another process: if a node of the cluster has stopped, Ray waits in native code, which no signal and no
thread of Python ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from multiprocessing.connection import Connection
from typing import Self

from captune.errors import CaptuneError, StudyError
from captune.tuning.answering import check_answers
from captune.tuning.progress import Standing

# On a busy machine importing Ray takes most of a minute.
_SECONDS = 120.0
_END_SECONDS = 5.0


class Asking:
    """A process that is connected to a cluster, to ask it again and again; a context manager.

    Args:
        address: `auto`, HOST:PORT or ray://HOST:PORT.

    Raises:
        UsageError: nothing that may be a cluster answers at the address.
    """

    def __init__(self, address: str) -> None:
        check_answers(address)
        self._address = address
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_answer, args=(address, other), daemon=True)
        self._process.start()
        other.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.join(_END_SECONDS)  # it leaves the cluster in order, if the cluster lets it
        self._process.kill()

    def standings(self, *, seconds: float = _SECONDS) -> list[Standing]:
        """The standings that drivers publish on the cluster.

        Args:
            seconds: how long to wait for the answer.

        Raises:
            UsageError: no cluster answers at the address.
            StudyError: one does, and says nothing for too long.
        """
        try:
            self._connection.send(True)
            if not self._connection.poll(seconds):
                self._process.kill()
                raise _silent(self._address, f"no answer in {seconds:.0f} s")
            answer: list[Standing] | CaptuneError | str = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join(_END_SECONDS)
            got = f"the end of the process that asked (exit code {self._process.exitcode})"
            raise _silent(self._address, got) from None
        if isinstance(answer, CaptuneError):
            raise answer
        if isinstance(answer, str):
            raise _silent(self._address, answer)
        return answer


def _answer(address: str, connection: Connection) -> None:
    """Answer every question that comes through the connection, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the command itself, which ends this process
    # Imported here, because only this process needs Ray.
    from captune.tuning.cluster import connected
    from captune.tuning.telemetry import published_standings

    with contextlib.suppress(EOFError, ConnectionError):
        try:
            with connected(address, threads=1):
                while connection.recv():
                    connection.send(published_standings())
        except (EOFError, ConnectionError):
            raise
        except CaptuneError as error:
            connection.send(error)
        except Exception as error:
            connection.send(f"{type(error).__name__}: {error}")


def _silent(address: str, got: str) -> StudyError:
    return StudyError(
        "a cluster must tell how far its studies are",
        got=got,
        where=address,
        next_step="Its machines may be overloaded, or one may have stopped (`ray status --address ADDRESS` lists "
        "them). Try again later, or name the studies' directories: captune status DIR reads them without Ray.",
    )
