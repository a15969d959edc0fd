"""Trials trained together are the trials trained one by one: by autograd to 1e-5, and alone to the last bit."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captune.algorithms import ALGORITHMS, default_config
from captune.algorithms.packed_cap import PackedCap
from captune.config import TaskConfig
from captune.errors import TrainingFailed
from captune.records import Role
from captune.records.layout import CHECKPOINT
from captune.space import load_space, space_file
from captune.training import step as step_module
from captune.training.checkpoint import load_checkpoint
from captune.training.context import open_context
from captune.training.loop import Loop
from captune.training.step import Batch
from captune.training.trial import TrainingTrial, run_epochs_together
from captune.tuning.samplers import Sampler
from tests.slow import in_one_test

SHORT: dict[str, Any] = {"tuning": "features", "epochs": 4, "steps_per_epoch": 4}
CAPS: tuple[dict[str, Any], ...] = (
    {"learning_rate": 0.02},
    {"learning_rate": 0.1, "alignment_weight": 0.4, "margin_scale": 4.0, "reweighting_strength": 0.7},
    {"adapter_residual": 0.1, "num_main_samples": 5, "confidence_threshold": 0.6, "weight_decay": 0.001},
    {"adapter_residual": 0.05, "epochs": 5, "count_momentum": 0.5, "margin_scale": 0.0, "feature_dropout": 0.2},
)
LEARNERS: tuple[dict[str, Any], ...] = (
    {"learning_rate": 0.1},
    {"learning_rate": 0.02, "num_pseudolabels": 4, "weight_decay": 0.01},
    {"training_view": "strong", "epochs": 5},
)


def many_classes(directory: Path) -> str:
    """Features of 59 classes and 512 numbers as a CLIP's are: a cloud around every class text."""
    generator = np.random.default_rng(0)
    text = generator.normal(size=(59, 512))
    labels = np.arange(1180) % 59
    features = text[labels] + 2.5 * generator.normal(size=(1180, 512))
    path = directory / "features.npz"
    np.savez(
        path, image_features=features.astype(np.float32), text_features=text.astype(np.float32),
        labels=labels, split=np.array(["train"] * 885 + ["test"] * 295),
        class_names=np.array([f"class {label}" for label in range(59)]), logit_scale=np.float32(100.0),
    )  # fmt: skip
    return f"features:{path}"


def open_trials(
    directory: Path,
    method: str,
    settings: Sequence[dict[str, Any]],
    dataset: str = "digits",
    *,
    device: str = "cpu",
    **task: Any,
) -> list[TrainingTrial]:
    cell = TaskConfig.parse({"dataset": dataset, "paradigm": "ul", **task})
    algorithm = ALGORITHMS[method]
    return [
        TrainingTrial.open(
            cell,
            algorithm.config_class.parse(SHORT | values),
            algorithm=algorithm,
            seed=0,
            directory=directory / str(number),
            device=device,
        )
        for number, values in enumerate(settings)
    ]


def finish_together(trials: Sequence[TrainingTrial]) -> list[dict[str, Any]]:
    while alive := [trial for trial in trials if not trial.trained]:
        for record in run_epochs_together(alive):
            assert not isinstance(record, Exception), record
    return [trial.finish() for trial in trials]


def one_by_one(trials: Sequence[TrainingTrial]) -> list[dict[str, Any]]:
    return [outcome for trial in trials for outcome in finish_together([trial])]


def learned(trial: TrainingTrial) -> dict[str, torch.Tensor]:
    return load_checkpoint(trial.directory / CHECKPOINT)[0]


def records(trial: TrainingTrial) -> list[dict[str, Any]]:
    lines = (trial.directory / "epochs.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


@pytest.fixture
def threads() -> Iterator[None]:
    """The test may change how many threads torch uses."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autograd is not to be used: else a pack that is silently none would pass every test here."""

    def called(*arguments: object) -> None:
        raise AssertionError("a step was taken by autograd")

    monkeypatch.setattr(step_module.EagerStep, "__call__", called)


@pytest.mark.parametrize(
    ("method", "settings", "paradigm"),
    [
        ("cap", CAPS, "ul"), pytest.param("cap", CAPS, "ssl", marks=pytest.mark.slow), ("cap", CAPS, "trzsl"),
        ("cap_mixture", CAPS[:2], "ul"), pytest.param("fpl", LEARNERS, "ul", marks=pytest.mark.slow),
        ("fpl", LEARNERS, "ssl"), ("grip", LEARNERS[:2], "ul"),
    ],
)  # fmt: skip
def test_a_pack_is_what_autograd_trains_one_by_one(
    tmp_path: Path, method: str, settings: Sequence[dict[str, Any]], paradigm: str
) -> None:
    if method == "grip":
        settings = [values | {"num_iterations": 2, "epochs": 2} for values in settings]
    plain = open_trials(tmp_path / "plain", method, settings, paradigm=paradigm, kernels="plain")
    packed = open_trials(tmp_path / "packed", method, settings, paradigm=paradigm)
    assert_alike(plain, packed)


def test_a_pack_of_many_classes_is_what_autograd_trains_one_by_one(tmp_path: Path) -> None:
    dataset = many_classes(tmp_path)
    plain = open_trials(tmp_path / "plain", "cap", CAPS[:3], dataset, kernels="plain")
    assert_alike(plain, open_trials(tmp_path / "packed", "cap", CAPS[:3], dataset))


@pytest.mark.gpu
@pytest.mark.parametrize(("method", "settings"), [("cap", CAPS), ("cap_mixture", CAPS[:2]), ("fpl", LEARNERS)])
@pytest.mark.parametrize("wide", [False, True])
def test_a_pack_on_a_gpu_is_what_a_cpu_trains_by_autograd(
    tmp_path: Path, method: str, settings: Sequence[dict[str, Any]], wide: bool
) -> None:
    dataset = many_classes(tmp_path) if wide else "digits"
    plain = open_trials(tmp_path / "plain", method, settings, dataset, kernels="plain")
    packed = open_trials(tmp_path / "packed", method, settings, dataset, device="cuda")
    assert_alike(plain, packed)


def assert_alike(plain: Sequence[TrainingTrial], packed: Sequence[TrainingTrial]) -> None:
    for first, second in zip(one_by_one(plain), finish_together(packed), strict=True):
        assert first["scores"] == pytest.approx(second["scores"], abs=1e-5)
        assert first["num_parameters"] == second["num_parameters"]
    for first, second in zip(plain, packed, strict=True):
        for name, tensor in learned(first).items():
            torch.testing.assert_close(learned(second)[name], tensor, atol=1e-5, rtol=0.0)
        states = first.training.state(), second.training.state()
        assert states[0].keys() == states[1].keys()
        for name in states[0]:
            exactly = "board" in name and "scores" not in name
            one, other = states[0][name].cpu(), states[1][name].cpu()
            torch.testing.assert_close(other, one, atol=0.0 if exactly else 1e-5, rtol=0.0)
        for row, other in zip(records(first), records(second), strict=True):
            scores, others = row.pop("scores"), other.pop("scores")
            assert row == pytest.approx(other, abs=1e-5) and scores == pytest.approx(others, abs=1e-5)


@pytest.mark.usefixtures("no_graph")
@pytest.mark.parametrize(
    ("method", "settings", "num_threads"),
    [
        ("cap", CAPS, 1), pytest.param("cap", CAPS, 2, marks=pytest.mark.slow),
        pytest.param("fpl", LEARNERS, 1, marks=pytest.mark.slow), ("fpl", LEARNERS, 2),
    ],
)  # fmt: skip
def test_what_stands_beside_a_trial_does_not_touch_a_bit_of_it(
    tmp_path: Path, method: str, settings: Sequence[dict[str, Any]], num_threads: int, threads: None
) -> None:
    torch.set_num_threads(num_threads)
    assert_equal_in_company_and_alone(tmp_path, method, settings)


@pytest.mark.gpu
@pytest.mark.parametrize(("method", "settings"), [("cap", CAPS), ("fpl", LEARNERS)])
@pytest.mark.parametrize("wide", [False, True])
def test_on_a_gpu_either(tmp_path: Path, method: str, settings: Sequence[dict[str, Any]], wide: bool) -> None:
    dataset = many_classes(tmp_path) if wide else "digits"
    assert_equal_in_company_and_alone(tmp_path, method, settings, dataset, device="cuda")


def assert_equal_in_company_and_alone(
    directory: Path, method: str, settings: Sequence[dict[str, Any]], dataset: str = "digits", *, device: str = "cpu"
) -> None:
    together = open_trials(directory / "together", method, settings, dataset, device=device)
    alone = open_trials(directory / "alone", method, settings, dataset, device=device)
    assert finish_together(together) == one_by_one(alone)
    for first, second in zip(together, alone, strict=True):
        assert records(first) == records(second)
        for name, tensor in learned(first).items():
            assert torch.equal(learned(second)[name], tensor), name


@pytest.mark.usefixtures("no_graph")
def test_a_pack_goes_on_in_another_company_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    whole = open_trials(tmp_path / "whole", "cap", CAPS)
    outcomes = finish_together(whole)
    begun = open_trials(tmp_path / "cut", "cap", CAPS)
    run_epochs_together(begun)
    run_epochs_together(begun[1:])
    for trial in begun:
        trial.save()
    again = open_trials(tmp_path / "cut", "cap", CAPS)
    assert [trial.epoch for trial in again] == [1, 2, 2, 2]
    first, rest = [again[2], again[0]], [again[3], again[1]]
    found = dict(zip([2, 0, 3, 1], finish_together(first) + finish_together(rest), strict=True))
    assert [found[number] for number in range(4)] == outcomes
    for trial, other in zip(whole, again, strict=True):
        assert records(trial) == records(other)


@pytest.mark.usefixtures("no_graph")
def test_one_trial_that_fails_ends_alone(tmp_path: Path) -> None:
    settings = [*CAPS[:2], {"learning_rate": 1e30, "adapter_residual": 10.0, "warmup_epochs": 0}]
    wild = open_trials(tmp_path / "wild", "cap", settings)
    found = run_epochs_together(wild)
    assert isinstance(found[2], TrainingFailed) and "must stay finite" in str(found[2])
    alone = open_trials(tmp_path / "alone", "cap", CAPS[:2])
    finish_together(wild[:2])
    finish_together(alone)
    for first, second in zip(wild, alone, strict=False):
        for name, tensor in learned(first).items():
            assert torch.equal(learned(second)[name], tensor), name


def test_where_memory_runs_out_a_trial_goes_on_in_micro_batches_and_a_pack_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, steps = PackedCap.step, itertools.count()

    def cramped(packed: PackedCap, batch: Batch) -> tuple[torch.Tensor, Batch]:
        if packed.num_packed > 1 or next(steps) == 3:
            raise RuntimeError("can't allocate memory: you tried to allocate 4 bytes")
        return step(packed, batch)

    monkeypatch.setattr(PackedCap, "step", cramped)
    (alone,) = open_trials(tmp_path / "alone", "cap", CAPS[:1])
    assert [alone.run_epoch().get("micro_batch") for _ in range(2)] == [8, 8]
    with pytest.raises(RuntimeError, match="allocate"):
        run_epochs_together(open_trials(tmp_path / "pack", "cap", CAPS[:2]))


@in_one_test(
    "odd",
    [
        {"tuning": "prompts"}, {"batching": "published"}, {"micro_batch": 8}, {"shared_adapter": True},
        {"self_training": False}, {"main_samples": False},
    ],
)  # fmt: skip
def test_odd_steps_are_left_to_autograd(tmp_path: Path, odd: dict[str, Any]) -> None:
    (trial,) = open_trials(tmp_path, "cap", [odd | {"epochs": 1, "steps_per_epoch": 1}])
    (loop,) = trial.training.due
    loop.start_epoch()
    assert loop.pack_key() is None


def test_a_pack_needs_a_fraction_of_the_calls(tmp_path: Path) -> None:
    """A step of a trial by autograd is some 900 operator calls; for eight together it must be a tenth of that each."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counted(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.calls += 1
            return func(*args, **(kwargs or {}))

    def calls_of_a_step(trials: Sequence[TrainingTrial]) -> float:
        counts = []
        for steps in (2, 12):
            for trial in trials:
                (loop,) = trial.training.due
                loop.config = loop.config.with_values({"steps_per_epoch": steps})
                loop.algorithm.config = loop.config  # type: ignore[attr-defined]
            with Counted() as counted:
                run_epochs_together(trials)
            counts.append(counted.calls)
        return (counts[1] - counts[0]) / 10 / len(trials)

    settings = [{"alignment_weight": 0.5, "learning_rate": 0.01 * (number + 1)} for number in range(8)]
    packed = calls_of_a_step(open_trials(tmp_path / "packed", "cap", settings))
    (plain,) = open_trials(tmp_path / "plain", "cap", settings[:1], kernels="plain")
    by_autograd = calls_of_a_step([plain])
    assert by_autograd > 300 and packed < by_autograd / 10, (by_autograd, packed)


@pytest.mark.slow
def test_boards_stand_in_another_order_than_autograds_only_where_confidences_are_equal_to_rounding(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """48 configurations that a search on digits might try: a board is sorted by confidence, so ties may turn over."""
    cell = TaskConfig(dataset="digits", paradigm="ul")
    base = default_config("cap", cell)
    space = load_space(space_file(None, "cap"), base, class_size=70)
    sampler = Sampler("random", space, seed=0)
    by_hand = open_context(cell, Role.SCORE, "cpu")
    plain = open_context(cell.model_copy(update={"kernels": "plain"}), Role.SCORE, "cpu")
    turned = 0
    for number in range(48):
        config = base.with_values(sampler.suggest(number))
        loops = [
            Loop(ALGORITHMS["cap"].build(context, config, 0), config, config.epochs, recorded=context.fast_steps)
            for context in (by_hand, plain)
        ]
        assert [loop.algorithm.context.packs for loop in loops] == [True, False]  # type: ignore[attr-defined]
        for epoch in range(6):
            for loop in loops:
                loop.run_epoch()
            hand, graph = (loop.algorithm.boards for loop in loops)  # type: ignore[attr-defined]
            differing = [
                (label, place, one, other)
                for label in hand
                for place, (one, other) in enumerate(zip(hand[label], graph[label], strict=True))
                if one[0] != other[0]
            ]
            # The same confidences stand at the same places, whichever image they belong to.
            for label in hand:
                np.testing.assert_allclose(
                    [score for _, score in hand[label]], [score for _, score in graph[label]], rtol=0, atol=1e-6
                )
            if differing:
                turned += 1
                with capsys.disabled():
                    print(f"\nconfiguration {number}, epoch {epoch + 1}: {differing}")
                break  # other batches follow from another order
    assert turned <= 10, "ties are rare"
