"""Each of several studies is closed as it ends, beside those that still train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from captune.errors import StudyError
from captune.results.report import report_studies
from captune.studies import closing_in_background as module
from captune.studies.closing_in_background import BackgroundClosing
from captune.tuning.budget import CLOSING_SECONDS


class Answer:
    """What `nodes.start_here` gives, without Ray: ends when the test says so."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work, self.ended = work, False

    def ready(self) -> bool:
        return self.ended

    def get(self) -> Any:
        return self.work()


class Cell:
    finished = False
    unable = None


class Study:
    """As much of an `OpenStudy` as closing needs."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.cell, self.settled = directory, Cell(), 0

    def settle(self) -> None:
        self.settled += 1


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[Path, Answer]:
    started: dict[Path, Answer] = {}

    def start_here(_work: Callable[..., Any], directory: Path) -> Answer:
        assert directory not in started, "a study is closed once"

        def close() -> Any:
            if directory.name == "broken":
                raise StudyError("a study must have finished trials")
            return f"record of {directory.name}", [directory / "report.html"]

        started[directory] = Answer(close)
        return started[directory]

    monkeypatch.setattr(module, "start_here", start_here)
    monkeypatch.setattr(module, "_EVERY_SECONDS", 0.0)
    monkeypatch.setattr(module, "AT_ONCE", 2)
    return started


def test_a_study_that_ends_is_closed_while_the_others_go_on(answers: dict[Path, Answer], tmp_path: Path) -> None:
    first, second = Study(tmp_path / "first"), Study(tmp_path / "second")
    told: list[Any] = []
    background = BackgroundClosing([first, second], lambda record, files: told.append((record, files)))  # type: ignore[list-item]
    background.look()
    assert not answers
    first.cell.finished = True
    background.look()
    background.look()
    assert list(answers) == [first.directory] and first.settled == 1 and second.settled == 0
    assert told == [], "its report is still being written, and nobody waits for it"
    answers[first.directory].ended = True
    background.look()
    assert told == [("record of first", [first.directory / "report.html"])]
    second.cell.finished = True
    background.look()
    background.wait()
    assert list(background.records) == [first.directory, second.directory]


def test_the_page_of_all_is_renewed_once_a_minute_at_most_and_only_for_studies_that_it_does_not_show(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pages: list[list[Path]] = []
    closing: dict[Path, Answer] = {}

    def start_here(work: Callable[..., Any], first: Any, *_: Any) -> Answer:
        if work is report_studies:
            pages.append(first)
            answer = Answer(list)
        else:
            answer = closing[first] = Answer(lambda: (first.name, []))
        answer.ended = True
        return answer

    clock = [1000.0]
    monkeypatch.setattr(module, "start_here", start_here)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    studies = [Study(tmp_path / name) for name in "abcd"]
    background = BackgroundClosing(studies, lambda _record, _files: None, tmp_path / "report")  # type: ignore[arg-type]

    def after(seconds: float, *ended: Study) -> int:
        for study in ended:
            study.cell.finished = True
        for _ in range(int(seconds)):
            clock[0] += 1.0
            background.look()
        return len(pages)

    assert after(9.0, studies[0]) == 0, "one study has a page of its own"
    assert after(9.0, studies[1]) == 1
    assert after(9.0, studies[2]) == 1, "a minute is not over"
    assert after(60.0) == 2 and pages[-1] == [study.directory for study in studies[:3]]
    assert after(600.0) == 2, "nothing new"
    assert after(60.0, studies[3]) == 3


def test_only_a_few_are_closed_at_once(answers: dict[Path, Answer], tmp_path: Path) -> None:
    studies = [Study(tmp_path / str(number)) for number in range(7)]
    for study in studies:
        study.cell.finished = True
    background = BackgroundClosing(studies, lambda *_: None)  # type: ignore[arg-type]
    background.look()
    background.look()
    assert list(answers) == [study.directory for study in studies[:2]]
    answers[studies[1].directory].ended = True
    background.look()
    assert len(answers) == 3 and len(background.records) == 1
    background.wait(begin=False)
    assert len(answers) == len(background.records) == 3, "an interrupted study closes no further one"
    background.look()
    background.wait()
    assert list(background.records) == [study.directory for study in (studies[1], studies[0], *studies[2:])]


def test_a_study_that_cannot_be_closed_keeps_its_reason_and_stops_no_other(
    answers: dict[Path, Answer], tmp_path: Path
) -> None:
    broken, fine = Study(tmp_path / "broken"), Study(tmp_path / "fine")
    broken.cell.finished = fine.cell.finished = True
    background = BackgroundClosing([broken, fine], lambda _record, _files: None)  # type: ignore[list-item]
    background.look()
    background.wait()
    assert list(background.failures) == [broken.directory] and list(background.records) == [fine.directory]
    assert len(answers) == 2


def test_what_closing_takes_is_measured(
    answers: dict[Path, Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Study(tmp_path / "first"), Study(tmp_path / "second")
    background = BackgroundClosing([first, second], lambda *_: None)  # type: ignore[list-item]
    assert background.seconds_left() == 1.5 * CLOSING_SECONDS, "two studies and the report of both, two at once"
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    first.cell.finished = True
    background.look()
    now += CLOSING_SECONDS + 12.0
    assert background.seconds_left() == 1.5 * (CLOSING_SECONDS + 12.0), "one that runs already takes longer"
    answers[first.directory].ended = True
    now += 3.0
    background.look()
    assert background.seconds_left() == CLOSING_SECONDS + 15.0


def test_a_page_that_takes_long_is_renewed_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[Answer] = []
    clock = [1000.0]

    def start_here(_work: Callable[..., Any], first: Any, *_: Any) -> Answer:
        answer = Answer(lambda: (str(first), []))
        if isinstance(first, list):
            pages.append(answer)
        else:
            answer.ended = True
        return answer

    monkeypatch.setattr(module, "start_here", start_here)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    studies = [Study(tmp_path / name) for name in "abcd"]
    background = BackgroundClosing(studies, lambda _record, _files: None, tmp_path / "report")  # type: ignore[arg-type]

    def look(seconds: float, *ended: Study) -> int:
        for study in ended:
            study.cell.finished = True
        clock[0] += seconds
        background.look()
        clock[0] += 1.0
        background.look()
        return len(pages)

    assert look(1.0, *studies[:2]) == 1
    pages[0].ended = True
    assert look(30.0, studies[2]) == 1
    assert look(120.0, studies[3]) == 1, "it took half a minute, so it rests for five"
    assert look(300.0) == 2
