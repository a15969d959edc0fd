"""The table of harder worlds: every (method, world, seed) once, and on from where it was left."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.tools import stress_methods


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def test_every_world_is_measured_and_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "stress_methods.csv"
    stress_methods.main("digits", "zero_shot", 1, out)
    rows = rows_of(out)
    assert [row["world"] for row in rows] == list(stress_methods.WORLDS)
    accuracy = {row["world"]: float(row["accuracy"]) for row in rows}
    # Nothing of the pool enters zero-shot: only names and the classes asked for do.
    assert accuracy["plain"] == accuracy["imbalance 50"] == accuracy["quarter of the pool"] == accuracy["shots"]
    assert accuracy["two wrong names"] < accuracy["plain"] != accuracy["open set, 20 %"]
    assert f"| `zero_shot` | {100 * accuracy['plain']:.1f} ± 0.0 |" in capsys.readouterr().out

    def again(*_: object) -> float:
        raise AssertionError("measured twice")

    monkeypatch.setattr(stress_methods, "_accuracy", again)
    stress_methods.main("digits", "zero_shot", 1, out)
    assert rows_of(out) == rows


def test_wrong_names_stand_for_two_seeded_classes(tmp_path: Path) -> None:
    first, second = (
        stress_methods._wrong_names("digits", seed, tmp_path / f"{seed}.yaml").read_text() for seed in (0, 1)
    )
    assert first.count("tiger") == first.count("sofa") == 1 and len(first.split("\n")) == 11
    assert first != second
