"""A study that is killed at any moment of its life and continued is the study that was never killed."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from captune import interruption
from captune.cli.studies import failures_told
from captune.errors import StudyError, UsageError
from captune.records import JOURNAL, ZERO_SHOT, Journal, State, atomic_write, read_journal
from captune.records.event import Event
from captune.records.events import Chosen, Finished, SealOpened, SearchEnded, StudyOpened
from captune.records.files import remove_leftovers, temporary_name
from captune.records.layout import PREDICTIONS, STUDY, trial_directory
from captune.results import plots, report
from captune.results.report import report_study
from captune.results.tables import WALL_CLOCK_COLUMNS
from captune.studies import running
from captune.studies.closing import choose_and_evaluate, close_study
from captune.studies.planning import Plan, plan_study
from captune.studies.running import Settings, run_studies
from captune.tuning.lock import is_running
from tests.journals import journal_lines
from tests.studies.lives import run_trials, search, settings
from tests.tuning.test_open_study import open_study, run_study

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a copy of the process")
_WALL_CLOCK = {
    "time", "seconds", "node", "memory_bytes", "gpu_memory_bytes", "begun", "gpu_hours", *WALL_CLOCK_COLUMNS,
}  # fmt: skip
_WRITING = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small real study with a choice and test metrics."""
    return search(tmp_path_factory.mktemp("closed") / "study", settings("ul", trials=2, confirm_seeds=2))


def said(directory: Path) -> list[dict[str, Any]]:
    """The events of a study but for clocks and for what is only about attempts."""
    lines = [line for line in journal_lines(directory / JOURNAL) if line["event"] not in ("study_opened", "started")]
    return [{name: value for name, value in line.items() if name not in _WALL_CLOCK} for line in lines]


def test_a_study_killed_between_any_two_events_of_its_closing_is_closed_as_if_it_had_not_been(
    closed: Path, tmp_path: Path
) -> None:
    """Between the choice and the opening of the seal too: every test metric was missing for ever after that."""
    lines = (closed / JOURNAL).read_bytes().splitlines(keepends=True)
    events = read_journal(closed / JOURNAL)
    last_trial = max(at for at, e in enumerate(events) if isinstance(e, Finished) and e.key.startswith("c"))
    kinds = {type(event) for event in events[last_trial + 1 :]}
    assert {Chosen, SealOpened} <= kinds and len(events) - last_trial > 10
    for cut in range(last_trial + 1, len(lines) + 1):
        directory = tmp_path / f"cut{cut}"
        shutil.copytree(closed, directory)
        (directory / JOURNAL).write_bytes(b"".join(lines[:cut]))
        choose_and_evaluate(directory)
        assert said(directory) == said(closed), f"killed after event {cut}"
        shutil.rmtree(directory)


def test_an_ensemble_that_was_only_planned_when_a_study_was_killed_is_averaged_when_it_goes_on(
    closed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was handed out as a trial of a method 'ensemble', which there is not, and failed for ever."""
    monkeypatch.setattr(report, "_figures", lambda runs, tables: {})
    shutil.copytree(closed, tmp_path / "study")
    lines = (closed / JOURNAL).read_bytes().splitlines(keepends=True)
    planned = [line.get("key") for line in journal_lines(closed / JOURNAL)].index("ensemble")
    (tmp_path / "study" / JOURNAL).write_bytes(b"".join(lines[: planned + 1]))
    life(plan_study(settings("ul", trials=2, confirm_seeds=2), tmp_path / "study"))
    assert said(tmp_path / "study") == said(closed)


def test_a_study_whose_zero_shot_reference_failed_is_closed_and_says_so(
    closed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the disk was full when it began: closing ended with "an error captune did not foresee", always."""
    monkeypatch.setattr(report, "_figures", lambda runs, tables: {})
    shutil.copytree(closed, tmp_path / "study", ignore=shutil.ignore_patterns(JOURNAL))
    (trial_directory(tmp_path / "study", ZERO_SHOT) / PREDICTIONS).unlink()
    events = read_journal(closed / JOURNAL)
    last_trial = max(at for at, e in enumerate(events) if isinstance(e, Finished) and e.key.startswith("c"))
    with Journal(tmp_path / "study" / JOURNAL) as journal:
        for event in events[: last_trial + 1]:
            failed = isinstance(event, Finished) and event.key == ZERO_SHOT
            journal.append(Finished(key=ZERO_SHOT, state=State.FAILED, reason="a full disk") if failed else event)
    record, _ = close_study(tmp_path / "study")
    assert record.choice is not None and record.sealed_opened
    told = failures_told(record)
    assert "1 × a full disk" in told[1] and told[-1].endswith("--retry-failed")


@pytest.mark.parametrize("key", [ZERO_SHOT, "c0-s1"])
def test_lost_predictions_are_told_before_anything_is_chosen_or_trained_without_them(
    closed: Path, tmp_path: Path, key: str
) -> None:
    """Lost seeds were left out of a new choice in silence; zero-shot's ended closing with a bare "no such file"."""
    place = tmp_path / "study"
    shutil.copytree(closed, place)
    shutil.rmtree(place / "trials" / key)
    trials = len(list((place / "trials").iterdir()))
    message = f"no trials/{key}/predictions.safetensors .* captune report "
    plan = plan_study(settings("ul", trials=3, confirm_seeds=2), place, resume=True)
    with pytest.raises(StudyError, match=message):
        run_studies([plan], Settings(resume=True))
    assert len(list((place / "trials").iterdir())) == trials
    lines = [line for line in read_journal(place / JOURNAL) if not isinstance(line, Chosen)]
    (place / JOURNAL).unlink()
    with Journal(place / JOURNAL) as journal:
        for event in lines:
            journal.append(event)
    with pytest.raises(StudyError, match=message):
        close_study(place)


def test_a_search_that_a_budget_ended_before_its_first_trial_is_not_told_to_have_failed(
    closed: Path, tmp_path: Path
) -> None:
    """It was "7 that all failed: no reason recorded", where seven references had finished."""
    events = read_journal(closed / JOURNAL)
    first = next(at for at, event in enumerate(events) if getattr(event, "key", "").startswith("t0"))
    with Journal(tmp_path / JOURNAL) as journal:
        for event in [*events[:first], SearchEnded(reason="the time budget of 1 s", trials=2, confirm=False)]:
            journal.append(event)
    with pytest.raises(StudyError, match=r"got none before the time budget of 1 s was used up .*--time-budget"):
        choose_and_evaluate(tmp_path)


def test_closing_a_closed_study_changes_nothing(closed: Path) -> None:
    before = (closed / JOURNAL).read_bytes()
    choose_and_evaluate(closed)
    assert (closed / JOURNAL).read_bytes() == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_study_killed_before_the_first_line_of_its_journal_is_begun_anew(tmp_path: Path, resume: bool) -> None:
    open_study(tmp_path / "run", trials=2, confirm_top=0).close()
    (tmp_path / "run" / JOURNAL).unlink()
    assert (tmp_path / "run" / STUDY).exists()
    # With other settings, too: nothing was done with the old ones.
    run_study(tmp_path / "run", resume=resume, trials=3, confirm_top=0)
    opened = [event for event in read_journal(tmp_path / "run" / JOURNAL) if isinstance(event, StudyOpened)]
    assert [event.study["trials"] for event in opened] == [3]


@pytest.mark.parametrize("content", [None, b"", b"00000000 {"])
def test_trials_without_a_journal_are_not_trained_again_in_silence(tmp_path: Path, content: bytes | None) -> None:
    run_study(tmp_path / "run", trials=2, confirm_top=0)
    trial_directory(tmp_path / "run", "t0000").mkdir(exist_ok=True)
    (tmp_path / "run" / JOURNAL).unlink()
    if content is not None:
        (tmp_path / "run" / JOURNAL).write_bytes(content)
    with pytest.raises(UsageError, match=r"Restore journal\.jsonl"):
        open_study(tmp_path / "run", resume=True, trials=2, confirm_top=0)


def _report(directory: Path, barrier: Any, results: Any) -> None:
    barrier.wait()
    try:
        results.put(len(report_study(directory)))
    except Exception:
        results.put(traceback.format_exc())


def test_reports_of_one_study_can_be_written_at_once(
    closed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One figure stands for all, which are written alike: drawing them three times is most of the time.
    def one(_: object, tables: report.Tables) -> dict[str, plots.Figure | None]:
        return {"study": plots.study_figure(tables["trials.csv"], tables["robustness.csv"])}

    monkeypatch.setattr(report, "_figures", one)
    shutil.copytree(closed, tmp_path / "study")
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(3), context.Queue()
    writers = [context.Process(target=_report, args=(tmp_path / "study", barrier, results)) for _ in range(3)]
    for writer in writers:
        writer.start()
    written = [results.get(timeout=300) for _ in writers]
    for writer in writers:
        writer.join()
    assert len(set(written)) == 1 and isinstance(written[0], int) and written[0] > 10, written
    assert not list((tmp_path / "study").glob(".*.part"))


def test_what_killed_processes_leave_is_removed_and_what_others_write_is_not(tmp_path: Path) -> None:
    dead = in_a_copy(lambda: os._exit(0))
    assert not is_running(dead)
    mine, own = temporary_name(tmp_path / "study.png"), tmp_path / "notes.part"
    old = tmp_path / f".probe.{dead}"
    theirs = mine.with_name(mine.name.replace(f"-{os.getpid()}-", f"-{dead}-"))
    elsewhere = mine.with_name(f".study.png.00000000-{dead}-00000000.part")
    for path in (mine, own, old, theirs, elsewhere):
        path.write_text("half of it")
    assert sorted(remove_leftovers(tmp_path)) == sorted([old, theirs])
    assert mine.exists() and own.exists() and elsewhere.exists(), "of this process, of the user, of another host"


def test_a_study_removes_leftovers_when_it_starts(tmp_path: Path) -> None:
    run_study(tmp_path / "run", trials=2, confirm_top=0)
    dead = in_a_copy(lambda: os._exit(0))
    places = [tmp_path / "run" / "report.html", trial_directory(tmp_path / "run", "t0000") / "checkpoint.safetensors"]
    for place in places:
        place.parent.mkdir(exist_ok=True)
        name = temporary_name(place)
        name.with_name(name.name.replace(f"-{os.getpid()}-", f"-{dead}-")).write_text("half of it")
    open_study(tmp_path / "run", resume=True, trials=2, confirm_top=0).close()
    assert not list((tmp_path / "run").rglob(".*.part"))


def test_atomic_writes_of_one_file_by_many_leave_one_whole_version(tmp_path: Path) -> None:
    texts = [str(number) * 200_000 for number in range(4)]
    copies = []
    for text in texts:
        copy = os.fork()
        if copy == 0:
            for _ in range(20):
                atomic_write(tmp_path / "file", text)
            os._exit(0)
        copies.append(copy)
    for copy in copies:
        os.waitpid(copy, 0)
    assert (tmp_path / "file").read_text() in texts
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# Struck at every file operation


def in_a_copy(work: Callable[[], object]) -> int:
    """Run something in a copy of this process to its end; the copy's process number.

    Raises:
        AssertionError: it failed (a strike, exit code 9, is no failure).
    """
    copy = os.fork()
    if copy == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])
    assert code in (0, 9), f"exit code {code}"
    return copy


def strike_at(directory: Path, number: int | None, log: Path, with_signal: int = signal.SIGKILL) -> None:
    """From here on end this process, as SIGKILL would, before file operation `number` below a directory.

    Any other signal is sent to the process.

    Operations are counted from 1: every opening to write, rename, removal and new folder (by Python's audit events),
    and every event that is written to the journal. What comes after one comes before the next.
    """
    count = 0
    root = str(directory)

    def operation(name: str, path: object) -> None:
        nonlocal count
        count += 1
        with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "w") as file:
            file.write(f"{count} {name} {path}\n")
        if count == number and with_signal != signal.SIGKILL:
            os.kill(os.getpid(), with_signal)
        elif count == number:
            os._exit(9)

    def audited(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _WRITING and event != "open":
            return
        path, *rest = arguments
        if not isinstance(path, (str, os.PathLike)) or not str(path).startswith(root):
            return
        flags = rest[1] if event == "open" and len(rest) > 1 and isinstance(rest[1], int) else 0
        if event != "open" or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            operation(event, path)

    append = Journal.append

    def appended(self: Journal, event: Event) -> Event:
        operation("journal", event.kind)
        return append(self, event)

    Journal.append = appended  # type: ignore[method-assign]
    sys.addaudithook(audited)


def life(plan: Plan, strike: int | None = None, log: Path | None = None) -> None:
    """A study from its opening to its report, struck or not."""
    if log is not None:
        strike_at(plan.directory, strike, log)
    opened = run_trials(plan, resume=True)
    opened.settle()
    close_study(plan.directory)
    opened.close()


def came_to(directory: Path) -> dict[str, Any]:
    """What a study left: its files, and what is in those that do not tell the time."""
    files = sorted(path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    found: dict[str, Any] = {"files": [str(path) for path in files], "events": said(directory)}
    for path in files:
        if path.suffix == ".csv":
            table = pd.read_csv(directory / path)
            kept = [name for name in table.columns if name not in _WALL_CLOCK and not name.endswith("seconds")]
            found[str(path)] = table[kept].to_csv()
        elif path.suffix in (".safetensors", ".yaml") and path.name != STUDY:
            found[str(path)] = (directory / path).read_bytes()
    return found


def test_a_signal_at_any_file_operation_of_the_opening_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that came while a study was made left its folder behind, which the next command refused."""
    below, log = tmp_path / "runs", tmp_path / "operations.txt"
    plans = [plan_study(settings("ul", trials=2, seed=seed), below / str(seed)) for seed in (0, 1)]

    def interrupted_when_open(*_: object) -> bool:
        with log.open("a") as file:
            file.write("open\n")
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "_run_on_ray", interrupted_when_open)

    def begin(moment: int | None) -> None:
        with pytest.raises(KeyboardInterrupt), interruption.handled():
            strike_at(below, moment, log, signal.SIGTERM)
            running.run_studies(plans, running.Settings())

    in_a_copy(lambda: begin(None))
    assert not below.exists()
    operations = log.read_text().splitlines()
    operations = operations[: operations.index("open")]
    assert sum("journal study_opened" in line for line in operations) == 2
    moments = range(1, len(operations) + 1, 3)
    heard = 0
    for moment in moments:
        log.unlink()
        in_a_copy(lambda moment=moment: begin(moment))  # type: ignore[misc]
        assert not below.exists(), operations[moment - 1]
        heard += "open" not in log.read_text().splitlines()
    # Not all: the thread of the Optuna copy writes sooner or later.
    assert heard > 0.5 * len(moments)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_study_struck_before_and_after_every_file_operation_ends_as_the_one_never_struck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Figures are left out, which are written as tables are.

    CAPTUNE_STRIKES=2/5 strikes at every fifth operation from the second on, so that five runs make the whole.
    """
    monkeypatch.setattr(report, "_figures", lambda runs, tables: {})
    study = settings("ul", trials=2, confirm_top=1, confirm_seeds=1)
    plan = plan_study(study, tmp_path / "study")
    life(plan)  # what a process needs only once is there now, for all copies
    expected = came_to(plan.directory)
    shutil.rmtree(plan.directory)
    log = tmp_path / "operations.txt"
    in_a_copy(lambda: life(plan, None, log))
    assert came_to(plan.directory) == expected, "two studies that nobody struck"
    operations = log.read_text().splitlines()
    moments = list(range(1, len(operations) + 1))
    if piece := os.environ.get("CAPTUNE_STRIKES"):
        first, _, pieces = piece.partition("/")
        moments = moments[int(first) - 1 :: int(pieces)]
    struck = 0
    for moment in moments:
        shutil.rmtree(plan.directory)
        log.unlink()
        in_a_copy(lambda moment=moment: life(plan, moment, log))  # type: ignore[misc]
        struck += len(log.read_text().splitlines()) == moment
        in_a_copy(lambda: life(plan))
        assert came_to(plan.directory) == expected, operations[moment - 1]
    with capfd.disabled():
        print(f"\n{struck} strikes at {len(moments)} of {len(operations)} file operations: all equal")
    # Not all: the number of operations varies with what the thread of the Optuna copy has written so far.
    assert struck > 0.75 * len(moments)
