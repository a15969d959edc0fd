"""Makes the simulator importable and builds one whole study for the module's readers."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from real import real_study
from synthetic import whole_study

from captune.results import plots, report, surrogate
from captune.results.load import StudyRecord, load_study
from tests.once import once


@pytest.fixture(scope="session")
def study_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_study(tmp_path_factory.mktemp("runs") / "digits-ul-cap")


@pytest.fixture(scope="session")
def real_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed real study; not to be written into."""
    return once(tmp_path_factory, "real", lambda folder: real_study(folder / "digits-ul-cap")) / "digits-ul-cap"


@pytest.fixture(scope="session", autouse=True)
def small_pictures() -> Iterator[None]:
    """Figures of few pixels, for a PNG takes as long as it has pixels; nothing else of a figure follows from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "DPI", 40)
        yield


@pytest.fixture(scope="module")
def few_trees() -> Iterator[None]:
    """Forests of a few trees, for tests of files and words: how good a forest is has tests of its own."""
    few = functools.partial(optuna.importance.FanovaImportanceEvaluator, n_trees=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optuna.importance, "FanovaImportanceEvaluator", few)
        patch.setattr(surrogate, "NUM_TREES", 10)
        yield


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of tables and words: to draw is most of the time that a small report takes."""
    monkeypatch.setattr(report, "_figures", lambda runs, tables: {})


@pytest.fixture(scope="session")
def study(study_dir: Path) -> StudyRecord:
    return load_study(study_dir)
