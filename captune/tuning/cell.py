"""One study as a state machine over its journal.

A study's state follows from its events: `write` records an event and applies it, and after a kill `replay` applies
those on disk. What to do next is a function of that state, so a resumed study needs nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from captune.config import StudyConfig
from captune.decisions.criteria import ENSV, ORACLE
from captune.records import Epoch, Event, Journal, Phase, Role, State, StudyRecord, Trial
from captune.records.events import (
    Chosen,
    Crashed,
    Finished,
    GivenUp,
    PhaseBegun,
    Planned,
    Preempted,
    Prepared,
    Retried,
    SearchEnded,
    Started,
    StudyOpened,
    WarmStarts,
)
from captune.records.layout import trial_directory
from captune.seeding import derive_seed
from captune.space import Space
from captune.tuning.agenda import WARM_STARTS, Agenda, Proposal
from captune.tuning.failures import Failures
from captune.tuning.search import Search
from captune.tuning.specs import CellInfo, TrialSpec

Listener = Callable[[Event, "Trial | None"], None]


class Cell:
    """A study of one cell: its trials, what is known of them, and which comes next.

    Args:
        directory: the study's directory, where the journal lies.
        study: its settings.
        info: facts of the cell.
        space: the resolved search space.
        warm_starts: configurations (parts of them) to try after the first.
        proposes: whether trials will be asked for; if not, the study can only be read, and Optuna is not imported.

    Attributes:
        report_seconds: how long a trial gathers epochs before it reports them.
        unprepared: what its trials wait for, in words, while nodes decode and encode its images; else None.
        unable: why no node can run its trials, which are then not begun; this is not recorded in the journal.
    """

    def __init__(
        self,
        directory: Path,
        study: StudyConfig,
        info: CellInfo,
        space: Space,
        *,
        warm_starts: Iterable[dict[str, Any]] = (),
        proposes: bool = True,
    ) -> None:
        self.directory = directory
        self.study = study
        self.info = info
        self.space = space
        self.name = info.name
        self.record = StudyRecord(directory)
        votes, screen, seed = info.criterion == ENSV, space.screen, derive_seed(study.seed, "screen")
        self._search = Search(space, study, seed=study.seed, votes=votes, proposes=proposes)
        self.screening = None if screen is None else Search(screen, study, seed=seed, votes=votes, proposes=proposes)
        self.waiting: deque[str] = deque()
        self.active: set[str] = set()
        self.after: Cell | None = None
        self.report_seconds = 1.0
        self.unprepared: str | None = None
        self.unable: str | None = None
        self.check_driver: Callable[[], None] = lambda: None
        self.listeners: list[Listener] = []
        starts = [space.clip(values) for values in warm_starts]
        self._agenda = Agenda(study, info, space, self.record, self._search, self.screening, starts)
        self._decide: Callable[[StudyRecord], Chosen] | None = None
        self._journal: Journal | None = None
        self._failures = Failures()

    def replay(self, events: Iterable[Event]) -> None:
        """Rebuild the state from the journal."""
        for event in events:
            self._apply(event)

    def open(self, journal: Journal, opening: StudyOpened) -> None:
        """Begin to write events. Unfinished trials are handed out again before anything new is planned."""
        self._journal = journal
        self._failures.forget()
        self.write(opening)
        for trial in list(self.trials.values()):
            if not trial.ended and not trial.averaged:
                if trial.stopped:
                    self._finish(trial, State.PRUNED)
                else:
                    self.waiting.append(trial.key)

    def close(self) -> None:
        """Close the journal; what was running goes on with the next `open`."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def write(self, event: Event) -> None:
        """Write an event to the journal, then apply it."""
        self.check_driver()
        self._apply(self._opened.append(event))

    def together(self) -> AbstractContextManager[None]:
        """Sync what the block writes to disk once, at the end of the block."""
        return self._opened.together()

    @property
    def _opened(self) -> Journal:
        if self._journal is None:
            raise ValueError("a cell must be opened before it writes")
        return self._journal

    def _apply(self, event: Event) -> None:
        known = self.trials.get(getattr(event, "key", ""))
        num_epochs = 0 if known is None else known.num_epochs
        trial = self.record.apply(event)
        search = None if trial is None else self._search_of(trial)
        if isinstance(event, WarmStarts):
            self._agenda.warm_starts = [self.space.clip(config) for config in event.configs]
        elif isinstance(event, Planned) and trial is not None and search is not None:
            search.plan(trial, just_suggested=trial.origin == "sampler" and self._journal is not None)
        elif isinstance(event, Epoch) and trial is not None and search is not None:
            if trial.num_epochs > num_epochs:
                search.epoch(trial)
        elif isinstance(event, Retried):
            self._agenda.outcome_changes()
        elif isinstance(event, Finished) and trial is not None:
            self.active.discard(trial.key)
            self._failures.note(trial)
            if trial.state is State.COMPLETE:
                self._vote(trial)
            if search is not None:
                search.end(trial)
        for listener in self.listeners:
            listener(event, trial)

    def _search_of(self, trial: Trial) -> Search | None:
        """The search a trial belongs to, if it belongs to one."""
        return {Phase.SEARCH: self._search, Phase.SCREEN: self.screening}.get(trial.phase)

    @property
    def trials(self) -> dict[str, Trial]:
        """All trials by key, in the order in which they were planned."""
        return self.record.by_key

    @property
    def given_up(self) -> str | None:
        """Why the study was given up."""
        return self.record.given_up

    @property
    def finished(self) -> bool:
        """Whether nothing is running and nothing more is to be done."""
        return not self.active and (bool(self.given_up or self.unable) or not (self.waiting or self._agenda.has_more()))

    def next_trial(self, *, fits: Callable[[Trial | Planned], bool] = lambda _: True) -> Trial | None:
        """The next trial to start, planned in the journal; None if there is none yet, or if it does not `fit`."""
        if (self.given_up, self.unprepared, self.unable) != (None, None, None):
            return None
        if self.waiting and not fits(self.trials[self.waiting[0]]):
            return None
        if not self.waiting:
            if (plan := self._plan(fits)) is None:
                return None
            if plan.phase != self.record.phase:
                self.write(PhaseBegun(name=plan.phase))
            self.write(plan)
            self.waiting.append(plan.key)
        trial = self.trials[self.waiting.popleft()]
        self.active.add(trial.key)
        return trial

    def end_search(self, reason: str, *, confirm: bool = True) -> None:
        """Plan no more search trials; with `confirm` off, nothing more at all."""
        ended = self._agenda.ended
        if not self.finished and (ended is None or (ended.confirm and not confirm)):
            self.write(SearchEnded(reason=reason, trials=self.study.trials, confirm=confirm))

    def reopen_search(self) -> None:
        """Let a search that ended early go on."""
        if self._agenda.ended is not None:
            self.write(SearchEnded())

    def retry_failed(self) -> list[str]:
        """Run failed trials again: the search's first, references, confirmations, others; returns their keys."""
        order = (Phase.REFERENCE, Phase.CONFIRM, *Phase)
        failed = [t for t in self.trials.values() if t.state is State.FAILED and not t.averaged]
        failed.sort(key=lambda trial: (not trial.starts_search, order.index(trial.phase)))
        for trial in failed:
            self.write(Retried(key=trial.key))
        self.waiting.extendleft(trial.key for trial in reversed(failed))
        return [trial.key for trial in failed]

    def chooses_by(self, decide: Callable[[StudyRecord], Chosen]) -> None:
        """Give the function by which the study chooses before it runs stress tests on its choice."""
        self._decide, self._agenda.decides = decide, True

    def _plan(self, fits: Callable[[Trial | Planned], bool]) -> Planned | None:
        if self._decide is not None and not self.active and self._agenda.awaits_choice:
            self.write(self._decide(self.record))
        if (reason := self._agenda.why_settled()) is not None:
            self.end_search(reason)
        step = self._agenda.next(may_search=self._record_warm_starts())
        if step is None or not fits(step.plan if isinstance(step, Proposal) else step):
            return None
        if not isinstance(step, Proposal):
            return step
        search = self._search if step.plan.phase is Phase.SEARCH or self.screening is None else self.screening
        return step.with_values(search.suggest(step.plan.number or 0))

    def _record_warm_starts(self) -> bool:
        """If this study waits for an earlier one, record what that one found; False while that one still searches."""
        if self.after is not None and self.record.warm_starts is None:
            if not (self.after.search_done or self.after.finished):
                return False
            self.write(WarmStarts(configs=tuple(self.after.best_configs(WARM_STARTS))))
        return True

    def spec(self, trial: Trial, *, threads: int) -> TrialSpec:
        """What a worker is given to run a trial."""
        task = self.study.task.model_dump(mode="json") | trial.task_overrides
        return TrialSpec(
            cell=self.name,
            key=trial.key,
            directory=str(trial_directory(self.directory, trial.key)),
            method=trial.method or self.study.method,
            task=task,
            config=trial.config,
            seed=self.study.seed if trial.seed is None else trial.seed,
            role=trial.role,
            select_by=self.study.select_by,
            reported=trial.num_epochs,
            attempt=trial.attempts + 1,
            threads=threads,
            report_seconds=self.report_seconds,
        )

    @property
    def num_trials(self) -> int:
        """Number of search trials to run; 1 if nothing is searched."""
        return self._agenda.num_trials

    @property
    def num_screened(self) -> int:
        """Number of screening trials to run."""
        return self._agenda.num_screened

    @property
    def search(self) -> list[Trial]:
        """The search trials, by number."""
        return self._search.trials

    @property
    def search_done(self) -> bool:
        """Whether every search trial has ended."""
        return self._agenda.search_done

    def num_confirmations(self, num_trials: int | None = None) -> int:
        """Number of confirmation trials to run if no further configuration drops out; arguments as of `Agenda`."""
        return self._agenda.num_confirmations(num_trials)

    def num_confirmed_with(self, trial: Trial) -> int:
        """How many confirmations of a trial's role can run at the same time, itself included."""
        return self._agenda.num_confirmed_with(trial)

    def best_configs(self, count: int) -> list[dict[str, Any]]:
        """The configurations of the best search trials, best first."""
        return [trial.config for trial in self._search.ranked()[:count]]

    def start(self, key: str, node: str | None, gpus: float = 0.0) -> None:
        """Record that a trial begins, or goes on, on its share of GPUs."""
        trial = self.trials[key]
        if not trial.ended:
            self.write(Started(key=key, node=node, attempt=trial.attempts + 1, gpus=gpus))

    def deliver(self, key: str, payload: dict[str, Any]) -> bool:
        """Record what a worker reports of a trial, epochs only if they are new; returns whether the trial should stop.

        Args:
            key: the trial.
            payload: `rows` (records of epochs), `outcome` or `failed` once it has ended, `node`.
        """
        trial = self.trials[key]
        if trial.ended:
            return True
        node = payload.get("node")
        if payload.get("prepared"):
            self.write(Prepared(node=node, **payload["prepared"]))
        if self._deliver_epochs(trial, payload.get("rows", ())):
            self._finish(trial, State.PRUNED, node=node)
        elif payload.get("failed"):
            self._finish(trial, State.FAILED, node=node, **payload["failed"])
        elif payload.get("outcome"):
            self._finish(trial, *self._judged(trial, dict(payload["outcome"])), node=node)
        return trial.ended

    def _judged(self, trial: Trial, outcome: dict[str, Any]) -> tuple[State, dict[str, Any]]:
        """The state and outcome of a trial that has reached its end, with the scores that only the driver computes."""
        scores: dict[str, float] = outcome.get("scores") or {}
        vote = self._vote(trial)
        if vote is not None:
            outcome |= {"score": vote, "scores": scores | {ENSV: vote}}
        if self.info.criterion == ORACLE and trial.role is Role.SCORE:
            metric = self._sealed_metric(trial)
            outcome |= {"score": metric, "scores": scores | {ORACLE: metric}}
        if outcome.get("score") is None and trial.role is Role.SCORE:
            reason = f"the selection score '{self.info.criterion}' must be a number, but got none."
            return State.FAILED, outcome | {"reason": reason}
        return State.COMPLETE, outcome

    def _deliver_epochs(self, trial: Trial, rows: Iterable[dict[str, Any]]) -> bool:
        """Record epochs that are new; returns whether the trial should stop after the last recorded one."""
        with self.together():
            for row in rows:
                if row["epoch"] > trial.num_epochs:
                    stop = self._should_stop(trial, row)
                    self.write(Epoch.from_json({**row, "key": trial.key, "decision": "stop" if stop else "continue"}))
                    if stop:
                        return True
        return False

    def _vote(self, trial: Trial) -> float | None:
        # Screening trials vote only among themselves, because they are models of another kind.
        votes = (self._search_of(trial) or self._search).votes
        return None if votes is None else votes.add(trial.key, trial_directory(self.directory, trial.key))

    def _sealed_metric(self, trial: Trial) -> float:
        # Only the driver reads this, and only for a study whose outputs are stamped. Trials never see it.
        from captune.training.evaluation import oracle_score

        task = self.study.task.model_copy(update=trial.task_overrides)
        return oracle_score(task, trial.role, trial_directory(self.directory, trial.key))

    def _should_stop(self, trial: Trial, row: dict[str, Any]) -> bool:
        search = self._search_of(trial)
        return search is not None and search.should_stop(trial, row["fidelity"], row.get("score"))

    def crash(self, key: str, reason: str, *, node: str | None, preempted: bool) -> None:
        """Record that a trial's process died. The trial is run again, unless it has crashed too often."""
        trial = self.trials[key]
        self.active.discard(key)
        if trial.ended:
            return
        if preempted:
            self.write(Preempted(key=key, node=node, reason=reason))
        else:
            self.write(Crashed(key=key, node=node, reason=reason))
            if trial.crashes > self.study.max_failures:
                times = "once" if trial.crashes == 1 else f"{trial.crashes} times"
                self._finish(trial, State.FAILED, node=node, reason=f"its process died {times}: {reason}")
                return
        self.waiting.append(key)

    def fail(self, key: str, reason: str, *, node: str | None = None) -> None:
        """End a trial from outside, with a reason; it is tried again only if the user asks for it."""
        trial = self.trials[key]
        self.active.discard(key)
        if not trial.ended:
            self._finish(trial, State.FAILED, node=node, reason=reason)

    def give_back(self, key: str) -> None:
        """Record that a trial was taken from its worker before its end; it waits to be resumed."""
        if key in self.active and not self.trials[key].ended:
            self.active.discard(key)
            self.waiting.append(key)

    def _finish(
        self, trial: Trial, state: State, outcome: dict[str, Any] | None = None, *, node: str | None = None, **more: Any
    ) -> None:
        outcome = (outcome or {}) | more
        score = trial.score_so_far if state is not State.FAILED else None
        fidelity = 1.0 if state is State.COMPLETE else trial.progress
        fields: dict[str, Any] = {"score": score, "score_epoch": trial.num_epochs, "fidelity": fidelity, **outcome}
        fields["seconds"] = trial.trained_seconds + (outcome.get("seconds") or 0.0)
        if state is State.PRUNED:
            share = f"{trial.progress:.0%}"
            fields["reason"] = f"stopped at {share} of its budget: its score was below the rung's median"
        self.write(Finished.from_json({**fields, "key": trial.key, "state": state, "node": node or trial.node}))
        if (reason := self._failures.reason_to_give_up()) is not None and self.given_up is None:
            self.write(GivenUp(reason=reason))
