"""What a run is once its journal is read: trials, epochs, phases, and what cannot be said about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captune.records import COMPLETE, CONFIRM

Event = dict[str, Any]
PLANNED = "PLANNED"
ZERO_SHOT, BALANCED, ENSEMBLE = "zero_shot", "balanced", "ensemble"


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch of one trial, as reported."""

    epoch: int
    fidelity: float | None
    score: float | None
    scores: dict[str, float]
    values: dict[str, Any]
    decision: str | None


@dataclass(frozen=True)
class TrialRecord:
    """One row of work: a reference, a screening or search trial, a confirmation or a stress run.

    `score` is the selection score, `gain_errors` the standard errors of gains over zero-shot (none in older
    journals), `report` the sealed metrics (None until the seal was opened); fractions in [0, 1].
    """

    key: str
    phase: str
    name: str
    number: int | None
    config_id: int | None
    origin: str | None
    promoted_from: str | None
    params: dict[str, Any]
    config: dict[str, Any]
    seed: int | None
    role: str
    task_overrides: dict[str, Any]
    state: str
    score: float | None
    score_epoch: int | None
    scores: dict[str, float]
    gain_errors: dict[str, float]
    fidelity: float | None
    num_parameters: int | None
    reason: str | None
    attempts: int
    preemptions: int
    seconds: float | None
    node: str | None
    started: float | None
    second_objective: float | None
    epochs: tuple[EpochRecord, ...]
    report: dict[str, Any] | None

    @property
    def finished(self) -> bool:
        """Whether the trial ran to its end with a score."""
        return self.state == COMPLETE and self.score is not None

    @property
    def metric(self) -> float | None:
        """The report metric on sealed labels, or None."""
        return number_or_none((self.report or {}).get("metric"))


@dataclass(frozen=True, eq=False)
class RunRecord:
    """Everything one run's journal says, and in `notes` what it cannot say.

    Compared by identity, so that what is costly to fit is fitted once a record.
    """

    directory: Path
    name: str
    study: dict[str, Any]
    opened: dict[str, Any]
    trials: tuple[TrialRecord, ...]
    phases: tuple[Event, ...]
    choice: dict[str, Any] | None
    notes: tuple[str, ...] = ()
    extras: dict[str, list[Event]] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        """Catalogue key of the dataset."""
        return str(self.study.get("task", {}).get("dataset", "unknown"))

    @property
    def paradigm(self) -> str:
        """ul, ssl, trzsl or tft."""
        return str(self.study.get("task", {}).get("paradigm", "unknown"))

    @property
    def method(self) -> str:
        """The method that was searched."""
        return str(self.study.get("method", "unknown"))

    @property
    def metric_name(self) -> str:
        """What the report metric is: accuracy, or harmonic mean for trzsl."""
        default = "harmonic_mean" if self.paradigm == "trzsl" else "accuracy"
        return str(self.opened.get("metric_name") or default)

    @property
    def select_by(self) -> str:
        """The criterion behind the selection score."""
        return str(self.opened.get("select_by") or self.study.get("select_by") or "unknown")

    @property
    def space(self) -> dict[str, Any]:
        """The search space as the study resolved it."""
        space = self.opened.get("space")
        return space if isinstance(space, dict) else {}

    @property
    def sealed_opened(self) -> bool:
        """Whether sealed labels were used; before that no metric may be shown."""
        return any(phase.get("name") == "sealed_opened" for phase in self.phases)

    @property
    def measurable(self) -> bool:
        """Whether any test image has a label; unknown, and so assumed, until a report was written."""
        reports = [trial.report for trial in self.trials if trial.report is not None]
        return not reports or any(report.get("num_test") != 0 for report in reports)

    def of_phase(self, phase: str) -> list[TrialRecord]:
        """The trials of one phase in table order."""
        return [trial for trial in self.trials if trial.phase == phase]

    def find(self, key: str) -> TrialRecord | None:
        """The trial with this key, if the journal knows it."""
        return next((trial for trial in self.trials if trial.key == key), None)

    def configurations(self) -> dict[str, list[TrialRecord]]:
        """Confirmation runs by configuration name (`c7`), score and report roles together, by seed."""
        groups: dict[str, list[TrialRecord]] = {}
        for trial in self.of_phase(CONFIRM):
            groups.setdefault(trial.name, []).append(trial)
        return groups


def number_or_none(value: Any) -> float | None:
    """A finite float, or None: what is not a number never becomes one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if value == value and abs(value) != float("inf") else None
