"""When a search has settled: expected gain against the noise of its own scores."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from captune.decisions.settling import (
    IN_A_ROW,
    LEAST_TRIALS,
    expected_gain,
    noise_of_scores,
    outlook,
    settled_outlook,
)
from captune.records import JOURNAL, read_journal
from captune.records.events import Planned, SearchEnded
from tests.tools.settling import replay
from tests.tuning.fakes import study
from tests.tuning.simulate import drive, make_cell, outcomes

RNG = np.random.default_rng(0)


def test_the_expected_gain_of_one_draw_is_that_of_a_normal_variable_worked_by_hand() -> None:
    # Many draws of a standard normal: E max(0, x - 1) = φ(1) - (1 - Φ(1)) = 0.24197 - 0.15866 = 0.08332.
    draws = RNG.normal(size=8_000)
    assert expected_gain(draws, 1.0, 1) == pytest.approx(0.0833, abs=0.006)
    # The best of a hundred lies at 2.51 on average.
    assert expected_gain(draws, -10.0, 100) == pytest.approx(12.51, abs=0.15)


def test_gain_grows_with_the_trials_that_are_left_and_falls_with_the_best() -> None:
    scores = RNG.normal(0.7, 0.05, size=30)
    gains = [expected_gain(scores, 0.8, left) for left in (0, 1, 5, 50)]
    assert gains[0] == 0.0 and gains == sorted(gains)
    assert expected_gain(scores, 0.9, 5) < expected_gain(scores, 0.8, 5)


def test_noise_is_found_beside_a_smooth_score() -> None:
    places = RNG.random((400, 2))
    smooth = 0.8 - 0.05 * ((places - 0.5) ** 2).sum(axis=1)
    noisy = smooth + RNG.normal(0, 0.01, size=400)
    assert noise_of_scores(smooth, places) < 0.002
    # Of the better half only, whose scores are the lucky ones: less than the 0.01 that was put in.
    assert 0.003 < noise_of_scores(noisy, places) < 0.012


def test_equal_scores_have_settled_and_few_tell_nothing() -> None:
    places = RNG.random((LEAST_TRIALS, 2)).tolist()
    assert outlook([0.5] * (LEAST_TRIALS - 1), places[:-1], 10) is None
    found = outlook([0.5] * LEAST_TRIALS, places, 10)
    assert found is not None and math.isclose(found.gain, 0.0, abs_tol=1e-6)


def test_a_search_has_settled_once_its_gain_was_below_the_noise_three_trials_running() -> None:
    places = RNG.random((40, 1))
    # Flat but for noise: nothing is left to gain but luck.
    flat = (0.7 + RNG.normal(0, 0.01, size=40)).tolist()
    first = next(count for count in range(40) if settled_outlook(flat[:count], places[:count].tolist(), 60 - count))
    assert first >= LEAST_TRIALS + IN_A_ROW - 1
    # Without noise and steep, every trial may still be the best by far.
    steep = (0.5 + places[:, 0] / 2).tolist()
    assert settled_outlook(steep[:30], places[:30].tolist(), 30) is None


@pytest.mark.slow
def test_on_studies_with_known_noise_trials_are_saved_for_less_than_the_noise(tmp_path: Path) -> None:
    """Ten searches of sixty trials, whose scores have a noise of 0.007."""
    replays = []
    for seed in range(10):
        directory = tmp_path / str(seed)
        directory.mkdir()
        settings = study(trials=60, confirm_top=0, scheduler="none", sampler="random", seed=100 + seed)
        cell = make_cell(directory, settings)
        drive(cell)
        cell.close()
        places = [cell.space.unit(trial.params) for trial in cell.search]
        replays.append(replay(str(seed), [trial.score or 0.0 for trial in cell.search], places))
    assert sum(one.stopped for one in replays) < 0.9 * 600, "trials are saved"
    assert sum(one.lost for one in replays) / 10 < 0.007, "for less than two scores of one configuration differ"


def test_a_study_that_was_asked_to_ends_its_search_once_it_has_settled_and_is_resumed_the_same(tmp_path: Path) -> None:
    settings = study(trials=60, confirm_top=1, confirm_seeds=1, scheduler="none", stop_when_settled=True)
    cell = make_cell(tmp_path, settings)
    drive(cell)
    cell.close()
    (ended,) = [event for event in read_journal(tmp_path / JOURNAL) if isinstance(event, SearchEnded)]
    phases = [event.phase for event in read_journal(tmp_path / JOURNAL) if isinstance(event, Planned)]
    assert LEAST_TRIALS <= phases.count("search") < 60
    assert "it has settled" in str(ended.reason) and phases.count("confirm") >= 2, "the best are confirmed all the same"
    before = outcomes(tmp_path)
    again = make_cell(tmp_path, settings)
    assert again.finished
    again.close()
    more = make_cell(tmp_path, settings.model_copy(update={"stop_when_settled": False, "trials": 61}))
    assert not more.finished, "more trials than it had let it go on"
    more.close()
    assert outcomes(tmp_path) == before


def test_without_being_asked_a_search_goes_on_to_its_last_trial(tmp_path: Path) -> None:
    cell = make_cell(tmp_path, study(trials=40, confirm_top=0, scheduler="none"))
    drive(cell)
    assert len(cell.search) == 40
