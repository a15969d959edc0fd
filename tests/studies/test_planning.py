"""What a study is before it is opened: here, how much it searches where its user does not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captune.config import StudyConfig, TaskConfig
from captune.data.catalog import TINY, TINY_WIDTH
from captune.model.backbone import load_backbone
from captune.studies.planning import plan_study, plan_to_continue
from captune.tuning.study import OpenStudy

DIGITS = TaskConfig(dataset="digits", paradigm="ul")


def budget(directory: Path, task: TaskConfig = DIGITS, **said: Any) -> tuple[int, int]:
    study = plan_study(StudyConfig(task=task, **said), directory / "study").study
    return study.trials, study.confirm_seeds


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({}, (96, 10)),
        ({"confirm_seeds": 4}, (96, 4)),
        ({"trials": 200}, (200, 10)),
        ({"trials": 12}, (12, 3)),
        ({"trials": 12, "confirm_seeds": 5}, (12, 5)),
        ({"method": "auto"}, (12, 3)),
        ({"method": "transclip"}, (12, 3)),
        ({"fixed": {"tuning": "prompts"}}, (12, 3)),
    ],
)
def test_packs_pay_for_more_trials_and_seeds_where_nobody_says_how_many(
    tmp_path: Path, said: dict[str, Any], found: tuple[int, int]
) -> None:
    assert budget(tmp_path, **said) == found


def test_trials_that_are_not_packed_get_no_more(tmp_path: Path) -> None:
    assert budget(tmp_path, DIGITS.model_copy(update={"kernels": "plain"})) == (12, 3)


def test_wide_features_get_less_and_the_embedded_model_is_narrow(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for width, found in ((64, (96, 10)), (512, (48, 6))):
        file = tmp_path / f"{width}.npz"
        classes = np.arange(3).repeat(10)
        np.savez(
            file, labels=classes, split=np.array(["train", "test"] * 15), class_names=np.array(["a", "b", "c"]),
            image_features=generator.normal(size=(30, width)).astype(np.float32),
            text_features=generator.normal(size=(3, width)).astype(np.float32),
        )  # fmt: skip
        assert budget(tmp_path, TaskConfig.parse({"dataset": f"features:{file}", "paradigm": "ul"})) == found
    assert load_backbone(TINY).embed_dim == TINY_WIDTH


def test_a_study_that_goes_on_keeps_the_budget_it_began_with(tmp_path: Path) -> None:
    plan = plan_study(StudyConfig(task=DIGITS, trials=12), tmp_path / "study")
    OpenStudy(plan.directory, plan.study, plan.info, plan.space, durable=False).close()
    again = plan_to_continue(tmp_path / "study").study
    assert (again.trials, again.confirm_seeds) == (12, 3)
