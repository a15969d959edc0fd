"""A study is planned before PyTorch is loaded: its first line, and every mistake that can be seen, come at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PLAN = """
import sys
import captune.cli.studies, captune.studies.running
from captune.cli.main import main
from captune.studies.checks import check_before_ray


def execute(plans, settings, console):
    check_before_ray(plans, address=None, gpus_per_trial=None, allow_cpu=False)
    heavy = ("torch", "open_clip", "sklearn", "matplotlib", "sqlalchemy")
    print(plans[0].study.trials, [name for name in heavy if name in sys.modules])


captune.cli.studies.execute = execute
main(["run", "--dataset", "digits", "--paradigm", "ul", "--out", sys.argv[1]])
"""


def test_digits_are_planned_without_what_only_trials_and_reports_need(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PLAN, str(tmp_path / "study")], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "48 []"
