"""captune compare: equal budgets, what is left out and said, and the tables that come of it."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from captune.algorithms import ALGORITHMS
from captune.cli import studies
from captune.cli.compare import cells_of
from captune.cli.main import main
from captune.errors import StudyError, UsageError


def test_all_means_every_method_that_is_no_reference_and_the_ceiling_where_it_is_one() -> None:
    said = io.StringIO()
    cells = cells_of("all", "all", Console(file=said), {"dataset": "digits"})
    assert {name for _, name in cells} == set(ALGORITHMS) - {"zero_shot", "balanced"}
    assert ("ul", "supervised") in cells and ("tft", "supervised") not in cells
    assert "supervised is left out of tft" in said.getvalue()
    controls = {"probe", "coop"}
    assert {kind for kind, name in cells if name in controls} == {"ssl", "trzsl"}
    assert "coop is left out of ul: it learns from labelled images alone" in said.getvalue()
    with_shots = cells_of("tft,ssl", "coop", Console(file=said), {"dataset": "digits", "shots": 1})
    assert with_shots == [("tft", "coop"), ("ssl", "coop")]


def test_names_are_checked() -> None:
    with pytest.raises(UsageError, match="--method must name a method, but got 'gripp'"):
        cells_of("ul", "gripp", Console(file=io.StringIO()), {"dataset": "digits"})


@pytest.mark.parametrize("command", ["run", "adapt"])
@pytest.mark.parametrize("method", ["coop", "probe"])
def test_a_control_is_refused_where_nothing_is_labelled(
    command: str, method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--dataset", "digits", "--paradigm", "ul", "--method", method, "--out", str(tmp_path / "out")])
    assert ended.value.code == 2 and not (tmp_path / "out").exists()
    assert "learns from labelled images alone" in " ".join(capsys.readouterr().err.split())


def test_why_no_study_began_is_what_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing_begins(*_: object) -> None:
        raise StudyError("Ray must start within 180 s")

    monkeypatch.setattr(studies, "execute", nothing_begins)
    cell = ("--dataset", "digits", "--paradigm", "ul", "--methods", "transclip")
    with pytest.raises(SystemExit) as ended:
        main(["compare", *cell, "--trials", "1", "--out", str(tmp_path / "out")])
    assert ended.value.code == 1 and "Ray must start within 180 s" in capsys.readouterr().err


@pytest.mark.slow
def test_two_methods_are_compared_on_one_cell_with_one_budget(tmp_path: Path) -> None:
    out = tmp_path / "comparison"
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "compare",
                "--dataset",
                "digits",
                "--paradigm",
                "ul",
                "--methods",
                "fpl,transclip",
                "--trials",
                "2",
                "--confirm-seeds",
                "2",
                "--epochs",
                "2",
                "--no-dashboard",
                "--out",
                str(out),
            ]
        )
    assert ended.value.code == 0
    methods = pd.read_csv(out / "methods.csv")
    assert set(methods["method"]) == {"fpl", "transclip", "balanced"}
    assert methods["search_trials"].dropna().tolist() == [2, 2]
    assert methods["cell"].nunique() == 1
    assert (out / "comparisons.csv").exists() and (out / "ranks.csv").exists() and (out / "report.html").exists()
