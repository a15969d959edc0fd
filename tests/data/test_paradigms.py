"""Who is labelled, pooled, validated and tested, and that nothing unlabelled carries its label along."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captune.config import PARADIGMS, TaskConfig
from captune.data.catalog import load_dataset
from captune.data.draws import draw_shots, exponential_pool, seen_classes
from captune.data.paradigms import Labelled, Role, SealedLabels, Task, build_task
from captune.errors import ConfigError, DataError
from tests.slow import in_one_test

_ROLES = ("score", "report")


def _features(folder: Path, train: list[int], val: list[int], test: list[int], num_classes: int) -> str:
    """A features: dataset with these labels."""
    labels = np.array([*train, *val, *test])
    split = np.array(["train"] * len(train) + ["val"] * len(val) + ["test"] * len(test))
    features = np.random.default_rng(0).standard_normal((len(labels), 8)).astype(np.float32)
    names = np.array([f"class{number}" for number in range(num_classes)])
    np.savez(folder / "f.npz", image_features=features, labels=labels, split=split, class_names=names)
    return f"features:{folder / 'f.npz'}"


def _even(num_classes: int, count: int) -> list[int]:
    return [label for _ in range(count) for label in range(num_classes)]


@pytest.fixture
def ten(tmp_path: Path) -> str:
    """Ten classes, 20 train, 6 val and 5 test images each; image i has label i mod 10 within a split."""
    return _features(tmp_path, _even(10, 20), _even(10, 6), _even(10, 5), 10)


def _build(dataset: str, paradigm: str, role: str = "report", **values: Any) -> tuple[Task, SealedLabels]:
    return build_task(TaskConfig(dataset=dataset, paradigm=paradigm, **values), role=role)  # type: ignore[arg-type]


def test_ul_pools_all_training_images_without_labels(ten: str) -> None:
    task, _ = _build(ten, "ul")
    assert task.pool.tolist() == list(range(200))
    assert len(task.labelled) == len(task.validation) == len(task.holdout) == 0
    assert task.test.tolist() == list(range(260, 310))
    assert task.pseudolabelled_K.all() and not task.seen_K.any()
    assert task.estimated_class_size == 20


def test_a_fifth_of_the_pool_is_held_out_while_a_study_scores(ten: str) -> None:
    for paradigm, size in (("ul", 200), ("ssl", 180), ("tft", 50)):
        task, _ = _build(ten, paradigm, "score")
        assert len(task.holdout) == round(0.2 * size)
        assert len(task.pool) == size - len(task.holdout)
        whole, _ = _build(ten, paradigm, "report")
        assert sorted([*task.pool, *task.holdout]) == whole.pool.tolist()


def test_ssl_labels_the_published_shots(ten: str) -> None:
    task, _ = _build(ten, "ssl")
    # Image i has label i mod 10, so the n-th image of class c is 10 n + c. Among 20 images the legacy generator seeded
    # with 0 draws numbers 18 and 1 (np.random.RandomState(0).choice(20, 2, replace=False)).
    assert task.labelled.indices_N.tolist() == sorted([10 * 18 + c for c in range(10)] + [10 + c for c in range(10)])
    assert (task.labelled.labels_N == task.labelled.indices_N % 10).all()
    assert len(task.pool) == 180


def test_ssl_validates_on_val_images_while_a_study_scores(ten: str) -> None:
    task, _ = _build(ten, "ssl", "score")
    assert len(task.validation) == 20 and set(task.validation.indices_N.tolist()) <= set(range(200, 260))
    assert (task.validation.labels_N == (task.validation.indices_N - 200) % 10).all()
    six, _ = _build(ten, "ssl", "score", shots=6)
    assert len(six.labelled) == 60 and len(six.validation) == 40, "at most four validation images a class"


def test_ssl_without_a_val_split_takes_validation_images_out_of_the_pool(tmp_path: Path) -> None:
    dataset = _features(tmp_path, _even(10, 20), [], _even(10, 5), 10)
    task, _ = _build(dataset, "ssl", "score")
    assert np.bincount(task.validation.labels_N).tolist() == [2] * 10
    everything = [*task.labelled.indices_N, *task.validation.indices_N, *task.pool, *task.holdout]
    assert sorted(everything) == list(range(200))


def test_tft_pools_the_test_images(ten: str) -> None:
    task, sealed = _build(ten, "tft")
    assert task.pool.tolist() == task.test.tolist() == list(range(260, 310))
    assert len(task.labelled) == 0
    assert np.array_equal(sealed.reveal()["pool"], sealed.reveal()["test"])
    with_shots, _ = _build(ten, "tft", shots=3)
    assert len(with_shots.labelled) == 30 and with_shots.labelled.indices_N.max() < 200


@pytest.mark.parametrize(
    ("seed", "seen"), [(500, [0, 2, 3, 4, 5, 9]), (0, [1, 2, 4, 6, 8, 9]), (200, [1, 3, 5, 6, 7, 8])]
)
def test_seen_classes_are_the_published_draw(seed: int, seen: list[int]) -> None:
    # From NumPy's documented legacy generator: RandomState(seed).choice(range(10), size=int(10 · 0.62), replace=False).
    assert seen_classes(10, seed).tolist() == seen


@in_one_test(("num_classes", "num_seen"), [(102, 63), (45, 27), (100, 62), (10, 6), (47, 29), (200, 124)])
def test_as_many_classes_are_seen_as_published(num_classes: int, num_seen: int) -> None:
    seen = seen_classes(num_classes, 500)
    assert len(set(seen.tolist())) == num_seen and seen.max() < num_classes


def test_trzsl_labels_the_seen_classes_and_pools_the_others(ten: str) -> None:
    task, _ = _build(ten, "trzsl")
    seen = [0, 2, 3, 4, 5, 9]
    assert np.flatnonzero(task.seen_K).tolist() == seen
    assert task.labelled.indices_N.tolist() == [i for i in range(200) if i % 10 in seen]
    assert task.pool.tolist() == [i for i in range(200) if i % 10 not in seen]
    assert np.array_equal(task.pseudolabelled_K, ~task.seen_K) and not task.pseudo_unseen_K.any()
    assert task.estimated_class_size == 20 and len(task.test) == 50


def test_trzsl_treats_some_seen_classes_as_unseen_while_a_study_scores(ten: str) -> None:
    task, _ = _build(ten, "trzsl", "score")
    pseudo = np.flatnonzero(task.pseudo_unseen_K)
    assert len(pseudo) == 2  # ⌊6 · 0.38⌋
    assert task.seen_K[pseudo].all(), "only seen classes, whose labels the paradigm owns"
    assert not np.isin(task.labelled.labels_N, pseudo).any()
    assert np.isin(np.flatnonzero(np.arange(200) % 10 == pseudo[0]), task.pool).all()
    assert np.array_equal(task.pseudolabelled_K, ~task.seen_K | task.pseudo_unseen_K)
    assert np.unique(task.validation.labels_N).tolist() == np.flatnonzero(task.seen_K).tolist()
    assert task.validation.indices_N.min() >= 200 and len(task.validation) == 36
    other, _ = _build(ten, "trzsl", "score", split_seed=0)
    assert not np.array_equal(other.pseudo_unseen_K, task.pseudo_unseen_K)


def test_trzsl_without_val_images_validates_on_a_fifth_of_the_seen_training_images(tmp_path: Path) -> None:
    dataset = _features(tmp_path, _even(10, 20), [], _even(10, 5), 10)
    task, _ = _build(dataset, "trzsl", "score")
    assert np.bincount(task.validation.labels_N, minlength=10)[task.seen_K].tolist() == [4] * 6
    parts = [task.labelled.indices_N, task.pool, task.validation.indices_N]
    assert sorted(np.concatenate(parts).tolist()) == list(range(200))


def test_paper_protocol_pools_train_and_val(ten: str) -> None:
    task, _ = _build(ten, "ul", protocol="paper")
    assert task.pool.tolist() == list(range(260))
    score, _ = _build(ten, "ssl", "score", protocol="paper")
    everything = [*score.labelled.indices_N, *score.validation.indices_N, *score.pool, *score.holdout]
    assert sorted(everything) == list(range(260))


@in_one_test("paradigm", list(PARADIGMS))
@in_one_test("role", _ROLES)
def test_no_image_is_both_labelled_and_unlabelled(ten: str, paradigm: str, role: str) -> None:
    task, sealed = _build(ten, paradigm, role)
    labelled = {*task.labelled.indices_N.tolist(), *task.validation.indices_N.tolist()}
    unlabelled = {*task.pool.tolist(), *task.holdout.tolist(), *task.test.tolist()}
    assert not labelled & unlabelled
    assert not set(task.pool.tolist()) & set(task.holdout.tolist())
    truth = sealed.reveal()
    labels_M = load_dataset(task.config).labels_M
    for name in ("pool", "holdout", "test"):
        assert np.array_equal(truth[name], labels_M[getattr(task, name)])


@pytest.mark.parametrize("paradigm", list(PARADIGMS))
@pytest.mark.parametrize("role", _ROLES)
def test_task_is_the_same_whatever_the_sealed_labels_are(tmp_path: Path, paradigm: str, role: str) -> None:
    """Everything a task holds is the same when every label it seals is replaced by garbage."""
    splits = {"train": _even(10, 20), "val": _even(10, 6), "test": _even(10, 5)}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, _ = _build(_features(tmp_path / "a", **splits, num_classes=10), paradigm, role)
    owned = {*first.labelled.indices_N.tolist(), *first.validation.indices_N.tolist()}
    flat = [label for labels in splits.values() for label in labels]
    # Garbage within the draw's own terms: shots and seen classes are drawn by label, so those labels stay as they are.
    groups: list[Sequence[int]] = [range(260, 310)]
    if paradigm == "ul":
        groups = [range(310)]
    if paradigm == "trzsl":
        groups.append([i for i in range(200) if not first.seen_K[flat[i]]])
    for group in groups:
        sealed = [i for i in group if i not in owned]
        garbage = np.random.default_rng(1).permutation([flat[i] for i in sealed])
        for position, label in zip(sealed, garbage.tolist(), strict=True):
            flat[position] = label
    second, _ = _build(_features(tmp_path / "b", flat[:200], flat[200:260], flat[260:], num_classes=10), paradigm, role)
    assert list(flat) != [label for labels in splits.values() for label in labels]
    for field in dataclasses.fields(Task):
        if field.name not in ("config", "dataset"):
            one, two = getattr(first, field.name), getattr(second, field.name)
            if isinstance(one, Labelled):
                assert np.array_equal(one.indices_N, two.indices_N) and np.array_equal(one.labels_N, two.labels_N)
            else:
                assert np.array_equal(one, two), field.name


@in_one_test("paradigm", list(PARADIGMS))
@in_one_test("role", _ROLES)
def test_task_reaches_no_array_as_long_as_its_sealed_labels(tmp_path: Path, paradigm: str, role: str) -> None:
    # Sizes are chosen so that no owned array has the length of a sealed one by chance.
    dataset = _features(tmp_path, _even(10, 23), _even(10, 7), _even(10, 11), 10)
    task, sealed = _build(dataset, paradigm, role)
    reachable: list[np.ndarray] = []
    queue: list[object] = [task]
    seen: set[int] = set()
    while queue:
        item = queue.pop()
        if id(item) in seen or isinstance(item, (str, int, float, type)) or item is None:
            continue
        seen.add(id(item))
        if isinstance(item, np.ndarray):
            reachable.append(item)
        elif isinstance(item, (list, tuple, set, frozenset)):
            queue.extend(item)
        elif isinstance(item, dict):
            queue.extend(item.values())
        elif hasattr(item, "__dict__"):
            queue.extend(vars(item).values())
    truth = [labels for labels in sealed.reveal().values() if len(labels)]
    for labels in truth:
        assert not any(array.shape == labels.shape and np.array_equal(array, labels) for array in reachable)
    assert not any(isinstance(item, SealedLabels) for item in vars(task).values())
    assert all(not array.flags.writeable for array in reachable)


def test_sealed_labels_cannot_be_shown_copied_or_sent(ten: str) -> None:
    _, sealed = _build(ten, "ul")
    assert repr(sealed) == str(sealed) == "SealedLabels()"
    for attempt in (lambda: pickle.dumps(sealed), lambda: copy.deepcopy(sealed), lambda: copy.copy(sealed)):
        with pytest.raises(TypeError, match="must stay in the process"):
            attempt()
    assert not hasattr(sealed, "__dict__")


def test_imbalanced_pool_falls_exponentially_by_the_ratio(tmp_path: Path) -> None:
    dataset = _features(tmp_path, _even(5, 81), [], _even(5, 3), 5)
    task, sealed = _build(dataset, "ul", pool_imbalance=81.0)
    # 81 · 81^(-r/4) for r = 0 … 4 is 81, 27, 9, 3, 1.
    assert sorted(np.bincount(sealed.reveal()["pool"]).tolist(), reverse=True) == [81, 27, 9, 3, 1]
    again, _ = _build(dataset, "ul", pool_imbalance=81.0)
    other, _ = _build(dataset, "ul", pool_imbalance=81.0, split_seed=0)
    assert np.array_equal(task.pool, again.pool) and not np.array_equal(task.pool, other.pool)


def test_imbalance_holds_whatever_the_pool_was_like() -> None:
    labels = np.repeat(np.arange(6), [100, 40, 60, 200, 35, 90])
    pool = exponential_pool(np.arange(len(labels)), labels, np.arange(6), 10.0, 3)
    counts = np.bincount(labels[pool], minlength=6)
    assert counts.max() / counts.min() == pytest.approx(10, rel=0.15)
    assert (counts <= [100, 40, 60, 200, 35, 90]).all()


def test_imbalance_in_trzsl_concerns_the_pooled_classes(tmp_path: Path) -> None:
    dataset = _features(tmp_path, _even(10, 27), [], _even(10, 3), 10)
    task, sealed = _build(dataset, "trzsl", pool_imbalance=27.0)
    counts = np.bincount(sealed.reveal()["pool"], minlength=10)
    # Four unseen classes: 27 · 27^(-r/3) for r = 0 … 3.
    assert sorted(counts[~task.seen_K].tolist()) == [1, 3, 9, 27]
    assert len(task.labelled) == 6 * 27


def test_pool_fraction_keeps_that_share(ten: str) -> None:
    half, _ = _build(ten, "ul", pool_fraction=0.5)
    quarter, _ = _build(ten, "ul", pool_fraction=0.25)
    assert len(half.pool) == 100 and len(quarter.pool) == 50
    assert set(quarter.pool.tolist()) <= set(half.pool.tolist())
    assert len(half.test) == 50


@pytest.mark.parametrize("paradigm", list(PARADIGMS))
def test_pool_and_test_hold_a_share_of_the_classes_whose_names_are_all_asked_for(ten: str, paradigm: str) -> None:
    task, sealed = _build(ten, paradigm, role="report", present_fraction=0.3)
    plain, _ = _build(ten, paradigm, role="report")
    truth = sealed.reveal()
    may = np.flatnonzero(task.pseudolabelled_K)
    held = np.unique(truth["pool"])
    assert task.num_classes == 10 and len(held) == max(2, round(0.3 * len(may))) and set(held) <= set(may)
    assert set(np.unique(truth["test"])) == set(held) | (set(range(10)) - set(may))
    assert set(task.pool.tolist()) < set(plain.pool.tolist())
    np.testing.assert_array_equal(task.labelled.indices_N, plain.labelled.indices_N)
    fewer, one = (_build(ten, paradigm, role="report", present_fraction=share)[1].reveal() for share in (0.2, 0.01))
    assert set(fewer["pool"]) <= set(held) and len(np.unique(one["pool"])) == 2


@in_one_test("role", ["score", "report"])
@in_one_test("paradigm", list(PARADIGMS))
def test_an_open_sets_unknown_classes_stay_in_the_pool_without_a_name_or_a_label(
    ten: str, paradigm: str, role: Role
) -> None:
    plain, _ = _build(ten, paradigm, role)
    task, sealed = _build(ten, paradigm, role, open_set_fraction=0.3)
    assert len(task.class_names) == 7 and set(task.class_names) < set(plain.class_names)
    assert set(task.labelled.labels_N.tolist()) | set(task.validation.labels_N.tolist()) <= set(range(7))
    dataset = load_dataset(task.config)
    labels_M, true_M = dataset.labels_M, load_dataset(plain.config).labels_M
    known_M = labels_M >= 0
    names = np.array(plain.class_names)[true_M]
    assert (np.array(task.class_names)[labels_M[known_M]] == names[known_M]).all()
    assert not np.isin(names[~known_M], task.class_names).any()
    # Unknown images are trained on like any other of the pool; the truth of them is not even sealed, it is gone.
    pooled = np.concatenate([task.pool, task.holdout])
    assert (~known_M[pooled]).sum() > 0 and not (~known_M[task.labelled.indices_N]).any()
    for name in ("pool", "holdout", "test"):
        assert sealed.reveal()[name].max(initial=-1) < 7
    assert len(task.test) == len(plain.test)


def test_an_open_set_must_leave_two_classes(ten: str) -> None:
    with pytest.raises(ConfigError, match=r"open_set_fraction must leave two classes, but got 0\.9 of 10"):
        _build(ten, "ul", open_set_fraction=0.9)


def test_a_long_tail_leaves_an_open_sets_unknown_images(tmp_path: Path) -> None:
    dataset = _features(tmp_path, _even(5, 81), [], _even(5, 3), 5)
    _, sealed = _build(dataset, "ul", pool_imbalance=27.0, open_set_fraction=0.2)
    labels = sealed.reveal()["pool"]
    # 81 · 27^(-r/3) for the four known classes.
    assert sorted(np.bincount(labels[labels >= 0]).tolist()) == [3, 9, 27, 81] and (labels < 0).sum() == 81


@pytest.mark.parametrize("paradigm", ["ssl", "trzsl"])
def test_shot_noise_mislabels_that_share_of_what_is_labelled_and_nothing_sealed(ten: str, paradigm: str) -> None:
    plain, truth = _build(ten, paradigm)
    task, sealed = _build(ten, paradigm, shot_noise=0.25)
    again, _ = _build(ten, paradigm, shot_noise=0.25)
    more, _ = _build(ten, paradigm, shot_noise=0.5)
    wrong = task.labelled.labels_N != plain.labelled.labels_N
    assert wrong.sum() == round(0.25 * len(plain.labelled))
    assert set(task.labelled.labels_N[wrong].tolist()) <= set(plain.labelled.labels_N.tolist())
    assert (more.labelled.labels_N != plain.labelled.labels_N)[wrong].all()
    np.testing.assert_array_equal(task.labelled.labels_N, again.labelled.labels_N)
    np.testing.assert_array_equal(task.labelled.indices_N, plain.labelled.indices_N)
    for name, labels in truth.reveal().items():
        np.testing.assert_array_equal(sealed.reveal()[name], labels)


def test_shot_noise_needs_shots(ten: str) -> None:
    with pytest.raises(ConfigError, match="shot_noise must be used where images are labelled, but got ul"):
        _build(ten, "ul", shot_noise=0.2)


def test_unknown_labels_are_pooled_and_never_labelled(tmp_path: Path) -> None:
    dataset = _features(tmp_path, [*_even(4, 5), -1, -1, -1], [], [*_even(4, 2), -1], 4)
    for paradigm in PARADIGMS:
        task, _ = _build(dataset, paradigm)
        assert (task.labelled.labels_N >= 0).all()
        if paradigm != "tft":
            assert {20, 21, 22} <= set(task.pool.tolist())
    with pytest.raises(DataError, match="3 unknown labels"):
        _build(dataset, "ul", pool_imbalance=2.0)


@in_one_test(
    ("train", "val", "test", "num_classes", "paradigm", "role", "message"),
    [
        ([0] * 9, [], [0] * 3, 1, "ul", "report", "at least two classes, but got 1"),
        ([0, 1] * 4, [], [0, 1], 3, "ul", "report", "every class must have an image, but got 1 without: class2"),
        ([], [0, 1], [0, 1], 2, "ul", "report", r"the pool must hold images, but got none(.|\n)*mark some as train"),
        ([0, 1] * 2, [], [], 2, "tft", "report", r"the pool must hold images, but got none(.|\n)*mark some as test"),
        ([0, 1] * 4, [0, 1], [], 2, "ul", "report", "the test split must hold images, but got none"),
        ([0, 1, 1, 1], [], [0, 1], 2, "ssl", "report", r"2 labelled training images .* 1 with fewer: class0"),
        ([0, 1] * 2, [], [0, 1], 2, "ssl", "report", r"the pool must hold images.*fewer --shots"),
        ([0, 1, 2] * 3, [], [0, 1, 2], 3, "trzsl", "score", "at least two seen classes"),
        ([0, 1, 2] * 3, [], [3], 4, "trzsl", "report", "labelled training image, but got 1 without: class3"),
        ([0, 1], [], [0], 2, "tft", "score", "two images, one to be held out"),
    ],
)
def test_impossible_cells_are_refused(
    tmp_path: Path, train: list[int], val: list[int], test: list[int], num_classes: int, paradigm: str, role: str,
    message: str,
) -> None:  # fmt: skip
    dataset = _features(tmp_path, train, val, test, num_classes)
    with pytest.raises(DataError, match=message):
        _build(dataset, paradigm, role)


def test_shots_are_drawn_like_the_legacy_generator_reseeded_for_each_class(ten: str) -> None:
    dataset = load_dataset(TaskConfig(dataset=ten, paradigm="ul"))
    images = dataset.indices("train")
    expected = []
    for label in range(10):
        np.random.seed(0)
        expected += np.random.choice(np.flatnonzero(dataset.labels_M[:200] == label), 2, replace=False).tolist()
    assert draw_shots(dataset, images, 2).tolist() == sorted(expected)


@pytest.mark.parametrize("paradigm", list(PARADIGMS))
def test_digits_need_nothing_on_disk(paradigm: str, tmp_path: Path) -> None:
    task, _ = _build("digits", paradigm, "score", data_root=tmp_path)
    assert task.num_classes == 10 and len(task.test) == 539
