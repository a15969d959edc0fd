"""Which settings matter, and what a search of another length would have found."""

from __future__ import annotations

import cProfile
import itertools
from pathlib import Path

import numpy as np
import pytest
from synthetic import FakeStudy

from captune.decisions.statistics import subset_weights
from captune.records import StudyRecord
from captune.results import importance
from captune.results.curves import curves_table, expected_best, trial_counts
from captune.results.importance import importance_table, marginals_table, optuna_study, pair_variance
from captune.results.load import load_study
from captune.results.plots import importance_figure
from captune.results.report import tables_of
from captune.results.surrogate import fit_surrogate


@pytest.fixture(scope="module")
def long_search(tmp_path_factory: pytest.TempPathFactory) -> StudyRecord:
    study = FakeStudy(tmp_path_factory.mktemp("long"), noise=0.002, seed=7)
    study.references()
    study.search(60)
    return load_study(study.close())


def test_importance_finds_what_the_simulator_uses(long_search: StudyRecord) -> None:
    """Quality depends on the learning rate and the main samples; margin and leaderboard hardly move it."""
    table = importance_table([long_search])
    main = table[table["kind"] == "main"]
    for _method, rows in main.groupby("method"):
        by_name = rows.set_index("parameter")["importance"]
        assert by_name.sum() == pytest.approx(1)
        assert by_name["learning_rate"] + by_name["num_main_samples"] > 0.6
        assert by_name["leaderboard"] < 0.1
    assert set(main["method"]) == {"PED-ANOVA", "fANOVA"}
    pairs = table[table["kind"] == "interaction"]
    assert len(pairs) == 6 and pairs["importance"].between(0, 1).all()


def test_marginal_curve_peaks_where_the_simulator_does(long_search: StudyRecord) -> None:
    curve = marginals_table([long_search])
    rate = curve[curve["parameter"] == "learning_rate"]
    peak = float(rate.loc[rate["mean"].astype(float).idxmax(), "value"])
    assert 10**-2.8 < peak < 10**-1.2
    assert (rate["low"] <= rate["mean"] + 1e-9).all() and (rate["mean"] <= rate["high"] + 1e-9).all()


def test_interaction_of_an_additive_forest_is_nothing_and_of_a_product_is_not(tmp_path: Path) -> None:
    class Exact:
        """Stands for a forest whose prediction is known exactly."""

        def __init__(self, run: StudyRecord, product: bool) -> None:
            surrogate = fit_surrogate(run)
            assert surrogate is not None
            self.parameters, self.product = surrogate.parameters, product

        def predict(self, units_NP: np.ndarray) -> np.ndarray:
            first, second = units_NP[:, 0], units_NP[:, 1]
            return first * second if self.product else first + second

    study = FakeStudy(tmp_path)
    study.search(8)
    run = load_study(study.close())
    background = np.random.default_rng(0).random((16, 4))
    additive = pair_variance(Exact(run, False), background, 0, 1)  # type: ignore[arg-type]
    product = pair_variance(Exact(run, True), background, 0, 1)  # type: ignore[arg-type]
    assert additive == pytest.approx(0, abs=1e-12)
    # On a grid of 7 points in [0, 1] each side has variance 1/9; the interaction of a product is their product.
    assert product == pytest.approx((1 / 9) ** 2)


def test_importance_is_silent_when_it_cannot_speak(tmp_path: Path) -> None:
    few = FakeStudy(tmp_path / "few")
    few.search(3)
    equal = FakeStudy(tmp_path / "equal")
    for number in range(8):
        key = f"t{number:04d}"
        equal.plan(key, "search", number=number, config_id=number, params=equal.sample())
        equal.write("finished", key=key, state="COMPLETE", score=0.5, scores={}, fidelity=1.0)
    runs = [load_study(few.close()), load_study(equal.close())]
    assert importance_table(runs).empty and marginals_table(runs).empty


def test_too_few_trials_are_said_to_be_and_not_drawn(study: StudyRecord, long_search: StudyRecord) -> None:
    table = importance_table([study])
    main = table[table["kind"] == "main"]
    assert main["note"].str.startswith("9 trials for 4 settings are too few").all() and not main["enough"].any()
    assert importance_figure(table, marginals_table([study])) is None
    assert importance_figure(importance_table([long_search]), marginals_table([long_search])) is not None


def test_optuna_study_holds_the_trials_even_outside_the_space(long_search: StudyRecord) -> None:
    study = optuna_study(long_search)
    assert len(study.trials) == 60 and study.best_value == max(
        t.score for t in long_search.trials if t.phase == "search"
    )


# curves


def test_expected_best_equals_all_subsets() -> None:
    scores, metrics = [0.3, 0.1, 0.9, 0.4], [1.0, 2.0, 3.0, 4.0]
    best, pick = expected_best(np.array(scores), np.array(metrics))
    assert pick is not None
    for size in range(1, 5):
        subsets = list(itertools.combinations(range(4), size))
        winners = [max(subset, key=lambda index: scores[index]) for subset in subsets]
        assert best[size - 1] == pytest.approx(np.mean([scores[winner] for winner in winners]))
        assert pick[size - 1] == pytest.approx(np.mean([metrics[winner] for winner in winners]))


def test_expected_best_by_hand() -> None:
    """1, 2, 4: one draw 7/3; two draws, pairs (1,2) (1,4) (2,4): (2+4+4)/3 = 10/3; three draws 4."""
    assert expected_best(np.array([4.0, 1.0, 2.0]), None)[0] == pytest.approx([7 / 3, 10 / 3, 4])


def test_subset_weights_are_probabilities() -> None:
    assert np.allclose(subset_weights(200).sum(axis=1), 1)
    assert np.array_equal(subset_weights(200, [1, 7, 200]), subset_weights(200)[[0, 6, 199]])


def test_a_curve_has_every_number_to_a_hundred_and_few_beyond() -> None:
    assert trial_counts(100) == list(range(1, 101))
    counts = trial_counts(5000)
    assert counts[:100] == list(range(1, 101)) and counts[-1] == 5000 and len(counts) <= 160
    assert counts == sorted(set(counts))


@pytest.mark.slow
def test_a_report_grows_with_the_number_of_trials_not_with_its_square(tmp_path: Path) -> None:
    """Four times the trials may take at most six times the operations; a square would take sixteen."""
    operations = {}
    for num_trials in (500, 2000):
        study = FakeStudy(tmp_path / str(num_trials))
        study.references()
        study.search(num_trials, stop_every=5)
        study.open_seal()
        run = load_study(study.close())
        profile = cProfile.Profile()
        profile.enable()
        tables_of([run])
        profile.disable()
        operations[num_trials] = sum(entry.callcount for entry in profile.getstats())
    assert operations[2000] < 6 * operations[500], operations


def test_fanova_reads_a_bounded_number_of_trials_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert importance.FANOVA_TRIALS == 256
    monkeypatch.setattr(importance, "FANOVA_TRIALS", 32)
    study = FakeStudy(tmp_path / "many")
    study.references()
    study.search(72)
    run = load_study(study.close())
    assert len(optuna_study(run, most=16).trials) == 16
    main = importance_table([run]).query("kind == 'main'").set_index("method")
    assert set(main.loc["fANOVA", "num_trials"]) == {32}
    assert set(main.loc["fANOVA", "note"]) == {"32 of 72 trials, evenly spaced"}
    assert set(main.loc["PED-ANOVA", "num_trials"]) == {72}


def test_curve_rises_within_its_band_and_ends_at_the_best(study: StudyRecord) -> None:
    table = curves_table([study])
    best = table["expected_best_score"].astype(float)
    assert best.is_monotonic_increasing and best.iloc[-1] == pytest.approx(table["observed_best_score"].iloc[-1])
    assert (table["expected_best_score_low"] <= best + 1e-9).all()
    assert len(table) == 11, "nine complete and two stopped trials, not the failed one"
