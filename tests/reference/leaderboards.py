"""Leaderboards by plain loops over Python lists, as the equations README words them (4 and 8)."""

from __future__ import annotations

from collections.abc import Sequence

Boards = dict[int, list[tuple[int, float]]]


def published_boards(
    scores: list[list[float]],
    k: int,
    eligible: Sequence[bool] | None = None,
    classes: Sequence[int] | None = None,
    appended: bool = False,
) -> Boards:
    """`classes`: those that have a board; the others only win images, which then are offered to every board.

    `appended`: GRIP's walk, whose boards are not sorted while they fill.
    """
    allowed = range(len(scores[0])) if classes is None else classes
    boards: dict[int, list[tuple[float, int]]] = {j: [] for j in allowed}
    for image, row in enumerate(scores):
        if eligible is not None and not eligible[image]:
            continue
        first = row.index(max(row))
        if first in boards and (len(boards[first]) < k or boards[first][-1][0] < row[first]):
            grown = [*boards[first], (row[first], image)]
            boards[first] = grown if appended and len(grown) <= k else sorted(grown, reverse=True)[:k]
            continue
        others = sorted(((row[j], j) for j in allowed if j != first), reverse=True)
        for score, j in others:
            if len(boards[j]) < k:
                boards[j].append((score, image))
            elif boards[j][-1][0] < score:
                boards[j] = sorted([*boards[j], (score, image)], reverse=True)[:k]
    return {j: [(image, score) for score, image in board] for j, board in boards.items()}


def exclusive_boards(scores: list[list[float]], k: int, classes: Sequence[int] | None = None) -> Boards:
    """`classes`: those that have a board; an image whose argmax is another class is free for boards that stay short."""
    num_images, allowed = len(scores), range(len(scores[0])) if classes is None else classes
    first = [row.index(max(row)) for row in scores]
    boards: Boards = {}
    for j in allowed:
        own = sorted(((scores[i][j], i) for i in range(num_images) if first[i] == j), reverse=True)
        boards[j] = [(i, score) for score, i in own[:k]]
    used = {i for board in boards.values() for i, _ in board}
    while True:
        offers = [
            (-scores[i][j], -i, j) for j in allowed if len(boards[j]) < k for i in range(num_images) if i not in used
        ]
        if not offers:
            return boards
        negative_score, negative_image, j = min(offers)
        boards[j].append((-negative_image, -negative_score))
        used.add(-negative_image)


def grown_boards(
    old: Boards, predictions: Sequence[tuple[int, float, int]], k: int, contest: str = "class_order", most: int = 1000
) -> Boards:
    standing = [image for board in old.values() for image, _ in board]
    free = [prediction for prediction in predictions if prediction[0] in old and prediction[2] not in standing]
    claimed: list[int] = []
    new: Boards = {}
    for label in sorted(old):
        candidates: list[tuple[float, int]] = []
        for confidence, image in sorted(((c, i) for lab, c, i in free if lab == label), reverse=True):
            if image in claimed or image in [i for _, i in candidates]:
                continue
            rivals = [(c, -lab) for lab, c, i in free if i == image]
            if contest == "confidence" and max(rivals)[1] != -label:
                continue
            candidates.append((confidence, image))
        candidates = candidates[:most]
        claimed += [image for _, image in candidates]
        board = [(image, confidence) for confidence, image in candidates][:k]
        for entry in old.get(label, []):
            if len(board) < k:
                board.append(entry)
        new[label] = board
    return new
