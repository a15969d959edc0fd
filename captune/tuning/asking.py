"""Ask a live cluster how far its studies are, and wait no longer than a limit.

Ray is used in another process: if a node of the cluster has stopped, Ray waits in native code, which no signal and no
thread of Python ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from multiprocessing.connection import Connection

from captune.errors import StudyError
from captune.tuning.answering import check_answers
from captune.tuning.progress import Standing

# On a busy machine importing Ray takes most of a minute.
_SECONDS = 120.0
_END_SECONDS = 10.0


def ask_standings(address: str, *, seconds: float = _SECONDS) -> list[Standing]:
    """The standings that drivers publish on a cluster.

    Args:
        address: `auto`, HOST:PORT or ray://HOST:PORT.
        seconds: how long to wait for the answer.

    Raises:
        UsageError: no cluster answers at the address.
        StudyError: one does, and says nothing for too long.
    """
    check_answers(address)
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_ask, args=(address, sending), daemon=True)
    process.start()
    sending.close()
    try:
        if not receiving.poll(seconds):
            raise _silent(address, f"no answer in {seconds:.0f} s")
        try:
            answer = receiving.recv()
        except EOFError:
            process.join()
            raise _silent(address, f"the end of the process that asked (exit code {process.exitcode})") from None
        process.join(_END_SECONDS)  # it leaves the cluster in order, if the cluster lets it
    finally:
        process.kill()
        receiving.close()
    if isinstance(answer, BaseException):
        raise answer
    return list(answer)


def _ask(address: str, sending: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the command itself, which ends this process
    # Imported here, because only this process needs Ray.
    from captune.tuning.cluster import connected
    from captune.tuning.telemetry import published_standings

    told = False
    try:
        with connected(address, threads=1):
            answer = published_standings()
            sending.send(answer)
            told = True
    except Exception as error:
        if not told:
            with contextlib.suppress(BrokenPipeError):
                sending.send(error)


def _silent(address: str, got: str) -> StudyError:
    return StudyError(
        "a cluster must tell how far its studies are",
        got=got,
        where=address,
        next_step="Its machines may be overloaded, or one may have stopped (`ray status --address ADDRESS` lists "
        "them). Try again later, or name the studies' directories: captune status DIR reads them without Ray.",
    )
