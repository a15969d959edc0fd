"""What a study has used, in studies.csv and on its page: pauses are no part of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from synthetic import whole_study

from captune.records import JOURNAL, Journal, read_journal
from captune.records.events import SearchEnded, Started, StudyOpened
from captune.results.load import load_study
from captune.results.overview import studies_table
from captune.results.report import report_study


@pytest.mark.usefixtures("no_figures")
def test_what_was_spent_is_counted_over_resumes_and_told_on_the_page(tmp_path: Path) -> None:
    directory = whole_study(tmp_path / "digits-ul-cap", trials=4)
    events = read_journal(directory / JOURNAL)
    last = max(event.time or 0.0 for event in events)
    opening = next(event for event in events if isinstance(event, StudyOpened))
    ran = last - float(opening.time or 0.0)
    with Journal(directory / JOURNAL, durable=False) as journal:
        # An hour later it goes on for ten minutes, with a trial on half a GPU, until its budget is used.
        journal.append(replace(opening, time=last + 3600))
        journal.append(Started(key="t0000", gpus=0.5, time=last + 3600))
        journal.append(SearchEnded(reason="the time budget of 600 s", trials=99, time=last + 4200))
    (row,) = studies_table([load_study(directory)]).to_dict("records")
    assert row["spent_seconds"] == pytest.approx(ran + 600)
    assert row["wall_seconds"] == pytest.approx(ran + 4200)
    assert row["gpu_hours"] == pytest.approx(300 / 3600)
    assert row["ended_early"] == "the time budget of 600 s"
    report_study(directory)
    page = (directory / "report.html").read_text(encoding="utf-8")
    for words in ("of which it ran", "GPU hours", "the search ended early", "the time budget of 600 s"):
        assert words in page, words
