"""A signal is never lost, wherever it arrives."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from captune import interruption

pytestmark = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


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
