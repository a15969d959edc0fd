"""The rule of the final choice, one behaviour a test, on journals written for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from synthetic import FakeStudy

from captune.decisions.by_criterion import noise_margin, num_scored_images
from captune.records import StudyRecord
from captune.results.best import choose
from captune.results.load import load_study


def study_with(
    directory: Path,
    confirmed: dict[int, Sequence[float]],
    *,
    zero_shot: float | None = 0.80,
    balanced: float | None = None,
    ensemble: float | None = None,
    agreement: float = 0.9,
    select_by: str = "agree-balanced",
    also: dict[str, dict[int, float]] | None = None,
    shots: int | None = None,
) -> StudyRecord:
    """A run whose confirmation scores are given; `also` adds values of other criteria by configuration."""
    study = FakeStudy(directory, select_by=select_by)
    also = also or {}
    for key, score in (("zero_shot", zero_shot), ("balanced", balanced), ("ensemble", ensemble)):
        if score is not None:
            extra = {name: by_key[-1] for name, by_key in also.items() if key == "zero_shot"}
            study.plan(key, "reference", origin="reference")
            study.write("finished", key=key, state="COMPLETE", score=score, scores={select_by: score, **extra})
    for number, scores in confirmed.items():
        study.plan(f"t{number:04d}", "search", number=number, config_id=number, params={"margin_scale": float(number)})
        study.write("finished", key=f"t{number:04d}", state="COMPLETE", score=scores[0], scores={select_by: scores[0]})
        for seed, score in enumerate(scores, start=1):
            key = f"c{number}-s{seed}"
            study.plan(key, "confirm", config_id=number, params={"margin_scale": float(number)}, seed=seed)
            extra = {name: by_config[number] for name, by_config in also.items()}
            values: dict[str, Any] = {select_by: score, "agree-zero-shot": agreement, **extra}
            study.write("finished", key=key, state="COMPLETE", score=score, scores=values)
    return load_study(study.close())


def test_a_clear_gain_is_advice_to_adapt(tmp_path: Path) -> None:
    choice = choose(study_with(tmp_path, {1: [0.95, 0.96, 0.95], 2: [0.90, 0.91, 0.90]}))
    assert (choice.advice, choice.name, choice.config_id) == ("adapt", "c1", 1)
    assert choice.config["margin_scale"] == 1.0
    assert "The selection score of c1 is 95.33 % (agree-balanced, 3 seeds), zero-shot's is 80.00 %." in choice.reason


def test_the_best_mean_wins_not_the_luckiest_run(tmp_path: Path) -> None:
    choice = choose(study_with(tmp_path, {1: [0.99, 0.85, 0.86], 2: [0.93, 0.93, 0.94]}))
    assert choice.config_id == 2


def test_a_gain_inside_the_noise_keeps_zero_shot_but_names_the_configuration(tmp_path: Path) -> None:
    choice = choose(study_with(tmp_path, {1: [0.90, 0.78, 0.80]}))
    assert (choice.advice, choice.name, choice.config_id) == ("keep zero-shot", "zero_shot", 1)


def test_noise_margin_by_hand(tmp_path: Path) -> None:
    """Scores .84 .86 .88: sd .02, t(.90, 2) = 1.8856, seeds 1.8856·.02/√3 = .02177.

    Images: 200 (a fifth of 1,000), 10 % of predictions differ, gain .06: √((.1 − .0036)/200) = .02195, at one-sided
    90 % 1.2816·.02195 = .02814; together .03558.
    """
    run = study_with(tmp_path, {1: [0.84, 0.86, 0.88]})
    margin, words = noise_margin(run, run.configurations()["c1"], 0.06, "agree-balanced")
    assert margin == pytest.approx(math.hypot(0.02177, 0.02814), abs=1e-4)
    assert words == "seeds 2.18, 200 scored images 2.81; 90 %, one-sided"
    assert choose(run).advice == "adapt", "a gain of .06 exceeds .0356"


def test_seed_noise_is_pooled_over_the_confirmed_configurations(tmp_path: Path) -> None:
    """Sums of squares .0008 and 0 on 2 + 2 degrees of freedom: sd √.0002, t(.90, 4) = 1.5332, 1.5332·√.0002/√3."""
    run = study_with(tmp_path, {1: [0.84, 0.86, 0.88], 2: [0.85, 0.85, 0.85]})
    _, words = noise_margin(run, run.configurations()["c1"], 0.06, "agree-balanced")
    assert words.startswith(f"seeds {100 * 1.5332 * math.sqrt(0.0002 / 3):.2f}, ")


def test_a_recorded_error_over_images_goes_before_the_bound(tmp_path: Path) -> None:
    run = study_with(tmp_path, {1: [0.86, 0.86, 0.86]})
    for trial in run.configurations()["c1"]:
        trial.gain_errors["agree-balanced"] = 0.01
    margin, _ = noise_margin(run, run.configurations()["c1"], 0.06, "agree-balanced")
    assert margin == pytest.approx(1.2816 * 0.01, abs=1e-5)


def test_against_zero_shot_the_part_that_it_has_no_part_in_decides(tmp_path: Path) -> None:
    """+.02 in agree-smooth says little; +.09 in neighbours is a gain, −.01 none; and the whole must be ahead."""

    def advice(directory: Path, score: float, neighbours: float) -> str:
        also = {"neighbours": {-1: 0.70, 1: neighbours}}
        run = study_with(directory, {1: [score] * 3}, select_by="agree-smooth", zero_shot=0.78, also=also)
        return choose(run).advice

    assert advice(tmp_path / "a", 0.80, 0.79) == "adapt"
    assert advice(tmp_path / "b", 0.80, 0.69) == "keep zero-shot"
    assert advice(tmp_path / "c", 0.77, 0.79) == "keep zero-shot"


def test_image_variance_bound_is_that_of_the_paired_difference() -> None:
    """The bound (q − gain²)/n against its definition: differences of −1, 0, 1 that are nonzero on a share q."""
    differences = [1] * 30 + [-1] * 10 + [0] * 160
    q, gain, n = 40 / 200, 20 / 200, 200
    variance = sum((d - gain) ** 2 for d in differences) / n
    assert variance == pytest.approx(q - gain**2)


def test_one_seed_says_so(tmp_path: Path) -> None:
    run = study_with(tmp_path, {1: [0.86]})
    margin, words = noise_margin(run, run.configurations()["c1"], 0.06, "agree-balanced")
    assert "one seed, so the spread over seeds is unknown" in words and margin == pytest.approx(
        1.2816 * 0.02195, abs=1e-4
    )


def test_predictions_that_agree_with_zero_shot_changed_nothing(tmp_path: Path) -> None:
    choice = choose(study_with(tmp_path, {1: [0.801, 0.802, 0.801]}, agreement=0.995))
    assert (choice.advice, choice.name) == ("adaptation changed nothing", "zero_shot")


def test_balanced_does_not_compete_by_agreement_with_itself(tmp_path: Path) -> None:
    choice = choose(study_with(tmp_path, {1: [0.79, 0.78, 0.77]}, balanced=1.0))
    assert choice.advice == "keep zero-shot"


def test_balanced_competes_where_the_score_is_not_built_on_it(tmp_path: Path) -> None:
    run = study_with(tmp_path / "a", {1: [0.60, 0.61, 0.60]}, balanced=0.99, select_by="val")
    assert choose(run).advice == "use balanced zero-shot"
    run = study_with(tmp_path / "b", {1: [0.97, 0.97, 0.97]}, balanced=0.9, select_by="ami")
    assert choose(run).advice == "adapt"
    run = study_with(tmp_path / "c", {1: [0.93, 0.93, 0.93]}, balanced=0.95, select_by="ami")
    assert choose(run).advice == "use balanced zero-shot", "nothing to train is the better choice at a better score"


def test_zero_shot_is_not_unbeatable_by_agreement_with_itself(tmp_path: Path) -> None:
    also = {"agree-balanced": {-1: 0.80, 1: 0.95}}
    run = study_with(tmp_path, {1: [0.9, 0.9, 0.9]}, zero_shot=1.0, select_by="agree-zero-shot", also=also)
    assert choose(run).advice == "adapt"


def test_few_labelled_images_get_a_second_opinion(tmp_path: Path) -> None:
    """Eight labelled images (two shots of four classes) cannot show a gain of .06; 200 pool images can show theirs."""
    also = {"agree-balanced": {-1: 0.80, 1: 0.95}}
    with_it = choose(study_with(tmp_path / "a", {1: [0.86, 0.86, 0.86]}, select_by="val", also=also))
    without = choose(study_with(tmp_path / "b", {1: [0.86, 0.86, 0.86]}, select_by="val"))
    worse = choose(study_with(tmp_path / "c", {1: [0.79, 0.79, 0.79]}, select_by="val", also=also))
    assert [with_it.advice, without.advice, worse.advice] == ["adapt", "keep zero-shot", "keep zero-shot"]
    assert "By a second criterion" in with_it.reason


def test_ensemble_is_chosen_only_when_it_leads(tmp_path: Path) -> None:
    ahead = study_with(tmp_path / "a", {1: [0.90, 0.905, 0.9]}, ensemble=0.95)
    level = study_with(tmp_path / "b", {1: [0.90, 0.905, 0.9]}, ensemble=0.9)
    assert [choose(run).advice for run in (ahead, level)] == ["use the ensemble", "adapt"]


def test_a_configuration_dropped_by_the_race_cannot_win_with_its_one_seed(tmp_path: Path) -> None:
    choice = choose(study_with(tmp_path, {1: [0.99], 2: [0.95, 0.95, 0.96]}))
    assert choice.config_id == 2
    assert {candidate.name: candidate.num_seeds for candidate in choice.candidates} == {
        "zero_shot": 1, "c1": 1, "c2": 3,
    }  # fmt: skip


def test_without_confirmation_the_best_search_trial_stands_in(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.references()
    study.search(6)
    choice = choose(load_study(study.close()))
    assert choice.config_id is not None and "1 seed)" in choice.reason


def test_nothing_finished_keeps_zero_shot(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.references()
    choice = choose(load_study(study.close()))
    assert (choice.advice, choice.config_id, choice.config) == ("keep zero-shot", None, {})


def test_without_zero_shot_no_gain_is_claimed(tmp_path: Path) -> None:
    choice = choose(study_with(tmp_path, {1: [0.95, 0.96, 0.95]}, zero_shot=None))
    assert choice.advice == "keep zero-shot" and "no gain can be shown" in choice.reason


def test_equal_scores_go_to_the_lower_number(tmp_path: Path) -> None:
    assert choose(study_with(tmp_path, {2: [0.95] * 3, 1: [0.95] * 3})).config_id == 1


def test_sealed_labels_change_nothing(tmp_path: Path) -> None:
    """The same journal with the seal opened and garbage metrics in it gives the same choice."""
    study = FakeStudy(tmp_path, seed=4)
    study.references()
    study.search(8)
    study.confirm([0, 1, 2])
    before = choose(load_study(tmp_path))
    study.metric_of = dict.fromkeys(study.metric_of, 0.123)
    study.open_seal()
    assert choose(load_study(study.close())) == before


def test_order_of_seeds_changes_nothing(tmp_path: Path) -> None:
    first = choose(study_with(tmp_path / "a", {1: [0.90, 0.85, 0.95]}))
    second = choose(study_with(tmp_path / "b", {1: [0.95, 0.90, 0.85]}))
    assert first.advice == second.advice and first.reason == second.reason


def test_event_fields_are_what_the_journal_takes(tmp_path: Path) -> None:
    choice = choose(study_with(tmp_path, {1: [0.95, 0.96, 0.95]}))
    event = choice.as_event()
    assert (event.advice, event.name, event.config, event.reason) == (
        choice.advice, choice.name, choice.config, choice.reason
    )  # fmt: skip
    assert event.candidates[0] == asdict(choice.candidates[0])


def test_number_of_scored_images_is_recorded_or_derived(tmp_path: Path) -> None:
    run = study_with(tmp_path / "a", {1: [0.9]})
    assert num_scored_images(run, "agree-balanced") == 200
    assert num_scored_images(run, "val") == 8
    assert num_scored_images(run, "pseudo-unseen") is None
    run.opened = replace(run.opened, num_scored=77)
    assert num_scored_images(run, "agree-balanced") == 77


def test_balanced_is_compared_by_the_part_of_agree_smooth_that_is_not_built_on_it(tmp_path: Path) -> None:
    """Balanced leads in agree-smooth (.95, .93) only by its built-in third; by neighbours it is behind (.76, .85)."""

    def study(directory: Path, balanced_neighbours: float) -> StudyRecord:
        also = {"neighbours": {-1: 0.74, 1: 0.85}}
        run = study_with(directory, {1: [0.93] * 3}, balanced=0.95, select_by="agree-smooth", also=also)
        run.find("balanced").scores["neighbours"] = balanced_neighbours  # type: ignore[union-attr]
        return run

    assert choose(study(tmp_path / "a", 0.76)).advice == "adapt"
    assert choose(study(tmp_path / "b", 0.90)).advice == "use balanced zero-shot"


def test_val_smooth_is_as_sure_as_the_mean_of_two_measurements(tmp_path: Path) -> None:
    """8 labelled and 200 held-out images: 4 / (1/8 + 1/200) = 4 / 0.13 = 30.8 images."""
    run = study_with(tmp_path, {1: [0.9]}, select_by="val-smooth")
    assert num_scored_images(run, "val-smooth") == 31
