"""What a study is before it is opened: here, how much it searches where its user does not say."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captune.config import StudyConfig, TaskConfig
from captune.data.catalog import TINY, TINY_WIDTH
from captune.errors import DataError, UsageError
from captune.model.backbone import load_backbone
from captune.space import space_file
from captune.studies.planning import plan_study, plan_to_continue
from captune.studies.running import notes_of
from captune.tuning.open_study import OpenStudy
from tests.slow import in_one_test
from tests.studies.lives import run_trials, settings
from tests.training.test_notes import features

DIGITS = TaskConfig(dataset="digits", paradigm="ul")


def budget(directory: Path, task: TaskConfig = DIGITS, **said: Any) -> tuple[int, int]:
    study = plan_study(StudyConfig(task=task, **said), directory / "study").study
    return study.trials, study.confirm_seeds


@in_one_test(
    ("said", "found"),
    [
        ({}, (48, 6)),
        ({"confirm_seeds": 4}, (48, 4)),
        ({"trials": 200}, (200, 6)),
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


@pytest.mark.parametrize(("width", "found"), [(256, (48, 6)), (257, (12, 3))])
def test_packs_do_not_pay_for_more_where_features_are_wide(tmp_path: Path, width: int, found: tuple[int, int]) -> None:
    assert budget(tmp_path, features(tmp_path / "own.npz", width=width)) == found


def test_a_study_that_is_continued_keeps_the_numbers_that_an_earlier_captune_gave_it(tmp_path: Path) -> None:
    """As by a Slurm job that is queued again, whose command gives none."""
    task = features(tmp_path / "own.npz", width=257)
    begun = plan_study(StudyConfig(task=task, trials=48, confirm_seeds=6), tmp_path / "study")
    OpenStudy(begun.directory, begun.study, begun.info, begun.space, durable=False).close()

    def again(**said: Any) -> tuple[int, int]:
        study = plan_study(StudyConfig(task=task, **said), begun.directory, resume=True).study
        return study.trials, study.confirm_seeds

    assert again() == (48, 6)
    assert again(trials=60) == (60, 6)
    assert plan_study(StudyConfig(task=task), begun.directory, fork="two").study.trials == 12


def test_a_study_goes_on_where_its_data_were_moved_to(tmp_path: Path) -> None:
    """Their place is recorded absolute, so that a study and its data could not be moved together."""
    (tmp_path / "new").mkdir()
    directory, file, new = tmp_path / "study", tmp_path / "own.npz", tmp_path / "new" / "own.npz"

    def open_with(task: TaskConfig, *, resume: bool = True) -> OpenStudy:
        plan = plan_study(StudyConfig(task=task, trials=1), directory, resume=resume)
        return OpenStudy(plan.directory, plan.study, plan.info, plan.space, resume=resume, durable=False)

    task = features(file)
    open_with(task, resume=False).close()
    shutil.copy(file, new)
    moved = task.model_copy(update={"dataset": f"features:{new}"})
    with pytest.raises(UsageError, match=r"task\.dataset"):
        open_with(moved)  # the file is where it was as well, so that this may be another
    file.unlink()
    command = rf"captune run \S*study\.yaml --dataset features:NEW --out {directory} --resume"
    with pytest.raises(DataError, match=command):
        plan_to_continue(directory)
    for warned in (True, False):
        opened = open_with(moved)
        assert any(f"are read from features:{new} now" in one for one in opened.warnings) == warned
        opened.close()
    assert plan_to_continue(directory).study.task.dataset == moved.dataset
    arrays = dict(np.load(new))
    fewer = {name: rows if name == "text_features" else rows[1:] for name, rows in arrays.items()}
    np.savez(tmp_path / "other.npz", **fewer)  # type: ignore[arg-type]
    new.unlink()
    with pytest.raises(UsageError, match=r"task\.dataset"):
        open_with(task.model_copy(update={"dataset": f"features:{tmp_path / 'other.npz'}"}))


def test_trials_that_are_not_packed_get_no_more(tmp_path: Path) -> None:
    assert budget(tmp_path, DIGITS.model_copy(update={"kernels": "plain"})) == (12, 3)


def test_the_width_of_the_embedded_models_features_is_known_before_it_is_opened() -> None:
    assert load_backbone(TINY).embed_dim == TINY_WIDTH


def test_a_study_that_goes_on_keeps_the_budget_it_began_with(tmp_path: Path) -> None:
    plan = plan_study(StudyConfig(task=DIGITS, trials=12), tmp_path / "study")
    OpenStudy(plan.directory, plan.study, plan.info, plan.space, durable=False).close()
    again = plan_to_continue(tmp_path / "study").study
    assert (again.trials, again.confirm_seeds) == (12, 3)


def test_notes_of_several_studies_say_which_they_are_about(tmp_path: Path) -> None:
    plans = []
    for paradigm, notes in (("ul", ("few images", "for all")), ("tft", ("for all",))):
        task = TaskConfig.parse({"dataset": "digits", "paradigm": paradigm})
        plan = plan_study(StudyConfig(task=task), tmp_path / paradigm)
        plans.append(replace(plan, info=replace(plan.info, notes=notes)))
    assert notes_of(plans) == ["digits-ul-cap: few images", "for all"]
    assert notes_of(plans[:1]) == ["few images", "for all"]


def test_a_study_that_is_resumed_keeps_its_space_when_the_one_that_comes_with_captune_has_changed(
    tmp_path: Path,
) -> None:
    study, directory = settings("ul", trials=1, confirm_top=0), tmp_path / "study"
    shipped = plan_study(study, directory).space
    former = replace(shipped, parameters=(replace(shipped.parameters[0], high=0.2), *shipped.parameters[1:]))
    run_trials(plan_study(study, directory, space=former)).close()
    assert plan_study(study, directory).space.parameters == shipped.parameters
    again = plan_study(study, directory, resume=True)
    assert again.space.parameters == former.parameters != shipped.parameters
    run_trials(replace(again, study=again.study.model_copy(update={"trials": 2})), resume=True).close()
    named = study.model_copy(update={"space": space_file(None, "cap")})
    assert plan_study(named, directory, resume=True).space.parameters == shipped.parameters, "named by the user"
