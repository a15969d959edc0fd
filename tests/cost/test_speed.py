"""`captune bench`: the embedded model measured on made-up photographs."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from captune.cli.main import main
from captune.cost import measure
from captune.cost.measure import MatrixRate, why_too_noisy
from captune.cost.photographs import class_names
from captune.cost.speed import precisions_in
from captune.errors import UsageError
from captune.own_process import wait_passively


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
    assert min(row["matrix_flops"]) > 1e8
    out = capsys.readouterr().out
    assert "fp32" in out and ("Too noisy" in out) == (row["too_noisy"] is not None)


def test_a_measurement_between_unlike_matrix_rates_is_too_noisy() -> None:
    calm = MatrixRate("fp32", (1, 1, 1), flops=100e9, taken=0.02)
    assert why_too_noisy(calm, replace(calm, flops=90e9)) is None
    assert why_too_noisy(calm, replace(calm, flops=60e9)) == (
        "matrix products were 40 % slower at one end than at the other"
    )
    assert why_too_noisy(replace(calm, taken=0.5), calm) == "others took 50 % of the CPUs"


def test_others_that_take_the_cpus_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(measure, "clocks_of", lambda work, device: (0.02, 0.005 * threads))
    rate = measure.matrix_rate("fp32", torch.device("cpu"), shape=(8, 8, 8), seconds=0.01)
    # Of each 20 ms by the clock every thread had 5.
    assert rate.taken == pytest.approx(0.75)


def test_threads_wait_passively_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    wait_passively()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE" and os.environ["GOMP_SPINCOUNT"] == "7"
    for name in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name)


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
