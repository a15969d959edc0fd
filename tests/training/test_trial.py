"""One trial on the real digits: resume, firewall, failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captune.algorithms import ALGORITHMS, default_config
from captune.config import TaskConfig, TrialConfig
from captune.data import paradigms
from captune.errors import CheckpointError, TrainingFailed
from captune.records.layout import CHECKPOINT, EPOCHS, PREDICTIONS, RESUME
from captune.training import context as context_module
from captune.training import trial as trial_module
from captune.training.checkpoint import load_checkpoint
from captune.training.trial import TrainingTrial
from tests.slow import slow_but

SMALL = {"epochs": 4, "steps_per_epoch": 3, "learning_rate": 0.02, "grow_every": 2}
# Every part of the method that carries state from epoch to epoch is switched on.
STATEFUL = {
    **SMALL,
    "alignment_weight": 0.1,
    "reweighting_strength": 0.5,
    "count_momentum": 0.5,
    "confusion": "matrix",
    "confidence_threshold": 0.5,
}


Uninterrupted = tuple[TrialConfig, Path, dict[str, Any]]


def task(paradigm: str = "ul", **values: Any) -> TaskConfig:
    return TaskConfig.parse({"dataset": "digits", "paradigm": paradigm, **values})


def config(**values: Any) -> TrialConfig:
    return default_config("cap", task()).with_values({**SMALL, **values})


def open_trial(directory: Path, trial: TrialConfig, paradigm: str = "ul", **values: Any) -> TrainingTrial:
    return TrainingTrial.open(
        task(paradigm), trial, algorithm=ALGORITHMS["cap"], directory=directory, **{"seed": 0, **values}
    )


def train(run: TrainingTrial) -> dict[str, Any]:
    while not run.trained:
        run.run_epoch()
    return run.finish()


def learned(directory: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(directory / CHECKPOINT)[0]


def assert_same_tensors(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("paradigm", ["ul", "ssl", "trzsl", "tft"])
def test_a_trial_writes_what_the_records_need(tmp_path: Path, paradigm: str) -> None:
    run = open_trial(tmp_path, config(tuning="features"), paradigm)
    outcome = train(run)
    assert 0 <= outcome["score"] <= 1
    assert all((tmp_path / name).stat().st_size > 0 for name in (CHECKPOINT, PREDICTIONS, EPOCHS, "config.yaml"))
    assert [line.count('"epoch"') for line in (tmp_path / EPOCHS).read_text().splitlines()] == [1, 1, 1, 1]


@pytest.fixture(scope="module", params=["features", "prompts"])
def uninterrupted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    trial = config(**{**STATEFUL, "tuning": request.param, "batch_size": 8})
    directory = tmp_path_factory.mktemp("whole")
    return trial, directory, train(open_trial(directory, trial))


@pytest.mark.parametrize("interrupted_after", slow_but(lambda epochs: epochs == 2, [1, 2, 3]))
def test_interrupted_and_resumed_is_uninterrupted(
    tmp_path: Path, uninterrupted: Uninterrupted, interrupted_after: int
) -> None:
    trial, directory, whole = uninterrupted
    first = open_trial(tmp_path / "halves", trial)
    for _ in range(interrupted_after):
        first.run_epoch()
    first.save()
    del first
    resumed = open_trial(tmp_path / "halves", trial)
    assert resumed.epoch == interrupted_after
    assert train(resumed) == whole
    assert_same_tensors(learned(directory), learned(tmp_path / "halves"))


@pytest.mark.parametrize(("seconds", "saved"), [(0.0, [1, 2, 3, 4]), (3600.0, [4])])
def test_short_epochs_share_a_checkpoint_and_the_last_is_always_saved(
    tmp_path: Path, seconds: float, saved: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_module, "SAVE_SECONDS", seconds)
    run = open_trial(tmp_path, config(tuning="features"))
    kept = set()
    while not run.trained:
        run.run_epoch()
        if (tmp_path / RESUME).exists():
            kept.add(int(load_checkpoint(tmp_path / RESUME)[0]["loop.epoch"]))
    assert sorted(kept) == saved


def test_epochs_behind_the_last_checkpoint_are_trained_again_with_the_same_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_module, "SAVE_SECONDS", 3600.0)
    trial = config(**{**STATEFUL, "tuning": "features"})
    run = open_trial(tmp_path, trial)
    run.run_epoch()
    run.save()
    before = [run.run_epoch() for _ in range(2)]
    again = open_trial(tmp_path, trial)
    assert again.epoch == 1
    after = [again.run_epoch() for _ in range(2)]
    assert [row | {"seconds": 0} for row in before] == [row | {"seconds": 0} for row in after]
    assert [line[:11] for line in (tmp_path / EPOCHS).read_text().splitlines()] == [
        f'{{"epoch": {n}' for n in (1, 2, 3)
    ]


def test_a_row_torn_off_by_a_kill_is_written_again(tmp_path: Path) -> None:
    run = open_trial(tmp_path, config(tuning="features"))
    run.run_epoch()
    run.save()
    rows = (tmp_path / EPOCHS).read_text()
    (tmp_path / EPOCHS).write_text(rows + rows.replace('"epoch": 1', '"epoch": 2') + '{"epoch": 3, "lo')
    train(open_trial(tmp_path, config(tuning="features")))
    assert [line[:11] for line in (tmp_path / EPOCHS).read_text().splitlines()] == [
        f'{{"epoch": {n}' for n in (1, 2, 3, 4)
    ]


@pytest.mark.parametrize("paradigm", ["ul", "ssl", "trzsl", "tft"])
def test_weights_and_scores_do_not_depend_on_a_single_sealed_label(
    tmp_path: Path, paradigm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = config(**{**STATEFUL, "tuning": "features"})
    honest = train(open_trial(tmp_path / "honest", trial, paradigm))
    before = learned(tmp_path / "honest")

    real_init = paradigms.SealedLabels.__init__

    def garbage(self: Any, *arguments: Any, **keywords: Any) -> None:
        spoiled = [np.full_like(value, 3) if isinstance(value, np.ndarray) else value for value in arguments]
        named = {key: np.full_like(v, 3) if isinstance(v, np.ndarray) else v for key, v in keywords.items()}
        real_init(self, *spoiled, **named)

    monkeypatch.setattr(paradigms.SealedLabels, "__init__", garbage)
    context_module.open_context.cache_clear()
    spoiled = train(open_trial(tmp_path / "spoiled", trial, paradigm))
    context_module.open_context.cache_clear()
    assert spoiled == honest
    assert_same_tensors(before, learned(tmp_path / "spoiled"))


@pytest.mark.parametrize("criterion", ["val", "agree-smooth", "val-smooth"])
def test_every_epoch_is_scored_by_the_criterion_itself(tmp_path: Path, criterion: str) -> None:
    run = open_trial(tmp_path, config(tuning="features", epochs=1), "ssl", select_by=criterion)
    epoch, end = run.run_epoch(), run.finish()
    assert epoch["score"] == end["score"] == end["scores"][criterion]
    assert end["scores"]["val-smooth"] == (end["scores"]["val"] + end["scores"]["agree-smooth"]) / 2


def test_other_settings_in_the_same_directory_are_refused(tmp_path: Path) -> None:
    open_trial(tmp_path, config(tuning="features")).save()
    with pytest.raises(CheckpointError, match="settings it began with, but got another config"):
        open_trial(tmp_path, config(tuning="features", margin_scale=3.0))
    with pytest.raises(CheckpointError, match="another seed"):
        open_trial(tmp_path, config(tuning="features"), seed=1)


def test_a_damaged_checkpoint_is_said_to_be_damaged(tmp_path: Path) -> None:
    open_trial(tmp_path, config(tuning="features")).save()
    path = tmp_path / RESUME
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="whole safetensors file"):
        open_trial(tmp_path, config(tuning="features"))


def test_a_diverging_trial_fails_with_its_reason(tmp_path: Path) -> None:
    run = open_trial(tmp_path, config(tuning="features", learning_rate=1e30, adapter_residual=10, warmup_epochs=0))
    with pytest.raises(TrainingFailed, match=r"finite|collapse"):
        train(run)


@pytest.mark.parametrize(("frozen", "images", "fails"), [(0.4, 100, True), (0.6, 100, False), (0.0, 7, False)])
def test_one_class_for_all_is_a_collapse_only_where_the_frozen_model_saw_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frozen: float, images: int, fails: bool
) -> None:
    """A person's images may all be of one class, and of a handful it is no wonder."""
    run = open_trial(tmp_path, config(tuning="features"))
    while not run.trained:
        run.run_epoch()
    held = run.context.task.holdout[:images]
    logits_NK = torch.zeros(len(held), 10)
    logits_NK[:, 4] = 1.0
    logits_NK[round(frozen * len(held)) :, 3] = 2.0
    whole = type(run.context).zero_shot_logits
    monkeypatch.setattr(type(run.context), "zero_shot_logits", lambda context, indices: logits_NK)
    all_four = torch.nn.functional.one_hot(torch.full((len(held),), 4), 10).float()
    assert run._collapsed(all_four, held) == fails
    monkeypatch.setattr(type(run.context), "zero_shot_logits", whole)


def test_a_pool_smaller_than_a_batch_is_drawn_again_within_it(tmp_path: Path) -> None:
    run = open_trial(tmp_path, config(tuning="features", batch_size=1000, epochs=1, warmup_epochs=0, steps_per_epoch=2))
    assert len(run.context.task.pool) < 1000
    train(run)
    assert run.trained


def test_micro_batches_change_no_number(tmp_path: Path) -> None:
    plain = open_trial(tmp_path / "plain", config(epochs=1, warmup_epochs=0, batch_size=16))
    small = open_trial(tmp_path / "small", config(epochs=1, warmup_epochs=0, batch_size=16, micro_batch=6))
    train(plain)
    train(small)
    for name, tensor in learned(tmp_path / "plain").items():
        assert torch.allclose(tensor, learned(tmp_path / "small")[name], atol=1e-5, rtol=1e-4), name


def test_seeds_change_the_training(tmp_path: Path) -> None:
    train(open_trial(tmp_path / "0", config(tuning="features"), seed=0))
    train(open_trial(tmp_path / "1", config(tuning="features"), seed=1))
    assert any(not torch.equal(a, learned(tmp_path / "1")[name]) for name, a in learned(tmp_path / "0").items())
