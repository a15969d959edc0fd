"""Every script runs as the README says, and the README documents every column that comes out."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from captune.results.load import load_studies
from captune.results.report import tables_of

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "results"))

from synthetic import whole_study  # noqa: E402

SCRIPTS = sorted(path.stem for path in (ROOT / "analysis").glob("*.py") if path.stem != "one_table")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [whole_study(root / f"digits-{p}-cap", seed=i, paradigm=p) for i, p in enumerate(("ul", "tft"))]


@pytest.fixture(scope="module")
def tables(runs: list[Path]) -> dict[str, pd.DataFrame]:
    return tables_of(load_studies(runs))


@pytest.mark.slow
def test_script_writes_the_table_that_the_report_writes(
    runs: list[Path], tables: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    command = [sys.executable, str(ROOT / "analysis" / "best_configs.py"), *map(str, runs)]
    command += ["--out", str(tmp_path / "out.csv")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    expected = tables["best_configs.csv"]
    written = pd.read_csv(tmp_path / "out.csv")
    assert list(written.columns) == list(expected.columns) and len(written) == len(expected)
    assert f"wrote {tmp_path / 'out.csv'}: 2 rows of 2 studies" in done.stderr


def test_every_script_names_a_documented_table() -> None:
    assert {f"{name}.csv" for name in SCRIPTS} <= set(
        yaml.safe_load((ROOT / "captune" / "results" / "columns.yaml").read_text(encoding="utf-8"))
    )
    for name in SCRIPTS:
        text = (ROOT / "analysis" / f"{name}.py").read_text(encoding="utf-8")
        assert f"{name}_table" in text and len(text.splitlines()) < 20, "thin: the maths is in captune/results"


def run_here(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> int:
    """Run a script in this process, whose imports are paid for already; returns its exit code."""
    script = ROOT / "analysis" / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
    monkeypatch.syspath_prepend(str(script.parent))
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_script_without_runs_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(monkeypatch, "curves", tmp_path / "absent") == 1
    assert "must hold journal.jsonl" in capsys.readouterr().err


def test_script_prints_to_standard_output(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(monkeypatch, "classes", runs[0]) == 0
    assert capsys.readouterr().out.startswith("study,dataset,")
