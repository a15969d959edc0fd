"""Makes the simulator importable and builds one whole study for the module's readers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from real import real_study
from synthetic import whole_study

from captune.results.load import StudyRecord, load_study


@pytest.fixture(scope="session")
def study_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_study(tmp_path_factory.mktemp("runs") / "digits-ul-cap")


@pytest.fixture(scope="session")
def real_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed real study; not to be written into."""
    return real_study(tmp_path_factory.mktemp("real") / "digits-ul-cap")


@pytest.fixture(scope="session")
def study(study_dir: Path) -> StudyRecord:
    return load_study(study_dir)
