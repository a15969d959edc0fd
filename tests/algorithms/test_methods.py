"""What every row of ALGORITHMS promises: it runs in every paradigm, resumes, sees no sealed label."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captune.adapted import open_adapted
from captune.algorithms import ALGORITHMS, default_config
from captune.config import PARADIGMS, TaskConfig
from captune.data import paradigms
from captune.data.paradigms import build_task
from captune.data.roles import has_labels
from captune.errors import ConfigError, ModelError, UsageError
from captune.records.layout import CHECKPOINT
from captune.training import context as context_module
from captune.training.checkpoint import load_checkpoint
from captune.training.loop import Loop
from captune.training.trial import TrainingTrial
from tests.slow import slow_but

SEALED = [name for name, method in ALGORITHMS.items() if not method.unsealed]
SMALL = {"epochs": 2, "steps_per_epoch": 2, "batch_size": 8, "learning_rate": 0.02}


def cell(method: str, paradigm: str = "ul", **values: Any) -> TaskConfig:
    unsealed = {"unseal_pool": True} if ALGORITHMS[method].unsealed else {}
    return TaskConfig.parse({"dataset": "digits", "paradigm": paradigm, **unsealed, **values})


def open_trial(directory: Path, method: str, paradigm: str = "ul", **values: Any) -> TrainingTrial:
    task = cell(method, paradigm)
    small = (
        {**SMALL, "num_iterations": 2} if "num_iterations" in ALGORITHMS[method].config_class.model_fields else SMALL
    )
    config = default_config(method, task).with_values({"tuning": "features", **small, **values})
    return TrainingTrial.open(task, config, algorithm=ALGORITHMS[method], seed=0, directory=directory)


def train(run: TrainingTrial) -> dict[str, Any]:
    while not run.trained:
        run.run_epoch()
    return run.finish()


@pytest.mark.parametrize(
    ("method", "prompts"),
    slow_but(
        lambda method, prompts: (method, prompts) in (("cpl", "multimodal"), ("fpl", "image")),
        itertools.product(("fpl", "cpl"), ("text", "image", "multimodal")),
    ),
)
def test_prompts_of_every_kind_are_learned(tmp_path: Path, method: str, prompts: str) -> None:
    run = open_trial(tmp_path, method, tuning="prompts", prompts=prompts)
    before = run._algorithm.classifier.learned_state()  # type: ignore[union-attr]
    train(run)
    after = load_checkpoint(tmp_path / CHECKPOINT)[0]
    assert any(not torch.equal(after[f"learned.{name}"], value) for name, value in before.items())


@pytest.fixture(scope="module", params=["fpl", "grip", "cpl"])
def uninterrupted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, Any], Path, dict[str, Any]]:
    """A method, its settings, and a whole trial of it: directory and result."""
    settings = {"epochs": 4} if request.param == "fpl" else {}
    directory = tmp_path_factory.mktemp("whole")
    return request.param, settings, directory, train(open_trial(directory, request.param, **settings))


@pytest.mark.parametrize("interrupted_after", [1, 2, 3])
def test_interrupted_and_resumed_is_uninterrupted(
    uninterrupted: tuple[str, dict[str, Any], Path, dict[str, Any]], tmp_path: Path, interrupted_after: int
) -> None:
    method, settings, directory, whole = uninterrupted
    first = open_trial(tmp_path / "halves", method, **settings)
    for _ in range(interrupted_after):
        first.run_epoch()
    first.save()
    del first
    assert train(open_trial(tmp_path / "halves", method, **settings)) == whole
    one, two = (load_checkpoint(place / CHECKPOINT)[0] for place in (directory, tmp_path / "halves"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("method", "paradigm"),
    # By default cap everywhere, and the others where some images are labelled and most are not.
    slow_but(lambda method, paradigm: method == "cap" or paradigm == "ssl", itertools.product(SEALED, PARADIGMS)),
)
def test_a_method_runs_in_every_paradigm_without_a_sealed_label(
    tmp_path: Path, method: str, paradigm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if method == "coop" and not has_labels(cell(method, paradigm)):
        with pytest.raises(UsageError, match="coop must be given labelled images"):
            open_trial(tmp_path, method, paradigm)
        return
    honest = train(open_trial(tmp_path / "honest", method, paradigm))
    real_init = paradigms.SealedLabels.__init__
    monkeypatch.setattr(
        paradigms.SealedLabels,
        "__init__",
        lambda self, **labels: real_init(self, **{name: np.full_like(value, 3) for name, value in labels.items()}),
    )
    context_module.open_context.cache_clear()
    spoiled = train(open_trial(tmp_path / "spoiled", method, paradigm))
    context_module.open_context.cache_clear()
    assert spoiled == honest
    assert 0 <= honest["score"] <= 1


def test_supervised_refuses_a_sealed_pool(tmp_path: Path) -> None:
    task = TaskConfig.parse({"dataset": "digits", "paradigm": "ul"})
    with pytest.raises(UsageError, match="supervised must be given the pool's true labels"):
        TrainingTrial.open(
            task, default_config("supervised", task), algorithm=ALGORITHMS["supervised"], seed=0, directory=tmp_path
        )


def test_unsealing_labels_the_pool_and_nothing_else() -> None:
    sealed, _ = build_task(cell("cap"), role="score")
    unsealed, _ = build_task(cell("supervised"), role="score")
    np.testing.assert_array_equal(unsealed.labelled.indices_N, sealed.pool)
    np.testing.assert_array_equal(unsealed.holdout, sealed.holdout)
    with pytest.raises(ConfigError, match="must be used where the pool is not the test set"):
        build_task(cell("supervised", "tft"), role="score")


def test_grip_grows_its_boards_and_starts_afresh(tmp_path: Path) -> None:
    run = open_trial(tmp_path, "grip")
    assert isinstance(run.training, Loop)
    sizes, rates = [], []
    for _ in range(4):
        rates += run.training.rates()
        sizes.append(run.run_epoch()["num_confident"])
    pool = len(run.context.task.pool)
    assert sizes[:2] == [pool // 20 * 10] * 2
    # The walk can leave the last boards short: an image that found its board full is offered only once.
    assert sizes[2] == sizes[3] and 1.9 * sizes[0] < sizes[2] <= pool // 10 * 10
    assert rates[:4] == rates[4:] and rates[0] == 0


@pytest.mark.parametrize("method", ["transclip", "anchored", "zlap", "balanced", "zero_shot", "fpl"])
def test_a_checkpoint_predicts_what_the_trial_predicted(tmp_path: Path, method: str) -> None:
    run = open_trial(tmp_path, method)
    train(run)
    assert run.context.image_views is not None
    images = run.context.task.test[:16]
    model = open_adapted(tmp_path, device="cpu")
    expected = run._algorithm.predict(images)
    torch.testing.assert_close(model.probabilities(run.context.image_views.weak(images)), expected, atol=1e-4, rtol=0)


def test_templates_need_a_text_tower(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    np.savez(
        tmp_path / "f.npz",
        image_features=generator.normal(size=(40, 8)).astype(np.float32),
        labels=np.arange(40) % 2,
        split=np.array(["train"] * 20 + ["val"] * 4 + ["test"] * 16),
        text_features=generator.normal(size=(2, 8)).astype(np.float32),
        class_names=np.array(["cat", "dog"]),
        logit_scale=100.0,
    )
    task = TaskConfig.parse({"dataset": f"features:{tmp_path / 'f.npz'}", "paradigm": "ul"})
    config = default_config("zero_shot", task).with_values({"templates": ["a {}."]})
    with pytest.raises(ModelError, match="templates must have a text tower"):
        TrainingTrial.open(task, config, algorithm=ALGORITHMS["zero_shot"], seed=0, directory=tmp_path / "run")
