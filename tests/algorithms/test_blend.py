"""A blend: unlike methods trained side by side, the mean of what they say, and what of it can be exported."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from captune.adapted import export_adapted, open_adapted
from captune.algorithms import ALGORITHMS, default_config
from captune.algorithms.configs import BlendConfig
from captune.config import TaskConfig
from captune.equations.averaging import blend
from captune.errors import ConfigError, UsageError
from captune.records import Role
from captune.records.layout import CHECKPOINT, EPOCHS, PREDICTIONS
from captune.training import loop as loop_module
from captune.training.checkpoint import load_checkpoint
from captune.training.context import open_context
from captune.training.ensemble import write_ensemble
from captune.training.loop import Loop
from captune.training.packs import Pack
from captune.training.trial import TrainingTrial

SMALL = {"tuning": "features", "epochs": 2, "steps_per_epoch": 3, "batch_size": 8}
MEMBERS = [
    "balanced",
    {"method": "cap", "seeds": [3, 4], "settings": {"margin_scale": 4.0}},
    {"method": "fpl", "weight": 2.0},
]


def cell(paradigm: str = "ul") -> TaskConfig:
    return TaskConfig.parse({"dataset": "digits", "paradigm": paradigm})


def opened(directory: Path, method: str, seed: int = 0, **values: Any) -> TrainingTrial:
    config = default_config(method, cell()).with_values({**SMALL, **values})
    return TrainingTrial.open(
        cell(), config, algorithm=ALGORITHMS[method], seed=seed, directory=directory, role=Role.REPORT
    )


def trained(directory: Path, method: str, seed: int = 0, **values: Any) -> TrainingTrial:
    run = opened(directory, method, seed, **values)
    while not run.trained:
        run.run_epoch()
    run.finish()
    return run


def test_it_is_the_weighted_mean_of_its_members_each_trained_alone(tmp_path: Path) -> None:
    run = trained(tmp_path / "blend", "blend", members=MEMBERS)
    assert run.num_epochs == 2
    images = run.context.task.test
    balanced = trained(tmp_path / "balanced", "balanced")._algorithm.predict(images)
    caps = [trained(tmp_path / f"cap{s}", "cap", s, margin_scale=4.0)._algorithm.predict(images) for s in (3, 4)]
    fpl = trained(tmp_path / "fpl", "fpl")._algorithm.predict(images)
    expected = (balanced + (caps[0] + caps[1]) / 2 + 2 * fpl) / 4
    torch.testing.assert_close(run._algorithm.predict(images), expected, atol=1e-3, rtol=0)  # members are rounded


def test_by_hand() -> None:
    """Two members, one with two seeds. Probabilities of the first class: (0.8 + (0.2 + 0.4)/2)/2 = 0.55. Logits: the
    mean of log p(1)/p(2) = ½·[log 4 + ½·(log ¼ + log ⅔)] = ½·log(4/√6), so p = 1/(1 + (√6/4)^½).
    """
    tables = [[torch.tensor([[p, 1 - p]]) for p in group] for group in ([0.8], [0.2, 0.4])]
    assert float(blend(tables, [1.0, 1.0], "probabilities")[0, 0]) == pytest.approx(0.55, abs=1e-3)
    expected = 1 / (1 + (6**0.5 / 4) ** 0.5)
    assert float(blend(tables, [1.0, 1.0], "logits")[0, 0]) == pytest.approx(expected, abs=1e-6)
    assert float(blend(tables, [3.0, 1.0], "probabilities")[0, 0]) == pytest.approx(0.675, abs=1e-3)


def test_it_is_a_studys_ensemble_to_the_last_image(tmp_path: Path) -> None:
    """What a study writes as its ensemble, from the files of its runs, and the blend that its advice names."""
    groups = []
    for name, settings in (("a", {"margin_scale": 4.0}), ("b", {"learning_rate": 0.05})):
        runs = [tmp_path / f"{name}{seed}" for seed in (5, 6, 7)]
        for seed, directory in zip((5, 6, 7), runs, strict=True):
            trained(directory, "cap", seed, **settings)
        groups.append(runs)
    assert write_ensemble(cell(), Role.REPORT, groups, tmp_path / "ensemble", criterion="agree-smooth") is not None
    members = [
        {"method": "cap", "seeds": [5, 6, 7], "settings": {"margin_scale": 4.0}},
        {"method": "cap", "seeds": [5, 6, 7], "settings": {"learning_rate": 0.05}},
    ]
    trained(tmp_path / "blend", "blend", members=members)
    one, two = (safetensors.torch.load_file(tmp_path / name / PREDICTIONS) for name in ("ensemble", "blend"))
    assert torch.equal(one["test_probs"], two["test_probs"])


def test_members_train_in_packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packs: list[list[str]] = []
    pack_of = loop_module._pack_of

    def noted(loops: Sequence[Loop], key: Hashable) -> Pack:
        packs.append([type(loop.algorithm).__name__ for loop in loops])
        return pack_of(loops, key)

    monkeypatch.setattr(loop_module, "_pack_of", noted)
    members = ["balanced", {"method": "cap", "seeds": [3, 4, 5]}, {"method": "cap", "settings": {"epochs": 3}}, "fpl"]
    trained(tmp_path, "blend", members=members)
    assert packs == [["Cap"] * 4, ["Fpl"]] * 2 + [["Cap"]]
    rows = [json.loads(line) for line in (tmp_path / EPOCHS).read_text().splitlines()]
    assert [row["images"] for row in rows] == [5 * 3 * 8 * 2, 5 * 3 * 8 * 2, 3 * 8 * 2]


def test_what_began_one_member_behind_another_goes_on_to_the_same_end(tmp_path: Path) -> None:
    """An earlier captune trained a member to its end before it began the next."""
    members = ["balanced", {"method": "cap", "seeds": [3, 4]}]
    whole = trained(tmp_path / "whole", "blend", members=members)
    begun = opened(tmp_path / "begun", "blend", members=members)
    first = begun.training.due[0]
    for _ in range(2):
        first.run_epoch()
    begun.save()
    second = opened(tmp_path / "begun", "blend", members=members)
    assert second.epoch == 0 and len(second.training.due) == 1
    while not second.trained:
        second.run_epoch()
    images = whole.context.task.test
    assert torch.equal(second._algorithm.predict(images), whole._algorithm.predict(images))


@pytest.mark.parametrize("interrupted_after", [1, 2, 3])
def test_interrupted_and_resumed_is_uninterrupted(tmp_path: Path, interrupted_after: int) -> None:
    members = ["transclip", "fpl", {"method": "grip", "settings": {"num_iterations": 2}}]
    whole = trained(tmp_path / "whole", "blend", members=members)
    first = opened(tmp_path / "halves", "blend", members=members)
    for _ in range(interrupted_after):
        first.run_epoch()
    first.save()
    del first
    second = opened(tmp_path / "halves", "blend", members=members)
    assert second.epoch == interrupted_after
    while not second.trained:
        second.run_epoch()
    second.finish()
    assert whole.num_epochs == 4  # of grip; fpl has ended after two
    one, two = (load_checkpoint(tmp_path / name / CHECKPOINT)[0] for name in ("whole", "halves"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("last", "average"),
    [
        ({}, "probabilities"), ({}, "logits"),
        ({"tuning": "prompts"}, "probabilities"), ({"tuning": "prompts", "prompts": "text"}, "logits"),
        pytest.param({"tuning": "prompts"}, "logits", marks=pytest.mark.slow),
        pytest.param({"tuning": "prompts", "prompts": "text"}, "probabilities", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_the_checkpoint_and_its_export_predict_what_the_blend_predicted(
    tmp_path: Path, average: str, last: dict[str, Any]
) -> None:
    members = ["balanced", "anchored", {"method": "cap_mixture", "settings": last}]
    run = trained(tmp_path / "run", "blend", members=members, average=average, inference_adapters=False)
    assert run.context.image_views is not None
    images = run.context.task.test[:16]
    pixels, expected = run.context.image_views.weak(images), run._algorithm.predict(images)
    model = open_adapted(tmp_path / "run", device="cpu")
    # Members' probabilities are rounded to half precision, whose neighbours lie 5e-4 apart.
    torch.testing.assert_close(model.probabilities(pixels), expected, atol=1e-3, rtol=0)
    export_adapted(model, tmp_path / "export")
    exported = open_adapted(tmp_path / "export", device="cpu")
    torch.testing.assert_close(exported.probabilities(pixels), expected, atol=1e-3, rtol=0)
    linear = last.get("prompts", "text" if last.get("tuning") != "prompts" else "") == "text"
    assert (tmp_path / "export" / "backbone").exists() is not linear
    assert exported.is_linear is (linear and average == "logits")


def test_averaged_logits_of_linear_members_fold_exactly_into_one_set_of_class_weights(tmp_path: Path) -> None:
    run = trained(
        tmp_path / "run", "blend", members=["balanced", "anchored", "fpl"], average="logits", inference_adapters=False
    )
    model = open_adapted(tmp_path / "run", device="cpu")
    images = run.context.task.test
    features_ND = run.context.image_features_MD[torch.tensor(images)]
    folded = (model.logit_scale * features_ND @ model.text_KD.T + model.bias_K).softmax(1)
    torch.testing.assert_close(folded, run._algorithm.predict(images), atol=1e-5, rtol=0)
    assert torch.equal(folded.argmax(1), run._algorithm.predict(images).argmax(1))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (["cap", "blend"], "a blend's members must be other methods"),
        (["supervised"], "a blend's members must be other methods"),
        (["capp"], "Did you mean 'cap'"),
    ],
)
def test_members_that_cannot_be_are_refused(tmp_path: Path, members: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        opened(tmp_path, "blend", members=members)


def test_a_members_settings_are_checked_and_its_blends_hold_for_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown option 'margn_scale'"):
        opened(tmp_path, "blend", members=[{"method": "cap", "settings": {"margn_scale": 1.0}}])
    context = open_context(cell(), Role.REPORT, "cpu")
    config = BlendConfig.parse({**SMALL, "learning_rate": 0.3, "members": "fpl, balanced"})
    fpl = ALGORITHMS["blend"].build(context, config, 0).trained[0]  # type: ignore[attr-defined]
    assert fpl.config.learning_rate == 0.3 and fpl.config.num_context == 4
