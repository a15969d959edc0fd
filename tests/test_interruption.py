"""A signal is never lost, wherever it arrives."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest

from captune import interruption

pytestmark = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture(autouse=True)
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second signal is always late enough to be a second request."""
    monkeypatch.setattr(interruption, "_SAME_REQUEST_SECONDS", 0.0)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_a_signal_interrupts_where_it_arrives(number: int) -> None:
    with pytest.raises(KeyboardInterrupt), interruption.handled():
        send(number)


def test_a_signal_that_a_library_swallowed_is_raised_where_the_stage_ends(number: int) -> None:
    with interruption.handled():
        interruption.check()
        with contextlib.suppress(KeyboardInterrupt):
            send(number)
        with pytest.raises(KeyboardInterrupt):
            interruption.check()
    with interruption.handled():
        interruption.check()  # another command of this process begins afresh


def test_a_first_signal_only_leaves_word_and_a_second_one_interrupts(number: int) -> None:
    words = []
    with interruption.noted(lambda: words.append("stop")):
        send(number)
        assert words == ["stop"]
        with pytest.raises(KeyboardInterrupt):
            send(number)
    assert words == ["stop"]


def test_a_second_signal_interrupts_what_only_notes_the_first(number: int) -> None:
    with interruption.handled():
        with contextlib.suppress(KeyboardInterrupt):
            send(number)
        with interruption.noted(), pytest.raises(KeyboardInterrupt):
            send(number)


def test_the_handlers_of_before_come_back(number: int) -> None:
    before = signal.getsignal(number)
    with interruption.noted():
        assert signal.getsignal(number) is not before
    assert signal.getsignal(number) is before


def test_a_second_term_right_after_the_first_is_the_same_request(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "_SAME_REQUEST_SECONDS", 60.0)
    words = []
    with interruption.noted(lambda: words.append("stop")):
        send(number)
        if number == signal.SIGTERM:  # from Slurm, and from the script that Slurm told too
            send(number)
        else:  # pressed twice by somebody who wants it to end now
            with pytest.raises(KeyboardInterrupt):
                send(number)
    assert words == ["stop"]


def test_what_ended_one_command_does_not_end_the_next(number: int) -> None:
    with pytest.raises(KeyboardInterrupt), interruption.handled():
        os.kill(os.getpid(), number)
        time.sleep(5)
    interruption.check()
