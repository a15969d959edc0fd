"""Leaderboards agree with the plain walk to the last index, ties included."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from captune.equations.pseudolabels import grow_leaderboard, leaderboard_size, top_k_leaderboard
from tests.reference.leaderboards import exclusive_boards, grown_boards, published_boards
from tests.slow import in_one_test


def random_scores(seed: int, num_images: int, num_classes: int, levels: int | None) -> torch.Tensor:
    """Skewed probabilities; with `levels` rounded so that many of them tie."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(num_images, num_classes, generator=generator)
    probs = (logits + 2 * torch.randn(num_classes, generator=generator)).softmax(dim=1)
    return (probs * levels).round() / levels if levels else probs


def test_published_rule_by_hand() -> None:
    probs = torch.tensor(
        [
            [0.7, 0.2, 0.1],  # board 0 has room: [0]
            [0.8, 0.1, 0.1],  # 0.7 < 0.8, full with k = 1: board 0 becomes [1]
            [0.6, 0.3, 0.1],  # rejected by board 0; boards 1 and 2 have room: both take it
            [0.5, 0.4, 0.2],  # rejected by board 0; beats 0.3 on board 1 and 0.1 on board 2
            [0.8, 0.4, 0.2],  # ties with every board: strictly below is needed, so nobody takes it
        ]
    )
    boards = top_k_leaderboard(probs, 1)
    assert {label: [image for image, _ in board] for label, board in boards.items()} == {0: [1], 1: [3], 2: [3]}
    assert boards[1][0][1] == pytest.approx(0.4)


def test_published_rule_keeps_offers_unsorted_until_the_next_insertion() -> None:
    probs = torch.tensor(
        [
            [0.90, 0.05],
            [0.91, 0.06],
            [0.80, 0.10],  # board 0 is full at (0.91, 0.90): offered to 1, appended
            [0.70, 0.20],  # appended behind it, although it is larger: board 1 = [.10, .20]
            [0.60, 0.15],  # compared with the last entry, 0.20, not with the worst, 0.10: rejected
        ]
    )
    assert [image for image, _ in top_k_leaderboard(probs, 2)[1]] == [2, 3]
    # 0.3 exceeds the last entry; now the board is sorted, and 0.10 is what falls out.
    later = torch.cat([probs, torch.tensor([[0.5, 0.3]])])
    assert [image for image, _ in top_k_leaderboard(later, 2)[1]] == [5, 3]


def test_grips_walk_compares_with_the_last_image_while_a_board_has_not_been_sorted() -> None:
    probs = torch.tensor(
        [
            [0.80, 0.15],
            [0.90, 0.10],  # board 0 = [.80, .90], unsorted: full, its last entry is .90
            [0.85, 0.20],  # not above .90: offered to board 1, which has room
            [0.95, 0.12],  # above .90: sorted in, and .80 falls out
        ]
    )
    boards = {rule: top_k_leaderboard(probs, 2, rule=rule) for rule in ("grip", "published")}
    assert {label: [image for image, _ in board] for label, board in boards["grip"].items()} == {0: [3, 1], 1: [2]}
    # CAP's walk sorts from the first image on: .80 is the last entry, so .85 enters and board 1 never sees it.
    assert [image for image, _ in boards["published"][0]] == [3, 1]
    assert boards["published"][1] == []


@in_one_test("levels", [None, 6, 40])
@in_one_test("k", [1, 3, 16])
@in_one_test("seed", range(4))
def test_published_rule_equals_the_plain_walk(seed: int, k: int, levels: int | None) -> None:
    probs = random_scores(seed, 150, 11, levels)
    assert top_k_leaderboard(probs, k) == published_boards(probs.tolist(), k)
    assert top_k_leaderboard(probs, k, rule="grip") == published_boards(probs.tolist(), k, appended=True)


@in_one_test("levels", [None, 6, 40])
@in_one_test("k", [1, 4, 16])
@in_one_test("seed", range(3))
def test_exclusive_rule_equals_the_plain_search(seed: int, k: int, levels: int | None) -> None:
    probs = random_scores(seed, 90, 9, levels)
    assert top_k_leaderboard(probs, k, rule="exclusive") == exclusive_boards(probs.tolist(), k)


@settings(max_examples=60, deadline=None)
@given(
    scores=st.integers(1, 5).flatmap(
        lambda width: st.lists(st.lists(st.integers(0, 4), min_size=width, max_size=width), min_size=1, max_size=25)
    ),
    k=st.integers(1, 6),
)
def test_both_rules_equal_the_loops_when_almost_everything_ties(scores: list[list[int]], k: int) -> None:
    probs = torch.tensor(scores, dtype=torch.float32) / 4
    assert top_k_leaderboard(probs, k) == published_boards(probs.tolist(), k)
    assert top_k_leaderboard(probs, k, rule="grip") == published_boards(probs.tolist(), k, appended=True)
    assert top_k_leaderboard(probs, k, rule="exclusive") == exclusive_boards(probs.tolist(), k)


def test_exclusive_boards_share_no_image_and_are_full_when_the_pool_suffices() -> None:
    probs = random_scores(7, 60, 10, None)
    boards = top_k_leaderboard(probs, 5, rule="exclusive")
    images = [image for board in boards.values() for image, _ in board]
    assert len(images) == len(set(images)) == 50


def test_exclusive_rule_gives_a_contested_image_to_the_class_that_scores_it_higher() -> None:
    # Everyone is predicted as 0, which keeps image 0. Image 1 is wanted most by both others: .30 against .25.
    probs = torch.tensor([[0.9, 0.05, 0.05], [0.45, 0.25, 0.30], [0.7, 0.2, 0.1]])
    boards = top_k_leaderboard(probs, 1, rule="exclusive")
    assert {label: board[0][0] for label, board in boards.items()} == {0: 0, 1: 2, 2: 1}


@pytest.mark.parametrize("seed", range(3))
def test_exclusive_rule_does_not_depend_on_the_order_of_images_or_classes(seed: int) -> None:
    probs = random_scores(seed, 80, 8, None)
    images = torch.randperm(80, generator=torch.Generator().manual_seed(seed))
    classes = torch.randperm(8, generator=torch.Generator().manual_seed(seed + 1))
    plain = top_k_leaderboard(probs, 6, rule="exclusive")
    shuffled = top_k_leaderboard(probs[images][:, classes], 6, rule="exclusive", class_ids=classes.tolist())
    for label, board in plain.items():
        assert {image for image, _ in board} == {int(images[place]) for place, _ in shuffled[label]}


@pytest.mark.parametrize("rule", ["published", "exclusive"])
def test_classes_permute_with_their_columns(rule: str) -> None:
    probs = random_scores(3, 100, 7, None)
    order = [4, 2, 6, 0, 1, 5, 3]
    assert top_k_leaderboard(probs[:, order], 5, rule=rule, class_ids=order) == top_k_leaderboard(probs, 5, rule=rule)


def test_fewer_class_ids_than_columns_select_columns() -> None:
    probs = random_scores(5, 60, 6, None)
    unseen = [1, 4, 5]
    expected = published_boards(probs[:, unseen].tolist(), 4)
    boards = top_k_leaderboard(probs, 4, class_ids=unseen)
    assert list(boards) == unseen
    assert [boards[label] for label in unseen] == [expected[column] for column in range(3)]


def test_an_image_won_by_a_class_without_a_board_is_offered_to_every_board() -> None:
    probs = torch.tensor(
        [
            [0.60, 0.30, 0.10],  # class 0 has no board: both others have room and take it
            [0.20, 0.50, 0.30],  # class 1's own, .50 above .30; it stops there
            [0.50, 0.10, 0.40],  # offered to both: .10 is not above .50, .40 is above .10
        ]
    )
    boards = top_k_leaderboard(probs, 1, class_ids=[1, 2], others_win=True)
    assert {label: [image for image, _ in board] for label, board in boards.items()} == {1: [1], 2: [2]}
    # With class 0's column left out image 2 is class 2's own as well, but image 0 is class 1's alone.
    boards = top_k_leaderboard(probs[:1], 1, class_ids=[1, 2])
    assert {label: [image for image, _ in board] for label, board in boards.items()} == {1: [0], 2: []}


@in_one_test("levels", [None, 6])
@in_one_test("k", [1, 4, 16])
@in_one_test("seed", range(3))
def test_boards_of_some_classes_under_the_argmax_of_all_equal_the_loops(seed: int, k: int, levels: int | None) -> None:
    probs = random_scores(seed, 120, 9, levels)
    some = [1, 6, 7]
    walk = top_k_leaderboard(probs, k, class_ids=some, others_win=True)
    assert walk == published_boards(probs.tolist(), k, classes=some)
    assert list(walk) == some
    exclusive = top_k_leaderboard(probs, k, rule="exclusive", class_ids=some, others_win=True)
    assert exclusive == exclusive_boards(probs.tolist(), k, classes=some)


def test_ineligible_images_stand_nowhere_and_indices_stay_those_of_the_pool() -> None:
    probs = random_scores(2, 50, 5, None)
    eligible = torch.arange(50) % 3 != 0
    assert top_k_leaderboard(probs, 4, eligible_N=eligible) == published_boards(probs.tolist(), 4, eligible.tolist())
    boards = top_k_leaderboard(probs, 4, rule="exclusive", eligible_N=eligible)
    assert all(eligible[image] for board in boards.values() for image, _ in board)


def test_low_precision_scores_are_compared_as_they_are() -> None:
    probs = random_scores(1, 80, 6, None).bfloat16()
    assert top_k_leaderboard(probs, 3) == published_boards(probs.double().tolist(), 3)


def test_small_pools_give_short_boards() -> None:
    boards = top_k_leaderboard(torch.tensor([[0.6, 0.4]]), 16, rule="exclusive")
    assert [len(boards[0]), len(boards[1])] == [1, 0]
    assert top_k_leaderboard(torch.zeros(0, 3), 4) == {0: [], 1: [], 2: []}
    assert top_k_leaderboard(torch.full((5, 2), 0.5), 0) == {0: [], 1: []}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": -1}, "0 <= k must hold, but got \\(k=-1\\)"),
        ({"rule": "greedy"}, "rule in"),
        ({"class_ids": [0, 0, 1]}, "distinct class_ids"),
        ({"class_ids": [0, 5]}, "one class id a column"),
        ({"eligible_N": torch.ones(3, dtype=torch.bool)}, "eligible_N must have shape \\[N\\] with N=4"),
    ],
)
def test_wrong_arguments_say_what_must_hold(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        top_k_leaderboard(torch.rand(4, 3), **{"k": 2, **arguments})


def test_nan_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="without NaN"):
        top_k_leaderboard(torch.tensor([[0.5, float("nan")]]), 1)


def test_size_of_the_boards_by_hand() -> None:
    # n̄·rho = 200·0.8 = 160; 0.7·E = 35; at epoch 5: 16 + int(144·5/35) = 16 + int(20.57) = 36.
    kwargs = {"start": 16, "pool_per_class": 200, "max_ratio": 0.8, "num_epochs": 50}
    assert [leaderboard_size(epoch, **kwargs) for epoch in (0, 5, 35, 50)] == [16, 36, 160, 160]
    # The cap: int(5000·0.8) = 4000 is cut to 1000.
    assert leaderboard_size(50, start=16, pool_per_class=5000, max_ratio=0.8, num_epochs=50) == 1000
    # It shrinks where n̄·rho < k: int(10·0.8) = 8; half-way (e = 17.5 of 35): 16 + int(-8·17/35) = 16 - 3 = 13.
    assert leaderboard_size(17, start=16, pool_per_class=10, max_ratio=0.8, num_epochs=50) == 13
    assert leaderboard_size(50, start=16, pool_per_class=10, max_ratio=0.8, num_epochs=50) == 8
    with pytest.raises(ValueError, match="1 <= num_epochs"):
        leaderboard_size(0, start=16, pool_per_class=10, max_ratio=0.8, num_epochs=0)


def test_growth_by_hand() -> None:
    old = {0: [(10, 0.9), (11, 0.8)], 1: [(12, 0.7)]}
    predictions = [
        (0, 0.90, 1),
        (1, 0.99, 1),  # claimed by class 0 first, surer as it is here
        (1, 0.95, 2),
        (1, 0.95, 3),  # ties with image 2: the larger index comes first
        (0, 0.99, 12),  # a main sample of class 1 now: no candidate
    ]
    assert grow_leaderboard(old, predictions, k=3) == {
        0: [(1, 0.90), (10, 0.9), (11, 0.8)],
        1: [(3, 0.95), (2, 0.95), (12, 0.7)],
    }
    assert grow_leaderboard(old, predictions, k=3, contest="confidence") == {
        0: [(10, 0.9), (11, 0.8)],
        1: [(1, 0.99), (3, 0.95), (2, 0.95)],
    }


def test_predictions_of_classes_without_a_board_open_none_and_claim_nothing() -> None:
    # Class 0 comes first and has no board: image 1 stays free for class 2.
    assert grow_leaderboard({2: []}, [(0, 0.99, 1), (2, 0.9, 1), (3, 0.99, 4)], k=2) == {2: [(1, 0.9)]}
    assert grow_leaderboard({2: []}, [(0, 0.99, 1), (2, 0.9, 1)], k=2, contest="confidence") == {2: [(1, 0.9)]}


def test_growth_shrinks_boards_and_leaves_the_old_ones_alone() -> None:
    old = {0: [(5, 0.9), (6, 0.8), (7, 0.7)]}
    assert grow_leaderboard(old, [], k=2) == {0: [(5, 0.9), (6, 0.8)]}
    assert old == {0: [(5, 0.9), (6, 0.8), (7, 0.7)]}


def test_an_image_drawn_twice_stands_once_with_its_highest_confidence() -> None:
    assert grow_leaderboard({0: []}, [(0, 0.8, 4), (0, 0.9, 4), (0, 0.85, 4)], k=5) == {0: [(4, 0.9)]}


def test_candidates_beyond_the_board_still_claim_their_images() -> None:
    # Class 0 has room for one, but both images are its candidates; class 1 is offered neither.
    predictions = [(0, 0.9, 1), (0, 0.8, 2), (1, 0.99, 2)]
    assert grow_leaderboard({0: [], 1: []}, predictions, k=1) == {0: [(1, 0.9)], 1: []}
    assert grow_leaderboard({0: [], 1: []}, predictions, k=1, max_candidates=1) == {0: [(1, 0.9)], 1: [(2, 0.99)]}


@settings(max_examples=80, deadline=None)
@given(
    predictions=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([0.86, 0.9, 0.95, 0.99]), st.integers(0, 14)), max_size=30
    ),
    standing=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 14)), max_size=8, unique=True),
    k=st.integers(0, 6),
    contest=st.sampled_from(["class_order", "confidence"]),
    most=st.sampled_from([2, 1000]),
)
def test_growth_equals_the_plain_loops(predictions: list, standing: list, k: int, contest: str, most: int) -> None:
    old: dict[int, list[tuple[int, float]]] = {0: [], 1: [], 2: []}
    for label, image in standing:
        old[label].append((image, 0.5))
    new = grow_leaderboard(old, predictions, k=k, contest=contest, max_candidates=most)
    assert new == grown_boards(old, predictions, k, contest, most)


def test_unknown_contest_is_refused() -> None:
    with pytest.raises(ValueError, match="contest in"):
        grow_leaderboard({}, [], k=1, contest="coin")
