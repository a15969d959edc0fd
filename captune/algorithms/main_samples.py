"""CAP's main samples: for each class the trusted pseudolabelled images at the start, and how their number grows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from captune.algorithms.concept_alignment import align_concepts
from captune.algorithms.configs import CapConfig
from captune.data.paradigms import IntArray, Task
from captune.equations.pseudolabels import Leaderboard, grow_leaderboard, leaderboard_size, top_k_leaderboard
from captune.metrics import balance
from captune.training.context import Context


def open_logits(context: Context, config: CapConfig, logits_NK: Tensor) -> Tensor:
    """Logits of the classes that a pool image is predicted over, the others at -inf."""
    return logits_NK if config.pseudolabel_classes == "all" else context.pool_logits(logits_NK)


def first_boards(context: Context, config: CapConfig) -> Leaderboard:
    """Boards of the classes that may be pseudolabelled, from zero-shot probabilities; by description where a class name
    misses its images.
    """
    task = context.task
    logits_NK = open_logits(context, config, context.zero_shot_logits(task.pool))
    boards = top_k_leaderboard(
        logits_NK.softmax(-1),
        config.num_main_samples,
        rule=config.leaderboard,
        class_ids=np.flatnonzero(task.pseudolabelled_K).tolist(),
        others_win=config.pseudolabel_classes == "all",
    )
    boards = {label: [(int(task.pool[row]), score) for row, score in board] for label, board in boards.items()}
    k, threshold = config.num_main_samples, config.mismatch_threshold
    return boards | align_concepts(context, config.mismatched, threshold, k, config.description_choice)


def renewed_boards(
    boards: Leaderboard, context: Context, config: CapConfig, epoch: int, predictions: list[tuple[int, float, int]]
) -> Leaderboard:
    """Boards after an epoch from its confident predictions: (class, confidence, image) in the order they were made."""
    size = leaderboard_size(
        epoch,
        start=config.num_main_samples,
        pool_per_class=context.task.estimated_class_size,
        max_ratio=config.max_main_ratio,
        num_epochs=config.epochs,
    )
    # For a class of fewer than 1/rho images the formula gives 0; its surest image is kept all the same.
    return grow_leaderboard(boards, predictions, k=max(1, size), contest=config.contest)


def confident_rows(
    labels_P: Tensor, confidences_P: Tensor, masks_P: Tensor, images_P: IntArray
) -> list[tuple[int, float, int]]:
    """(class, confidence, image) of the confident ones (`masks_P`) of some predictions, tensors on the CPU."""
    confident = masks_P.numpy()
    columns = (each[confident].tolist() for each in (labels_P.numpy(), confidences_P.numpy(), images_P))
    return list(zip(*columns, strict=True))


def epoch_figures(counts_K: IntArray, boards: Leaderboard) -> dict[str, float]:
    """What is told of an epoch: its confident predictions, given by class, and its main samples."""
    num_main = sum(len(board) for board in boards.values())
    return {"num_confident": int(counts_K.sum()), "balance": balance(counts_K), "num_main": num_main}


def as_table(boards: Leaderboard) -> IntArray:
    """(image, class) of every entry, (M, 2)."""
    rows = [(image, label) for label, board in boards.items() for image, _ in board]
    return np.array(rows, dtype=np.int64).reshape(-1, 2)


def prototype_table(boards: Leaderboard, task: Task, k: int) -> IntArray:
    """(image, class) that class means are taken of, (M, 2): the boards, and for classes without one (TRZSL's seen ones)
    their first k labelled images.
    """
    labelled = task.labelled
    first = [
        (image, label)
        for label in np.flatnonzero(~task.pseudolabelled_K).tolist()
        for image in labelled.indices_N[labelled.labels_N == label][:k].tolist()
    ]
    return np.concatenate([as_table(boards), np.array(first, dtype=np.int64).reshape(-1, 2)])


def board_tensors(boards: Leaderboard) -> dict[str, Tensor]:
    """Boards as tensors, for a checkpoint."""
    rows = [(label, image, score) for label, board in boards.items() for image, score in board]
    return {
        "board_classes": torch.tensor(sorted(boards), dtype=torch.long),
        "board_labels": torch.tensor([row[0] for row in rows], dtype=torch.long),
        "board_images": torch.tensor([row[1] for row in rows], dtype=torch.long),
        "board_scores": torch.tensor([row[2] for row in rows], dtype=torch.float64),
    }


def boards_of(tensors: dict[str, Tensor]) -> Leaderboard:
    """Boards that `board_tensors` gave."""
    boards: Leaderboard = {int(label): [] for label in tensors["board_classes"]}
    columns = (tensors[name].tolist() for name in ("board_labels", "board_images", "board_scores"))
    for label, image, score in zip(*columns, strict=True):
        boards[label].append((image, score))
    return boards
