"""Close a study in one of Ray's processes while others still train, so that the driver can keep handing out trials."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from captune.errors import StudyError
from captune.records import StudyRecord
from captune.tuning.budget import CLOSING_SECONDS
from captune.tuning.nodes import Answer, start_here
from captune.tuning.open_study import OpenStudy

Closed = tuple[StudyRecord, list[Path]]
_EVERY_SECONDS = 1.0
# Closing a study takes a process of about 0.8 GB beside those that train, and many studies can end at once.
AT_ONCE = max(2, min((os.cpu_count() or 2) // 2, 8))
# Writing the page of several studies reads all their records, which takes seconds, or minutes where there are many.
# It is therefore renewed at most once a minute, and takes at most a tenth of the time.
_PAGE_SECONDS = 60.0
_PAGE_SHARE = 0.1


class BackgroundClosing:
    """Closes each study as its last trial ends.

    Args:
        studies: all that the driver runs; each keeps its lock until the driver ends.
        closed: called with each closed study and the files of its report.
        together: path of the page of all closed studies, renewed at most once a minute; None: there is no such page.
            The caller writes its final version once all studies have ended.

    Attributes:
        records: the closed studies, by directory.
        failures: why a study could not be closed, by directory.
    """

    def __init__(
        self,
        studies: Sequence[OpenStudy],
        closed: Callable[[StudyRecord, Sequence[Path]], None],
        together: Path | None = None,
    ) -> None:
        self._studies = list(studies)
        self._closed = closed
        self._together = together
        self._page: Answer[list[Path]] | None = None
        self._page_begun, self._page_shows, self._page_pause = float("-inf"), 0, _PAGE_SECONDS
        self._running: dict[Path, Answer[Closed]] = {}
        self._began: dict[Path, float] = {}
        self._took: list[float] = []
        self._looked = 0.0
        self.records: dict[Path, StudyRecord] = {}
        self.failures: dict[Path, StudyError] = {}

    def look(self) -> None:
        """Start to close studies that have ended, and collect closed ones. Called in every iteration of Ray's loop."""
        if time.monotonic() - self._looked < _EVERY_SECONDS:
            return
        self._looked = time.monotonic()
        for directory, answer in list(self._running.items()):
            if answer.ready():
                self._take(directory, answer)
        self._begin()
        self._renew_page()

    def seconds_left(self) -> float:
        """Seconds until the remaining reports and the common one are written, if each takes as long as the longest."""
        done = {*self.records, *self.failures}
        reports = 1 + sum(one.directory not in done and one.cell.unable is None for one in self._studies)
        now = time.monotonic()
        running = [now - self._began[directory] for directory in self._running]
        return max([*(self._took or [CLOSING_SECONDS]), *running]) * max(1, reports / AT_ONCE)

    def wait(self, *, begin: bool = True) -> None:
        """Wait for the closings that have begun; with `begin`, also close all other studies that have ended."""
        while self._running:
            directory = next(iter(self._running))
            self._take(directory, self._running[directory])
            if begin:
                self._begin()
        if self._page is not None:
            self._take_page(self._page)

    def _begin(self) -> None:
        """Start to close studies that have ended; at most AT_ONCE are closed at the same time."""
        ended = (one for one in self._studies if one.cell.finished and one.cell.unable is None)
        for opened in [one for one in ended if not self._begun(one.directory)][: AT_ONCE - len(self._running)]:
            # Imported only now, because it needs PyTorch.
            from captune.studies.closing import close_study

            opened.settle()
            self._began[opened.directory] = time.monotonic()
            self._running[opened.directory] = start_here(close_study, opened.directory)

    def _renew_page(self) -> None:
        if self._page is not None:
            if self._page.ready():
                self._take_page(self._page)
            return
        new = len(self.records) > max(1, self._page_shows)
        if self._together is not None and new and time.monotonic() - self._page_begun >= self._page_pause:
            from captune.results.report import report_studies

            self._page_begun, self._page_shows = time.monotonic(), len(self.records)
            self._page = start_here(report_studies, list(self.records), self._together)

    def _take_page(self, page: Answer[list[Path]]) -> None:
        self._page = None
        self._page_pause = max(_PAGE_SECONDS, (time.monotonic() - self._page_begun) / _PAGE_SHARE)
        # An error that persists is reported when the final version is written.
        with contextlib.suppress(Exception):
            page.get()

    def _begun(self, directory: Path) -> bool:
        return directory in self._running or directory in self.records or directory in self.failures

    def _take(self, directory: Path, answer: Answer[Closed]) -> None:
        del self._running[directory]
        try:
            record, files = answer.get()
        except StudyError as error:
            self.failures[directory] = error
        else:
            self._took.append(time.monotonic() - self._began[directory])
            self.records[directory] = record
            self._closed(record, files)
