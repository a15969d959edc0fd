"""One study over several methods: each one's default first, then what a sampler draws, the best of each confirmed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from captune.algorithms.automatic import PORTFOLIO, auto_configs
from captune.cli.status import read_standing
from captune.config import StudyConfig, TaskConfig
from captune.errors import ConfigError, UsageError
from captune.records import JOURNAL, Phase, StudyRecord
from captune.results.load import load_study
from captune.space import shipped_space
from captune.studies.planning import plan_study, plan_to_continue
from tests.journals import journal_lines
from tests.slow import slow_but
from tests.studies.lives import run_trials, search

METHODS = (*PORTFOLIO, "probe")
"""What the space of these tests names: the shipped one's, and one method that does not train."""
QUICK = {"tuning": "features", "epochs": 1, "steps_per_epoch": 2, "num_iterations": 1}


def auto(paradigm: str = "ul", **values: Any) -> StudyConfig:
    task = TaskConfig(dataset="digits", paradigm=paradigm)  # type: ignore[arg-type]
    settings: dict[str, Any] = {"trials": 8, "confirm_seeds": 2, "fixed": QUICK} | values
    return StudyConfig(task=task, method="auto", **settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small study over methods, one of which does not train, closed."""
    folder = tmp_path_factory.mktemp("auto")
    return search(folder / "study", auto("ssl", space=space_with_probe(folder / "space.yaml")))


def space_with_probe(file: Path) -> Path:
    """The shipped space with the probe beside its methods."""
    shipped = shipped_space("auto")
    assert shipped is not None
    text = shipped.read_text(encoding="utf-8").replace("[grip, cap, cap_mixture]", f"[{', '.join(METHODS)}]", 1)
    penalty = "{type: float, low: 0.1, high: 10.0, log: true, role: scientific, when: {method: probe}}"
    file.write_text(f"{text}  penalty: {penalty}\n")
    return file


def planned(directory: Path) -> list[dict[str, Any]]:
    """What was planned, without clocks."""
    lines = [line for line in journal_lines(directory / JOURNAL) if line["event"] == "planned"]
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


def test_defaults_of_all_methods_come_first_in_the_portfolios_order(whole: Path) -> None:
    trials = load_study(whole).of_phase(Phase.SEARCH)
    assert tuple(trial.method for trial in trials[: len(METHODS)]) == METHODS
    assert [trial.params["method"] for trial in trials] == [trial.method for trial in trials]
    configs = auto_configs(TaskConfig(dataset="digits", paradigm="ssl"), QUICK, METHODS)
    firsts = [trial.config for trial in trials[: len(METHODS)]]
    assert firsts == [configs[name].model_dump(mode="json") for name in METHODS]


def test_status_reads_that_a_study_over_methods_is_done(whole: Path) -> None:
    now, _ = read_standing(whole, running=False)
    assert (now.phase, now.done) == ("done", now.planned)


def test_a_drawn_configuration_has_its_own_methods_settings_alone(whole: Path) -> None:
    drawn = [trial for trial in load_study(whole).of_phase(Phase.SEARCH) if trial.origin == "sampler"]
    assert len(drawn) == 4
    for trial in drawn:
        own = set(trial.params) - {"method"}
        assert own and own <= set(trial.config)
        assert ("penalty" in own) == (trial.method == "probe")
        assert ("margin_scale" in own) == (trial.method in ("cap", "cap_mixture"))


def test_the_best_of_every_method_is_confirmed_and_seeds_are_spent_where_they_matter(whole: Path) -> None:
    record = load_study(whole)
    groups = record.configurations()
    assert sorted(str(group[0].method) for group in groups.values()) == sorted(METHODS)
    assert {str(group[0].method): len(group) for group in groups.values()} == {
        "grip": 2, "cap_mixture": 2, "cap": 2, "probe": 1,
    }  # fmt: skip
    for group in groups.values():
        rivals = [trial for trial in record.of_phase(Phase.SEARCH) if trial.method == group[0].method]
        best = max(rivals, key=lambda trial: (trial.score or 0.0, -(trial.number or 0)))
        assert group[0].config_id == best.number
    assert record.choice is not None and record.choice.weights
    assert {"anchored", "balanced", "zero_shot"} <= {row["name"] for row in record.choice.candidates}


@pytest.mark.parametrize("after", slow_but(lambda after: after != 9, [5, 9, 14]))
def test_a_study_over_methods_that_goes_on_is_the_one_that_was_never_stopped(
    whole: Path, tmp_path: Path, after: int
) -> None:
    directory = tmp_path / "study"
    shutil.copytree(whole, directory)
    lines = (whole / JOURNAL).read_bytes().splitlines(keepends=True)
    kinds = [line["event"] for line in journal_lines(whole / JOURNAL)]
    cut = [at for at, kind in enumerate(kinds) if kind == "finished"][after] + 1
    (directory / JOURNAL).write_bytes(b"".join(lines[:cut]))
    opened = run_trials(plan_to_continue(directory), resume=True)
    opened.close()
    # A method without training is confirmed with one seed, and is counted so.
    assert opened.cell.num_confirmations() == sum(plan["phase"] == "confirm" for plan in planned(whole)) == 7
    ours = [plan for plan in planned(directory) if plan["key"] != "ensemble"]
    assert ours == [plan for plan in planned(whole) if plan["key"] != "ensemble"]


def test_labelled_images_bring_the_probe_as_a_reference(tmp_path: Path, whole: Path) -> None:
    assert load_study(whole).find("probe") is not None
    for paradigm in ("ul", "ssl"):
        plan = plan_study(auto(paradigm), tmp_path / paradigm)
        assert ("probe" in [key for key, _, _ in plan.info.references]) == (paradigm == "ssl")
        assert tuple(plan.info.methods) == PORTFOLIO


def test_a_space_of_ones_own_names_its_methods(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("parameters:\n  method: {type: categorical, choices: [fpl, transclip]}\n")
    plan = plan_study(auto(space=file, fixed={}), tmp_path / "study")
    assert list(plan.info.methods) == ["fpl", "transclip"] and plan.warm_starts == ({"method": "transclip"},)
    file.write_text("parameters:\n  learning_rate: {type: float, low: 0.1, high: 0.2}\n")
    with pytest.raises(ConfigError, match="a space over methods must name them"):
        plan_study(auto(space=file, fixed={}), tmp_path / "study")
    file.write_text("parameters:\n  method: {type: categorical, choices: [capp]}\n")
    with pytest.raises(UsageError, match="Did you mean 'cap'"):
        plan_study(auto(space=file, fixed={}), tmp_path / "study")


def test_settings_go_to_the_methods_that_have_them_and_one_that_none_has_is_refused() -> None:
    task = TaskConfig(dataset="digits", paradigm="ul")
    configs = auto_configs(task, {"margin_scale": 4.0}, PORTFOLIO)
    assert configs["cap"].margin_scale == 4.0  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="margin_scale"):
        auto_configs(task, {"margn_scale": 4.0}, PORTFOLIO)


def test_record_of_a_study_over_methods_says_which_method_a_trial_had(whole: Path) -> None:
    record = load_study(whole)
    assert isinstance(record, StudyRecord) and record.method == "auto"
    assert record.choice is not None and record.choice.sentence is not None
    assert record.choice.advised["method"] in ("blend", "balanced", "anchored", "zero_shot")
