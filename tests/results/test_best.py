"""best_configs.csv: what was chosen, against what, and the flags."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
from synthetic import SPACE, FakeStudy, whole_study

from captune.algorithms import default_config
from captune.config import TaskConfig
from captune.records import StudyRecord
from captune.results.best import (
    first_name,
    metrics_by_seed,
    recorded_choice,
    report_trials,
)
from captune.results.best_configs import Flags, best_configs_table, flags
from captune.results.load import load_study
from captune.results.robustness import robustness_table
from captune.results.searched import on_border, place, searched_parameters
from captune.results.tables import trials_table
from captune.space import Parameter, load_space, space_file


def test_row_holds_the_confirmed_mean_and_the_gains(study: StudyRecord) -> None:
    row = best_configs_table([study]).iloc[0]
    values = list(metrics_by_seed(study, row["configuration"]).values())
    assert row["num_seeds"] == 3 and row["test_mean"] == pytest.approx(sum(values) / 3)
    assert row["gain_over_zero_shot"] == pytest.approx(row["test_mean"] - 0.70)
    assert row["gain_over_default"] == pytest.approx(row["test_mean"] - row["default"])
    assert row["test_low"] < row["test_mean"] < row["test_high"]
    assert row["advised_test"] == row["test_mean"] and row["advice"] == "adapt"


def test_regret_is_against_the_best_candidate_by_test_over_seeds(study: StudyRecord) -> None:
    row = best_configs_table([study]).iloc[0]
    candidates = robustness_table([study]).set_index("configuration")["mean"].astype(float)
    assert row["best_by_test"] == candidates.idxmax()
    assert row["regret"] == pytest.approx(candidates.max() - row["advised_test"]) and row["regret"] >= 0


def test_a_candidate_that_is_better_on_the_test_is_named_with_why_the_advice_stays(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.references()
    study.search(4)
    study.confirm([1, 2])
    study.choice(advice="adapt", name="c1", config_id=1, config=study.configs[1], reason="", candidates=[])
    study.metric_of |= {f"c{number}-s{seed}": 0.80 - 0.05 * (number == 1) for number in (1, 2) for seed in (1, 2, 3)}
    study.open_seal()
    row = best_configs_table([load_study(study.close())]).iloc[0]
    assert row["best_by_test"] == "c2" and row["regret"] == pytest.approx(0.05)
    assert row["answer"].startswith("Use configuration c1. Its accuracy on 540 test images is 75.0 %, 5.0 points above")
    assert row["caveat"].startswith("On the test, configuration c2 is 5.0 points better. The advice stays as it is")
    assert row["next_command"].startswith("captune adapt --dataset digits --paradigm ul --config best_config.yaml")


def test_settings_are_columns(study: StudyRecord) -> None:
    row = best_configs_table([study]).iloc[0]
    trial = trials_table([study]).set_index("number").loc[row["config_id"]]
    assert all(row[name] == trial[name] for name in SPACE)


def test_before_the_seal_only_selection_scores_are_there(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.references()
    study.search(6)
    study.confirm([0, 1])
    row = best_configs_table([load_study(study.close())]).iloc[0]
    assert pd.notna(row["selection_score"]) and row["num_seeds"] == 3
    assert row[["test_mean", "zero_shot", "default", "gain_over_zero_shot", "regret"]].isna().all()


def test_report_role_runs_measure_where_there_are_any(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path, paradigm="trzsl")
    study.references()
    study.search(2)
    study.confirm([1], seeds=2)
    for seed in (1, 2):
        key = f"c1-s{seed}-report"
        study.plan(key, "confirm", config_id=1, params=study.configs[1], seed=seed, role="report")
        study.train(key, study.configs[1])
    study.metric_of["c1-s1-report"], study.metric_of["c1-s2-report"] = 0.5, 0.6
    study.open_seal()
    run = load_study(study.close())
    assert metrics_by_seed(run, "c1") == {1: 0.5, 2: 0.6}
    assert {trial.role for trial in report_trials(run, "c1")} == {"report"}
    assert len(run.configurations()["c1"]) == 4


def test_recorded_choice_stands_even_if_the_rule_would_differ(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.references()
    study.search(4)
    study.confirm([0, 1, 2])
    study.choice(advice="keep zero-shot", config_id=2, config=study.configs[2], reason="said so", candidates=[])
    study.open_seal()
    run = load_study(study.close())
    choice = recorded_choice(run)
    assert (choice.advice, choice.name, choice.config_id, choice.reason) == (
        "keep zero-shot",
        "zero_shot",
        2,
        "said so",
    )
    row = best_configs_table([run]).iloc[0]
    assert row["configuration"] == "c2" and row["advised_test"] == row["zero_shot"]


def test_paper_is_found_confirmed_or_as_a_trial(study: StudyRecord, tmp_path: Path) -> None:
    assert first_name(study) == "c0"
    bare = FakeStudy(tmp_path)
    bare.search(2)
    assert first_name(load_study(bare.close())) == "t0000"


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ([-0.05, -0.051, -0.049], {"below_zero_shot"}),
        ([-0.05, 0.02, 0.01], {"maybe_below_zero_shot", "underpowered"}),
        ([0.05, 0.051, 0.049], set()),
        ([0.05, 0.051], {"underpowered"}),
        ([], {"underpowered"}),
    ],
)
def test_flags_of_gains(study: StudyRecord, gains: list[float], expected: set[str]) -> None:
    found = flags(study, {"learning_rate": 0.01}, gains, gains)
    assert {name for name, value in asdict(found).items() if value} == expected


def test_flags_name_every_setting_on_its_border(study: StudyRecord) -> None:
    off = {"learning_rate": 0.01, "margin_scale": 0.0}
    none = Flags(False, False, (), False, False)
    assert flags(study, off, [0.8] * 3, [0.1] * 3) == none, "0 is where a strength is off, not a border"
    params = {"learning_rate": 1e-4, "margin_scale": 15.9, "num_main_samples": 16, "leaderboard": "published"}
    found = flags(study, params, [0.8] * 3, [0.1] * 3)
    assert found.border_settings == ("learning_rate", "margin_scale", "num_main_samples")


def test_places_and_borders_by_hand() -> None:
    """0.01 in 1e-4 … 1e-1 on the log scale: 2 of 3 decades."""
    rate = Parameter("learning_rate", "float", "nuisance", 1e-4, 1e-1, log=True)
    assert place(rate, 0.01) == pytest.approx(2 / 3) and place(rate, None) == 0.5 and place(rate, 1.0) == 1.0
    choice = Parameter("leaderboard", "categorical", "nuisance", choices=("a", "b", "c"))
    assert [place(choice, value) for value in ("a", "b", "c", "unknown")] == [0, 0.5, 1, 0.5]
    assert not on_border(choice, "a")
    count = Parameter("k", "int", "nuisance", 1, 16)
    assert on_border(count, 1) and not on_border(count, 2)


def test_parameters_are_read_from_the_recorded_space_or_from_the_values(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.search(5)
    run = load_study(study.close())
    assert [parameter.name for parameter in searched_parameters(run)] == list(SPACE)
    by_hand = {"learning_rate": "hand-edited", "epochs": {"role": "fixed", "value": 4}}
    run.opened = replace(run.opened, space=by_hand)
    inferred = {parameter.name: parameter for parameter in searched_parameters(run)}
    assert "epochs" not in inferred
    assert inferred["learning_rate"].low == min(config["learning_rate"] for config in study.configs.values())
    assert inferred["leaderboard"].choices


def test_a_recorded_parameter_is_the_one_that_was_searched(tmp_path: Path) -> None:
    base = default_config("cap", TaskConfig.parse({"dataset": "digits", "paradigm": "ul"}))
    searched = load_space(space_file(None, "cap"), base, class_size=40).parameters
    study = FakeStudy(tmp_path)
    study.search(1)
    run = load_study(study.close())
    run.opened = replace(run.opened, space={parameter.name: parameter.describe() for parameter in searched})
    for before, after in zip(searched, searched_parameters(run), strict=True):
        values = before.choices or [before.at(unit / 7) for unit in range(8)]
        assert [place(after, value) for value in values] == [before.unit(value) for value in values], before.name
        assert [after.at(unit / 7) for unit in range(8)] == [before.at(unit / 7) for unit in range(8)], before.name


def test_oracle_study_is_flagged(tmp_path: Path) -> None:
    run = load_study(whole_study(tmp_path, select_by="oracle"))
    assert best_configs_table([run]).iloc[0]["oracle"]
