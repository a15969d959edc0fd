"""One study as a state machine over its journal.

Everything a study knows is what its events say, live and after a kill alike: `record` writes an event and applies it,
`replay` applies those on disk. What to do next is a function of that state, so a resumed study needs nothing else.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from captune.config import StudyConfig
from captune.records import (
    COMPLETE,
    FAILED,
    PRUNED,
    RUNNING,
    SCREEN,
    SEARCH,
    Journal,
)
from captune.seeding import derive_seed
from captune.space import Space
from captune.tuning.agenda import Agenda
from captune.tuning.confirm import Scored
from captune.tuning.runs import CellInfo, Run, RunSpec
from captune.tuning.search import Search
from captune.tuning.votes import CRITERION

ORACLE = "oracle"

# A study whose first runs all fail the same way will not get better by running more of them.
_SAME_FAILURES, _ANY_FAILURES = 3, 6

Listener = Callable[[dict[str, Any], "Run | None"], None]


class Cell:
    """A study of one cell: its runs, what is known of them, and which comes next.

    Args:
        directory: the run's directory, where the journal lies.
        study: its settings.
        info: facts of the cell.
        space: the resolved search space.
        warm_starts: configurations (parts of them) to try after the paper's.
    """

    def __init__(
        self,
        directory: Path,
        study: StudyConfig,
        info: CellInfo,
        space: Space,
        *,
        warm_starts: Iterable[dict[str, Any]] = (),
    ) -> None:
        self.directory = directory
        self.study = study
        self.info = info
        self.space = space
        self.name = info.name
        self.runs: dict[str, Run] = {}
        votes = info.criterion == CRITERION
        self._search = Search(space, study, seed=study.seed, votes=votes)
        self.screening = (
            None
            if space.screen is None
            else Search(space.screen, study, seed=derive_seed(study.seed, "screen"), votes=votes)
        )
        self.waiting: deque[str] = deque()
        self.active: set[str] = set()
        self.aborted: str | None = None
        self.phase: str | None = None
        self.after: Cell | None = None
        self.started_from_earlier = False
        self.check_driver: Callable[[], None] = lambda: None
        self.listeners: list[Listener] = []
        self._agenda = Agenda(self, [space.clip(values) for values in warm_starts])
        self._journal: Journal | None = None
        self._failures: list[str] = []
        self._succeeded = False

    # The journal

    def replay(self, events: Iterable[dict[str, Any]]) -> None:
        """Take up the state that the journal holds."""
        for event in events:
            self._apply(event)
        # What failed before may have been mended since: a resumed study gets its own three failures.
        self._failures.clear()
        self.aborted = None

    def open(self, journal: Journal) -> None:
        """Start to write: unfinished runs are handed out again, before anything new is planned."""
        self._journal = journal
        for run in list(self.runs.values()):
            if run.state == RUNNING:
                if run.stop:
                    self._finish(run, PRUNED)
                else:
                    self.waiting.append(run.key)

    def close(self) -> None:
        """Close the journal; what was running goes on with the next `open`."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def record(self, event: str, **fields: Any) -> None:
        """Write an event to the journal, then act on it."""
        if self._journal is None:
            raise ValueError("a cell must be opened before it records")
        self.check_driver()
        self._apply(self._journal.append(event, **fields, time=time.time()))

    def _apply(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        run = self.runs.get(event.get("key", ""))
        if kind == "planned":
            run = Run.from_event(event)
            self.runs[run.key] = run
            search = self._search_of(run)
            if search is not None:
                search.plan(run, just_suggested=run.origin == "sampler" and self._journal is not None)
        elif kind == "phase":
            self.phase = event["name"]
        elif kind == "warm_starts":
            self.started_from_earlier = True
            self._agenda.warm_starts = [self.space.clip(config) for config in event["configs"]]
        elif run is not None:
            self._apply_progress(kind, event, run)
        for listener in self.listeners:
            listener(event, run)

    def _apply_progress(self, kind: str, event: dict[str, Any], run: Run) -> None:
        if kind == "started":
            run.attempts = event["attempt"]
            run.node = event.get("node") or run.node
        elif kind == "preempted":
            run.preemptions += 1
        elif kind == "crashed":
            run.crashes += 1
        elif kind == "epoch" and event["epoch"] > run.epochs:
            run.epochs, run.score_epoch = event["epoch"], event["epoch"]
            run.fidelity, run.score = event["fidelity"], event.get("score")
            run.seconds += event.get("seconds") or 0.0
            run.memory_bytes = max(run.memory_bytes, event.get("memory_bytes") or 0)
            run.stop = event.get("decision") == "stop"
            if (search := self._search_of(run)) is not None:
                search.epoch(run)
        elif kind == "finished":
            run.state, run.score, run.reason = event["state"], event.get("score"), event.get("reason")
            run.score_epoch, run.fidelity = event.get("score_epoch") or 0, event.get("fidelity") or 0.0
            run.scores, run.seconds = event.get("scores") or {}, event.get("seconds") or 0.0
            run.node = event.get("node") or run.node
            self.active.discard(run.key)
            self._note_outcome(run)
            if run.state == COMPLETE:
                self._vote(run)
            if (search := self._search_of(run)) is not None:
                search.end(run, event.get("prediction_balance"))

    def _search_of(self, run: Run) -> Search | None:
        """The search a run belongs to, if it belongs to one."""
        return {SEARCH: self._search, SCREEN: self.screening}.get(run.phase)

    def _note_outcome(self, run: Run) -> None:
        if run.state == FAILED:
            self._failures.append((run.reason or "").splitlines()[0] if run.reason else "")
        else:
            self._succeeded = True
        first = self._failures[:_SAME_FAILURES]
        if not self._succeeded and (
            (len(first) == _SAME_FAILURES and len(set(first)) == 1) or len(self._failures) >= _ANY_FAILURES
        ):
            self.aborted = self._failures[0]

    # What comes next

    @property
    def finished(self) -> bool:
        """Whether nothing is running and nothing more is to be done."""
        return not self.active and (self.aborted is not None or not (self.waiting or self._agenda.has_more()))

    def next_run(self) -> Run | None:
        """The next run to start, planned in the journal; None while there is none (yet)."""
        if self.aborted is not None:
            return None
        if not self.waiting:
            plan = self._agenda.next()
            if plan is None:
                return None
            if plan["phase"] != self.phase:
                self.record("phase", name=plan["phase"], detail={})
            self.record("planned", **plan)
            self.waiting.append(plan["key"])
        run = self.runs[self.waiting.popleft()]
        self.active.add(run.key)
        return run

    def spec(self, run: Run, *, threads: int) -> RunSpec:
        """The order a worker gets for a run."""
        task = self.study.task.model_dump(mode="json") | run.task_overrides
        return RunSpec(
            cell=self.name,
            key=run.key,
            directory=str(self.directory / "trials" / run.key),
            method=run.method,
            task=task,
            config=run.config,
            seed=run.seed,
            role=run.role,
            select_by=self.study.select_by,
            reported=run.epochs,
            attempt=run.attempts + 1,
            threads=threads,
        )

    @property
    def num_trials(self) -> int:
        """Search trials to be run (one where nothing is searched)."""
        return self.study.trials if self.space.parameters else 1

    @property
    def num_screened(self) -> int:
        """Screening trials to be run; once the search has begun it is too late for more."""
        if self.screening is None:
            return 0
        return len(self.screening.runs) if self.search else self.study.num_screen_trials

    @property
    def search(self) -> list[Run]:
        """The search trials, by number."""
        return self._search.runs

    def suggest(self, number: int) -> dict[str, Any]:
        """The sampler's proposal for search trial `number`; to be planned at once."""
        return self._search.suggest(number)

    @property
    def search_done(self) -> bool:
        """Whether every search trial has ended."""
        return self._search.done(self.num_trials)

    def scored(self) -> list[Scored]:
        """The finished search trials with their scores and places."""
        return self._search.scored()

    def best_configs(self, count: int) -> list[dict[str, Any]]:
        """The configurations of the best search trials, best first."""
        return [run.config for run in self._search.ranked()[:count]]

    # What workers report

    def start(self, key: str, node: str | None) -> None:
        """A run begins, or begins again."""
        run = self.runs[key]
        if run.state == RUNNING:
            self.record("started", key=key, node=node, attempt=run.attempts + 1)

    def deliver(self, key: str, payload: dict[str, Any]) -> bool:
        """Take in what a worker reports of a run; whether the run should stop. Reports of known epochs change nothing.

        Args:
            key: the run.
            payload: `rows` (records of epochs), `outcome` or `failed` once it has ended, `node`.
        """
        run = self.runs[key]
        if run.state != RUNNING:
            return True
        if self._deliver_epochs(run, payload.get("rows", ())):
            self._finish(run, PRUNED, node=payload.get("node"))
        elif payload.get("failed"):
            self._finish(run, FAILED, node=payload.get("node"), **payload["failed"])
        elif payload.get("outcome"):
            outcome = dict(payload["outcome"])
            vote = self._vote(run)
            if vote is not None:
                outcome |= {"score": vote, "scores": (outcome.get("scores") or {}) | {CRITERION: vote}}
            if self.info.criterion == ORACLE and run.role == "score":
                metric = self._sealed_metric(run)
                outcome |= {"score": metric, "scores": (outcome.get("scores") or {}) | {ORACLE: metric}}
            state, reason = COMPLETE, None
            if outcome.get("score") is None and run.role == "score":
                state, reason = FAILED, f"the selection score '{self.info.criterion}' must be a number, but got none."
            self._finish(run, state, node=payload.get("node"), reason=reason, **outcome)
        return run.state != RUNNING

    def _deliver_epochs(self, run: Run, rows: Iterable[dict[str, Any]]) -> bool:
        """Record epochs that are new; whether the run should stop with the last of them."""
        if self._journal is None:
            raise ValueError("a cell must be opened before it records")
        with self._journal.together():
            for row in rows:
                if row["epoch"] > run.epochs:
                    stop = self._hopeless(run, row)
                    self.record("epoch", key=run.key, **row, decision="stop" if stop else "continue")
                    if stop:
                        return True
        return False

    def _vote(self, run: Run) -> float | None:
        # Screening runs vote among themselves: they are models of another kind.
        votes = (self._search_of(run) or self._search).votes
        return None if votes is None else votes.add(run.key, self.directory / "trials" / run.key)

    def _sealed_metric(self, run: Run) -> float:
        # Opened by the driver alone, and only for a study that is stamped: the runs themselves never see it.
        from captune.training.evaluation import oracle_score

        task = self.study.task.model_copy(update=run.task_overrides)
        return oracle_score(task, run.role, self.directory / "trials" / run.key)

    def _hopeless(self, run: Run, row: dict[str, Any]) -> bool:
        search = self._search_of(run)
        return search is not None and search.hopeless(run, row["fidelity"], row.get("score"))

    def crash(self, key: str, reason: str, *, node: str | None, preempted: bool) -> None:
        """A run's process is gone: it is handed out again, first of all, unless it has crashed too often."""
        run = self.runs[key]
        self.active.discard(key)
        if run.state != RUNNING:
            return
        if preempted:
            self.record("preempted", key=key, node=node, reason=reason)
        else:
            self.record("crashed", key=key, node=node, reason=reason)
            if run.crashes > self.study.max_failures:
                times = "once" if run.crashes == 1 else f"{run.crashes} times"
                self._finish(run, FAILED, node=node, reason=f"its process died {times}: {reason}")
                return
        self.waiting.append(key)

    def give_back(self, key: str) -> None:
        """A run was taken off its worker unfinished; it waits to go on."""
        if key in self.active and self.runs[key].state == RUNNING:
            self.active.discard(key)
            self.waiting.append(key)

    def _finish(self, run: Run, state: str, *, node: str | None = None, **outcome: Any) -> None:
        fields: dict[str, Any] = {
            "score": run.score if state != FAILED else None,
            "score_epoch": run.epochs,
            "scores": {},
            "fidelity": run.fidelity,
            "reason": None,
            "traceback": None,
            "num_parameters": None,
        }
        fields |= outcome
        fields["seconds"] = run.seconds + (outcome.get("seconds") or 0.0)
        if state == PRUNED:
            fields["reason"] = f"stopped at {run.fidelity:.0%} of its budget: its score was below the rung's median"
        if state == COMPLETE:
            fields["fidelity"] = 1.0
        self.record("finished", key=run.key, state=state, node=node or run.node, **fields)
        if self.aborted is not None and self.phase != "aborted":
            self.record("phase", name="aborted", detail={"reason": self.aborted})
