"""Journals to records: what can be said is said, what cannot is named, nothing that is merely unfinished raises."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path

import pytest
from synthetic import FakeStudy, whole_study

from captune.errors import RecordError
from captune.records import JOURNAL, Journal, StudyRecord, number_or_none
from captune.results.load import load_studies, load_study
from tests.journals import append, journal_lines


def lines_of(directory: Path) -> list[bytes]:
    return (directory / "journal.jsonl").read_bytes().splitlines(keepends=True)


def write_lines(directory: Path, lines: list[bytes]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "journal.jsonl").write_bytes(b"".join(lines))


def test_whole_study_is_read_without_notes(study: StudyRecord) -> None:
    assert study.notes == ()
    assert [trial.key for trial in study.trials[:4]] == ["zero_shot", "balanced", "t0000", "t0001"]
    assert study.find("t0006").state == "FAILED"  # type: ignore[union-attr]
    assert study.find("t0006").reason == "loss became NaN in epoch 1"  # type: ignore[union-attr]
    assert len(study.find("t0000").epochs) == 4  # type: ignore[union-attr]
    assert study.sealed_opened and study.metric_name == "accuracy" and study.select_by == "agree-balanced"


def test_same_run_given_twice_is_read_once(study_dir: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(study_dir)
    assert len(load_studies([study_dir, study_dir, link, study_dir / "journal.jsonl"])) == 1


def test_copy_of_a_study_is_left_out_and_the_longer_journal_wins(study_dir: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "older", lines_of(study_dir)[:40])
    for order in ([study_dir, tmp_path / "older"], [tmp_path / "older", study_dir]):
        (run,) = load_studies(order)
        assert run.name == study_dir.name
        assert any("copy of the same study" in note for note in run.notes)


def test_two_runs_of_one_name_keep_apart(tmp_path: Path) -> None:
    for parent, seed in (("a", 0), ("b", 1)):
        study = FakeStudy(tmp_path / parent / "digits-ul-cap", seed=seed)
        study.references()
        study.close()
    assert [run.name for run in load_studies([tmp_path])] == ["a/digits-ul-cap", "b/digits-ul-cap"]


def test_the_last_opening_counts_after_an_extension(study_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "extended"
    shutil.copytree(study_dir, copy)
    opening = next(event for event in journal_lines(copy / JOURNAL) if event["event"] == "study_opened")
    study = {**opening["study"], "trials": 99}
    journal = Journal(copy / JOURNAL)
    fields = {key: value for key, value in opening.items() if key != "event"}
    append(journal, "study_opened", **{**fields, "study": study, "time": opening["time"] + 60})
    journal.close()
    assert load_study(copy).settings["trials"] == 99


def test_torn_tail_is_left_out_and_noted(study_dir: Path, tmp_path: Path) -> None:
    lines = lines_of(study_dir)
    write_lines(tmp_path / "torn", [*lines[:20], lines[20][:17]])
    (run,) = load_studies([tmp_path / "torn"])
    assert any("torn" in note for note in run.notes)
    assert (tmp_path / "torn" / "journal.jsonl").read_bytes().endswith(lines[20][:17]), "reading must not write"


def test_edited_line_is_left_out_and_named(study_dir: Path, tmp_path: Path) -> None:
    lines = lines_of(study_dir)
    index = next(i for i, line in enumerate(lines) if b'"finished"' in line and b"t0002" in line)
    lines[index] = lines[index].replace(b'"score":0.', b'"score":1.', 1)
    write_lines(tmp_path / "edited", lines)
    (run,) = load_studies([tmp_path / "edited"])
    assert any(f"line {index + 1}" in note for note in run.notes)
    assert run.find("t0002").score is None  # type: ignore[union-attr]


def test_lines_that_are_no_text_do_not_stop_reading(study_dir: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "noise", [lines_of(study_dir)[0], b"\xff\xfe garbage\n", b"\n", *lines_of(study_dir)[1:9]])
    (run,) = load_studies([tmp_path / "noise"])
    assert any("2 damaged" in note for note in run.notes)


def test_missing_opening_is_noted_not_raised(study_dir: Path, tmp_path: Path) -> None:
    write_lines(tmp_path / "headless", lines_of(study_dir)[1:])
    (run,) = load_studies([tmp_path / "headless"])
    assert run.dataset == "unknown" and any("study_opened" in note for note in run.notes)


def test_missing_plan_is_noted_and_its_result_kept(study_dir: Path, tmp_path: Path) -> None:
    kept = [line for line in lines_of(study_dir) if not (b'"planned"' in line and b'"t0001"' in line)]
    write_lines(tmp_path / "unplanned", kept)
    (run,) = load_studies([tmp_path / "unplanned"])
    assert any("without a plan" in note and "t0001" in note for note in run.notes)
    trial = run.find("t0001")
    assert trial is not None and trial.phase == "search" and trial.score is not None and trial.params == {}


def test_unfinished_run_says_what_is_open(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path / "open")
    study.references()
    study.search(2)
    study.plan("t0002", "search", number=2, config_id=2, params=study.sample())
    study.write("started", key="t0002", node="node-b", attempt=1)
    study.plan("t0003", "search", number=3, config_id=3, params=study.sample())
    run = load_study(study.close())
    assert (run.find("t0002").state, run.find("t0003").state) == ("RUNNING", "PLANNED")  # type: ignore[union-attr]
    assert any("2 of 4 search trials" in note for note in run.notes)
    assert any("test labels were not read yet" in note for note in run.notes)


def test_last_row_of_a_repeated_epoch_counts(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path / "again")
    study.plan("t0000", "search", number=0, config_id=0, params=study.sample())
    for score in (0.1, 0.2):
        study.write("epoch", key="t0000", epoch=1, fidelity=0.25, score=score, scores={}, loss=1.0)
    (epoch,) = load_study(study.close()).find("t0000").epochs  # type: ignore[union-attr]
    assert epoch.score == 0.2


def test_preemption_and_attempts_are_counted(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path / "moved")
    study.plan("t0000", "search", number=0, config_id=0, params=study.sample())
    study.write("started", key="t0000", node="a", attempt=1)
    study.write("preempted", key="t0000", node="a", reason="SIGTERM")
    study.write("started", key="t0000", node="b", attempt=2)
    trial = load_study(study.close()).find("t0000")
    assert trial is not None and (trial.attempts, trial.preemptions, trial.node) == (2, 1, "b")


def test_a_newer_schema_is_read_with_a_warning(tmp_path: Path) -> None:
    journal = Journal(tmp_path / JOURNAL)
    append(journal, "study_opened", schema=99, study={"method": "cap"})
    journal.close()
    study = load_study(tmp_path)
    assert study.method == "cap" and "newer captune (schema 99" in study.notes[0]


def test_path_without_a_journal_is_an_error_that_helps(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"must hold journal\.jsonl, but got none.*captune run"):
        load_studies([tmp_path])
    with pytest.raises(RecordError, match="no such path"):
        load_studies([tmp_path / "absent"])
    whole_study(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "elsewhere" / "two")
    other = FakeStudy(tmp_path / "elsewhere" / "three", seed=9)
    other.close()
    with pytest.raises(RecordError, match="one study must be given, but got 2 studies"):
        load_study(tmp_path / "elsewhere")


def test_empty_journal_gives_a_record_that_says_so(tmp_path: Path) -> None:
    Journal(tmp_path / "journal.jsonl", durable=False).close()
    run = load_study(tmp_path)
    assert run.trials == () and any("no search trial has finished" in note for note in run.notes)


def test_odd_types_never_become_numbers(tmp_path: Path) -> None:
    body = json.dumps(
        {"event": "finished", "key": "t0000", "state": "COMPLETE", "score": "0.9", "scores": {"a": True, "b": [1]}}
    ).encode()
    write_lines(tmp_path, [b"%08x %s\n" % (zlib.crc32(body), body)])
    trial = load_study(tmp_path).find("t0000")
    assert trial is not None and trial.score is None and trial.scores == {}
    assert [number_or_none(value) for value in (float("nan"), float("inf"), True, "1", None, 2)] == [None] * 5 + [2.0]
