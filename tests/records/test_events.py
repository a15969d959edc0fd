"""Events: read as written, old journals as new ones, and a table in the docs that cannot fall behind."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from captune.records import JOURNAL, Phase, Role, State, StudyRecord, read_journal
from captune.records.enums import EPOCH_VALUES
from captune.records.events import (
    EVENTS,
    Epoch,
    Finished,
    GivenUp,
    Other,
    Planned,
    Reported,
    SealOpened,
)
from captune.records.layout import STUDY
from captune.records.lines import event_from_json
from captune.results.classes import classes_table, pairs_table
from captune.results.load import load_study
from captune.results.report import tables_of
from captune.results.selection_tables import selection_table
from captune.results.tables import STRESS_COLUMNS, confirm_table, csv_text, epochs_table, trials_table
from captune.tuning.header import read_study
from tests.journals import journal_lines
from tests.records.event_table import README, with_table
from tests.slow import in_one_test

OLD = Path(__file__).parent / "fixtures" / "captune-0.1"
STUDIES = sorted(path.name for path in OLD.iterdir())
TABLES = {
    "trials.csv": trials_table,
    "epochs.csv": epochs_table,
    "confirm.csv": confirm_table,
    "concepts.csv": lambda studies: pd.concat([classes_table(studies), pairs_table(studies)]),
    "selection.csv": selection_table,
}


def test_the_table_in_the_docs_is_that_of_the_classes() -> None:
    text = README.read_text(encoding="utf-8")
    assert with_table(text) == text, "run python -m tests.records.event_table"


@pytest.mark.parametrize("name", STUDIES)
def test_every_line_of_a_real_old_journal_is_a_known_event_and_survives_a_round_trip(name: str) -> None:
    events = read_journal(OLD / name / JOURNAL)
    assert len(events) > 40 and not [event for event in events if isinstance(event, Other)]
    assert [event_from_json(event.as_json()) for event in events] == events
    assert {value for event in events if isinstance(event, Epoch) for value in event.values} <= EPOCH_VALUES.keys()


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("table", TABLES)
def test_old_journals_give_the_tables_that_captune_0_1_made_of_them(name: str, table: str, tmp_path: Path) -> None:
    """Written by the code of revision 6469acd, which made journal and tables."""
    (tmp_path / table).write_text(csv_text(TABLES[table]([load_study(OLD / name)])))
    now = pd.read_csv(tmp_path / table, true_values=["yes"], false_values=["no"]).convert_dtypes()
    then = as_written_now(table, pd.read_csv(OLD / name / table)).convert_dtypes()
    pd.testing.assert_frame_equal(now[list(then.columns)], then, check_dtype=False)
    added = set(now.columns) - set(then.columns)
    assert added <= {"study", "advised", "num_tied", "share_before", "share_after", "share_change"}


def as_written_now(name: str, then: pd.DataFrame) -> pd.DataFrame:
    """A table of captune 0.1 with today's names; its numbers stay."""
    # Its first column was called run, and the study's directory had another name; one column nobody wrote.
    then = then.drop(columns=["run", *(column for column in then if column == "pool_accuracy")])
    # It called the method's defaults the paper's, with a preset or without.
    if "origin" in then:
        then["origin"] = then["origin"].replace("paper", "default")
    if "started" in then:
        then["started"] = then["started"].str.replace("+00:00", "Z")
    if name == "confirm.csv":
        overrides = [json.loads(cell) if isinstance(cell, str) else {} for cell in then.pop("task_overrides")]
        for column in STRESS_COLUMNS:
            then[column] = [changed.get(column) for changed in overrides]
    if name == "selection.csv":
        then = then.rename(columns={"regret": "pick_regret"}).drop(columns="oracle_gap")
        then["pick"] = then["pick"].where(~then["pick"].str.startswith("any of"))
    if name == "concepts.csv":
        then = then.rename(columns={"configuration": "candidate"})
        classes = then.pop("kind") == "class"
        for old in ("before", "after", "change"):
            then[f"recall_{old}"] = then[old].where(classes)
            then[old] = then[old].where(~classes)
    return then


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_of_captune_0_1_can_be_read_to_be_continued(name: str, tmp_path: Path) -> None:
    shutil.copy(OLD / name / STUDY, tmp_path / STUDY)
    study, space = read_study(tmp_path)
    assert study.method == "cap" and "margin_scale" in {parameter.name for parameter in space.parameters}


def test_the_opened_seal_and_giving_up_were_phases_once() -> None:
    line = {"event": "phase", "name": "sealed_opened", "detail": {}, "time": 1.0}
    assert event_from_json(line) == SealOpened(time=1.0)
    line = {"event": "phase", "name": "aborted", "detail": {"reason": "no data"}, "time": 1.0}
    assert event_from_json(line) == GivenUp(reason="no data", time=1.0)


@in_one_test(
    "line",
    [
        {"event": "planned", "key": "t0000", "phase": "dreaming"},
        {"event": "planned", "phase": "search"},
        {"event": "finished", "key": "t0000"},
        {"event": "epoch", "key": "t0000", "epoch": "3"},
        {"event": "of tomorrow", "answer": [42]},
        {"answer": 42},
    ],
)
def test_a_line_that_fits_no_event_is_kept_as_it_is(line: dict[str, Any]) -> None:
    event = event_from_json(line)
    assert isinstance(event, Other)
    rest = {name: value for name, value in line.items() if name != "event"}
    assert event.name == str(line.get("event")) and event.values == rest


def test_what_is_no_number_becomes_none_and_what_is_missing_its_default() -> None:
    line = {"event": "finished", "key": "t0000", "state": "COMPLETE", "score": "0.9", "scores": {"a": True, "b": 0.5}}
    event = event_from_json(line)
    assert isinstance(event, Finished)
    assert (event.score, event.scores, event.state) == (None, {"b": 0.5}, State.COMPLETE)
    planned = event_from_json({"event": "planned", "key": "t0000", "phase": "search", "role": None})
    assert isinstance(planned, Planned) and planned.role is Role.SCORE and planned.params == {}


@pytest.mark.parametrize("name", STUDIES)
def test_every_kind_of_event_but_the_rare_ones_is_in_a_real_journal(name: str) -> None:
    kinds = {event.kind for event in read_journal(OLD / name / JOURNAL)}
    rare = {"crashed", "preempted", "given_up", "warm_starts", "retried", "search_ended", "data_notes", "prepared"}
    assert EVENTS.keys() - kinds <= rare


@pytest.mark.parametrize("name", STUDIES)
def test_a_journal_cut_after_any_event_gives_a_record_and_tables(name: str) -> None:
    """As after a kill: nothing raises, and no metric is shown before the labels were opened."""
    events = read_journal(OLD / name / JOURNAL)
    opened = next(at for at, event in enumerate(events) if isinstance(event, SealOpened))
    cuts = {0, 1, opened, opened + 1, *random.Random(0).sample(range(len(events)), 6)}
    for cut in sorted(cuts):
        record = StudyRecord(OLD / name, events[:cut])
        tables = tables_of([record])
        if cut <= opened:
            assert not record.sealed_opened and tables["trials.csv"]["metric"].isna().all()


def test_the_choice_of_a_record_is_current_until_another_trial_ends() -> None:
    events = read_journal(OLD / "digits-ul-cap" / JOURNAL)
    record = StudyRecord(OLD / "digits-ul-cap", events)
    assert record.choice is not None and record.choice_is_current
    record.apply(Planned(key="t0009", phase=Phase.SEARCH))
    assert record.choice_is_current
    record.apply(Finished(key="t0009", state=State.FAILED))
    assert not record.choice_is_current


def test_a_new_outcome_takes_the_report_of_the_old_one_away() -> None:
    record = StudyRecord(Path("study"), [Planned(key="ensemble", phase=Phase.REFERENCE)])
    for count in (1, 2):
        record.apply(Finished(key="ensemble", state=State.COMPLETE))
        trial = record.find("ensemble")
        assert trial is not None and trial.report is None
        record.apply(Reported(key="ensemble", metrics={"metric": count / 10}))
        assert trial.metric == count / 10


def test_settled_scores_replace_those_of_the_moment_but_the_search_still_knows_the_latter() -> None:
    lines = [
        {"event": "study_opened", "select_by": "ensv"},
        {"event": "planned", "key": "t0000", "phase": "search", "number": 0},
        {"event": "finished", "key": "t0000", "state": "COMPLETE", "score": 1.0, "scores": {"ensv": 1.0}},
        {"event": "settled", "criterion": "ensv", "scores": {"t0000": 0.25}},
    ]
    record = StudyRecord(Path("study"), [event_from_json(line) for line in lines])
    trial = record.find("t0000")
    assert trial is not None
    assert (trial.score, trial.scores["ensv"], trial.score_at_end) == (0.25, 0.25, 1.0)


def test_lines_in_tests_are_those_of_the_journal() -> None:
    first = journal_lines(OLD / "digits-ul-cap" / JOURNAL)[0]
    assert first["event"] == "study_opened" and first["study"]["task"]["dataset"] == "digits"
