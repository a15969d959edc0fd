"""Samplers: Optuna's, in memory, rebuilt from the journal.

What a sampler proposes for search trial n depends only on the study's seed, on n, and on the outcomes it was told
before. Its state therefore need not be stored, and a resumed study goes on as the uninterrupted one would have.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from captune.errors import UsageError
from captune.records import State
from captune.seeding import derive_seed
from captune.space import Parameter, Space
from captune.tuning import optuna_internals
from captune.tuning.allotment import STARTUP_TRIALS

OPTUNA_STATES = {State.COMPLETE: TrialState.COMPLETE, State.PRUNED: TrialState.PRUNED, State.FAILED: TrialState.FAIL}
# These keep state of their own and are rebuilt by asking them again; the others are only shown the known trials.
_STATEFUL = ("qmc", "cmaes", "nsga2")


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The space as Optuna's distributions."""
    return {parameter.name: _distribution(parameter) for parameter in space.parameters}


def _distribution(parameter: Parameter) -> BaseDistribution:
    if parameter.kind == "categorical":
        return CategoricalDistribution(parameter.choices)
    if parameter.kind == "int":
        step = 1 if parameter.log else int(parameter.step or 1)
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log, step=step)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def check_sampler(name: str) -> None:
    """Check before a study starts that the sampler has what it needs.

    Raises:
        UsageError: the sampler needs a package that is not installed.
    """
    needed = {"cmaes": "cmaes"}.get(name)
    if needed is not None and importlib.util.find_spec(needed) is None:
        raise UsageError(
            f"--sampler {name} must find the package '{needed}'",
            got="none installed",
            next_step=f"Run `pip install {needed}`, or choose --sampler tpe.",
        )


@dataclass
class _Taken:
    """A trial that the sampler did not propose and that Optuna does not know yet, in Optuna's terms."""

    params: dict[str, Any]
    state: TrialState = TrialState.RUNNING
    values: list[float] | None = None
    intermediate_values: dict[int, float] = field(default_factory=dict)


class Sampler:
    """Proposes configurations and learns from their outcomes; search trial numbers are Optuna's trial numbers.

    Trials that it did not propose are passed to Optuna only when the next proposal is asked for, each in the state that
    it has then. This way a study of thousands of trials is opened in one pass over its journal.
    """

    def __init__(self, name: str, space: Space, *, seed: int, num_objectives: int = 1) -> None:
        self._name = name
        self._seed = seed
        self._space = space
        self._distributions = distributions(space)
        self._stateful = name in _STATEFUL
        self._single = num_objectives == 1
        self._taken: dict[int, _Taken] = {}
        self._identities: dict[int, int] = {}
        self._ended: set[int] = set()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._study = optuna.create_study(
            sampler=_create(name, derive_seed(seed, "sampler"), conditional=space.when),
            directions=["maximize"] * num_objectives,
        )

    def suggest(self, number: int) -> dict[str, Any]:
        """Propose the configuration of search trial `number`; the sampler then waits for its outcome."""
        return self._ask(number).params

    def take(self, number: int, params: dict[str, Any], *, suggested: bool) -> None:
        """Enter a configuration that is already known: the first, a warm start, or one from the journal.

        Args:
            number: the search trial.
            params: its values; the sampler is told the nearest border for a value outside the space.
            suggested: whether the sampler had proposed it before (a replay).

        Raises:
            UsageError: a sampler with state of its own, asked again, proposes something else.
        """
        if suggested and self._stateful:
            again = self._ask(number).params
            if again != params:
                raise UsageError(
                    f"the '{self._name}' sampler must propose again what the journal holds",
                    got=f"{again} for trial {number} instead of {params}",
                    next_step="Continue with the Optuna version that study.yaml names.",
                )
            return
        self._taken[number] = _Taken(self._space.clip(params))

    def report(self, number: int, percent: int, score: float | None) -> None:
        """Enter a score at a percentage of the trial's budget, so that trials of different budgets can be compared."""
        # A trial that has ended already had failed and is tried again; the sampler keeps its first result.
        if score is None or not self._single or number in self._ended:
            return
        if number in self._taken:
            self._taken[number].intermediate_values[percent] = score
        else:
            optuna_internals.set_intermediate_value(self._study, self._identities[number], percent, score)

    def tell(self, number: int, state: State, values: Sequence[float] | None) -> None:
        """Enter the outcome of a search trial."""
        if number in self._ended:
            return
        self._ended.add(number)
        told = OPTUNA_STATES[state] if self._single or state != State.PRUNED else TrialState.FAIL
        values = values if told == TrialState.COMPLETE else None
        if number not in self._taken:
            with _quiet():
                self._study.tell(number, values=values, state=told)
            return
        taken = self._taken[number]
        if told == TrialState.PRUNED and taken.intermediate_values:
            # As in Optuna's `tell`, the value of a pruned trial is its last intermediate value.
            values = [taken.intermediate_values[max(taken.intermediate_values)]]
        taken.state, taken.values = told, None if values is None else list(values)

    def _ask(self, number: int) -> optuna.Trial:
        self._give_taken()
        if not self._stateful:
            seed = derive_seed(self._seed, "sampler", number)
            self._study.sampler = _create(self._name, seed, conditional=self._space.when)
        with _quiet():
            trial = self._study.ask() if self._space.when else self._study.ask(self._distributions)
            if self._space.when:
                values: dict[str, Any] = {}
                for parameter in self._space.parameters:
                    if parameter.active(values):
                        values[parameter.name] = _suggest(trial, parameter)
        if trial.number != number:
            raise ValueError(f"search trials must be numbered without gaps, but got {trial.number} for {number}")
        self._identities[number] = optuna_internals.identity(trial)
        return trial

    def _give_taken(self) -> None:
        with _quiet():
            for number, taken in self._taken.items():
                trial = optuna.create_trial(
                    state=taken.state,
                    params=taken.params,
                    distributions={name: self._distributions[name] for name in taken.params},
                    values=taken.values,
                    intermediate_values=taken.intermediate_values,
                )
                self._identities[number] = optuna_internals.add_trial(self._study, trial)
        self._taken.clear()


def _suggest(trial: optuna.Trial, parameter: Parameter) -> Any:
    """A value of one parameter, independent of those before it."""
    if parameter.kind == "categorical":
        return trial.suggest_categorical(parameter.name, parameter.choices)
    if parameter.kind == "int":
        step = 1 if parameter.log else int(parameter.step or 1)
        return trial.suggest_int(parameter.name, int(parameter.low), int(parameter.high), log=parameter.log, step=step)
    return trial.suggest_float(parameter.name, parameter.low, parameter.high, log=parameter.log, step=parameter.step)


def _create(name: str, seed: int, *, conditional: bool = False) -> BaseSampler:
    seed %= 2**32
    with _quiet():
        if name == "tpe":
            return optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=True, group=conditional
            )
        if name == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
        if name == "qmc":
            return optuna.samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
        if name == "cmaes":
            return optuna.samplers.CmaEsSampler(
                seed=seed, n_startup_trials=STARTUP_TRIALS, warn_independent_sampling=False
            )
        if name == "nsga2":
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=10)
        return optuna.samplers.RandomSampler(seed=seed)


def _quiet() -> warnings.catch_warnings:
    return warnings.catch_warnings(action="ignore")
