"""What a study writes down: one frozen class for each kind of event in its journal.

`as_json` gives the line of the journal and `from_json` reads it back. Reading is lenient, because journals are also
read after a crash, a manual edit or an upgrade: a number that is not a finite number becomes None, a field that is
missing gets its default, and a line that fits no class becomes `Other`. Nothing here reads or writes a file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from captune.records.enums import Phase, Role, State
from captune.records.event import Event
from captune.records.lenient import number_or_none

SCHEMA_VERSION = 2
"""Of the journal. `captune.records.lines.upgrade` says what changed since 1 (captune 0.1)."""


@dataclass(frozen=True, kw_only=True)
class StudyOpened(Event):
    """A study begins, or goes on: then its last opening counts, for it may have got more trials.

    Attributes:
        schema: of the journal.
        study_id: drawn once when the study begins.
        cell: name of the cell, `<dataset>-<paradigm>-<method>`.
        study: its settings, the fields of `StudyConfig`.
        space: the search space as it was resolved for the cell, by parameter.
        base: the method's first configuration for the cell: its default or, under `--preset paper`, the published one.
        screen: `space` and `base` of the screening trials, or null.
        select_by, criterion_help: the criterion of the search and what it measures.
        metric_name: what is reported on the test images.
        num_pool, num_test, num_scored: images in the pool, in the test set, and behind the selection score.
        num_references: trials without training beside the search.
        both_roles: whether confirmed configurations are also trained in the role "report".
        notes: what a reader of the numbers should know of the model, in sentences.
        warm_starts, after: configurations tried first, or the study next to this one whose best are.
        versions, git, host, machine: what ran it.
        command: the command line that opened it, without passwords; null where it was opened from Python.
    """

    kind: ClassVar[str] = "study_opened"
    schema: int | None = SCHEMA_VERSION
    study_id: str | None = None
    cell: str | None = None
    study: dict[str, Any] = field(default_factory=dict)
    space: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=dict)
    screen: dict[str, Any] | None = None
    metric_name: str | None = None
    select_by: str | None = None
    criterion_help: str | None = None
    num_classes: int | None = None
    class_names: tuple[str, ...] = ()
    num_pool: int | None = None
    num_scored: int | None = None
    num_references: int | None = None
    both_roles: bool = False
    num_test: int | None = None
    notes: tuple[str, ...] = ()
    versions: dict[str, Any] = field(default_factory=dict)
    git: str | None = None
    host: str | None = None
    machine: str | None = None
    command: str | None = None
    warm_starts: tuple[dict[str, Any], ...] = ()
    after: str | None = None


@dataclass(frozen=True, kw_only=True)
class PhaseBegun(Event):
    """A phase begins."""

    kind: ClassVar[str] = "phase"
    name: Phase


@dataclass(frozen=True, kw_only=True)
class GivenUp(Event):
    """The study is given up, because its first trials all failed."""

    kind: ClassVar[str] = "given_up"
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class WarmStarts(Event):
    """What the study before this one found (`--warm-start cells`); written once, before the search begins."""

    kind: ClassVar[str] = "warm_starts"
    configs: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Prepared(Event):
    """A node has decoded and encoded images of the study's dataset; trials of all studies on that node share them.

    Written to the journal of the one study they were made for, and only if something had to be made.

    Attributes:
        node: which one.
        decoded: images decoded into its store.
        encoded: images whose frozen features were computed.
        seconds: opening dataset and backbone included.
    """

    kind: ClassVar[str] = "prepared"
    node: str | None = None
    decoded: int | None = None
    encoded: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class SearchEnded(Event):
    """The search ended early or, where `reason` is null, was reopened.

    Attributes:
        reason: why it ended; null: it was reopened.
        trials: how many it would have had.
        confirm: whether its best configurations are still confirmed.
    """

    kind: ClassVar[str] = "search_ended"
    reason: str | None = None
    trials: int | None = None
    confirm: bool = True


@dataclass(frozen=True, kw_only=True)
class Planned(Event):
    """A trial is to be run.

    Attributes:
        key: its name in this study, and that of its directory.
        number: its place in the search or in the screen.
        config_id: the search number of its configuration.
        origin: where the configuration comes from: default (the method's), paper (the preset's), warm_start, screen,
            sampler, walk (of all points of a small space), plateau, reference, ensemble.
        params: the searched values.
        config: all settings of the trial.
        task_overrides: how the cell is changed for a stress trial.
        promoted_from: key of the screening trial it comes from.
    """

    kind: ClassVar[str] = "planned"
    key: str
    phase: Phase
    number: int | None = None
    config_id: int | None = None
    origin: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    role: Role = Role.SCORE
    method: str | None = None
    task_overrides: dict[str, Any] = field(default_factory=dict)
    promoted_from: str | None = None


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """A worker begins a trial or goes on with it; `attempt` counts from 1, `gpus` is its share of them."""

    kind: ClassVar[str] = "started"
    key: str
    node: str | None = None
    attempt: int | None = None
    gpus: float | None = None


@dataclass(frozen=True, kw_only=True)
class Epoch(Event):
    """A trial has trained an epoch.

    Attributes:
        epoch: from 1.
        fidelity: share of the trial's epochs that are done.
        score: the selection score, measured on some of the held-out images.
        scores: by criterion.
        decision: of the scheduler, continue or stop.
        values: everything else a trial reports of an epoch, in the journal beside the other fields; `EPOCH_VALUES`
            explains the usual ones.
    """

    kind: ClassVar[str] = "epoch"
    key: str
    epoch: int
    fidelity: float | None = None
    score: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    decision: str | None = None
    values: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The event as the journal holds it."""
        own = super().as_json()
        last = {name: own.pop(name) for name in ("decision", "time")}
        return own | own.pop("values") | last

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The event that `as_json` wrote."""
        event = super().from_json(values)
        event.__dict__["values"] = {name: value for name, value in values.items() if name not in _EPOCH_OWN}
        return event

    @property
    def seconds(self) -> float:
        """How long the epoch took."""
        return number_or_none(self.values.get("seconds")) or 0.0

    @property
    def memory_bytes(self) -> int:
        """Peak memory of the process that trained it."""
        return int(number_or_none(self.values.get("memory_bytes")) or 0)


_EPOCH_OWN = {"event", "key", "epoch", "fidelity", "score", "scores", "decision", "time"}


@dataclass(frozen=True, kw_only=True)
class Crashed(Event):
    """The process of a trial died; the trial is tried again up to `max_failures` times."""

    kind: ClassVar[str] = "crashed"
    key: str
    node: str | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Preempted(Event):
    """The node of a trial went away; the trial is tried again, and this does not count as a failure."""

    kind: ClassVar[str] = "preempted"
    key: str
    node: str | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Finished(Event):
    """A trial has ended.

    Attributes:
        state: COMPLETE, PRUNED or FAILED.
        score, scores: the selection score and all criteria, measured on every held-out image.
        gain_errors: standard errors of gains over zero-shot, by criterion.
        score_epoch: the epoch after which the score was measured.
        fidelity: share of the trial's epochs that were trained.
        seconds: training and final evaluation.
        reason, traceback: why it was stopped or failed.
        num_parameters: learned numbers.
        prediction_balance: normalised entropy of the predicted classes on the held-out images.
    """

    kind: ClassVar[str] = "finished"
    key: str
    state: State
    score: float | None = None
    score_epoch: int | None = None
    scores: dict[str, float] = field(default_factory=dict)
    gain_errors: dict[str, float] = field(default_factory=dict)
    fidelity: float | None = None
    seconds: float | None = None
    node: str | None = None
    reason: str | None = None
    traceback: str | None = None
    num_parameters: int | None = None
    prediction_balance: float | None = None


@dataclass(frozen=True, kw_only=True)
class Retried(Event):
    """A failed trial is handed out again, because the user asked for it (`--retry-failed`)."""

    kind: ClassVar[str] = "retried"
    key: str


@dataclass(frozen=True, kw_only=True)
class Settled(Event):
    """Scores that are only known once all trials have ended; they replace those given at each trial's end.

    Attributes:
        criterion: which one (ensv, the vote of all candidates).
        scores: by trial.
    """

    kind: ClassVar[str] = "settled"
    criterion: str
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Mismatch(Event):
    """Class names that concept-mismatch detection flags on the whole pool; no label is read for it.

    Attributes:
        mismatched: class indices, or null where the pool is too large to do this in passing.
        reason: why it is null.
    """

    kind: ClassVar[str] = "mismatch"
    mismatched: tuple[int, ...] | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class DataNotes(Event):
    """What only the opened weights and the decoded images tell; no label is read for it.

    Attributes:
        notes: how the weights were read, what was assumed of them, unreadable images; in sentences.
        near_duplicates: `count` of `num_test` test images whose frozen features have a cosine of `threshold` or more
            with a training image's, and the ten `closest` (`test`, `train`, `cosine`); null where none was looked for.
    """

    kind: ClassVar[str] = "data_notes"
    notes: tuple[str, ...] = ()
    near_duplicates: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Chosen(Event):
    """The study has chosen; no test label entered the choice, except with `--select-by oracle`.

    Attributes:
        advice: what to do, in words.
        name: the candidate that the advice is for.
        config_id, config: the best configuration, whatever the advice.
        reason: for the advice.
        candidates: what was compared, with mean selection scores.
        sentence: the advice in plain words, with what to expect; null where the criterion chose.
        weights: share of each candidate in the ensemble that was considered; empty likewise.
        expected: of that ensemble against zero-shot in points of accuracy: `gain`, the ends `low` and `high` of the
            80 % interval, and the chance `risk` of being worse.
        advised: method and settings of what is advised, as `captune adapt --config` takes them.
        learned_from: the development data that the rule has seen.
    """

    kind: ClassVar[str] = "choice"
    advice: str | None = None
    name: str | None = None
    config_id: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    reason: str | None = None
    candidates: tuple[dict[str, Any], ...] = ()
    sentence: str | None = None
    weights: dict[str, float] = field(default_factory=dict)
    expected: dict[str, float] = field(default_factory=dict)
    advised: dict[str, Any] = field(default_factory=dict)
    learned_from: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SealOpened(Event):
    """From here on test labels may be read; the study has chosen."""

    kind: ClassVar[str] = "seal_opened"


@dataclass(frozen=True, kw_only=True)
class Reported(Event):
    """A trial's predictions were compared with the test labels; `metrics` are fractions in [0, 1]."""

    kind: ClassVar[str] = "report"
    key: str
    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Other(Event):
    """A line that fits none of the above: written by a newer captune, or edited by hand."""

    name: str
    values: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The line as it was."""
        return {"event": self.name, **self.values, "time": self.time}


EVENTS: dict[str, type[Event]] = {one.kind: one for one in (
    StudyOpened, Prepared, PhaseBegun, WarmStarts, Planned, Started, Epoch, Crashed, Preempted, Finished, Retried,
    SearchEnded, GivenUp, Settled, Mismatch, DataNotes, Chosen, SealOpened, Reported,
)}  # fmt: skip
"""Every kind of event by its name in the journal, in the order in which they come up."""
