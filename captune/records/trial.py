"""One trial as the journal tells it: a configuration that is trained once with one seed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from captune.records.enums import Phase, Role, State
from captune.records.event import Event
from captune.records.events import (
    Crashed,
    Epoch,
    Finished,
    Planned,
    Preempted,
    Reported,
    Retried,
    Started,
)
from captune.records.lenient import number_or_none

_KEY = re.compile(r"(?P<name>.+?)(-s(?P<seed>\d+))?(?P<report>-report)?", re.DOTALL)

# What the first configuration of a search is called: the preset's, or the method's defaults. Studies written before
# they were told apart say "paper" of both.
FIRST_ORIGINS = ("paper", "default")


@dataclass
class Trial:
    """A planned trial, how far it is and how it ended.

    Attributes:
        key, phase, number, config_id, origin, params, config, seed, role, method, task_overrides, promoted_from: the
            plan, as in the event `Planned`.
        state: how far it is.
        score, scores, gain_errors, score_epoch, fidelity, num_parameters, prediction_balance, reason: the outcome, as
            in the event `Finished`; None or empty before the trial has ended.
        score_at_end: `score` as it was when the trial ended; the two differ where scores were settled later.
        seconds: training and final evaluation; None before the trial has ended.
        trained_seconds: all its epochs so far.
        node, started: the machine it ran on last, and when it began first (Unix seconds).
        attempts, crashes, preemptions: how often it was begun, and lost.
        memory_bytes: peak memory of its process.
        num_epochs: epochs trained so far.
        ended_at: place of its end in the journal, from 1; 0 before it has ended.
        report: metrics on the test labels; None until they were read.
    """

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
    state: State = State.PLANNED
    score: float | None = None
    score_at_end: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    gain_errors: dict[str, float] = field(default_factory=dict)
    score_epoch: int | None = None
    fidelity: float | None = None
    seconds: float | None = None
    trained_seconds: float = 0.0
    node: str | None = None
    started: float | None = None
    reason: str | None = None
    num_parameters: int | None = None
    prediction_balance: float | None = None
    attempts: int = 0
    crashes: int = 0
    preemptions: int = 0
    memory_bytes: int = 0
    num_epochs: int = 0
    ended_at: int = 0
    report: dict[str, Any] | None = None
    epoch_events: dict[int, Epoch] = field(default_factory=dict, repr=False)

    @property
    def starts_search(self) -> bool:
        """Whether it has the configuration that a search begins with: the method's defaults, or the preset's."""
        return self.origin in FIRST_ORIGINS

    @classmethod
    def from_plan(cls, event: Planned) -> Trial:
        """The trial that a plan describes."""
        names = ("key", "phase", "number", "config_id", "origin", "params", "config", "seed", "role", "method",
                 "task_overrides", "promoted_from")  # fmt: skip
        return cls(**{name: getattr(event, name) for name in names})

    @classmethod
    def from_key(cls, key: str) -> Trial:
        """A trial whose plan was lost, as far as its key describes it."""
        name, seed, role = split_key(key)
        if (own := re.fullmatch(r"([ts])(\d+)", name)) is not None:
            phase, number = (Phase.SEARCH if own[1] == "t" else Phase.SCREEN), int(own[2])
            return cls(key, phase, number, number if own[1] == "t" else None, role=role)
        if seed is not None and (own := re.match(r"(c|x)(-?\d+)", name)) is not None:
            phase = Phase.CONFIRM if own[1] == "c" else Phase.STRESS
            return cls(key, phase, config_id=int(own[2]), seed=seed, role=role)
        return cls(key, Phase.REFERENCE, role=role)

    def apply(self, event: Event) -> None:
        """Take in what the journal says of this trial."""
        if isinstance(event, Epoch):
            if event.epoch > self.num_epochs:
                self.trained_seconds += event.seconds
                self.num_epochs = event.epoch
                self.memory_bytes = max(self.memory_bytes, event.memory_bytes)
            # An epoch that is trained again after a kill gives the same numbers; the last line counts.
            self.epoch_events[event.epoch] = event
        elif isinstance(event, Started):
            self.attempts += 1
            self.node = event.node or self.node
            self.started = self.started if self.started is not None else event.time
            if not self.state.final:
                self.state = State.RUNNING
        elif isinstance(event, Preempted):
            self.preemptions += 1
        elif isinstance(event, Crashed):
            self.crashes += 1
        elif isinstance(event, Finished):
            self._finish(event)
        elif isinstance(event, Retried):
            self.state, self.reason, self.crashes = State.RUNNING, None, 0
        elif isinstance(event, Reported):
            self.report = event.metrics

    def _finish(self, event: Finished) -> None:
        names = ("state", "score", "gain_errors", "score_epoch", "fidelity", "seconds", "reason", "num_parameters",
                 "prediction_balance")  # fmt: skip
        for name in names:
            setattr(self, name, getattr(event, name))
        self.scores = dict(event.scores)
        self.score_at_end = event.score
        self.node = event.node or self.node
        # Remove an earlier outcome: an ensemble is averaged again when its study goes on.
        self.report = None

    @cached_property
    def name(self) -> str:
        """The key without seed and role: `c7` for `c7-s3-report`."""
        return split_key(self.key)[0]

    @property
    def averaged(self) -> bool:
        """Whether it is an ensemble's predictions, which closing a study averages: nothing is trained."""
        return self.origin == "ensemble" and self.phase is Phase.REFERENCE

    @property
    def ended(self) -> bool:
        """Whether it has ended for good."""
        return self.state.final

    @property
    def scored(self) -> bool:
        """Whether it ran to its end and has a score."""
        return self.state is State.COMPLETE and self.score is not None

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """Its epochs, in order."""
        return tuple(self.epoch_events[number] for number in sorted(self.epoch_events))

    @property
    def last_epoch(self) -> Epoch | None:
        """Its newest epoch."""
        return self.epoch_events[self.num_epochs] if self.epoch_events else None

    @property
    def stopped(self) -> bool:
        """Whether the scheduler stopped it with its newest epoch."""
        return self.last_epoch is not None and self.last_epoch.decision == "stop"

    @property
    def progress(self) -> float:
        """Share of its budget that is trained, in [0, 1]."""
        if self.ended:
            return self.fidelity or 0.0
        return (self.last_epoch.fidelity or 0.0) if self.last_epoch is not None else 0.0

    @property
    def score_so_far(self) -> float | None:
        """Its score at its end, or after its newest epoch while it is running."""
        if self.ended:
            return self.score_at_end
        return self.last_epoch.score if self.last_epoch is not None else None

    @property
    def seconds_so_far(self) -> float:
        """How long it has run."""
        return self.seconds if self.seconds is not None else self.trained_seconds

    @property
    def metric(self) -> float | None:
        """The report metric on test labels, or None."""
        return number_or_none((self.report or {}).get("metric"))


def split_key(key: str) -> tuple[str, int | None, Role]:
    """`c7-s3-report` is configuration c7 with seed 3 in the role "report"."""
    match = _KEY.fullmatch(key)
    if match is None:
        return key, None, Role.SCORE
    seed = None if match["seed"] is None else int(match["seed"])
    return match["name"], seed, Role.REPORT if match["report"] else Role.SCORE


def trial_key(name: str, seed: int | None = None, role: Role = Role.SCORE) -> str:
    """The key that `split_key` splits."""
    return name + ("" if seed is None else f"-s{seed}") + ("-report" if role is Role.REPORT else "")
