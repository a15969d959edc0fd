"""The benchmark as a whole on the embedded CLIP, its table, and its clocks."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from captune.cost.measure import matrix_rate, peak_bytes_of
from captune.errors import UsageError
from tests.bench.__main__ import bench
from tests.bench.bench import BenchOptions, advice, run_bench, table_lines
from tests.bench.rows import matrix_rates
from tests.bench.timing import alternate
from tests.bench.worker import Worked, concurrent_seconds

CPU = torch.device("cpu")
OPTIONS = BenchOptions(
    backbone="tiny", pretrained=None, classes=(3,), batch_size=4, device="cpu", repeats=1, concurrency_epochs=0,
    overhead_trials=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    rates = matrix_rates(OPTIONS.precisions, CPU, seconds=0.05)  # measured three times, for seconds, otherwise
    with pytest.MonkeyPatch.context() as patch:
        for module in ("bench", "rows"):
            patch.setattr(f"tests.bench.{module}.matrix_rates", lambda *_, **__: rates)
        return run_bench(OPTIONS)


@pytest.mark.slow
def test_the_report_is_json_and_says_on_what_it_was_measured(report: dict[str, Any]) -> None:
    report = json.loads(json.dumps(report))
    assert report["machine"]["cores"] >= 1 and report["machine"]["cpu"]
    assert report["versions"]["torch"] == torch.__version__.split("+")[0] or report["versions"]["torch"]
    assert report["date"].startswith("20")
    assert [(row["classes"], row["precision"]) for row in report["steps"]] == [(3, "fp32"), (3, "bf16")]


@pytest.mark.slow
def test_the_fast_step_is_measured_on_what_the_plain_one_is(report: dict[str, Any]) -> None:
    exact = report["steps"][0]
    assert exact["fast_loss"] == pytest.approx(exact["plain_loss"], rel=1e-5)
    assert exact["gradient_relative_error"] < 1e-4
    assert exact["labels_kept"] == 1.0
    assert report["encoding"][0]["smallest_cosine"] > 1 - 1e-6


@pytest.mark.slow
def test_ratios_are_those_of_the_clocks(report: dict[str, Any]) -> None:
    for row in report["steps"]:
        assert row["ratio"] == pytest.approx(row["plain_seconds"]["cpu_min"] / row["fast_seconds"]["cpu_min"])
        assert row["wall_ratio"] == pytest.approx(row["plain_seconds"]["min"] / row["fast_seconds"]["min"])
        assert 0 < row["views_share"] < 1


@pytest.mark.slow
def test_the_overhead_of_a_trial_has_a_row_of_its_own(report: dict[str, Any]) -> None:
    line = table_lines({**report, "overhead": {"median": 0.12, "first": 0.3, "num_trials": 8}})[-1]
    assert (line.what, line.result, line.met) == (
        "overhead a trial beside training, 8 frozen-feature trials on digits", "120 ms", False,
    )  # fmt: skip
    assert line.fast == "the first 300 ms" and line.target == "≤ 100 ms"


@pytest.mark.slow
def test_the_table_promises_only_what_this_hardware_was_promised(report: dict[str, Any]) -> None:
    step = {**report["steps"][1], "classes": 100, "ratio": 9.0, "too_noisy": None}
    without = {**report["machine"], "cpu_features": ["avx512_bf16"]}
    other = {**report, "steps": [step], "settings": {**report["settings"], "backbone": "ViT-B-32"}, "machine": without}
    line = table_lines(other)[0]
    assert (line.what, line.target, line.met) == ("step, 100 classes, bf16", "≥ 18× with AMX", None)
    with_amx = {**without, "cpu_features": ["amx_bf16"]}
    assert table_lines({**other, "machine": with_amx})[0].met is False
    noisy = {**other, "machine": with_amx, "steps": [step | {"too_noisy": "others took 60 % of the CPUs"}]}
    assert table_lines(noisy)[0].met is None and "too noisy" in table_lines(noisy)[0].result
    assert any(sentence.startswith("Too noisy, 100 classes, bf16: others took 60 %") for sentence in advice(noisy))
    assert table_lines({**other, "steps": [{**step, "ratio": 19.0}]})[0].met is True


@pytest.mark.slow
def test_advice_counts_a_trial_at_the_papers_budget(report: dict[str, Any]) -> None:
    step = {**report["steps"][0], "fast_seconds": {"min": 1.44}, "too_noisy": None}
    # 2,500 steps of 1.44 s are 3,600 s.
    assert advice({"steps": [step]}) == ["A full trial (50 × 50 steps), 3 classes, fp32: 1.0 hours of training here."]


def test_rivals_are_timed_in_turn() -> None:
    order: list[str] = []
    timings = alternate([lambda: order.append("a"), lambda: order.append("b")], 3, CPU)
    assert order == ["a", "b"] * 3
    assert [len(timing.seconds) for timing in timings] == [3, 3]


def test_sleeping_costs_time_but_no_cpu() -> None:
    (timing,) = alternate([lambda: time.sleep(0.05)], 1, CPU)
    assert timing.best >= 0.05 > 0.03 > timing.best_cpu


def test_peak_memory_sees_what_is_freed_again() -> None:
    before = peak_bytes_of(lambda: None, CPU)

    def work() -> None:
        torch.ones(50_000_000)

    assert 190e6 < peak_bytes_of(work, CPU) - before < 260e6


def test_matrix_rate_counts_two_operations_a_product() -> None:
    rate = matrix_rate("fp32", CPU, shape=(64, 64, 64), seconds=0.05)
    assert 1e8 < rate.flops < 1e13


@pytest.mark.slow
def test_a_worker_trains_after_it_is_let_go() -> None:
    (worked,) = concurrent_seconds(1, epochs=1)
    assert 0 < worked.wall < 60 and 0 < worked.cpu < 60


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    alone, together = Worked(1.0, 0.9), [Worked(1.05, 0.95), Worked(1.1, 0.96)]
    monkeypatch.setattr(
        "tests.bench.rows.concurrent_seconds", lambda count, epochs: [alone] if count == 1 else together
    )
    bench(
        backbone="tiny", classes="2", batch_size=2, precision="fp32", device="cpu", quick=True,
        json_file=tmp_path / "bench.json",
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert (
        "step, 2 classes, fp32" in printed and "1.82×, 1.88× in CPU time" in printed
    )  # 2 · 1.0 / 1.1 and 2 · 0.9 / 0.96
    assert json.loads((tmp_path / "bench.json").read_text())["settings"]["batch_size"] == 2


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("classes", "ten", "--classes must be whole numbers"),
        ("classes", "1", "--classes must be at least 2"),
        ("precision", "fp64", "--precision must name fp32, bf16 or fp16"),
    ],
)
def test_wrong_options_are_refused(option: str, value: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        bench(**{"backbone": "tiny", option: value})


@pytest.mark.gpu
def test_a_gpu_is_measured_in_its_own_terms() -> None:
    report = run_bench(BenchOptions("ViT-B-32", "random", (10,), ("fp32", "bf16"), 8, "cuda", 1, 0, 0))
    assert report["machine"]["gpu"]
    assert 0 < report["steps"][1]["matrix_share"] < 1.5
    assert any("% of matmul rate" in line.result for line in table_lines(report))
