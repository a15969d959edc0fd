"""Where reports are written, and what one says of a study of which next to nothing is known."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import typer
from synthetic import FakeStudy
from typer.testing import CliRunner

from captune.cli.report import report
from captune.errors import UsageError
from captune.records.layout import TABLES
from captune.results.report import _MAKERS, report_studies


def test_a_report_replaces_and_removes_no_files_of_other_origin(tmp_path: Path, no_figures: None) -> None:
    FakeStudy(tmp_path / "runs" / "begun").close()
    out = tmp_path / "out"
    for name in ("study.png", "runs.csv", "trials.csv"):
        out.mkdir()
        (out / name).write_text("mine")
        with pytest.raises(UsageError, match=f"a report would replace: {name}"):
            report_studies([tmp_path / "runs"], out)
        assert [(file.name, file.read_text()) for file in out.iterdir()] == [(name, "mine")]
        shutil.rmtree(out)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="--out must be a folder that can be made"):
        report_studies([tmp_path / "runs"], tmp_path / "file")


def test_the_names_that_are_looked_for_before_a_study_are_those_of_all_tables() -> None:
    assert set(TABLES) == set(_MAKERS)


def test_a_report_that_was_killed_is_written_again(
    tmp_path: Path, no_figures: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeStudy(tmp_path / "runs" / "begun").close()
    with monkeypatch.context() as killed, pytest.raises(ZeroDivisionError):
        killed.setattr("captune.results.report._figures", lambda *_: 1 / 0)
        report_studies([tmp_path / "runs"], tmp_path / "out")
    assert (tmp_path / "out" / "trials.csv").exists()
    assert report_studies([tmp_path / "runs"], tmp_path / "out")[-1].exists()


def test_a_study_of_which_nothing_finished_advises_nothing(tmp_path: Path, no_figures: None) -> None:
    FakeStudy(tmp_path / "begun").close()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "journal.jsonl").write_text("no journal\nat all\n")
    app = typer.Typer()
    app.command()(report)
    for study in ("begun", "damaged"):
        shown = CliRunner().invoke(app, [str(tmp_path / study)])
        assert shown.exit_code == 0
        assert "keep zero-shot" not in shown.output
        assert "none yet" in shown.output
        page = (tmp_path / study / "report.html").read_text()
        assert "There is no advice yet: no configuration has ended." in page
