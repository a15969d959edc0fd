"""Samplers: pure functions of seed, number and what was told."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from captune.errors import UsageError
from captune.records import State
from captune.space import Space, load_space
from captune.tuning.samplers import Sampler, check_sampler
from tests.tuning.fakes import info, space_path


@pytest.fixture
def space(tmp_path: Path) -> Space:
    return load_space(space_path(tmp_path), info().base)


def feed(sampler: Sampler, count: int) -> list[dict]:
    found = []
    for number in range(count):
        params = sampler.suggest(number)
        found.append(params)
        if number % 4 == 3:
            sampler.tell(number, State.FAILED, None)
        elif number % 4 == 2:
            sampler.report(number, 25, params["learning_rate"])
            sampler.tell(number, State.PRUNED, [params["learning_rate"]])
        else:
            sampler.tell(number, State.COMPLETE, [params["learning_rate"]])
    return found


@pytest.mark.parametrize("name", ["tpe", "random", "gp", "qmc", "nsga2"])
def test_one_seed_gives_one_sequence_and_another_seed_another(space: Space, name: str) -> None:
    first, again, other = (feed(Sampler(name, space, seed=seed), 8) for seed in (1, 1, 2))
    assert first == again != other


def test_a_sampler_rebuilt_by_telling_goes_on_as_the_one_that_asked(space: Space) -> None:
    lived, rebuilt = Sampler("tpe", space, seed=0), Sampler("tpe", space, seed=0)
    for number, params in enumerate(feed(lived, 12)):
        rebuilt.take(number, params, suggested=True)
        if number % 4 == 2:
            rebuilt.report(number, 25, params["learning_rate"])
        state = {3: State.FAILED, 2: State.PRUNED}.get(number % 4, State.COMPLETE)
        rebuilt.tell(number, state, None if state == State.FAILED else [params["learning_rate"]])
    assert lived.suggest(12) == rebuilt.suggest(12)


def test_tpe_learns_where_the_optimum_is(space: Space) -> None:
    tried = [params["learning_rate"] for params in feed(Sampler("tpe", space, seed=0), 40)]
    assert sum(tried[20:]) / 20 > 1.5 * sum(tried[:6]) / 6


def test_a_configuration_outside_the_space_stands_at_its_border(space: Space) -> None:
    sampler = Sampler("tpe", space, seed=0)
    sampler.take(0, {"learning_rate": 5.0, "weight_decay": 0.01, "epochs": 4}, suggested=False)
    sampler.tell(0, State.COMPLETE, [1.0])
    assert sampler.suggest(1)


def test_a_sampler_with_state_refuses_a_journal_it_would_not_have_written(space: Space) -> None:
    with pytest.raises(UsageError, match="the 'qmc' sampler must propose again what the journal holds"):
        Sampler("qmc", space, seed=0).take(
            0, {"learning_rate": 0.05, "weight_decay": 0.01, "epochs": 4}, suggested=True
        )


@pytest.mark.skipif(importlib.util.find_spec("cmaes") is not None, reason="cmaes is installed here")
def test_a_missing_package_is_noticed_before_the_study_starts() -> None:
    with pytest.raises(UsageError, match="--sampler cmaes must find the package 'cmaes'"):
        check_sampler("cmaes")
