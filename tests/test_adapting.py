"""Seeds of one configuration trained side by side: each is what it is alone, and one that fails leaves the others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import captune
from captune import adapting
from captune.adapting import adapt_once, adapt_seeds
from captune.algorithms import default_config
from captune.config import TaskConfig, TrialConfig
from captune.errors import CaptuneError, TrainingFailed
from captune.records.layout import CHECKPOINT, CONFIG, METRICS
from captune.training import trial as trial_module
from captune.training.trial import TrainingTrial

SMALL = {"tuning": "features", "epochs": 2, "steps_per_epoch": 3, "batch_size": 8}
DIGITS = TaskConfig.parse({"dataset": "digits", "paradigm": "ul"})


def config(method: str, **values: Any) -> TrialConfig:
    return default_config(method, DIGITS).with_values({**SMALL, **values})


def places(directory: Path, *seeds: int) -> dict[int, Path]:
    found = {seed: directory / f"seed{seed}" for seed in seeds}
    for place in found.values():
        adapting.check_out(place)
    return found


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        ({"device": "gpu"}, "--device must be"),
        ({"dataset": "folder:nowhere"}, "nowhere"),
        ({"out": "file/out"}, "--out"),
    ],
)
def test_a_refused_adaptation_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    with pytest.raises(CaptuneError, match=message):
        captune.adapt(**{"dataset": "digits", "method": "zero_shot", "out": "made/for/it", "device": "cpu", **refused})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("method", ["cap", "blend"])
def test_seeds_side_by_side_are_each_what_it_is_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    together: list[int] = []
    zero_shots: list[Path] = []
    run_together, zero_shot = trial_module.run_epochs_together, adapting._zero_shot

    def noted(trials: Sequence[TrainingTrial]) -> list[dict[str, Any] | Exception]:
        together.append(len(trials))
        return run_together(trials)

    def measured(task: TaskConfig, role: Any, work: Path, device: str) -> dict[str, Any]:
        zero_shots.append(work)
        return zero_shot(task, role, work, device)

    monkeypatch.setattr(trial_module, "run_epochs_together", noted)
    monkeypatch.setattr(adapting, "_zero_shot", measured)
    reports = adapt_seeds(DIGITS, method, config(method), places(tmp_path / "pack", 3, 4, 5))
    # A blend's members are a pack of their own.
    assert together == ([3, 3] if method == "cap" else []) and len(zero_shots) == 1
    assert [report["seed"] for report in reports] == [3, 4, 5]
    for seed, place in places(tmp_path / "alone", 3, 4, 5).items():
        alone = adapt_once(DIGITS, method, config(method), place, seed=seed)
        written = tmp_path / "pack" / f"seed{seed}"
        assert alone == json.loads((written / METRICS).read_text()) == next(r for r in reports if r["seed"] == seed)
        assert (place / "predictions.csv").read_text() == (written / "predictions.csv").read_text()
        first, second = (safetensors.torch.load_file(each / CHECKPOINT) for each in (place, written))
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
        assert not (written / ".trial").exists()


def test_a_seed_that_fails_is_named_and_the_others_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = TrainingTrial._record_epoch

    def failing(trial: TrainingTrial, *arguments: Any) -> dict[str, Any]:
        if trial.seed in (1, 3):
            raise TrainingFailed("the loss must stay finite", got="nan", where="epoch 1 of 2")
        return record(trial, *arguments)

    monkeypatch.setattr(TrainingTrial, "_record_epoch", failing)
    with pytest.raises(TrainingFailed, match=r"in seed 1, epoch 1 of 2; seed 3 failed too: the loss must stay finite"):
        adapt_seeds(DIGITS, "cap", config("cap"), places(tmp_path, 0, 1, 2, 3))
    assert [(tmp_path / f"seed{seed}" / METRICS).exists() for seed in (0, 1, 2, 3)] == [True, False, True, False]


def test_an_adaptation_that_is_killed_while_the_frozen_model_is_measured_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = adapt_once(DIGITS, "cap", config("cap"), places(tmp_path / "whole", 0)[0])
    (out,) = places(tmp_path / "killed", 0).values()

    def killed(*_: object) -> dict[str, Any]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(adapting, "_zero_shot", killed)
        adapt_once(DIGITS, "cap", config("cap"), out)
    assert adapt_once(DIGITS, "cap", config("cap"), out) == whole
    assert not (out / ".trial").exists()


@pytest.mark.parametrize("moved", [1, 2])
def test_an_adaptation_that_is_killed_while_its_files_are_moved_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    whole = adapt_once(DIGITS, "cap", config("cap"), places(tmp_path / "whole", 0)[0])
    (out,) = places(tmp_path / "killed", 0).values()
    replace, done = Path.replace, []

    def killed(path: Path, target: Path) -> Path:
        if target.parent == out and target.name in (CHECKPOINT, CONFIG):
            done.append(target)
            if len(done) == moved:
                raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", killed)
        adapt_once(DIGITS, "cap", config("cap"), out)
    assert adapt_once(DIGITS, "cap", config("cap"), out) == whole
    assert (out / CHECKPOINT).exists() and (out / CONFIG).exists()


def test_where_a_pack_does_not_fit_its_seeds_are_trained_one_behind_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    want = adapt_seeds(DIGITS, "cap", config("cap"), places(tmp_path / "pack", 0, 1))
    run_together, sizes = trial_module.run_epochs_together, []

    def cramped(trials: Sequence[TrainingTrial]) -> list[dict[str, Any] | Exception]:
        sizes.append(len(trials))
        if len(sizes) == 2:
            raise RuntimeError("can't allocate memory: you tried to allocate 4 bytes")
        return run_together(trials)

    monkeypatch.setattr(trial_module, "run_epochs_together", cramped)
    told: list[int] = []
    seeds = places(tmp_path / "cramped", 0, 1)
    assert adapt_seeds(DIGITS, "cap", config("cap"), seeds, opened=lambda trial: told.append(trial.seed)) == want
    assert sizes == [2, 2] and told == [0, 1]


@pytest.mark.parametrize("at", ["open", "_record_epoch"])
def test_memory_that_runs_out_beside_the_steps_of_a_pack_leaves_its_seeds_to_be_trained_one_behind_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    want = adapt_seeds(DIGITS, "cap", config("cap"), places(tmp_path / "pack", 0, 1))
    work, calls = getattr(TrainingTrial, at), []

    def cramped(*arguments: Any, **options: Any) -> Any:
        calls.append(at)
        if len(calls) == 2:
            raise RuntimeError("can't allocate memory: you tried to allocate 4 bytes")
        return work(*arguments, **options)

    monkeypatch.setattr(TrainingTrial, at, cramped)
    assert adapt_seeds(DIGITS, "cap", config("cap"), places(tmp_path / "cramped", 0, 1)) == want
    assert len(calls) > 3


def test_no_more_seeds_are_open_at_once_than_memory_is_taken_to_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[list[int]] = [[]]
    finish = adapting._finish

    def finished(trial: TrainingTrial, *arguments: Any) -> dict[str, Any]:
        if opened[-1]:
            opened.append([])
        return finish(trial, *arguments)

    monkeypatch.setattr(adapting, "_finish", finished)
    monkeypatch.setattr("captune.training.pack_sizes._BYTES_OF_FEATURES", 2.5 * 4 * 1797 * 64)
    adapt_seeds(
        DIGITS,
        "cap",
        config("cap"),
        places(tmp_path, 0, 1, 2, 3, 4),
        opened=lambda trial: opened[-1].append(trial.seed),
    )
    assert [group for group in opened if group] == [[0, 1], [2, 3], [4]]
