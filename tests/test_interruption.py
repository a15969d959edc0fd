"""A signal is never lost, wherever it arrives."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import sys
import time
from pathlib import Path

import pytest

from captune import interruption

all_signals = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])


@pytest.fixture(autouse=True)
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second signal is always late enough to be a second request."""
    monkeypatch.setattr(interruption, "_SAME_REQUEST_SECONDS", 0.0)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@all_signals
def test_a_signal_interrupts_where_it_arrives(number: int) -> None:
    with pytest.raises(KeyboardInterrupt), interruption.handled():
        send(number)


@all_signals
def test_a_signal_that_a_library_swallowed_is_raised_where_the_stage_ends(number: int) -> None:
    with interruption.handled():
        interruption.check()
        with contextlib.suppress(KeyboardInterrupt):
            send(number)
        with pytest.raises(KeyboardInterrupt):
            interruption.check()
    with interruption.handled():
        interruption.check()  # another command of this process begins afresh


@all_signals
def test_a_first_signal_only_leaves_word_and_a_second_one_interrupts(number: int) -> None:
    words = []
    with interruption.noted(lambda: words.append("stop")):
        send(number)
        assert words == ["stop"]
        with pytest.raises(KeyboardInterrupt):
            send(number)
    assert words == ["stop"]


@all_signals
def test_a_second_signal_interrupts_what_only_notes_the_first(number: int) -> None:
    with interruption.handled():
        with contextlib.suppress(KeyboardInterrupt):
            send(number)
        with interruption.noted(), pytest.raises(KeyboardInterrupt):
            send(number)


@all_signals
def test_the_handlers_of_before_come_back(number: int) -> None:
    before = signal.getsignal(number)
    with interruption.noted():
        assert signal.getsignal(number) is not before
    assert signal.getsignal(number) is before


@all_signals
def test_a_second_term_right_after_the_first_is_the_same_request(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "_SAME_REQUEST_SECONDS", 60.0)
    words = []
    with interruption.noted(lambda: words.append("stop")):
        send(number)
        if number != signal.SIGINT:  # from Slurm and its script, or from the kernel and the shell
            send(number)
        else:  # pressed twice by somebody who wants it to end now
            with pytest.raises(KeyboardInterrupt):
                send(number)
    assert words == ["stop"]


@all_signals
def test_what_ended_one_command_does_not_end_the_next(number: int) -> None:
    with pytest.raises(KeyboardInterrupt), interruption.handled():
        os.kill(os.getpid(), number)
        time.sleep(5)
    interruption.check()


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    """As under nohup, whose study goes on when the terminal is closed."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruption.handled():
            send(signal.SIGHUP)
            interruption.check()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_after_a_terminal_was_closed_what_is_printed_raises_nothing(tmp_path: Path) -> None:
    program = (
        "import contextlib, pathlib, signal, sys, time\n"
        "from captune import interruption\n"
        "with interruption.handled():\n"
        "    try:\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(60)\n"
        "    except KeyboardInterrupt:\n"
        "        print('interrupted', flush=True)\n"
        "        print('interrupted', file=sys.stderr, flush=True)\n"
        f"        pathlib.Path({str(tmp_path / 'end')!r}).write_text('in order')\n"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", program])
    while b"ready" not in os.read(terminal, 1024):
        pass
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0 and (tmp_path / "end").read_text() == "in order"
