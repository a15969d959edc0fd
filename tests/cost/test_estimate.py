"""The estimate of a trial's cost, and the overhead read from a journal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captune.algorithms import ALGORITHMS, default_config
from captune.algorithms.packed_cap import PackedCap
from captune.config import StudyConfig, TaskConfig
from captune.cost import estimate as estimate_module
from captune.cost.estimate import TrialCost, estimate_trial_cost
from captune.cost.sample import sampled_context
from captune.errors import RecordError, UsageError
from captune.records import JOURNAL, Journal
from captune.training.loop import Loop
from captune.training.trial import TrainingTrial
from tests.bench.overhead import trial_overhead
from tests.journals import append


def task(**values: Any) -> TaskConfig:
    return TaskConfig.parse({"dataset": "digits", "paradigm": "ul", **values})


def test_the_estimate_is_near_what_a_trial_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The trial and its estimate are both measured in CPU time, which does not pass while other processes run.
    monkeypatch.setattr(time, "perf_counter", time.process_time)
    config = default_config("cap", task()).with_values({"tuning": "features", "epochs": 6, "steps_per_epoch": 20})
    run = TrainingTrial.open(task(), config, algorithm=ALGORITHMS["cap"], seed=0, directory=tmp_path / "warm")
    run.run_epoch()
    estimates = [estimate_trial_cost(task(), config, "cap").trial_seconds]
    started = time.perf_counter()
    run = TrainingTrial.open(task(), config, algorithm=ALGORITHMS["cap"], seed=0, directory=tmp_path / "real")
    while not run.trained:
        run.run_epoch()
    run.finish()
    real = time.perf_counter() - started
    estimates.append(estimate_trial_cost(task(), config, "cap").trial_seconds)
    # Even CPU time varies with what else uses the caches, so this only catches wrong counting: steps, epochs, images.
    assert min(estimates) / 5 < real < 5 * max(estimates)


def test_cost_grows_with_the_budget() -> None:
    config = default_config("cap", task()).with_values({"tuning": "features", "epochs": 10, "steps_per_epoch": 20})
    cost = estimate_trial_cost(task(), config, "cap")
    assert cost.num_epochs == 10
    assert cost.epoch_seconds >= 20 * cost.step_seconds > 0
    assert cost.trial_seconds >= 10 * cost.epoch_seconds
    assert cost.memory_bytes > 50e6
    assert cost.prepare_seconds == 0.0


def test_the_memory_of_the_epoch_that_records_the_steps_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = iter([3_000_000_000, 1_000_000_000, 500_000_000])

    def peak_bytes_of(work: Callable[[], object], device: object) -> int:
        work()
        return next(peaks)

    monkeypatch.setattr(estimate_module, "peak_bytes_of", peak_bytes_of)
    config = default_config("cap", task()).with_values({"tuning": "features", "epochs": 2, "steps_per_epoch": 2})
    assert estimate_trial_cost(task(), config, "cap").memory_bytes == 3_000_000_000


@pytest.mark.parametrize(("kernels", "recorded"), [("auto", True), ("plain", False)])
def test_an_estimate_runs_the_kernels_that_were_asked_for(
    monkeypatch: pytest.MonkeyPatch, kernels: str, recorded: bool
) -> None:
    asked = []

    def loop(*args: Any, recorded: bool = True) -> Loop:
        asked.append(recorded)
        return Loop(*args, recorded=recorded)

    monkeypatch.setattr(estimate_module, "Loop", loop)
    config = default_config("cap", task()).with_values({"tuning": "features", "epochs": 2, "steps_per_epoch": 2})
    estimate_trial_cost(task(kernels=kernels), config, "cap")
    assert asked == [recorded]


def test_an_estimate_takes_the_steps_that_a_study_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    together = PackedCap.__init__

    def packed(self: PackedCap, caps: Sequence[Any], stack: Any) -> None:
        sizes.append(len(caps))
        together(self, caps, stack)

    monkeypatch.setattr(PackedCap, "__init__", packed)
    config = default_config("cap", task()).with_values({"tuning": "features", "epochs": 2, "steps_per_epoch": 2})
    for count in (1, 4):
        sizes.clear()
        cost = estimate_trial_cost(task(), config, "cap", packed=count)
        assert set(sizes) == {count} and cost.step_seconds > 0
        assert cost.epoch_seconds > config.steps_per_epoch * cost.step_seconds
    sizes.clear()
    estimate_trial_cost(task(), config.with_values({"tuning": "prompts"}), "cap", packed=4, advice=False)
    estimate_trial_cost(task(kernels="plain"), config, "cap", packed=4)
    assert not sizes, "prompts and plain kernels are trained one by one"


def test_methods_without_training_have_no_epochs() -> None:
    cost = estimate_trial_cost(task(), default_config("zero_shot", task()), "zero_shot")
    assert (cost.num_epochs, cost.step_seconds, cost.halve) == (0, 0.0, ())
    assert cost.trial_seconds > 0


def test_image_files_are_sampled_and_nothing_is_built(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 60)):
        for index in range(count):
            folder = tmp_path / "photos" / split / f"thing {index % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    cell = task(dataset=f"folder:{tmp_path / 'photos'}", backbone="tiny", cache_dir=tmp_path / "cache")
    config = default_config("cap", cell, "prompts").with_values({"batch_size": 8, "epochs": 2, "steps_per_epoch": 4})
    cost = estimate_trial_cost(cell, config, "cap")
    assert cost.prepare_seconds > 0
    assert not (tmp_path / "cache").exists()
    assert any("--tuning features" in sentence for sentence in cost.halve)
    with sampled_context(cell.model_copy(update={"kernels": "plain"}), "cpu") as (context, _):
        assert not context.fast_steps


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(UsageError, match="--method must name a method"):
        estimate_trial_cost(task(), default_config("cap", task()), "cup")


def test_a_study_is_counted_in_rounds_of_trials_at_once() -> None:
    cost = TrialCost(
        step_seconds=0.1, epoch_seconds=10.0, trial_seconds=100.0, memory_bytes=2_000_000_000,
        prepare_seconds=30.0, num_epochs=9, halve=("Less.",),
    )  # fmt: skip
    # 5 trials two at a time are three rounds of 100 s, behind 30 s of preparation.
    assert cost.study_seconds(5, concurrency=2) == 330.0
    study = StudyConfig.parse({"task": {"dataset": "digits", "paradigm": "ul"}, "trials": 12})
    trial, whole, cheaper = cost.sentences(study)
    assert "A trial: 100.0 s (9 epochs of 10.0 s, a step 100 ms) and 2.0 GB" in trial
    # 12 search trials and (3 + the paper's) × 3 confirmations: 30 s + 24 · 100 s = 2430 s.
    assert "at most 40 min for 12 trials and 12 confirmations, 1 at a time (ASHA" in whole
    assert cheaper == "Cheaper: Less."


def cost_of(seconds: float, **changes: Any) -> TrialCost:
    known: dict[str, Any] = {
        "step_seconds": 0.1, "epoch_seconds": seconds / 10, "trial_seconds": seconds,
        "memory_bytes": 4_000_000_000, "prepare_seconds": 30.0, "num_epochs": 10, "halve": ("Less.",),
    }  # fmt: skip
    return TrialCost(**(known | changes))


def test_a_trial_of_a_study_over_methods_is_the_mean_of_theirs_and_images_are_prepared_once() -> None:
    both = (cost_of(10.0, memory_bytes=1, num_epochs=4), cost_of(30.0, num_epochs=0))
    mean = TrialCost.mean(both)
    assert (mean.trial_seconds, mean.num_epochs, mean.prepare_seconds) == (20.0, 2, 30.0)
    assert mean.memory_bytes == 4_000_000_000 and mean.study_seconds(4, concurrency=2) == 30.0 + 2 * 20.0


def test_a_screen_is_counted_and_where_it_is_a_large_part_told_how_to_shrink() -> None:
    task = {"dataset": "digits", "paradigm": "ul"}
    study = StudyConfig.parse({"task": task, "trials": 10, "screen": "features", "confirm_top": 0})
    # Prepared once: 30 s; 40 screening trials two at a time 20 · 5 s, 10 trials 5 · 100 s.
    told = cost_of(100.0).sentences(study, concurrency=2, screen=cost_of(5.0))
    assert told[1].startswith("A screening trial: 5.0 s (10 epochs of 0.5 s")
    assert "at most 10 min for 40 screening trials, 10 trials and 0 confirmations, 2 at a time" in told[2]
    assert told[3:] == ("Cheaper: Less.",)
    # Half as dear as a trial: 20 · 50 s of 1530 s.
    dear = cost_of(100.0).sentences(study, concurrency=2, screen=cost_of(50.0))
    assert dear[3] == "Cheaper: --screen-trials 20: the screen is 65 % of the study."


def test_confirmations_of_both_roles_are_counted_twice() -> None:
    study = StudyConfig.parse({"task": {"dataset": "digits", "paradigm": "trzsl"}, "trials": 4})
    assert "4 trials and 24 confirmations" in cost_of(1.0).sentences(study, both_roles=True)[1]


def test_trials_that_share_a_card_must_fit_into_it_together() -> None:
    cost = cost_of(1.0)
    # 0.9 · 80 GB over 4 GB and 0.6 GB of the process: 15.65.
    assert cost.trials_on_card(80_000_000_000) == 15
    study = StudyConfig.parse({"task": {"dataset": "digits", "paradigm": "ul"}})
    assert "Up to 15 trials fit into this card's 80 GB" in cost.sentences(study, card_bytes=80_000_000_000)[2]
    assert "(--gpus-per-trial 0.066)" in cost.sentences(study, card_bytes=80_000_000_000)[2]
    assert "One trial at a time fits" in cost.sentences(study, card_bytes=8_000_000_000)[2]
    assert "does not fit into this card's 4 GB" in cost.sentences(study, card_bytes=4_000_000_000)[2]


def write_journal(run: Path, spans: list[tuple[float, float, float]]) -> None:
    run.mkdir()
    journal = Journal(run / JOURNAL)
    for number, (start, training, end) in enumerate(spans):
        key = f"t{number:04d}"
        append(journal, "planned", key=key, phase="search", time=start)
        append(journal, "started", key=key, time=start)
        for epoch in (1, 2):
            append(journal, "epoch", key=key, epoch=epoch, seconds=training / 2, time=start)
        append(journal, "finished", key=key, state="COMPLETE", time=end, seconds=end - start)
    journal.close()


def test_overhead_is_the_time_between_ends_less_the_epochs(tmp_path: Path) -> None:
    # First: 0 to 5 s with 3 s of epochs: 2 s. Then 5 to 9 with 3.5: 0.5 s; 9 to 12 with 2.8: 0.2 s; median 0.35 s.
    write_journal(tmp_path / "run", [(0.0, 3.0, 5.0), (5.1, 3.5, 9.0), (9.1, 2.8, 12.0)])
    overhead = trial_overhead(tmp_path / "run")
    assert overhead.first == pytest.approx(2.0)
    assert overhead.median == pytest.approx(0.35)
    assert overhead.num_trials == 3


def test_trials_beside_each_other_are_refused(tmp_path: Path) -> None:
    write_journal(tmp_path / "run", [(0.0, 3.0, 5.0), (4.0, 3.0, 8.0)])
    with pytest.raises(RecordError, match=r"one at a time .* t0000 and t0001 beside each other"):
        trial_overhead(tmp_path / "run")


def test_a_single_trial_tells_no_overhead(tmp_path: Path) -> None:
    write_journal(tmp_path / "run", [(0.0, 3.0, 5.0)])
    with pytest.raises(RecordError, match="two finished search trials"):
        trial_overhead(tmp_path / "run")


def test_a_dry_run_says_how_many_trials_fit_a_budget() -> None:
    cost = TrialCost(
        num_epochs=10, step_seconds=0.1, epoch_seconds=6.0, trial_seconds=60.0, prepare_seconds=0.0,
        memory_bytes=1_000_000_000, halve=(),
    )  # fmt: skip
    study = StudyConfig(task=task(), trials=100, confirm_top=1, confirm_seeds=3)

    def told(seconds: float) -> str:
        sentences = cost.sentences(study, concurrency=2, budget_seconds=seconds)
        return next(sentence for sentence in sentences if "budget" in sentence)

    # The best, the first and the plateau's are confirmed: 109 trials, two a minute, are 55 minutes; 25 too many.
    assert told(1800.0) == "A budget of 30 min fits about 50 trials of 100, and 9 confirmations."
    assert "more than the 100 that are asked for" in told(7200.0)
    assert told(100.0).endswith("fits no trial beside 9 confirmations: raise it, or lower --confirm-top.")
