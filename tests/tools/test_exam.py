"""The exam's worlds are what their names say, and its cache holds what captune predicts."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from captune.data.paradigms import build_task
from captune.decisions.evidence import Evidence
from captune.training.context import open_context
from tests.tools.exam.cache import Facts, fill, read_candidates, read_facts, worlds_in
from tests.tools.exam.candidates import Candidate, trained, training_free
from tests.tools.exam.judge import Case, cases
from tests.tools.exam.search import CONFIRMATION, SEARCH, searched_case
from tests.tools.exam.search import fill as fill_search
from tests.tools.exam.worlds import KINDS, World, table_of_worlds

NUM_CLASSES, WIDTH = 12, 24


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A feature file of twelve classes around their texts, twenty images of each in train and in test."""
    generator = np.random.default_rng(7)
    text_KD = generator.standard_normal((NUM_CLASSES, WIDTH))
    labels_M = np.tile(np.arange(NUM_CLASSES), 40)
    image_MD = text_KD[labels_M] + 2.0 * generator.standard_normal((len(labels_M), WIDTH))
    folder = tmp_path_factory.mktemp("features")
    np.savez(
        folder / "toy.npz",
        image_features=image_MD.astype(np.float32),
        labels=labels_M,
        split=np.where(np.arange(len(labels_M)) < len(labels_M) // 2, "train", "test"),
        text_features=text_KD.astype(np.float32),
        class_names=np.array([f"thing {label}" for label in range(NUM_CLASSES)]),
        logit_scale=np.array([10.0], np.float32),
    )
    return folder


def pool_of(world: World, features: Path, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True labels of the pool and the test images, and the text features."""
    config = world.open(features, folder)
    _, sealed = build_task(config, role="report")
    return (
        sealed.reveal()["pool"],
        sealed.reveal()["test"],
        open_context(config, "report", "cpu").text_features_KD.numpy(),
    )


@pytest.mark.parametrize("paradigm", ["ul", "tft"])
def test_every_kind_opens_and_is_what_its_name_says(features: Path, tmp_path: Path, paradigm: str) -> None:
    plain_pool, _, plain_KD = pool_of(World("toy", paradigm, "plain", 0), features, tmp_path)
    for kind in KINDS:
        if kind == "present-25" or paradigm not in KINDS[kind].paradigms:
            continue
        pool, test, text_KD = pool_of(World("toy", paradigm, kind, 0), features, tmp_path)
        counts_K = np.bincount(pool[pool >= 0], minlength=NUM_CLASSES)
        if kind.startswith("present"):
            count = int(kind.split("-")[1])
            assert len(np.unique(pool)) == len(np.unique(test)) == count and len(text_KD) == NUM_CLASSES
        elif kind.startswith(("imbalance", "tail")):
            assert counts_K[counts_K > 0].max() >= 8 * counts_K[counts_K > 0].min()
            assert (np.ptp(np.bincount(test)) > 0) == (kind == "tail-50")
        elif kind == "open-set":
            assert (pool < 0).any() and len(text_KD) == 10
        elif kind == "few-5":
            assert counts_K.tolist() == [5] * NUM_CLASSES
        elif kind.startswith("classes"):
            assert len(np.unique(pool)) == len(text_KD) == int(kind.split("-")[1])
        elif kind in ("swapped", "replaced", "nothing"):
            moved_K = ~np.isclose(text_KD, plain_KD, atol=1e-5).all(axis=1)
            assert moved_K.sum() == (NUM_CLASSES if kind == "nothing" else 2)
            np.testing.assert_array_equal(pool, plain_pool)
        elif kind == "coarse":
            assert text_KD.shape == (NUM_CLASSES, min(64, WIDTH))


def test_a_world_follows_from_its_key(features: Path, tmp_path: Path) -> None:
    for world in table_of_worlds({"toy": NUM_CLASSES}, seeds=2, kinds=("present-4", "present-25", "few-5")):
        assert World.of_key(world.key) == world and world.kind != "present-25"
        first, second = (pool_of(world, features, tmp_path)[0] for _ in range(2))
        np.testing.assert_array_equal(first, second)


def test_the_cache_holds_what_the_methods_predict(features: Path, tmp_path: Path) -> None:
    worlds = [World("toy", "ul", "few-5", 0), World("toy", "tft", "plain", 0)]
    wanted = (*training_free(), Candidate("fpl", "quick"))
    written = fill(tmp_path / "cache", features, worlds, wanted, time.time() + 60)
    assert worlds_in(tmp_path / "cache") == sorted(worlds)
    assert fill(tmp_path / "cache", features, worlds, wanted, time.time() + 60) == 0 < written
    for world in worlds:
        facts, found = read_facts(tmp_path / "cache", world), read_candidates(tmp_path / "cache", world)
        assert {"zero_shot", "balanced", "transclip", "mixture", "fpl@quick"} <= set(found)
        pool_NK, test_MK, validation_VK = found["zero_shot"]
        assert len(validation_VK) == 0
        # Half precision moves no image but on a tie.
        assert np.mean(pool_NK.argmax(1) == facts.logits_NK.argmax(1)) > 0.99
        assert len(test_MK) == len(facts.test_labels_M) == 240
        assert (facts.test_in_pool_M >= 0).all() == (world.paradigm == "tft")
        assert facts.holdout_N.sum() == (12 if world.paradigm == "ul" else 0)
        probs_MK = found["fpl@quick"][1]
        np.testing.assert_allclose(probs_MK.sum(1), 1, atol=0.02)
        # Nearest first, and never oneself.
        assert (facts.neighbours_Nk != np.arange(len(pool_NK))[:, None]).all()
        assert (np.diff(facts.similarity_Nk.astype(float), axis=1) <= 0).all()


def test_labelled_worlds_hold_what_a_choice_may_see_of_labels_and_are_judged_as_they_are_reported(
    features: Path, tmp_path: Path
) -> None:
    worlds = table_of_worlds({"toy": NUM_CLASSES}, seeds=1, kinds=("shots-1", "plain"), labelled=True)
    assert {(world.paradigm, world.kind) for world in worlds} == {
        ("ssl", "shots-1"),
        ("ssl", "plain"),
        ("trzsl", "plain"),
    }
    wanted = [Candidate.of_key(name) for name in ("zero_shot", "balanced", "probe")]
    fill(tmp_path / "cache", features, worlds, wanted, time.time() + 60)
    for case in cases(tmp_path / "cache"):
        labelled = case.evidence.validation
        assert labelled is not None and case.evidence.knowledge is None
        few = {"shots-1": NUM_CLASSES, "plain": 2 * NUM_CLASSES}[case.world.kind]
        assert case.world.paradigm == "trzsl" or len(labelled.labels_V) == few
        assert labelled.unseen_K.any() == (case.world.paradigm == "trzsl")
        predicted_M, labels_M = case.test["probe"].argmax(1), case.facts.test_labels_M
        right_M, expected = predicted_M == labels_M, np.mean(predicted_M == labels_M)
        if case.world.paradigm == "trzsl":
            seen, unseen = (right_M[case.facts.seen_K[labels_M] == known].mean() for known in (True, False))
            expected = 2 * seen * unseen / (seen + unseen)
        assert case.accuracy({"probe": 1.0}) == pytest.approx(100 * expected)


def case_of(right_CM: np.ndarray, *, unseen: bool = False) -> Case:
    """A world of two classes in which candidates "0", "1", … are right on these test images."""
    labels_M = np.arange(right_CM.shape[1], dtype=np.int16) % 2
    test = {str(at): np.eye(2)[np.where(right_M, labels_M, 1 - labels_M)] for at, right_M in enumerate(right_CM)}
    none = np.empty(0)
    seen_K = np.array([True, False]) if unseen else np.zeros(2, bool)
    facts = Facts(none, none, none, none, none, none, labels_M, none, seen_K=seen_K)
    probs = {name: torch.eye(2) for name in ("zero_shot", "balanced")}
    evidence = Evidence(probs, torch.zeros(2, 1, dtype=torch.int64), None)
    return Case(World("toy", "ul", "plain", 0), evidence, test, facts)


def test_against_what_chance_made_best_everyone_regrets_but_not_on_the_other_half() -> None:
    generator = np.random.default_rng(1)
    found = []
    for _ in range(40):
        case = case_of(generator.random((8, 100)) < 0.7)  # all alike but for luck
        regret = max(case.accuracy({name: 1.0}) for name in case.test) - case.accuracy({"0": 1.0})
        found.append((regret, case.regret_halved({"0": 1.0})))
    plain, halved = np.mean(found, axis=0)
    assert plain > 4 and abs(halved) < 1.5


def test_a_lead_that_all_images_show_is_regretted_whole() -> None:
    right_CM = np.stack([np.arange(60) % 3 > 0, np.ones(60, bool)])
    case = case_of(right_CM)
    assert case.regret_halved({"1": 1.0}) == 0
    assert case.regret_halved({"0": 1.0}) == pytest.approx(100 / 3, abs=1e-9)  # halves weigh the same both ways round


def test_halves_of_a_task_with_unseen_classes_are_judged_by_the_harmonic_mean() -> None:
    right_CM = np.stack([np.arange(200) % 2 == 0, np.ones(200, bool)])  # the first knows the seen class alone
    assert case_of(right_CM, unseen=True).regret_halved({"0": 1.0}) == pytest.approx(100)


def test_a_search_is_ranked_by_its_own_seed_and_offered_to_the_choice_as_it_was_confirmed(
    features: Path, tmp_path: Path
) -> None:
    world, wanted = World("toy", "ssl", "shots-1", 0), [Candidate(name) for name in ("zero_shot", "balanced")]
    fill(tmp_path / "cache", features, [world], wanted, time.time() + 60)
    fill_search(tmp_path / "cache", tmp_path / "searched", features, kinds="shots-1", configurations=2)
    file = tmp_path / "searched" / f"{world.key}.npz"
    (case,) = cases(tmp_path / "cache")
    found = searched_case(case, file)
    assert sorted(found.ranked) == [0, 1] and found.scores_C[found.ranked[0]] == found.scores_C.max()
    labelled = found.case.evidence.validation
    assert labelled is not None
    with np.load(file) as archive:
        for number in (0, 1):
            own = archive[f"pool-{number}-{CONFIRMATION}"]
            np.testing.assert_allclose(found.case.evidence.probs[f"c{number}"].numpy(), own, atol=1e-6)
            assert not np.array_equal(own, archive[f"pool-{number}-{SEARCH}"])
            seen_V = archive[f"validation-{number}-{SEARCH}"].argmax(1) == labelled.labels_V.numpy()
            right_M = archive[f"test-{number}-{SEARCH}"].argmax(1) == case.facts.test_labels_M
            expected = 100 * (seen_V.mean() - right_M.mean())
            assert found.flattery_2C[SEARCH, number] == pytest.approx(expected, abs=1e-4)


def test_candidates_are_named_by_method_budget_and_seed() -> None:
    for candidate in (*training_free(), *trained("quick", seeds=2)):
        assert Candidate.of_key(candidate.key) == candidate
    assert Candidate("cap", "quick", 3).key == "cap@quick~3"
    assert "supervised" not in {candidate.method for candidate in trained("full")}
