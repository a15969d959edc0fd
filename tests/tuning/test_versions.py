"""The lowest and newest Ray and Optuna that pyproject.toml allows, each put before the rest of this environment."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What leans on them: private names, samplers, Optuna copy, whole studies on a Ray of this machine.
TESTS = ("test_internals.py", "test_samplers.py", "test_open_study.py", "test_starting.py", "test_engine.py")
# Seen wherever tests are collected, not only when this slow one is run.
assert all(Path(__file__).with_name(name).exists() for name in TESTS), "a test that is run on other versions moved"

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(3600)]


def requirement(name: str) -> str:
    """What pyproject.toml asks of a package, such as `>=2.52,<3`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (found,) = [one for one in project["dependencies"] if re.match(rf"{name}(\[|[<>=])", one)]
    return re.sub(r"^[\w-]+(\[[^\]]*\])?", "", found)


def version_of(name: str, which: str) -> str:
    """The lowest version that is allowed, or all that are, of which pip takes the newest."""
    asked = requirement(name)
    return f"{name}=={asked.split(',')[0].removeprefix('>=')}" if which == "lowest" else f"{name}{asked}"


@pytest.mark.parametrize("which", ["lowest", "newest"])
def test_studies_run_on_the_ends_of_what_is_allowed(which: str, tmp_path: Path) -> None:
    wanted = [version_of(name, which) for name in ("ray", "optuna")]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "first")]
    installed = subprocess.run([*command, *wanted], capture_output=True, text=True, timeout=900, check=False)
    assert installed.returncode == 0, installed.stderr
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path / "first"), str(ROOT)])}
    told = subprocess.run(
        [sys.executable, "-c", "import ray, optuna; print(ray.__version__, optuna.__version__, ray.__file__)"],
        env=environment, capture_output=True, text=True, timeout=300, check=True,
    ).stdout  # fmt: skip
    assert str(tmp_path) in told, f"another was imported: {told}"
    tests = [str(ROOT / "tests" / "tuning" / name) for name in TESTS]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "--timeout=600", *tests],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3000, check=False,
    )  # fmt: skip
    print(f"{which}: {told}{done.stdout[-300:]}")
    assert done.returncode == 0, f"{told}{done.stdout[-6000:]}"
