"""The guard of a driver's lock."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from captune.records.layout import GUARD
from tests.tuning.test_open_study import open_study, run_study


def test_a_lock_that_cannot_be_taken_leaves_the_guard_of_another_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_study(tmp_path / "run", trials=2, confirm_top=0)
    assert (tmp_path / "run" / GUARD).exists()

    def full(_directory: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("captune.tuning.open_study.DriverLock", full)
    with pytest.raises(OSError, match="No space left"):
        open_study(tmp_path / "run", resume=True, trials=2, confirm_top=0)
    assert (tmp_path / "run" / GUARD).exists()
