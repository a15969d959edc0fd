"""A study as its journal tells it: the one place where events become a state.

A driver applies each event as it writes it, a resumed driver applies the events on disk, and tables and figures are
made from the same state. So all of them agree on what a study is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from captune.records.enums import Phase, Role, State
from captune.records.event import Event
from captune.records.events import (
    Chosen,
    Crashed,
    DataNotes,
    Epoch,
    Finished,
    GivenUp,
    Mismatch,
    Other,
    PhaseBegun,
    Planned,
    Preempted,
    Prepared,
    Reported,
    Retried,
    SealOpened,
    SearchEnded,
    Settled,
    Started,
    StudyOpened,
    WarmStarts,
)
from captune.records.trial import Trial
from captune.records.usage import Usage

ZERO_SHOT, BALANCED, ANCHORED, TEXT_MIXTURE, TRANSCLIP, PROBE = (
    "zero_shot", "balanced", "anchored", "text_mixture", "transclip", "probe"
)  # fmt: skip
REFERENCES = (ZERO_SHOT, BALANCED, ANCHORED, TEXT_MIXTURE, TRANSCLIP, PROBE)
"""What competes in every study without being trained:

- zero_shot: the frozen model;
- balanced: its predictions, half-way balanced over the classes;
- anchored: a Gaussian mixture that stays near the class texts;
- text_mixture: one that follows the images further;
- transclip: TransCLIP, a mixture on a graph of images;
- probe, where images are labelled: a linear probe from these alone, which shows what the pool was worth.

The exam of the advice found no better set at this cost (analysis/measurements/advice_exam.md)."""
ENSEMBLE = "ensemble"
"""Key of the mean of several candidates."""
_PHASES = tuple(Phase)
_REFERENCES = {name: place for place, name in enumerate((*REFERENCES, ENSEMBLE))}


def is_against_zero_shot(scores: Mapping[str, float | None]) -> bool:
    """True if scores are differences to zero-shot's; older studies stored fractions."""
    return scores.get(ZERO_SHOT) == 0


class StudyRecord:
    """Everything a study's journal says.

    Two records are equal only if they are the same object, so that what is costly to compute can be cached by record.

    Attributes:
        directory: the study's directory.
        name: how tables call the study; the directory's name unless two share it.
        by_key: its trials in the order in which they were planned.
        first_opened, opened: the first and the last opening (a study that goes on is opened again, perhaps with more
            trials); empty where the journal has none.
        num_openings, num_events: how often it was opened, and how many events its journal has.
        phase: the phase that was begun last.
        given_up: why it was given up.
        warm_starts: what the study before this one found.
        usage: time and GPU hours it has used.
        prepared: images that nodes decoded and encoded for it.
        search_ended: why its search ended before its last trial, if it did.
        choice, mismatch, settled: the last event of each kind.
        settled_at: place of the last `settled` event in the journal, from 1; 0 without one.
        sealed_opened: whether test labels may have been read; before that no metric may be shown.
        unplanned: keys of trials whose plan is missing from the journal.
        others: lines that this captune does not know.
        last_time: time of the last event (Unix seconds).
        notes: sentences on what the record does not support (filled in by `captune.results.load`).
    """

    def __init__(self, directory: Path, events: Iterable[Event] = ()) -> None:
        self.directory = directory
        self.name = directory.resolve().name
        self.by_key: dict[str, Trial] = {}
        self.first_opened = self.opened = StudyOpened(schema=None)
        self.num_openings = 0
        self.num_events = 0
        self.phase: Phase | None = None
        self.given_up: str | None = None
        self.warm_starts: WarmStarts | None = None
        self.usage = Usage()
        self.prepared: list[Prepared] = []
        self.search_ended: SearchEnded | None = None
        self.choice: Chosen | None = None
        self._choice_at = 0
        self.settled_at = 0
        self._ended_at = 0
        self.mismatch: Mismatch | None = None
        self.data_notes: DataNotes | None = None
        self.settled: Settled | None = None
        self.sealed_opened = False
        self.unplanned: list[str] = []
        self.others: list[Other] = []
        self.last_time = 0.0
        self.notes: tuple[str, ...] = ()
        self._ordered: tuple[Trial, ...] | None = None
        for event in events:
            self.apply(event)

    def apply(self, event: Event) -> Trial | None:
        """Take in an event; returns the trial that it is about."""
        self.last_time = max(self.last_time, event.time or 0.0)
        self.num_events += 1
        self.usage.apply(event)
        if isinstance(event, Planned):
            self._ordered = None
            trial = self.by_key[event.key] = Trial.from_plan(event)
            return trial
        if isinstance(event, (Epoch, Started, Finished, Retried, Reported, Crashed, Preempted)):
            trial = self._trial(event.key)
            trial.apply(event)
            if isinstance(event, Finished):
                trial.ended_at = self._ended_at = self.num_events
            return trial
        self._apply_to_study(event)
        return None

    def _apply_to_study(self, event: Event) -> None:
        if isinstance(event, StudyOpened):
            self.first_opened = event if not self.num_openings else self.first_opened
            self.num_openings += 1
            self.given_up = None
            self.opened = event
        elif isinstance(event, PhaseBegun):
            self.phase = event.name
        elif isinstance(event, GivenUp):
            self.given_up = event.reason or "no reason recorded"
        elif isinstance(event, WarmStarts):
            self.warm_starts = event
        elif isinstance(event, Prepared):
            self.prepared.append(event)
        elif isinstance(event, SearchEnded):
            self.search_ended = event if event.reason is not None else None
        elif isinstance(event, Settled):
            self._settle(event)
        elif isinstance(event, Chosen):
            self.choice, self._choice_at = event, self.num_events
        elif isinstance(event, SealOpened):
            self.sealed_opened = True
        elif isinstance(event, Mismatch):
            self.mismatch = event
        elif isinstance(event, DataNotes):
            self.data_notes = event
        elif isinstance(event, Other):
            self.others.append(event)

    def _trial(self, key: str) -> Trial:
        if key not in self.by_key:
            self.unplanned.append(key)
            self._ordered = None
            self.by_key[key] = Trial.from_key(key)
        return self.by_key[key]

    def _settle(self, event: Settled) -> None:
        self.settled, self.settled_at = event, self.num_events
        for key, value in event.scores.items():
            trial = self.by_key.get(key)
            if trial is not None:
                trial.scores[event.criterion] = value
                if self.select_by == event.criterion and trial.score is not None:
                    trial.score = value

    # What it is about

    @property
    def first_origin(self) -> str:
        """What the configuration is that the search began with: "paper" under `--preset paper`, else "default"."""
        return "paper" if self.settings.get("preset") == "paper" else "default"

    def origin_of(self, trial: Trial) -> str | None:
        """Where a trial's configuration came from, in today's words."""
        return self.first_origin if trial.starts_search else trial.origin

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the study, the fields of `StudyConfig`."""
        return self.opened.study

    @property
    def task(self) -> dict[str, Any]:
        """The settings of the cell, the fields of `TaskConfig`."""
        task = self.settings.get("task")
        return task if isinstance(task, dict) else {}

    @property
    def dataset(self) -> str:
        """Catalogue key of the dataset."""
        return str(self.task.get("dataset", "unknown"))

    @property
    def paradigm(self) -> str:
        """ul, ssl, trzsl or tft."""
        return str(self.task.get("paradigm", "unknown"))

    @property
    def method(self) -> str:
        """The method that was searched."""
        return str(self.settings.get("method", "unknown"))

    @property
    def metric_name(self) -> str:
        """What the report metric is: accuracy, or harmonic mean for trzsl."""
        default = "harmonic_mean" if self.paradigm == "trzsl" else "accuracy"
        return self.opened.metric_name or default

    @property
    def select_by(self) -> str:
        """The criterion behind the selection score."""
        return str(self.opened.select_by or self.settings.get("select_by") or "unknown")

    @property
    def space(self) -> dict[str, Any]:
        """The search space as the study resolved it."""
        return self.opened.space

    # Its trials

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All trials in the order of the tables: by what a trial is, not by when it was run.

        So a resumed study gives the same order as an uninterrupted one.
        """
        if self._ordered is None:
            self._ordered = tuple(sorted(self.by_key.values(), key=_table_order))
        return self._ordered

    @property
    def measurable(self) -> bool:
        """Whether any test image has a label; unknown, and so assumed, until a report was written."""
        reports = [trial.report for trial in self.by_key.values() if trial.report is not None]
        return not reports or any(report.get("num_test") != 0 for report in reports)

    def of_phase(self, phase: Phase) -> list[Trial]:
        """The trials of one phase, in the order of the tables."""
        return [trial for trial in self.trials if trial.phase == phase]

    def find(self, key: str) -> Trial | None:
        """The trial with this key, if there is one."""
        return self.by_key.get(key)

    def configurations(self) -> dict[str, list[Trial]]:
        """Confirmation trials by the name of their configuration (`c7`), both roles together, by seed."""
        groups: dict[str, list[Trial]] = {}
        for trial in self.of_phase(Phase.CONFIRM):
            groups.setdefault(trial.name, []).append(trial)
        return groups

    @property
    def closed(self) -> bool:
        """Whether the study has chosen and its test labels were read, and no trial has ended since."""
        return self.sealed_opened and self.choice_is_current

    @property
    def advises_nothing(self) -> bool:
        """Whether the study has not chosen, and no trial of its search has ended by which it could."""
        return self.choice is None and not any(trial.ended for trial in self.of_phase(Phase.SEARCH))

    @property
    def choice_is_current(self) -> bool:
        """Whether no trial has ended since the choice."""
        return self._choice_at > self._ended_at

    @property
    def choice_covers_confirmation(self) -> bool:
        """Whether no candidate has ended since the choice; stress trials are not candidates."""
        ended = [trial.ended_at for trial in self.by_key.values() if trial.phase is not Phase.STRESS]
        return self._choice_at > max(ended, default=0)

    def complete(self) -> list[Trial]:
        """The trials that ran to their end, in the order of the tables."""
        return [trial for trial in self.trials if trial.state is State.COMPLETE]


def _table_order(trial: Trial) -> tuple[Any, ...]:
    return (
        _PHASES.index(trial.phase),
        _REFERENCES.get(trial.key, 9) if trial.phase is Phase.REFERENCE else 0,
        trial.number if trial.number is not None else 0,
        trial.config_id if trial.config_id is not None else 0,
        trial.name,
        trial.role is Role.REPORT,
        -1 if trial.seed is None else trial.seed,
        trial.key,
    )
