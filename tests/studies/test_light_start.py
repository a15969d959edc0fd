"""A study is planned before PyTorch is loaded: its first line, and every mistake that can be seen, come at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PLAN = """
import sys
from pathlib import Path
import captune.cli.studies, captune.studies.running
from captune.config import StudyConfig, TaskConfig
from captune.studies.checks import check_before_ray
from captune.studies.planning import plan_study

study = StudyConfig(task=TaskConfig(dataset="digits", paradigm="ul"))
plan = plan_study(study, Path(sys.argv[1]))
check_before_ray([plan], address=None, gpus_per_trial=None, allow_cpu=False)
heavy = ("torch", "open_clip", "sklearn", "matplotlib", "sqlalchemy")
print(plan.study.trials, [name for name in heavy if name in sys.modules])
"""


def test_digits_are_planned_without_what_only_trials_and_reports_need(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PLAN, str(tmp_path / "study")], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "48 []"
