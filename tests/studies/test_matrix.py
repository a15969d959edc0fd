"""Several studies by one command: each concludes as it ends, while the others go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from captune.config import StudyConfig, TaskConfig
from captune.records import JOURNAL, StudyRecord, read_journal
from captune.records.events import Chosen, Epoch, Reported
from captune.studies import closing_in_background
from captune.studies.planning import plan_study
from captune.studies.running import Settings, Watcher, run_studies
from captune.tuning.cell import Cell


class Looker(Watcher):
    """Notes what was there of the other studies when one was closed."""

    def __init__(self, page: Path) -> None:
        self.page = page
        self.cells: Sequence[Cell] = ()
        self.closed_beside: dict[str, list[str]] = {}
        self.page_beside: list[str] = []

    @contextmanager
    def watching(self, cells: Sequence[Cell], **_: object) -> Iterator[Callable[[], None]]:
        self.cells = cells

        def look() -> None:
            if not self.page_beside and self.page.exists():
                self.page_beside = self.going_on()

        yield look

    def closed(self, record: StudyRecord, files: Sequence[Path]) -> None:
        assert record.directory / "report.html" in files
        self.closed_beside[record.directory.name] = self.going_on()

    def going_on(self) -> list[str]:
        return [cell.directory.name for cell in self.cells if not cell.finished]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_study_of_a_matrix_concludes_as_it_ends_while_a_long_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing_in_background, "_PAGE_SECONDS", 0.0)
    plans = []
    for name, paradigm, trials, epochs in (("long", "ul", 12, 60), ("short", "ul", 1, 2), ("other", "tft", 1, 2)):
        task = TaskConfig(dataset="digits", paradigm=paradigm, cache_dir=tmp_path / "store")
        fixed = {"tuning": "features", "epochs": epochs}
        study = StudyConfig(task=task, trials=trials, confirm_top=0, fixed=fixed, scheduler="none")
        plans.append(plan_study(study, tmp_path / name))
    looker = Looker(tmp_path / "report" / "report.html")
    records = run_studies(plans, Settings(dashboard=False, logger="none", concurrency=2), looker)
    assert [record.directory.name for record in records] == ["long", "short", "other"]
    assert looker.closed_beside == {"short": ["long"], "other": ["long"], "long": []}
    assert looker.page_beside == ["long"], "the page of all was there before the last study ended"
    events = {record.directory.name: read_journal(record.directory / JOURNAL) for record in records}
    last_epoch = max(event.time or 0.0 for event in events["long"] if isinstance(event, Epoch))
    for name in ("short", "other"):
        concluded = [event.time or 0.0 for event in events[name] if isinstance(event, (Chosen, Reported))]
        assert max(concluded) < last_epoch, "choice, seal and report came while the long one trained"
