"""Which configurations are confirmed, and which drop out of the race."""

from __future__ import annotations

import random

from captune.decisions.confirming import Scored, configurations_to_confirm, losers, num_confirmed, plateau_pick
from captune.tuning.schedulers import Halving


def scored(*scores: float) -> list[Scored]:
    return [Scored(number, score, (number / 100,)) for number, score in enumerate(scores)]


def test_the_best_and_the_papers_configuration_are_confirmed() -> None:
    assert configurations_to_confirm(scored(0.1, 0.5, 0.9, 0.7), 2) == {2: "top", 3: "top", 0: "paper"}


def test_the_papers_configuration_counts_once_when_it_is_among_the_best() -> None:
    assert configurations_to_confirm(scored(0.9, 0.5, 0.7), 2) == {0: "paper", 2: "top"}


def test_ties_go_to_the_earlier_trial_and_equal_configurations_count_once() -> None:
    same = [Scored(0, 0.1, (0.0,)), Scored(1, 0.9, (0.5,)), Scored(2, 0.9, (0.5,)), Scored(3, 0.9, (0.7,))]
    assert list(configurations_to_confirm(same, 2)) == [1, 3, 0]


def test_nothing_is_confirmed_when_nothing_is_asked_or_finished() -> None:
    assert configurations_to_confirm(scored(0.1, 0.2), 0) == {}
    assert configurations_to_confirm([], 3) == {}


def test_a_plateau_is_preferred_to_a_lone_peak() -> None:
    # Scores rise gently around 0.75; one trial far from there is lucky.
    trials = [Scored(n, 0.8 - abs(n / 20 - 0.75), (n / 20,)) for n in range(20)] + [Scored(20, 0.99, (0.12,))]
    assert max(trials, key=lambda trial: trial.score).number == 20
    assert plateau_pick(trials) in (14, 15, 16)
    assert (
        configurations_to_confirm(trials, 1)[20] == "top" and "plateau" in configurations_to_confirm(trials, 1).values()
    )


def test_few_trials_have_no_plateau() -> None:
    assert plateau_pick(scored(*[0.5] * 19)) is None


def test_a_clear_loser_drops_out_and_a_close_one_stays() -> None:
    # Differences to 1 over three seeds: 2 loses by 0.10, 0.11, 0.12 (mean −0.11, sd 0.01: −0.11 + 2.92·0.0058 < 0);
    # 3 by 0.00, 0.20, −0.10 (mean −0.033, sd 0.15: the interval holds 0).
    table = {1: {1: 0.9, 2: 0.9, 3: 0.9}, 2: {1: 0.8, 2: 0.79, 3: 0.78}, 3: {1: 0.9, 2: 0.7, 3: 1.0}}
    assert losers(table, seeds=[1, 2, 3]) == {2}


def test_the_papers_configuration_never_drops_out() -> None:
    table = {0: {1: 0.1, 2: 0.1, 3: 0.1}, 1: {1: 0.9, 2: 0.9, 3: 0.9}}
    assert losers(table, seeds=[1, 2, 3]) == set()


def test_a_failed_confirmation_drops_out() -> None:
    assert losers({1: {1: 0.9, 2: None}, 2: {1: 0.8, 2: 0.9}}, seeds=[1, 2]) == {1}


def test_equal_runs_all_stay() -> None:
    assert losers({1: {1: 0.5, 2: 0.6}, 2: {1: 0.5, 2: 0.6}}, seeds=[1, 2]) == set()


def test_racing_rarely_drops_the_true_best() -> None:
    draw = random.Random(0)
    dropped = 0
    for _ in range(300):
        table = {config: {seed: draw.gauss(0.8 + 0.01 * config, 0.02) for seed in (1, 2, 3)} for config in range(1, 5)}
        dropped += 4 in losers(table, seeds=[1, 2, 3])
    assert dropped / 300 < 0.12


def test_a_rung_judges_once_four_runs_have_come_to_it() -> None:
    halving = Halving(rungs=(0.5,))
    for key, score in zip("abcd", (0.4, 0.6, 0.8, 0.2), strict=True):
        assert not halving.should_stop(key, 0.5, score)
        halving.enter(key, 0.5, score)
    # The median of 0.2, 0.4, 0.6, 0.8 is 0.5.
    assert halving.should_stop("e", 0.5, 0.49)
    assert not halving.should_stop("e", 0.5, 0.5)
    assert not halving.should_stop("e", 0.49, 0.0), "before the rung nothing is judged"
    assert not halving.should_stop("e", 0.5, None)


def test_a_run_is_judged_once_at_each_rung() -> None:
    halving = Halving(rungs=(0.25, 0.5))
    for key in "abcd":
        halving.enter(key, 0.25, 0.9)
    halving.enter("e", 0.3, 0.95)
    assert not halving.should_stop("e", 0.4, 0.0)


def test_a_run_that_skips_a_rung_is_entered_in_the_higher_only() -> None:
    halving = Halving(rungs=(0.25, 0.5))
    halving.enter("a", 1.0, 0.9)
    halving.enter("a", 1.0, 0.9)
    assert halving._scores == [[], [0.9]]


def test_as_many_are_confirmed_as_were_searched_at_most() -> None:
    assert [num_confirmed(trials, 3) for trials in (1, 3, 4, 12)] == [1, 3, 4, 4]
    assert num_confirmed(20, 3) == 5, "and the plateau's"
    assert num_confirmed(12, 0) == 0 == num_confirmed(12, 0, 3)
    assert num_confirmed(48, 1, num_methods=3) == 3, "the best of each method"
