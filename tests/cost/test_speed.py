"""`captune bench`: the embedded model measured on made-up photographs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from captune.cli.main import main
from captune.cost.photographs import class_names
from captune.cost.speed import precisions_in
from captune.errors import UsageError


def test_the_command_measures_and_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    with pytest.raises(SystemExit) as ended:
        main(
            [
                *["bench", "--backbone", "tiny", "--classes", "2", "--batch-size", "4", "--precision", "fp32"],
                *["--device", "cpu", "--json", str(file)],
            ]
        )
    assert ended.value.code == 0
    report = json.loads(file.read_text())
    [row] = report["speeds"]
    # Three streams of four images a step, 2,500 steps and what an epoch adds; 12 trials and (3 + 1) · 3 confirmations.
    assert row["images_per_second"] == pytest.approx(12 / row["step_seconds"])
    assert row["trial_seconds"] >= 2500 * row["step_seconds"] > 0
    assert row["study_seconds"] == pytest.approx(24 * row["trial_seconds"])
    assert row["prepared_per_second"] > 0 and row["memory_bytes"] > 50e6
    assert report["machine"]["cores"] >= 1 and report["matrix_flops"]["fp32"] > 1e8
    assert "fp32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--classes", "ten", "--classes must be whole numbers"),
        ("--classes", "1", "--classes must be at least 2"),
        ("--precision", "fp64", "--precision must name fp32, bf16 or fp16"),
    ],
)
def test_wrong_options_are_refused(option: str, value: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--backbone", "tiny", option, value])
    assert ended.value.code == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_class_names_are_different_at_any_count() -> None:
    assert len(set(class_names(250))) == 250
    with pytest.raises(UsageError, match="--classes must be at least 2"):
        class_names(1)


def test_precisions_come_in_one_order() -> None:
    assert precisions_in("bf16, fp32") == ("fp32", "bf16")
