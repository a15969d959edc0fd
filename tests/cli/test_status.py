"""Counts are alike in the live view, in `captune status` and in the lines at the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from captune.cli.main import main
from captune.cli.status import read_standing
from captune.cli.studies import failures_told
from captune.records import ENSEMBLE, Event, Journal, Phase, State, StudyRecord, Trial
from captune.records.events import Chosen, Finished, Planned, SealOpened
from captune.records.layout import JOURNAL, PAGE
from captune.space import load_space
from captune.tuning.open_study import OpenStudy
from captune.tuning.progress import Standing, standing
from tests.tuning.fakes import info, space_path, study
from tests.tuning.simulate import drive


@pytest.mark.parametrize("both_roles", [False, True])
def test_a_study_on_disk_is_counted_as_its_driver_counts_it_at_every_moment(tmp_path: Path, both_roles: bool) -> None:
    facts = info(both_roles=both_roles)
    directory = tmp_path / "study"
    settings = study(trials=6, confirm_top=2, confirm_seeds=2)
    opened = OpenStudy(directory, settings, facts, load_space(space_path(tmp_path), facts.base), durable=False)
    differing: list[tuple[Standing, Standing]] = []
    seen = 0

    def alike(_event: Event, _trial: Trial | None) -> None:
        nonlocal seen
        seen += 1
        live, read = standing(opened.cell), read_standing(directory, running=True)[0]
        # A trial is handed out between its plan and its start; whoever reads the disk cannot tell.
        read = replace(read, running=live.running, seconds_left=live.seconds_left)
        if read != live:
            differing.append((live, read))

    opened.cell.listeners.append(alike)
    drive(opened.cell, concurrency=2)
    opened.close()
    assert seen > 20
    assert not differing, differing[0]


def test_an_ensemble_that_closing_averages_is_no_trial_that_was_run(tmp_path: Path) -> None:
    facts = info()
    directory = tmp_path / "study"
    settings = study(trials=3, confirm_top=1, confirm_seeds=1)
    opened = OpenStudy(directory, settings, facts, load_space(space_path(tmp_path), facts.base), durable=False)
    drive(opened.cell)
    before = standing(opened.cell)
    opened.close()
    with Journal(directory / JOURNAL, durable=False) as journal:
        journal.append(Planned(key=ENSEMBLE, phase=Phase.REFERENCE, origin=ENSEMBLE))
        journal.append(Finished(key=ENSEMBLE, state=State.COMPLETE, score=0.5))
    after = read_standing(directory, running=False)[0]
    assert (after.done, after.planned) == (before.done, before.planned)


def test_several_studies_stand_in_one_table_and_one_that_nobody_runs_is_called_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = info()
    space = load_space(space_path(tmp_path), facts.base)
    names = ("first", "second")
    for name in names:
        OpenStudy(tmp_path / name, study(trials=3), facts, space, durable=False).close()
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        main(["status", *(str(tmp_path / name) for name in names)])
    said = capsys.readouterr().out
    assert caught.value.code == 0 and said.count("zero-shot") == 1
    assert said.count("go on with: captune resume") == 2 and said.count("stopped") == 4


def test_a_study_that_was_killed_while_it_was_closed_is_not_called_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing said that its choice and its report were missing."""
    facts = info()
    space = load_space(space_path(tmp_path), facts.base)
    opened = OpenStudy(tmp_path / "run", study(trials=2, confirm_top=0), facts, space, durable=False)
    drive(opened.cell)
    opened.close()

    def status() -> str:
        with pytest.raises(SystemExit):
            main(["status", str(tmp_path / "run")])
        return " ".join(capsys.readouterr().out.split())

    said = status()
    assert "before its choice was written; go on with: captune resume" in said and "finished" not in said
    with Journal(tmp_path / "run" / JOURNAL) as journal:
        journal.append(Chosen(advice="keep zero-shot", name="zero_shot"))
        journal.append(SealOpened())
    assert "but its report is not written; go on with: captune resume" in status()
    (tmp_path / "run" / PAGE).write_text("the page")
    said = status()
    assert "finished" in said and "captune resume" not in said


def test_the_lines_at_the_end_say_how_many_trials_failed_and_why(tmp_path: Path) -> None:
    reasons = ["out of memory\nmore of it", "out of memory", "no such file", "a", "b"]
    events: list[Event] = []
    for number, reason in enumerate([*reasons, None]):
        key = f"t{number:04d}"
        state = State.FAILED if reason else State.COMPLETE
        events += [Planned(key=key, phase=Phase.SEARCH), Finished(key=key, state=state, reason=reason)]
    lines = failures_told(StudyRecord(tmp_path, events))
    assert lines[:3] == ["5 of 6 trials failed:", "  2 × out of memory", "  1 × no such file"]
    assert lines[-2] == "  and 1 other reason, in trials.csv"
    assert lines[-1] == f"Once the cause is gone: captune resume {tmp_path} --retry-failed"
    assert failures_told(StudyRecord(tmp_path, events[-2:])) == []
