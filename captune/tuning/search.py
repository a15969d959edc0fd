"""One search over one space: what samples it, what stops hopeless runs, and how those that finish rank.

A study has one, and with `--screen` a second, cheaper one before it: scores of the two are never mixed.
"""

from __future__ import annotations

from typing import Any

from captune.config import StudyConfig
from captune.records import COMPLETE, RUNNING
from captune.space import Space
from captune.tuning.confirm import Scored
from captune.tuning.runs import Run
from captune.tuning.samplers import Sampler
from captune.tuning.schedulers import Halving
from captune.tuning.votes import Votes


class Search:
    """The runs of a search and what is learned from them, a function of the journal's events in their order.

    Args:
        space: what is searched.
        study: sampler, scheduler, objectives.
        seed: of the sampler.
        votes: whether runs are scored by the vote of all (`ensv`).
    """

    def __init__(self, space: Space, study: StudyConfig, *, seed: int, votes: bool) -> None:
        self.space = space
        self.runs: list[Run] = []
        self.votes = Votes() if votes else None
        single = study.objectives == "single"
        self._num_objectives = 1 if single else 2
        self._halving = Halving() if study.scheduler == "asha" and single else None
        self._sampler = Sampler(study.sampler, space, seed=seed, num_objectives=self._num_objectives)

    def suggest(self, number: int) -> dict[str, Any]:
        """The sampler's proposal for trial `number`; to be planned at once."""
        return self._sampler.suggest(number)

    def plan(self, run: Run, *, just_suggested: bool) -> None:
        """A run of this search was planned; `just_suggested`: the sampler knows it, for it was asked a moment ago."""
        self.runs.append(run)
        if not just_suggested:
            self._sampler.take(self._number(run), run.params, suggested=run.origin == "sampler")

    def epoch(self, run: Run) -> None:
        """A run has come to a new epoch."""
        self._sampler.report(self._number(run), round(100 * run.fidelity), run.score)
        if self._halving is not None:
            self._halving.enter(run.key, run.fidelity, run.score)

    def end(self, run: Run, balance: float | None) -> None:
        """A run has ended; `balance` is the second objective where there are two."""
        values = None if run.score is None else [run.score]
        if values is not None and self._num_objectives == 2:
            values.append(balance or 0.0)
        self._sampler.tell(self._number(run), run.state, values)

    def hopeless(self, run: Run, fidelity: float, score: float | None) -> bool:
        """Whether a run should stop; the paper's never does."""
        stoppable = self._halving is not None and run.origin != "paper" and fidelity < 1
        return stoppable and self._halving is not None and self._halving.hopeless(run.key, fidelity, score)

    def done(self, num_trials: int) -> bool:
        """Whether so many runs were planned and every one has ended."""
        return len(self.runs) >= num_trials and all(run.state != RUNNING for run in self.runs)

    def scored(self) -> list[Scored]:
        """The finished runs with their scores and places, by number."""
        return [
            Scored(self._number(run), self._settled_score(run), tuple(self.space.unit(run.params)))
            for run in self.runs
            if run.state == COMPLETE and run.score is not None
        ]

    def ranked(self) -> list[Run]:
        """The finished runs, best first; ties go to the lower number."""
        best_first = sorted(self.scored(), key=lambda trial: (-trial.score, trial.number))
        return [self.runs[trial.number] for trial in best_first]

    def _settled_score(self, run: Run) -> float:
        vote = self.votes.agreement(run.key) if self.votes is not None else None
        return vote if vote is not None else run.score or 0.0

    @staticmethod
    def _number(run: Run) -> int:
        if run.number is None:
            raise ValueError(f"a run of a search must have a number, but {run.key} has none")
        return run.number
