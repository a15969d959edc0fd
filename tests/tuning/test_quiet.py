"""What Ray prints and logs is kept back; what the user's own program prints and logs is not."""

from __future__ import annotations

import logging
import sys
import threading

import pytest
import ray

from captune.errors import UsageError
from captune.tuning.cluster import connected
from captune.tuning.quiet import muted, unlogged


@pytest.mark.parametrize("own", [False, True])
def test_what_other_threads_print_in_a_users_program_is_printed(
    own: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a study ran in a thread, everything that a notebook printed was lost."""
    monkeypatch.setattr("captune.own_process.is_own", lambda: own)
    before = sys.stdout
    with muted():
        print("of Ray")
        beside = threading.Thread(target=print, args=("of the user",))
        beside.start()
        beside.join()
    print("afterwards")
    assert capsys.readouterr().out == ("" if own else "of the user\n") + "afterwards\n"
    assert sys.stdout is before


def test_rays_loggers_are_the_users_again_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captune.own_process.is_own", lambda: False)
    logger = logging.getLogger("ray.tune")
    before = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        with unlogged():
            assert logger.level == logging.CRITICAL
        assert logger.level == logging.DEBUG
    finally:
        logger.setLevel(before)


def test_a_process_that_uses_ray_itself_is_told_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was told that Ray did not start within 180 s and that a machine under load needs longer."""
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with pytest.raises(UsageError, match=r"called ray\.init.*ray\.shutdown\(\)"), connected(None, threads=1):
        pass
