"""One search over one space: its sampler, the rule that stops weak trials early, and the ranking of finished ones.

A study has one search and, with `--screen`, a second, cheaper one before it. Scores of the two are never mixed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from captune.conditions import METHOD
from captune.config import StudyConfig
from captune.decisions.confirming import Scored
from captune.records import State, Trial
from captune.space import Space
from captune.tuning.schedulers import Halving
from captune.tuning.votes import Votes

if TYPE_CHECKING:
    from captune.tuning.samplers import Sampler

# One in this many screened configurations is promoted to a full trial.
PROMOTE_ONE_OF = 8


class Search:
    """The trials of a search and what is learned from them; both follow from the journal's events in their order.

    Args:
        space: what is searched.
        study: sampler, scheduler, objectives.
        seed: of the sampler.
        votes: whether trials are scored by the vote of all (`ensv`).
        proposes: whether proposals will be asked for; if not, Optuna is not imported and there is no sampler.
    """

    def __init__(self, space: Space, study: StudyConfig, *, seed: int, votes: bool, proposes: bool = True) -> None:
        self.space = space
        self.trials: list[Trial] = []
        self.votes = Votes() if votes else None
        single = study.objectives == "single"
        self._num_objectives = 1 if single else 2
        self._halving = Halving() if study.scheduler == "asha" and single else None
        self._sampler = _sampler(study.sampler, space, seed, self._num_objectives) if proposes else None

    def suggest(self, number: int) -> dict[str, Any]:
        """The sampler's proposal for trial `number`, which must be planned at once."""
        if self._sampler is None:
            raise ValueError("a search must have a sampler to propose trials, but was opened only to be read")
        return self._sampler.suggest(number)

    def plan(self, trial: Trial, *, just_suggested: bool) -> None:
        """Add a planned trial. `just_suggested`: the sampler has just proposed it and knows it already."""
        self.trials.append(trial)
        if self._sampler is not None and not just_suggested:
            self._sampler.take(self._number(trial), trial.params, suggested=trial.origin == "sampler")

    def epoch(self, trial: Trial) -> None:
        """Take note that a trial has trained a new epoch."""
        if self._sampler is not None:
            self._sampler.report(self._number(trial), round(100 * trial.progress), trial.score_so_far)
        if self._halving is not None:
            self._halving.enter(trial.key, trial.progress, trial.score_so_far)

    def end(self, trial: Trial) -> None:
        """Take note that a trial has ended."""
        if self._sampler is None:
            return
        values = None if trial.score_at_end is None else [trial.score_at_end]
        if values is not None and self._num_objectives == 2:
            values.append(trial.prediction_balance or 0.0)
        self._sampler.tell(self._number(trial), trial.state, values)

    def should_stop(self, trial: Trial, fidelity: float, score: float | None) -> bool:
        """Whether a trial should stop. The first configuration never does, nor does the first one of any method."""
        first = trial.starts_search or (trial.origin == "warm_start" and METHOD in trial.params)
        stoppable = self._halving is not None and not first and fidelity < 1
        return stoppable and self._halving is not None and self._halving.should_stop(trial.key, fidelity, score)

    def all_ended(self, *, at_least: int = 0) -> bool:
        """Whether every planned trial has ended, and `at_least` so many were planned."""
        return len(self.trials) >= at_least and all(trial.ended for trial in self.trials)

    def scored(self) -> list[Scored]:
        """The finished trials in order of number, with their scores and their places in the unit cube."""
        return [
            Scored(self._number(trial), self._settled_score(trial), tuple(self.space.unit(trial.params)))
            for trial in self.trials
            if trial.state is State.COMPLETE and trial.score_at_end is not None
        ]

    def ranked(self) -> list[Trial]:
        """The finished trials, best first; ties go to the lower number."""
        best_first = sorted(self.scored(), key=lambda trial: (-trial.score, trial.number))
        return [self.trials[trial.number] for trial in best_first]

    def promoted(self, rank: int) -> tuple[str, tuple[float, ...]] | None:
        """Key and place of the screened configuration of this rank that is promoted to the search; None past the last.

        The first configuration is left out, because the search begins with it anyway.
        """
        places: dict[tuple[float, ...], str] = {}
        for trial in self.ranked():
            if not trial.starts_search:
                places.setdefault(tuple(self.space.unit(trial.params)), trial.key)
        chosen = list(places.items())[: math.ceil(len(self.trials) / PROMOTE_ONE_OF)]
        return (chosen[rank][1], chosen[rank][0]) if rank < len(chosen) else None

    def settled_scores(self) -> dict[str, float]:
        """Scores, by key, that have changed since their trials ended: agreement with the vote, if `votes`; else {}."""
        return {} if self.votes is None else self.votes.agreements()

    def _settled_score(self, trial: Trial) -> float:
        vote = self.votes.agreement(trial.key) if self.votes is not None else None
        return vote if vote is not None else trial.score_at_end or 0.0

    @staticmethod
    def _number(trial: Trial) -> int:
        if trial.number is None:
            raise ValueError(f"a trial of a search must have a number, but {trial.key} has none")
        return trial.number


def _sampler(name: str, space: Space, seed: int, num_objectives: int) -> Sampler:
    # Imported here: Optuna takes a second, which reading a study on disk should not cost.
    from captune.tuning.samplers import Sampler

    return Sampler(name, space, seed=seed, num_objectives=num_objectives)
