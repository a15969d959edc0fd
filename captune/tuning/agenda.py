"""What a study does next: references, a screen, the search, confirmation over fresh seeds, stress tests.

The next step is a function of the study's record, so a resumed study needs no other state. Only a sampler's proposal
is asked for once, and it is recorded before it is used.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from captune.algorithms import method_named
from captune.conditions import METHOD
from captune.config import StudyConfig, TrialConfig
from captune.decisions.candidates import advised_config
from captune.decisions.choosing import chooses_by_criterion
from captune.decisions.confirming import RACE_AFTER, best_of_each, configurations_to_confirm, losers, num_confirmed
from captune.decisions.settling import settled_outlook
from captune.records import ENSEMBLE, Phase, Role, StudyRecord, Trial
from captune.records.events import Planned, SearchEnded
from captune.records.trial import split_key, trial_key
from captune.seeding import derive_seed
from captune.space import Space
from captune.tuning.search import Search
from captune.tuning.specs import CellInfo

STRESSES: dict[str, dict[str, Any]] = {
    "imbalance10": {"pool_imbalance": 10.0},
    "imbalance50": {"pool_imbalance": 50.0},
    "pool25": {"pool_fraction": 0.25},
    "pool50": {"pool_fraction": 0.5},
    "present30": {"present_fraction": 0.3},
    "openset20": {"open_set_fraction": 0.2},
    "noise20": {"shot_noise": 0.2},
}
_STRESS_SEEDS = 3
WARM_STARTS = 3


@dataclass(frozen=True)
class Proposal:
    """A trial whose searched values a sampler must propose.

    Attributes:
        plan: everything but those values.
        base: the configuration that they complete.
        fixed: values that the search space fixes.
        source: the file of the search space, for errors.
        methods: in a study over several methods, the configuration of each method that the values complete.
    """

    plan: Planned
    base: TrialConfig
    fixed: dict[str, Any]
    source: str
    methods: Mapping[str, TrialConfig] = field(default_factory=dict)

    def with_values(self, values: dict[str, Any]) -> Planned:
        """The plan with these values."""
        settings = self.fixed | values
        if not self.methods:
            config = self.base.with_values(settings, where=self.source)
            return replace(self.plan, params=values, config=config.model_dump(mode="json"))
        method = settings.pop(METHOD)
        config = self.methods[method].with_values(settings, where=self.source)
        return replace(self.plan, method=method, params=values, config=config.model_dump(mode="json"))


class Agenda:
    """The order of a study's trials.

    Args:
        study, info, space: the study's settings, the facts of its cell, and the search space.
        record: what has been done so far.
        search, screening: the trials of the search and of the screen, and what they are ranked by.
        warm_starts: values to try after the first configuration, inside the space.
    """

    def __init__(
        self,
        study: StudyConfig,
        info: CellInfo,
        space: Space,
        record: StudyRecord,
        search: Search,
        screening: Search | None,
        warm_starts: list[dict[str, Any]],
    ) -> None:
        self._study = study
        self._info = info
        self._space = space
        self._record = record
        self._trials = record.by_key
        self._search = search
        self._screening = screening
        self.warm_starts = warm_starts
        self._chosen: tuple[int, dict[int, str]] | None = None
        self._outlook: tuple[int, str | None] = (0, None)
        self.decides = False
        # A small space is tried point by point: a sampler would propose the same points again and again.
        self._points = space.points(study.trials) if space.parameters and screening is None else None

    @property
    def _first_origin(self) -> str:
        return "default" if self._study.preset is None else self._study.preset

    @property
    def num_trials(self) -> int:
        """Number of search trials to run; 1 if nothing is searched."""
        if not self._space.parameters:
            return 1
        if self.ended is not None:
            return min(max(len(self._search.trials), 1), self._study.trials)
        walk = self._walk()
        most = self._study.trials if walk is None else 1 + len(self.warm_starts) + len(walk)
        return max(min(self._study.trials, most), len(self._search.trials))

    @property
    def ended(self) -> SearchEnded | None:
        """The event that ended the search early, if one did; None again once the study is given more trials."""
        ended = self._record.search_ended
        return None if ended is None or self._study.trials > (ended.trials or 0) else ended

    def why_settled(self) -> str | None:
        """With `--stop-when-settled`, why the search may end (its other trials would hardly gain); None otherwise."""
        left = self.num_trials - len(self._search.trials)
        if not self._study.stop_when_settled or left < 1 or self.ended is not None or not self._space.parameters:
            return None
        scored = [trial for trial in self._search.trials if trial.scored and trial.score is not None]
        if self._outlook[0] != len(scored):
            places = [self._space.unit(trial.params) for trial in scored]
            found = settled_outlook([trial.score or 0.0 for trial in scored], places, left)
            self._outlook = (len(scored), None if found is None else found.sentence(left))
        return self._outlook[1]

    def _walk(self) -> list[dict[str, Any]] | None:
        """The points of a small space to try after the first configuration and the warm starts, in random order."""
        if self._points is None:
            return None
        starts = [{}, *self.warm_starts]
        known = [self._info.starting_values(self._space, values) for values in starts]
        points = [point for point in self._points if point not in known]
        random.Random(derive_seed(self._study.seed, "walk")).shuffle(points)
        return points

    def outcome_changes(self) -> None:
        """To be called when an ended trial is repeated: the configurations to confirm are then determined again."""
        self._chosen = None

    @property
    def num_screened(self) -> int:
        """Number of screening trials to run. Once the search has begun, no more are planned."""
        if self._screening is None:
            return 0
        began = self._search.trials or self.ended is not None
        return len(self._screening.trials) if began else self._study.num_screen_trials

    @property
    def search_done(self) -> bool:
        """Whether every search trial has ended."""
        return self._search.all_ended(at_least=self.num_trials)

    def num_confirmations(self, num_trials: int | None = None) -> int:
        """Number of confirmation trials to run if no further configuration drops out.

        Before the search has ended, `captune.decisions.confirming.num_confirmed` says how many there are at most.

        Args:
            num_trials: with how many the search ends; None: with all.
        """
        seeds, top = self._study.confirm_seeds, self._study.confirm_top
        if not self.search_done:
            number = seeds * num_confirmed(num_trials or self.num_trials, top, len(self._info.methods))
        else:
            rounds = list(self._confirm_rounds())
            number = sum(index == 0 or self._draws(c) for indices, each in rounds for index in indices for c in each)
            number += (seeds - rounds[-1][0].stop) * len(rounds[0][1])  # a race that has not been decided
        return number * (2 if self._info.both_roles else 1)

    def has_more(self) -> bool:
        """Whether anything is still to be planned, now or once running trials have ended."""
        if len(self._search.trials) < self.num_trials:
            return True
        return self._reference() is not None or self._after_search() is not None or self.awaits_choice

    def next(self, *, may_search: bool = True) -> Planned | Proposal | None:
        """The next trial; None while there is nothing to plan.

        Args:
            may_search: whether the search may begin (not while the study waits for another one's results).
        """
        reference = self._reference()
        if reference is not None:
            return reference
        if self._screening is not None and len(self._screening.trials) < self.num_screened:
            return self._screen(self._screening)
        number = len(self._search.trials)
        if number < self.num_trials:
            return self._search_trial(number) if may_search else None
        return self._after_search()

    def _reference(self) -> Planned | None:
        # References that a later captune adds are not run in a study that was closed and is not searched further.
        if self._record.closed and len(self._search.trials) >= self.num_trials:
            return None
        for key, method, config in self._info.references:
            if key not in self._trials:
                return self._planned(
                    key, Phase.REFERENCE, method=method, origin="reference", config=config.model_dump(mode="json"),
                    role=split_key(key)[2],
                )  # fmt: skip
        return None

    def _screen(self, screening: Search) -> Planned | Proposal:
        number, base = len(screening.trials), self._info.screen_base
        if base is None:
            raise ValueError("a study that screens must know the configuration of its screening trials")
        plan = self._planned(f"s{number:04d}", Phase.SCREEN, number=number)
        if number:
            return Proposal(replace(plan, origin="sampler"), base, screening.space.fixed, screening.space.source)
        first = Proposal(replace(plan, origin=self._first_origin), base, {}, screening.space.source)
        return first.with_values(_values_of(base, screening.space))

    def _search_trial(self, number: int) -> Planned | Proposal | None:
        base, space, warm_starts, methods = self._info.base, self._space, self.warm_starts, self._info.methods
        plan = self._planned(f"t{number:04d}", Phase.SEARCH, number=number, config_id=number)
        if number == 0:
            begins = Proposal(replace(plan, origin=self._first_origin), base, {}, space.source, methods)
            return begins.with_values(self._info.starting_values(space))
        if number <= len(warm_starts):
            start = Proposal(replace(plan, origin="warm_start"), base, space.fixed, space.source, methods)
            return start.with_values(self._info.starting_values(space, warm_starts[number - 1]))
        walk = self._walk()
        if walk is not None:
            point = walk[number - 1 - len(warm_starts)]
            return Proposal(replace(plan, origin="walk"), base, space.fixed, space.source, methods).with_values(point)
        if self._screening is not None:
            if not self._screening.all_ended():
                return None
            promoted = self._screening.promoted(number - 1 - len(warm_starts))
            if promoted is not None:
                key, place = promoted
                plan = replace(plan, origin="screen", promoted_from=key)
                return Proposal(plan, base, space.fixed, space.source).with_values(self._space.at(place))
        return Proposal(replace(plan, origin="sampler"), base, space.fixed, space.source, methods)

    def _after_search(self) -> Planned | None:
        if not self.search_done or (self.ended is not None and not self.ended.confirm):
            return None
        return self._confirm() or self._stress()

    def _confirm(self) -> Planned | None:
        roles = (Role.SCORE, Role.REPORT) if self._info.both_roles else (Role.SCORE,)
        for indices, configs in self._confirm_rounds():
            # Ordered by role, because trials of one role are trained together.
            for role, index, (config_id, why) in itertools.product(roles, indices, configs.items()):
                key = self._confirm_key(config_id, index, role)
                if key not in self._trials and (index == 0 or self._draws(config_id)):
                    return self._planned_again(key, Phase.CONFIRM, config_id, index, role, why)
        return None

    def _confirm_rounds(self) -> Iterator[tuple[range, dict[int, str]]]:
        """The rounds of confirmation: the indices of the seeds, and the configurations with the reason for each.

        After the first round weak configurations drop out, so the second is yielded only once the first has ended.
        """
        chosen, seeds = self._candidates(), self._study.confirm_seeds
        # The methods form one ensemble, so none of them drops out.
        first = seeds if self._info.methods else min(seeds, RACE_AFTER)
        yield range(first), chosen
        if first == seeds:
            return
        raced = {c: {s: self._trials.get(self._confirm_key(c, s)) for s in range(first)} for c in chosen}
        scores: dict[int, dict[int, float | None]] = {}
        for config_id, by_seed in raced.items():
            ended = {seed: trial for seed, trial in by_seed.items() if trial is not None and trial.ended}
            if len(ended) < first:
                return
            scores[config_id] = {seed: trial.score_at_end for seed, trial in ended.items()}
        lost = losers(scores, seeds=list(range(first)))
        yield range(first, seeds), {config_id: why for config_id, why in chosen.items() if config_id not in lost}

    def num_confirmed_with(self, trial: Trial) -> int:
        """How many confirmations of a trial's role can run at once, itself included, because none waits for another."""
        index = (trial.seed or 0) - self._fresh_seed(0)
        return next((len(indices) * len(configs) for indices, configs in self._confirm_rounds() if index in indices), 1)

    def _draws(self, config_id: int) -> bool:
        """Whether another seed gives another model, which it does not for a method without training."""
        method = self._search.trials[config_id].method
        return not self._info.methods or method is None or method_named(method).trains

    def _candidates(self) -> dict[int, str]:
        # Kept, because this is asked for in every iteration of Ray's loop and is fixed once the search has ended.
        num_trials = len(self._search.trials)
        if self._chosen is None or self._chosen[0] != num_trials:
            top = self._study.confirm_top if self._space.parameters else min(1, self._study.confirm_top)
            scored = self._search.scored()
            if self._info.methods and top:
                methods = {trial.number: self._search.trials[trial.number].method or "" for trial in scored}
                self._chosen = (num_trials, best_of_each(scored, methods))
            else:
                self._chosen = (num_trials, configurations_to_confirm(scored, top))
        return self._chosen[1]

    def _confirm_key(self, config_id: int, index: int, role: Role = Role.SCORE) -> str:
        return trial_key(f"c{config_id}", self._fresh_seed(index), role)

    def _fresh_seed(self, index: int) -> int:
        # The same seeds for every configuration, so that comparisons are paired; the search used the study's own.
        return self._study.seed + 1 + index

    @property
    def awaits_choice(self) -> bool:
        """Whether stress tests wait for the choice: all confirmations have ended, and predictions decide the choice."""
        if not (self.decides and self._study.stress and self.search_done) or chooses_by_criterion(self._record):
            return False
        if (self.ended is not None and not self.ended.confirm) or self._confirm() is not None:
            return False
        return self._confirmed and not self._record.choice_covers_confirmation

    @property
    def _confirmed(self) -> bool:
        """Whether every score trial of the confirmation has ended."""
        confirmed = [trial for trial in self._trials.values() if trial.phase is Phase.CONFIRM]
        return all(trial.ended for trial in confirmed if trial.role is Role.SCORE)

    def _stress(self) -> Planned | None:
        if not self._study.stress or not self._confirmed:
            return None
        # A study that an earlier captune closed has already run the stress tests of that version.
        if self._record.closed:
            return None
        chosen = self._record.choice
        by_predictions = self.decides and not chooses_by_criterion(self._record)
        if by_predictions and (chosen is None or not self._record.choice_covers_confirmation):
            return None
        # Imported here: its statistics import scipy.stats, which takes seconds.
        from captune.decisions.by_criterion import best_configuration

        choice = best_configuration(self._record, self._search.settled_scores())
        if choice is None:
            return None
        role = Role.REPORT if self._info.both_roles else Role.SCORE
        for name, overrides in STRESSES.items():
            if "shot_noise" in overrides and not _has_labels(self._study):
                continue
            # The seeds are the inner loop, because trials on one pool are trained together.
            for index in range(min(_STRESS_SEEDS, self._study.confirm_seeds)):
                if by_predictions and chosen is not None and chosen.weights:
                    plan = self._stress_ensemble(name, chosen.weights, index, role)
                else:
                    key = trial_key(f"x{choice}-{name}", self._fresh_seed(index))
                    plan = self._planned_again(key, Phase.STRESS, choice, index, role, "top")
                if plan.key not in self._trials:
                    return replace(plan, task_overrides=overrides)
        return None

    def _stress_ensemble(self, name: str, shares: dict[str, float], index: int, role: Role) -> Planned:
        """The plan of a stress trial of the ensemble that the choice considered, with one seed per member."""
        config = advised_config(self._record, shares)
        method = config.pop("method")
        config = {key: value for key, value in config.items() if key != "learn_from"}
        if "members" in config:
            config["members"] = [{**member, "seeds": []} for member in config["members"]]
        key = trial_key(f"x{ENSEMBLE}-{name}", self._fresh_seed(index))
        return self._planned(
            key, Phase.STRESS, origin=ENSEMBLE, method=method, config=config, seed=self._fresh_seed(index), role=role
        )

    def _planned_again(self, key: str, phase: Phase, config_id: int, index: int, role: Role, why: str) -> Planned:
        trial = self._search.trials[config_id]
        return self._planned(
            key, phase, config_id=config_id, origin="plateau" if why == "plateau" else trial.origin,
            params=trial.params, config=trial.config, seed=self._fresh_seed(index), role=role, method=trial.method,
        )  # fmt: skip

    def _planned(self, key: str, phase: Phase, **fields: Any) -> Planned:
        given: dict[str, Any] = {"seed": self._study.seed, "method": self._study.method}
        return Planned(key=key, phase=phase, **given | fields)


def _values_of(base: TrialConfig, space: Space) -> dict[str, Any]:
    """The configuration's values of the searched settings."""
    return space.active({parameter.name: getattr(base, parameter.name) for parameter in space.parameters})


def _has_labels(study: StudyConfig) -> bool:
    """Whether the paradigm has labelled images, which could be labelled wrongly."""
    return study.task.paradigm == "trzsl" or study.task.num_shots > 0
