"""A study on disk: begun, continued, refused, extended; its lock and its Optuna copy."""

from __future__ import annotations

import cProfile
import os
import shlex
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState

from captune.config import TaskConfig
from captune.errors import RecordError, UsageError
from captune.records import JOURNAL, State
from captune.records.events import StudyOpened
from captune.records.layout import LOCK, STUDY, TRIALS
from captune.revision import git_revision
from captune.space import load_space
from captune.studies.running import chain
from captune.tuning.header import read_study
from captune.tuning.lock import DriverLock
from captune.tuning.mirror import HIDDEN, KEY, open_storage
from captune.tuning.open_study import OpenStudy, command_line, with_storage
from captune.tuning.same_study import study_differences
from captune.tuning.specs import CellInfo
from tests.bench.opening import write_long_study
from tests.journals import journal_lines
from tests.tuning.fakes import info, space_path, study
from tests.tuning.simulate import Killed, drive, outcomes


def open_study(
    directory: Path,
    *,
    resume: bool = False,
    facts: CellInfo | None = None,
    warm_starts: Sequence[dict[str, Any]] = (),
    after: str | None = None,
    **settings: Any,
) -> OpenStudy:
    facts = facts or info()
    directory.mkdir(parents=True, exist_ok=True)
    space = load_space(space_path(directory.parent), facts.base)
    return OpenStudy(
        directory, study(**settings), facts, space,
        resume=resume, warm_starts=warm_starts, after=after, durable=False,
    )  # fmt: skip


def run_study(directory: Path, *, resume: bool = False, **settings: Any) -> None:
    opened = open_study(directory, resume=resume, **settings)
    try:
        drive(opened.cell)
    finally:
        opened.close()


def test_opening_a_study_grows_with_the_number_of_trials_not_with_its_square(tmp_path: Path) -> None:
    """Four times the trials may take at most five times the operations; a square would take sixteen."""
    operations = {}
    for num_trials in (40, 160):
        reopen = write_long_study(tmp_path / str(num_trials), num_trials)
        profile = cProfile.Profile()
        profile.enable()
        opened = reopen()
        profile.disable()
        opened.close()
        operations[num_trials] = sum(entry.callcount for entry in profile.getstats())
    assert operations[160] < 5 * operations[40], operations


def test_study_yaml_holds_what_is_needed_to_repeat_it(tmp_path: Path) -> None:
    run_study(tmp_path / "run", trials=2, confirm_top=0, seed=3)
    header = yaml.safe_load((tmp_path / "run" / STUDY).read_text())
    assert header["study"]["seed"] == 3
    assert {"captune", "torch", "ray", "optuna", "python"} <= header["versions"].keys()
    assert header["space"]["learning_rate"]["low"] == 0.001
    assert header["git"] == git_revision()
    settings, space = read_study(tmp_path / "run")
    assert settings == study(trials=2, confirm_top=0, seed=3)
    assert [parameter.name for parameter in space.parameters] == ["learning_rate", "weight_decay", "epochs"]


def test_a_directory_with_a_study_is_refused_unless_it_is_resumed(tmp_path: Path) -> None:
    run_study(tmp_path / "run", trials=2, confirm_top=0)
    with pytest.raises(UsageError, match=r"Say --resume .* to go on"):
        open_study(tmp_path / "run", trials=2, confirm_top=0)
    run_study(tmp_path / "run", resume=True, trials=4, confirm_top=0)
    assert len(outcomes(tmp_path / "run")) == 6


def test_another_study_in_the_directory_is_refused_with_the_difference(tmp_path: Path) -> None:
    run_study(tmp_path / "run", trials=2, confirm_top=0)
    for resume in (False, True):
        with pytest.raises(UsageError) as caught:
            open_study(tmp_path / "run", resume=resume, trials=2, confirm_top=0, seed=1, sampler="random")
        message = str(caught.value)
        assert "study.seed: 0 there, 1 now" in message
        assert "study.sampler: 'tpe' there, 'random' now" in message
        assert "--fork NAME" in message
    with pytest.raises(UsageError, match=r"paper.epochs: 4 there, 5 now"):
        open_study(tmp_path / "run", resume=True, trials=2, confirm_top=0, facts=info(epochs=5))


def test_a_refusal_gives_the_lock_back_and_writes_nothing(tmp_path: Path) -> None:
    run_study(tmp_path / "run", trials=2, confirm_top=0)
    before = (tmp_path / "run" / JOURNAL).read_bytes()
    with pytest.raises(UsageError):
        open_study(tmp_path / "run", trials=2, confirm_top=0)
    assert (tmp_path / "run" / JOURNAL).read_bytes() == before
    assert not (tmp_path / "run" / LOCK).exists()


@pytest.mark.parametrize(
    "name", ["runs.csv", "study.png", "trials.csv", "best_config.yaml", "report.html", "optuna.journal", "trials/mine"]
)
def test_a_new_study_replaces_no_files_of_other_origin(tmp_path: Path, name: str) -> None:
    mine = tmp_path / "run" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    before = sorted((tmp_path / "run").rglob("*"))
    with pytest.raises(UsageError, match=f"no files that the study would replace, but got {name.split('/')[0]}"):
        open_study(tmp_path / "run")
    assert sorted((tmp_path / "run").rglob("*")) == before and mine.read_text() == "mine"


def test_a_study_goes_on_in_a_directory_that_holds_its_own_report(tmp_path: Path) -> None:
    run_study(tmp_path / "run", trials=2, confirm_top=0)
    for name in ("trials.csv", "study.png", "report.html"):
        (tmp_path / "run" / name).write_text("of the study")
    run_study(tmp_path / "run", resume=True, trials=3, confirm_top=0)


@pytest.mark.parametrize("killed_at", ["captune.tuning.open_study.write_study", "captune.tuning.open_study.Journal"])
def test_a_study_begins_where_a_driver_was_killed_before_its_first_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    process = os.fork()
    if process == 0:
        try:
            monkeypatch.setattr(killed_at, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
            open_study(tmp_path / "run", trials=2, confirm_top=0)
        finally:
            os._exit(1)  # it was not killed
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    assert (tmp_path / "run" / LOCK).exists()
    run_study(tmp_path / "run", trials=2, confirm_top=0)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_directory_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="must be writable"):
        DriverLock(tmp_path / "run")


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    facts = info()
    with pytest.raises(UsageError, match="the directory of a study must be writable"):
        OpenStudy(tmp_path / "file" / "run", study(), facts, load_space(space_path(tmp_path), facts.base))


def test_a_study_in_a_directory_that_cannot_be_written_is_not_told_to_take_another_out(tmp_path: Path) -> None:
    """`captune resume` has no --out."""
    run_study(tmp_path / "run", trials=2, confirm_top=0)
    shutil.rmtree(tmp_path / "run" / TRIALS)
    (tmp_path / "run" / TRIALS).write_text("")  # root may write even where it is not permitted
    with pytest.raises(UsageError, match="Make it writable, or go on with a copy of it"):
        open_study(tmp_path / "run", resume=True, trials=2, confirm_top=0)


def test_a_damaged_journal_is_no_study_and_a_torn_tail_is(tmp_path: Path) -> None:
    run_study(tmp_path / "run", trials=2, confirm_top=0)
    journal = tmp_path / "run" / JOURNAL
    data = journal.read_bytes()
    journal.write_bytes(data[:-9])
    run_study(tmp_path / "run", resume=True, trials=2, confirm_top=0)
    journal.write_bytes(data[:40] + b"X" + data[41:])
    with pytest.raises(RecordError, match="damage in line 1"):
        open_study(tmp_path / "run", resume=True, trials=2, confirm_top=0)


# Warm starts

STARTS = [{"learning_rate": 0.05}, {"learning_rate": 0.002, "epochs": 3}]


@pytest.mark.parametrize("kill_after", [1, 4, 9])
def test_a_study_that_goes_on_has_the_warm_starts_it_began_with(tmp_path: Path, kill_after: int) -> None:
    settings: dict[str, Any] = {"trials": 5, "confirm_top": 0}
    whole = open_study(tmp_path / "whole", warm_starts=STARTS, **settings)
    drive(whole.cell)
    whole.close()
    opened = open_study(tmp_path / "run", warm_starts=STARTS, **settings)
    with pytest.raises(Killed):
        drive(opened.cell, kill_after=kill_after)
    opened.close()
    run_study(tmp_path / "run", resume=True, **settings)
    assert outcomes(tmp_path / "run") == outcomes(tmp_path / "whole")
    origins = [end["origin"] for end in outcomes(tmp_path / "run") if end["phase"] == "search"]
    assert origins == ["default", "warm_start", "warm_start", "sampler", "sampler"]


def test_other_warm_starts_given_later_are_told_to_be_unused(tmp_path: Path) -> None:
    open_study(tmp_path / "run", warm_starts=STARTS, trials=5).close()
    for starts, warnings in (([], 0), (STARTS, 0), (STARTS[:1], 1)):
        opened = open_study(tmp_path / "run", resume=True, warm_starts=starts, trials=5)
        opened.close()
        assert len([text for text in opened.warnings if "stay" in text]) == warnings


def test_a_study_that_starts_from_another_is_continued_together_with_it_until_it_has(tmp_path: Path) -> None:
    """Either way it ends like the one never interrupted."""
    settings: dict[str, Any] = {"trials": 4, "confirm_top": 0}

    def both(place: str, *, resume: bool = False) -> tuple[OpenStudy, OpenStudy]:
        first = open_study(tmp_path / place / "a", resume=resume, seed=1, **settings)
        second = open_study(
            tmp_path / place / "b", resume=resume, facts=info("b"), after=None if resume else "a", **settings
        )
        chain([first, second])
        return first, second

    def run(studies: Sequence[OpenStudy]) -> None:
        for opened in studies:
            drive(opened.cell)
            opened.close()

    run(both("whole"))
    expected = outcomes(tmp_path / "whole" / "b")
    assert [end["origin"] for end in expected if end["phase"] == "search"] == ["default"] + 3 * ["warm_start"]
    for kill_after in (0, 6):
        place = f"killed{kill_after}"
        first, second = both(place)
        drive(first.cell)
        if kill_after:
            with pytest.raises(Killed):
                drive(second.cell, kill_after=kill_after)
        first.close()
        second.close()
        alone = open_study(tmp_path / place / "b", resume=True, facts=info("b"), **settings)
        if kill_after:
            chain([alone])
            run([alone])
        else:
            with pytest.raises(UsageError, match=r"together with it.*captune resume .*/a .*/b"):
                chain([alone])
            alone.close()
            run(both(place, resume=True))
        assert outcomes(tmp_path / place / "b") == expected


# The copy in Optuna's storage


def mirrored(directory: Path, storage: str | None = None) -> optuna.Study:
    opened = open_storage(directory, storage)
    (summary,) = optuna.get_all_study_summaries(opened)
    return optuna.load_study(study_name=summary.study_name, storage=opened)


def assert_mirrors(directory: Path, storage: str | None = None) -> None:
    """Every search trial of the journal stands in the storage, in its order, with state, value and curve."""
    states = {State.COMPLETE: TrialState.COMPLETE, State.PRUNED: TrialState.PRUNED, State.FAILED: TrialState.FAIL}
    searched = sorted((e for e in outcomes(directory) if e["phase"] == "search"), key=lambda e: e["number"])
    trials = mirrored(directory, storage).trials
    assert [trial.user_attrs[KEY] for trial in trials] == [end["key"] for end in searched]
    for trial, end in zip(trials, searched, strict=True):
        assert trial.state == states[end["state"]]
        assert trial.value == (None if end["state"] == State.FAILED else end["score"])
        assert trial.params == pytest.approx(end["params"])
        assert trial.user_attrs.get("reason") == end["reason"]
        assert trial.user_attrs["config_id"] == end["config_id"]
        scores = {
            e["epoch"]: e["score"]
            for e in journal_lines(directory / JOURNAL)
            if e["event"] == "epoch" and e["key"] == end["key"]
        }
        assert trial.intermediate_values == pytest.approx(scores)
        if end["state"] == State.PRUNED:
            assert trial.user_attrs["step"] == trial.last_step == end["score_epoch"]


def test_the_optuna_copy_has_the_right_states_values_and_curves(tmp_path: Path) -> None:
    opened = open_study(tmp_path / "run", trials=14, confirm_top=1, confirm_seeds=1)
    drive(opened.cell, fail="t0003")
    opened.close()
    assert {end["state"] for end in outcomes(tmp_path / "run")} == {State.COMPLETE, State.PRUNED, State.FAILED}
    assert_mirrors(tmp_path / "run")


@pytest.mark.parametrize("kill_after", [4, 13, 30])
def test_the_optuna_copy_has_no_zombies_after_a_kill(tmp_path: Path, kill_after: int) -> None:
    opened = open_study(tmp_path / "run", trials=8, confirm_top=0)
    with pytest.raises(Killed):
        drive(opened.cell, concurrency=2, kill_after=kill_after)
    # The mirror stops somewhere behind the journal; what is open there is ended when the study goes on.
    opened.close()
    run_study(tmp_path / "run", resume=True, trials=8, confirm_top=0)
    assert_mirrors(tmp_path / "run")


def test_a_lost_optuna_copy_is_made_again_from_the_journal(tmp_path: Path) -> None:
    run_study(tmp_path / "run", trials=6, confirm_top=0)
    (tmp_path / "run" / "optuna.journal").unlink()
    run_study(tmp_path / "run", resume=True, trials=6, confirm_top=0)
    assert_mirrors(tmp_path / "run")


def test_the_optuna_copy_can_be_a_database(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path}/studies.db"
    run_study(tmp_path / "run", trials=4, confirm_top=0, storage=address)
    assert_mirrors(tmp_path / "run", address)


def test_a_storage_that_fails_is_told_once_and_the_study_goes_on(tmp_path: Path) -> None:
    opened = open_study(tmp_path / "run", trials=3, confirm_top=0, storage="sqlite:////nowhere/at/all.db")
    drive(opened.cell)
    opened.close()
    assert len(outcomes(tmp_path / "run")) == 5
    (warning,) = opened.warnings
    assert "Optuna storage is no longer written" in warning


@pytest.mark.parametrize(
    "address",
    ["nodriver://user:secret@host/name", "nodriver//user:secret@host", "nodriver://host/name?password=secret"],
)
def test_a_password_of_a_storage_stays_out_of_messages(tmp_path: Path, address: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_storage(tmp_path, address)
    assert "secret" not in str(caught.value) and "host" in str(caught.value)


def test_a_password_of_a_storage_stays_out_of_the_records_and_is_asked_for_again(tmp_path: Path) -> None:
    address = "nodriver://user:secret@host/name"
    run_study(tmp_path / "run", trials=2, confirm_top=0, storage=address)
    for path in (tmp_path / "run").rglob("*"):
        assert path.is_dir() or b"secret" not in path.read_bytes(), path
    recorded, _ = read_study(tmp_path / "run")
    with pytest.raises(UsageError, match="--storage must be given again"):
        with_storage(recorded, None)
    assert with_storage(recorded, address) == study(trials=2, confirm_top=0, storage=address)
    assert with_storage(recorded, "none") == study(trials=2, confirm_top=0)
    run_study(tmp_path / "run", resume=True, trials=3, confirm_top=0, storage=address)


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["/usr/bin/captune", "run", "--dataset", "folder:my photos"], "captune run --dataset 'folder:my photos'"),
        (["/x/captune/__main__.py", "run"], "captune run"),
        (["/usr/bin/captune", "run", "--storage", "postgresql://me:secret@host/db"],
         f"captune run --storage 'postgresql://me:{HIDDEN}@host/db'"),
        (["/usr/bin/captune", "run", "--storage=mysql://me:secret@host/db?password=secret"],
         f"captune run '--storage=mysql://me:{HIDDEN}@host/db?password={HIDDEN}'"),
        (["notebook.py"], None),
        ([], None),
    ],
)  # fmt: skip
def test_command_line_is_recorded_without_passwords(argv: list[str], shown: str | None) -> None:
    said = command_line(argv)
    assert (said and shlex.split(said)) == (shown and shlex.split(shown)) and "secret" not in str(said)


@pytest.mark.parametrize("kind", ["folder", "csv", "features"])
def test_a_study_of_a_relative_place_is_continued_from_any_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """From another one its images were not found, or others of the same name were taken in silence."""
    monkeypatch.chdir(tmp_path)
    given = TaskConfig.parse({"dataset": f"{kind}:photos", "paradigm": "ul"})
    assert given.dataset == f"{kind}:{tmp_path / 'photos'}"
    before, after = (
        StudyOpened(study={"task": {"dataset": name, "paradigm": "ul"}}) for name in (f"{kind}:photos", given.dataset)
    )
    assert not study_differences(before, after), "a study of an earlier captune is continued where it was begun"
    monkeypatch.chdir(tmp_path.parent)
    assert TaskConfig.parse(given.model_dump()).dataset == given.dataset
    assert study_differences(before, after)


@pytest.mark.parametrize(
    ("address", "recorded"),
    [("sqlite:///my.db", "sqlite:///{}/my.db"), ("sqlite:////my.db", "sqlite:////my.db"), ("sqlite://", "sqlite://"),
     ("postgresql://a@b/c", "postgresql://a@b/c")],
)  # fmt: skip
def test_the_file_of_a_database_is_recorded_so_that_it_is_found_from_any_working_directory(
    address: str, recorded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert study(storage=address).storage == recorded.format(tmp_path)
