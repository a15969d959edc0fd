"""A study that screens on frozen features first: its order, what is promoted, and that a kill changes nothing of it."""

from __future__ import annotations

import contextlib
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from captune.config import StudyConfig, TaskConfig, TrialConfig
from captune.errors import UsageError
from captune.records import JOURNAL, Journal, State, read_journal
from captune.records.events import StudyOpened
from captune.results.load import load_study
from captune.results.tables import trials_table
from captune.space import Space, load_space
from captune.tuning.cell import Cell
from captune.tuning.describe import describe_cell
from captune.tuning.header import read_study
from captune.tuning.mirror import KEY, open_storage
from captune.tuning.open_study import OpenStudy
from captune.tuning.progress import standing
from captune.tuning.specs import CellInfo
from tests.journals import journal_lines
from tests.tuning.fakes import info, space_path, study
from tests.tuning.simulate import Killed, drive, outcomes

SCREENED = 20


def settings(**changes: Any) -> StudyConfig:
    given: dict[str, Any] = {"trials": 6, "confirm_top": 1, "confirm_seeds": 1}
    return study(**{**given, "screen": "features", "screen_trials": SCREENED, **changes})


def facts() -> CellInfo:
    return info(epochs=8, screen_base=TrialConfig(tuning="features", epochs=4, weight_decay=0.01))


def space(directory: Path) -> Space:
    known = facts()
    assert known.screen_base is not None
    path = space_path(directory)
    return replace(load_space(path, known.base), screen=load_space(path, known.screen_base))


def make_cell(directory: Path, **changes: Any) -> Cell:
    directory.mkdir(exist_ok=True)
    cell = Cell(directory, settings(**changes), facts(), space(directory))
    if (directory / JOURNAL).exists():
        cell.replay(read_journal(directory / JOURNAL))
    cell.open(Journal(directory / JOURNAL, durable=False), StudyOpened())
    return cell


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole")
    drive(make_cell(directory))
    return directory


def planned(directory: Path, phase: str) -> list[dict[str, Any]]:
    return [e for e in journal_lines(directory / JOURNAL) if e["event"] == "planned" and e["phase"] == phase]


def test_the_screen_comes_between_the_references_and_the_search(whole: Path) -> None:
    phases = [event["name"] for event in journal_lines(whole / JOURNAL) if event["event"] == "phase"]
    assert phases == ["reference", "screen", "search", "confirm"]
    screen = planned(whole, "screen")
    assert [event["key"] for event in screen] == [f"s{number:04d}" for number in range(SCREENED)]
    assert {event["config"]["tuning"] for event in screen} == {"features"}
    assert screen[0]["origin"] == "default" and screen[0]["config"]["epochs"] == 4
    assert {event["config"]["tuning"] for event in planned(whole, "search")} == {"prompts"}


def test_the_best_of_the_screen_are_promoted_in_their_order_to_their_places_in_the_search(whole: Path) -> None:
    search = planned(whole, "search")
    assert [event["origin"] for event in search] == ["default", "screen", "screen", "screen", "sampler", "sampler"]
    screened = [end for end in outcomes(whole) if end["phase"] == "screen" and end["state"] == State.COMPLETE]
    best = sorted(
        (end for end in screened if end["origin"] != "default"), key=lambda end: (-end["score"], end["number"])
    )
    assert [event["promoted_from"] for event in search[1:4]] == [end["key"] for end in best[:3]]
    for event, end in zip(search[1:4], best, strict=False):
        assert event["params"]["learning_rate"] == pytest.approx(end["params"]["learning_rate"])
        # Epochs 2 to 6 on features, 4 to 12 on prompts: the same place, not the same number.
        assert event["params"]["epochs"] == 2 * end["params"]["epochs"]


def test_only_search_trials_are_confirmed_and_chosen_from(whole: Path) -> None:
    numbers = {end["config_id"] for end in outcomes(whole) if end["phase"] == "confirm"}
    search = [end for end in outcomes(whole) if end["phase"] == "search" and end["state"] == State.COMPLETE]
    assert numbers == {0, max(search, key=lambda end: end["score"])["number"]}


def test_weak_screening_trials_are_stopped_among_themselves(whole: Path) -> None:
    screened = [end for end in outcomes(whole) if end["phase"] == "screen"]
    stopped = [end for end in screened if end["state"] == "PRUNED"]
    assert stopped and len(stopped) < len(screened) - 4
    drive(make_cell(whole.parent / "patient", scheduler="none"))
    assert {end["state"] for end in outcomes(whole.parent / "patient")} == {State.COMPLETE}


@pytest.mark.parametrize("every", [29, pytest.param(11, marks=pytest.mark.slow)])
def test_a_kill_after_any_report_changes_nothing(whole: Path, tmp_path: Path, every: int) -> None:
    reports = sum(event["event"] == "epoch" for event in journal_lines(whole / JOURNAL))
    for kill_after in range(1, reports, every):
        directory = tmp_path / f"killed{kill_after}"
        with contextlib.suppress(Killed):
            drive(make_cell(directory), kill_after=kill_after)
        drive(make_cell(directory))
        assert outcomes(directory) == outcomes(whole)
        shutil.rmtree(directory)


def test_a_power_cut_at_any_byte_of_the_journal_changes_nothing(whole: Path, tmp_path: Path) -> None:
    data = (whole / JOURNAL).read_bytes()
    draw = random.Random(3)
    for cut in sorted(draw.randrange(1, len(data)) for _ in range(5)):
        directory = tmp_path / f"cut{cut}"
        directory.mkdir()
        (directory / JOURNAL).write_bytes(data[:cut])
        drive(make_cell(directory))
        assert outcomes(directory) == outcomes(whole)
        shutil.rmtree(directory)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_promoted_before_every_screening_trial_has_ended(tmp_path: Path, seed: int) -> None:
    drive(make_cell(tmp_path), concurrency=4, order=random.Random(seed))
    events = journal_lines(tmp_path / JOURNAL)
    ends = [at for at, e in enumerate(events) if e["event"] == "finished" and e["key"].startswith("s")]
    promoted = [at for at, e in enumerate(events) if e["event"] == "planned" and e.get("promoted_from")]
    assert len(ends) == SCREENED and len(promoted) == 3
    assert max(ends) < min(promoted)


def test_extending_a_screened_study_screens_no_more_and_is_the_longer_study(tmp_path: Path) -> None:
    for trials in (4, 9):
        drive(make_cell(tmp_path / "short", trials=trials, screen_trials=None))
    screened = planned(tmp_path / "short", "screen")
    assert len(screened) == 16, "four a search trial of the first plan"
    drive(make_cell(tmp_path / "long", trials=9, screen_trials=16))
    searched = [[end for end in outcomes(tmp_path / name) if end["phase"] == "search"] for name in ("short", "long")]
    assert searched[0] == searched[1]


def test_a_study_can_be_resumed_from_its_own_files(tmp_path: Path) -> None:
    opened = OpenStudy(tmp_path / "run", settings(), facts(), space(tmp_path), durable=False)
    with contextlib.suppress(Killed):
        drive(opened.cell, kill_after=30)
    opened.close()
    study_again, space_again = read_study(tmp_path / "run")
    assert (study_again.screen, study_again.screen_trials) == ("features", SCREENED)
    assert space_again.describe() == space(tmp_path).describe()
    again = OpenStudy(tmp_path / "run", study_again, facts(), space_again, resume=True, durable=False)
    drive(again.cell)
    again.close()
    with pytest.raises(UsageError, match=r"study.screen_trials: 20 there, 30 now"):
        OpenStudy(tmp_path / "run", settings(screen_trials=30), facts(), space(tmp_path), resume=True, durable=False)


def test_the_optuna_copy_keeps_screen_and_search_apart(tmp_path: Path) -> None:
    opened = OpenStudy(tmp_path / "run", settings(), facts(), space(tmp_path), durable=False)
    drive(opened.cell)
    opened.close()
    storage = open_storage(tmp_path / "run", None)
    names = {summary.study_name for summary in optuna.get_all_study_summaries(storage)}
    search, screen = sorted(names, key=len)
    assert screen == f"{search}-screen"
    for name, letter, count in ((search, "t", 6), (screen, "s", SCREENED)):
        trials = optuna.load_study(study_name=name, storage=storage).get_trials()
        assert [trial.user_attrs[KEY] for trial in trials] == [f"{letter}{number:04d}" for number in range(count)]
        assert all(trial.state.is_finished() for trial in trials)


def test_trials_csv_says_what_was_screened_and_where_a_configuration_came_from(tmp_path: Path) -> None:
    opened = OpenStudy(tmp_path / "run", settings(), facts(), space(tmp_path), durable=False)
    drive(opened.cell)
    opened.close()
    table = trials_table([load_study(tmp_path / "run")]).set_index("key")
    assert list(table["phase"]) == ["reference"] * 2 + ["screen"] * SCREENED + ["search"] * 6
    assert table.loc["s0003", "tuning"] == "features" and table.loc["t0003", "tuning"] == "prompts"
    promoted = table[table["origin"] == "screen"]
    assert len(promoted) == 3 and all(table.loc[key, "phase"] == "screen" for key in promoted["promoted_from"])


def test_the_best_so_far_is_the_searchs_and_time_is_told_once_both_kinds_of_epochs_are_measured(tmp_path: Path) -> None:
    cell = make_cell(tmp_path)
    while cell.record.phase != "search":
        run = cell.next_trial()
        assert run is not None
        rows = [
            {"epoch": epoch, "fidelity": epoch / 4, "score": 0.9, "scores": {}, "seconds": 1.0}
            for epoch in (1, 2, 3, 4)
        ]
        now = standing(cell)
        if cell.record.phase == "screen":
            assert now.best is None and now.seconds_left is None, "no prompt epoch has been measured yet"
        cell.deliver(run.key, {"rows": rows if run.phase != "reference" else [], "outcome": {"score": 0.9}})
    now = standing(cell)
    assert now.done == 2 + SCREENED + 1 and now.best == 0.9
    # Five more search trials of the four epochs that the first came to, and two confirmations of the paper's eight.
    assert now.seconds_left == pytest.approx(5 * 4 + 2 * 8)
    assert all(run.state != State.RUNNING for run in cell.trials.values())


def test_a_screen_is_refused_where_it_makes_no_sense() -> None:
    def describe(method: str = "cap", **values: Any) -> CellInfo:
        task = TaskConfig(dataset="digits", paradigm="ul")
        return describe_cell(StudyConfig(task=task, method=method, **{"screen": "features", **values}))

    with pytest.raises(UsageError, match=r"must come before prompt tuning.*tunes frozen features itself"):
        describe()
    with pytest.raises(UsageError, match="must be used with a method that trains, but got --method transclip"):
        describe("transclip")
    with pytest.raises(UsageError, match="--screen-trials must come with a screen"):
        describe(screen="none", screen_trials=4)
    found = describe(fixed={"tuning": "prompts", "epochs": 3})
    assert found.screen_base is not None
    assert (found.base.tuning, found.screen_base.tuning) == ("prompts", "features")
    assert found.screen_base == found.base.with_values({"tuning": "features", "epochs": 1}), "a quarter of the epochs"
