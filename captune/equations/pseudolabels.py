"""Main samples: the leaderboard of trusted pseudolabels of each class (README.md, rows § 4 and § 8).

A leaderboard is {class: [(image index, confidence), ...]}. Scores that tie are ordered by image index, falling. Scores
are only compared, never computed with, so boards are the same on every device and exact in the dtype that came in.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from captune.equations.shapes import check_shapes, require

Board = list[tuple[int, float]]
Leaderboard = dict[int, Board]
Scores = NDArray[np.floating]
Indices = NDArray[np.integer]

RULES = ("published", "grip", "exclusive")
CONTESTS = ("class_order", "confidence")


def top_k_leaderboard(
    probs_NK: Tensor,
    k: int,
    *,
    rule: str = "published",
    class_ids: Sequence[int] | None = None,
    eligible_N: Tensor | None = None,
    others_win: bool = False,
) -> Leaderboard:
    """Choose the first main samples of every class from zero-shot probabilities.

    "published" walks the pool in order. An image goes to the board of its argmax class if that has room or its last
    entry is below the image's score (then the board is sorted and cut to k). Otherwise it is offered to every other
    class: a board with room takes it at its end, unsorted; a full board whose last entry is below the score sorts it in
    and is cut. It does not stop at the first taker, so an image can stand on several boards.

    "grip" is the same walk as GRIP's published code has it: the argmax class's board, too, takes an image at its end,
    unsorted, as long as it has room, and is compared by that last entry once it is full.

    "exclusive" does not depend on the order of the pool or of the classes: each class takes its k most confident argmax
    images; then, by falling score, the images on no board go to the classes still short (a contested image to the class
    that scores it higher, then to the first class). A board lists its argmax images first.

    See Wang et al., ICML 2025 (arXiv 2505.02056), and README.md, row § 4.

    Args:
        probs_NK: probabilities (or any scores) of N pool images for K classes.
        k: most images a board holds; 0 gives empty boards.
        rule: "published", "grip" (Menghini et al., NeurIPS 2023, arXiv 2306.01669) or "exclusive".
        class_ids: the class behind each of the K columns (default: 0..K-1). Fewer ids than columns are read as the
            columns that may be pseudolabelled: all others are ignored, also for the argmax.
        eligible_N: bool, False for images that may not be chosen (labelled, held out).
        others_win: keep the columns without a board for the argmax. An image whose argmax is one of them then belongs
            to no board: "published" offers it to every board, "exclusive" uses it to fill boards that stay short.

    Returns:
        {class id: [(image index, score), ...]} with a key for every class, in column order.

    Raises:
        ValueError: shapes do not fit, a score is NaN, or rule, k or class_ids is out of range.
    """
    check_shapes(probs_NK=probs_NK, eligible_N=eligible_N)
    require(rule in RULES, f"rule in {RULES}", rule=rule)
    require(k >= 0, "0 <= k", k=k)
    ids, columns = _columns(class_ids, probs_NK.shape[1])
    all_NK = _as_numpy(probs_NK)
    scores_NK = all_NK if columns is None else all_NK[:, columns]
    num_images, num_classes = scores_NK.shape
    first_N = scores_NK.argmax(axis=1) if scores_NK.size else np.zeros(num_images, np.int64)
    if others_win and columns is not None and scores_NK.size:
        # The value num_classes marks a class without a board.
        boards_of = np.full(all_NK.shape[1], num_classes)
        boards_of[columns] = np.arange(num_classes)
        first_N = boards_of[all_NK.argmax(axis=1)]
    images_N = np.arange(num_images)
    if eligible_N is not None:
        images_N = np.flatnonzero(eligible_N.detach().cpu().numpy().astype(bool))
        scores_NK, first_N = scores_NK[images_N], first_N[images_N]
    boards: list[Board] = [[] for _ in range(num_classes)]
    if k > 0 and scores_NK.size > 0:
        require(not np.isnan(scores_NK.min()), "probs_NK without NaN", num_nan=int(np.isnan(scores_NK).sum()))
        if rule == "exclusive":
            chosen = _exclusive(scores_NK, first_N, min(k, num_images))
        else:
            chosen = _walk(scores_NK, first_N, min(k, num_images), sorted_from_first=rule == "published")
        boards = [[(int(images_N[row]), score) for score, row in board] for board in chosen]
    return dict(zip(ids, boards, strict=True))


def leaderboard_size(
    epoch: int, *, start: int, pool_per_class: int, max_ratio: float, num_epochs: int, cap: int = 1000
) -> int:
    """Board size at an epoch: start + int((min(cap, int(n·rho)) - start)·min(1, epoch/(0.7·E))) (README.md, § 8).

    Args:
        epoch: e, the epoch that has just ended.
        start: k, the size at the start.
        pool_per_class: n, pool images divided by pseudolabelled classes, rounded down.
        max_ratio: rho, the largest share of a class's images that its board may hold, a fraction.
        num_epochs: E.
        cap: the largest size ever.

    Returns:
        The size; below `start` where n·rho is, and 0 where a class has less than 1/rho images.

    Raises:
        ValueError: a count is negative or num_epochs is not positive.
    """
    require(epoch >= 0, "0 <= epoch", epoch=epoch)
    require(num_epochs >= 1, "1 <= num_epochs", num_epochs=num_epochs)
    require(min(start, pool_per_class, cap) >= 0, "0 <= start, pool_per_class, cap", start=start, cap=cap)
    require(max_ratio >= 0, "0 <= max_ratio", max_ratio=max_ratio)
    end = min(cap, int(pool_per_class * max_ratio))
    return start + int((end - start) * min(1.0, epoch / (0.7 * num_epochs)))


def grow_leaderboard(
    old: Leaderboard,
    predictions: Sequence[tuple[int, float, int]],
    *,
    k: int,
    contest: str = "class_order",
    max_candidates: int = 1000,
) -> Leaderboard:
    """Renew the boards from an epoch's confident predictions (README.md, row § 8).

    Candidates are predictions of classes that have a board, whose image is on no board now, by falling (confidence,
    image index). Predictions of other classes (TRZSL's seen ones) are passed over: they open no board and claim no
    image. With "class_order" the classes pick one after the other, and an image claimed by an earlier class is not
    offered to a later one; with "confidence" it goes to the class that was surest of it (the first one on a tie). A new
    board is its first k candidates, topped up to k from the old board, whose entries keep their order and confidence.

    Args:
        old: the boards now.
        predictions: (class, confidence, image index), one for each confident pool image drawn; an image drawn more than
            once may come more than once and counts with its highest confidence in a class.
        k: the new size of the boards.
        contest: "class_order" or "confidence".
        max_candidates: the most candidates that a class may claim.

    Returns:
        New boards of the classes of `old`, by rising class; `old` is left as it was.

    Raises:
        ValueError: k is negative or contest is unknown.
    """
    require(contest in CONTESTS, f"contest in {CONTESTS}", contest=contest)
    require(k >= 0, "0 <= k", k=k)
    on_a_board = {image for board in old.values() for image, _ in board}
    offers: dict[int, dict[int, float]] = {label: {} for label in sorted(old)}
    for label, confidence, image in predictions:
        if label in offers and image not in on_a_board:
            offers[label][image] = max(confidence, offers[label].get(image, confidence))

    surest: dict[int, tuple[float, int]] = {}
    if contest == "confidence":
        for label, offer in offers.items():
            for image, confidence in offer.items():
                # Negated, so that the earlier class is the larger on a tie.
                surest[image] = max((confidence, -label), surest.get(image, (confidence, -label)))

    claimed: set[int] = set()
    boards: Leaderboard = {}
    for label, offer in offers.items():
        free = (
            (confidence, image)
            for image, confidence in offer.items()
            if image not in claimed and (not surest or surest[image][1] == -label)
        )
        candidates = sorted(free, reverse=True)[:max_candidates]
        claimed.update(image for _, image in candidates)
        board = [(image, confidence) for confidence, image in candidates[:k]]
        boards[label] = board + list(old[label])[: k - len(board)]
    return boards


def _columns(class_ids: Sequence[int] | None, num_columns: int) -> tuple[list[int], list[int] | None]:
    """Class ids in column order, and the columns to keep (None: all)."""
    if class_ids is None:
        return list(range(num_columns)), None
    ids = [int(class_id) for class_id in class_ids]
    require(len(set(ids)) == len(ids), "distinct class_ids", class_ids=ids)
    if len(ids) == num_columns:
        return ids, None
    # A selection of columns can only name columns that exist.
    require(
        len(ids) < num_columns and all(0 <= class_id < num_columns for class_id in ids),
        "one class id a column, or a selection of the columns",
        num_class_ids=len(ids),
        num_columns=num_columns,
    )
    return ids, ids


def _as_numpy(scores: Tensor) -> Scores:
    scores = scores.detach().cpu()
    # NumPy has no bfloat16; widening changes no comparison.
    return (scores if scores.dtype == torch.float64 else scores.float()).numpy()


def _walk(scores_NK: Scores, first_N: Indices, k: int, *, sorted_from_first: bool) -> list[list[tuple[float, int]]]:
    num_classes = scores_NK.shape[1]
    boards: list[list[tuple[float, int]]] = [[] for _ in range(num_classes)]
    # What a score must exceed to enter each board: nothing while there is room, then its last entry. One comparison of
    # a row with this array finds all takers, and late in the walk there are none for most images.
    bar_K = np.full(num_classes, -np.inf, dtype=scores_NK.dtype)
    for row, first in enumerate(first_N.tolist()):
        scores_K = scores_NK[row]
        own = first < num_classes and scores_K[first] > bar_K[first]
        takers = [first] if own else np.flatnonzero(scores_K > bar_K).tolist()
        for taker in takers:
            board = boards[taker]
            full = len(board) == k
            board.append((float(scores_K[taker]), row))
            if full or (sorted_from_first and taker == first):
                board.sort(reverse=True)
                del board[k:]
            if len(board) == k:
                bar_K[taker] = board[-1][0]
    return boards


def _exclusive(scores_NK: Scores, first_N: Indices, k: int) -> list[list[tuple[float, int]]]:
    num_images, num_classes = scores_NK.shape
    rows_N = np.arange(num_images)
    best_N = scores_NK[rows_N, np.minimum(first_N, num_classes - 1)]
    order_N = np.lexsort((-rows_N, -best_N, first_N))
    starts = np.searchsorted(first_N[order_N], np.arange(num_classes + 1))
    boards = []
    free_N = np.ones(num_images, dtype=bool)
    for start, end in pairwise(starts.tolist()):
        chosen = order_N[start : min(end, start + k)]
        free_N[chosen] = False
        boards.append([(float(best_N[row]), int(row)) for row in chosen])

    short = [label for label, board in enumerate(boards) if len(board) < k]
    rows_F = np.flatnonzero(free_N)
    if not short or rows_F.size == 0:
        return boards
    scores_SF = np.ascontiguousarray(scores_NK[np.ix_(rows_F, np.array(short))].T)
    queues = {
        label: _falling(scores_F, 2 * (k - len(boards[label])))
        for label, scores_F in zip(short, scores_SF, strict=True)
    }
    # Every short class stands in the heap with the best image it has not yet tried.
    heads = []
    for label in short:
        score, position = next(queues[label])
        heads.append((-score, -position, label))
    heapq.heapify(heads)
    taken_F = np.zeros(rows_F.size, dtype=bool)
    while heads:
        negative_score, negative_position, label = heads[0]
        if not taken_F[-negative_position]:
            taken_F[-negative_position] = True
            boards[label].append((-negative_score, int(rows_F[-negative_position])))
        following = next(queues[label], None) if len(boards[label]) < k else None
        if following is None:
            heapq.heappop(heads)
        else:
            heapq.heapreplace(heads, (-following[0], -following[1], label))
    return boards


def _falling(scores_F: Scores, num_first: int) -> Iterator[tuple[float, int]]:
    """(score, position) by falling (score, position), sorted only as far as someone asks."""
    done = 0
    while done < scores_F.size:
        size = min(max(num_first, 2 * done), scores_F.size)
        # All entries that tie with the last one wanted come along: a cut through a tie would lose the index order.
        lowest = np.partition(scores_F, scores_F.size - size)[scores_F.size - size]
        positions = np.flatnonzero(scores_F >= lowest)[::-1]
        positions = positions[np.argsort(-scores_F[positions], kind="stable")]
        for position in positions[done:].tolist():
            yield float(scores_F[position]), position
        done = positions.size
