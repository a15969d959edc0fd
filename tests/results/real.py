"""A small real study, closed: digits on two cores in seconds, without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from captune.studies import closing
from captune.studies.planning import plan_study
from tests.studies import lives

TRAINING = {"epochs": 6, "steps_per_epoch": 6, "tuning": "features"}


def real_study(directory: Path, **values: Any) -> Path:
    """Search, confirm, choose, read the test labels, report."""
    settings = {"trials": 6, "confirm_top": 2, "confirm_seeds": 2, "fixed": TRAINING} | values
    lives.run_trials(plan_study(lives.settings("ul", **settings), directory)).close()
    closing.close_study(directory)
    return directory
