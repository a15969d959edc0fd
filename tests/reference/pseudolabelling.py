"""FPL, GRIP, CPL and supervised training as their boxes say, image by image, on frozen features."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from captune.seeding import torch_generator

Probs = list[list[float]]
Sets = list[tuple[int, set[int]]]  # (pool row, candidate classes)


def walk_boards(probs: Probs, size: int, classes: Sequence[int]) -> Sets:
    """GRIP's walk, one image after another: a board is sorted only when it is full; hard labels, in class order."""
    boards: dict[int, list[tuple[float, int]]] = {label: [] for label in classes}
    for row, p in enumerate(probs):
        first = max(classes, key=lambda label: (p[label], -label))
        board = boards[first]
        if len(board) < size:
            board.append((p[first], row))
            continue
        if board[-1][0] < p[first]:
            board.append((p[first], row))
            board.sort(reverse=True)
            del board[size:]
            continue
        for label in classes:
            board = boards[label]
            if label == first:
                continue
            if len(board) < size:
                board.append((p[label], row))
            elif board[-1][0] < p[label]:
                board.append((p[label], row))
                board.sort(reverse=True)
                del board[size:]
    return [(row, {label}) for label in classes for _, row in boards[label]]


def candidates(probs: Probs, alpha: float, beta: float, classes: Sequence[int]) -> list[set[int]]:
    enough = quantile([max(p[label] for label in classes) for p in probs], alpha)
    least = {label: quantile([p[label] for p in probs], beta) for label in classes}
    result = []
    for p in probs:
        kept, total = set(), 0.0
        for label in sorted(classes, key=lambda label: -p[label]):
            if total <= enough:
                kept.add(label)
            total += p[label]
        result.append({label for label in kept if p[label] >= least[label]})
    return result


def quantile(values: Sequence[float], q: float) -> float:
    """Linear between order statistics."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def accept(probs: Probs, sets: list[set[int]], size: int) -> list[int]:
    """Images ask classes one at a time, the first in line first, until nobody is left to ask."""
    left = [sorted(labels, key=lambda label: -probs[row][label]) for row, labels in enumerate(sets)]
    held: dict[int, list[int]] = {}
    line = list(range(len(probs)))
    while line:
        row = line.pop(0)
        if not left[row] or size == 0:
            continue
        label = left[row].pop(0)
        board = held.setdefault(label, [])
        board.append(row)
        if len(board) > size:
            weakest = min(board, key=lambda r: (probs[r][label], r))
            board.remove(weakest)
            line.append(weakest)
    return sorted(row for board in held.values() for row in board)


def learn(
    *,
    pool_DN: torch.Tensor,
    labelled: Sequence[tuple[torch.Tensor, int]],
    text_KD: torch.Tensor,
    scale: float,
    config: object,
    seed: int,
    choose: Callable[[int, Probs], Sets],
    num_rounds: int,
    classes: Sequence[int],
) -> torch.Tensor:
    """Class features after the last round: rounds of SGD from scratch, one image's loss added after another."""
    steps, batch = config.steps_per_epoch, config.batch_size  # type: ignore[attr-defined]
    rate, decay, momentum = config.learning_rate, config.weight_decay, config.momentum  # type: ignore[attr-defined]
    epochs, warm = config.epochs, config.warmup_epochs * config.steps_per_epoch  # type: ignore[attr-defined]
    weights_KD = text_KD.clone()
    for number in range(num_rounds):
        probs = [open_softmax((scale * v @ weights_KD.T).tolist(), classes) for v in pool_DN]
        sets = choose(number + 1, probs)
        residual_KD = torch.zeros_like(text_KD)
        speed_KD = torch.zeros_like(text_KD)
        for epoch in range(epochs):
            generator = torch_generator(seed, "batches", number * epochs + epoch)
            pseudo_order = shuffled(len(sets), steps * batch, generator)
            labelled_order = shuffled(len(labelled), steps * batch, generator)
            for step in range(steps):
                residual_KD.requires_grad_(True)
                unit_KD = torch.nn.functional.normalize(text_KD + residual_KD, dim=1)
                loss = torch.zeros(())
                for at in labelled_order[step * batch : (step + 1) * batch]:
                    v, label = labelled[at]
                    loss = loss - (scale * v @ unit_KD.T).softmax(0)[label].log() / batch
                for at in pseudo_order[step * batch : (step + 1) * batch]:
                    row, labels = sets[at]
                    p_K = (scale * pool_DN[row] @ unit_KD.T).softmax(0)
                    loss = loss - p_K[sorted(labels)].sum().log() / batch
                (gradient_KD,) = torch.autograd.grad(loss, residual_KD)
                residual_KD = residual_KD.detach()
                j, total = epoch * steps + step, epochs * steps
                factor = j / warm if j < warm else 0.5 * (1 + math.cos(math.pi * (j - warm) / (total - warm)))
                speed_KD = momentum * speed_KD + gradient_KD + decay * residual_KD
                residual_KD = residual_KD - rate * factor * speed_KD
        weights_KD = torch.nn.functional.normalize(text_KD + residual_KD, dim=1)
    return weights_KD


def shuffled(count: int, needed: int, generator: torch.Generator) -> list[int]:
    if count == 0:
        return []
    order: list[int] = []
    for _ in range(-(-needed // count)):
        order += torch.randperm(count, generator=generator).tolist()
    return order[:needed]


def open_softmax(logits: Sequence[float], classes: Sequence[int]) -> list[float]:
    top = max(logits[label] for label in classes)
    powers = [math.exp(z - top) if label in classes else 0.0 for label, z in enumerate(logits)]
    return [power / sum(powers) for power in powers]
