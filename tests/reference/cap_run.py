"""CAP from its first board to its last prediction, one image after another: the oracle for whole runs.

The towers are open_clip's own blocks (`maple.py`), boards and margins are plain lists (`leaderboards.py`, `losses.py`),
gradients are autograd's, SGD is written out. Nothing of `captune.equations` or `captune.algorithms` is used. Pixels,
batches and initial values are given, so that a run can follow another one step by step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.reference import leaderboards, losses
from tests.reference.maple import maple_image, maple_text

Pixels = Callable[[Sequence[int]], Tensor]


@dataclass(frozen=True)
class Settings:
    """Of a run; the letters of the paper in brackets."""

    epochs: int
    steps: int
    threshold: float  # tau
    margin_scale: float  # m
    main_samples: int  # k
    max_ratio: float  # rho
    grow_every: int
    learning_rate: float
    weight_decay: float
    momentum: float
    warmup_epochs: int
    residual: float  # of the adapters
    logit_scale: float


@dataclass(frozen=True)
class Batch:
    """What a step reads: image numbers, the labels that go with them, and the strong view of the pool's images."""

    pool: list[int]
    main: list[tuple[int, int]]
    labelled: list[tuple[int, int]]
    strong: Tensor


@dataclass
class Epoch:
    """What is recorded of an epoch."""

    margin: list[list[float]]
    losses: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    boards: dict[int, list[int]] = field(default_factory=dict)


class CapRun:
    """The state of a run: parameters, their momentum, boards and counts."""

    def __init__(
        self,
        model: Any,
        tokens_KL: Tensor,
        initial: Mapping[str, Tensor],
        zero_shot: list[list[float]],
        pool: Sequence[int],
        labelled: Sequence[tuple[int, int]],
        unseen: Sequence[int],
        weak: Pixels,
        settings: Settings,
    ) -> None:
        self.model, self.tokens_KL, self.settings = model, tokens_KL, settings
        self.num_classes, self.pool, self.labelled, self.unseen = len(tokens_KL), pool, labelled, sorted(unseen)
        self.weak = weak
        self.parameters = {name: value.clone().requires_grad_(True) for name, value in initial.items()}
        self.velocity: dict[str, Tensor] = {}
        first = leaderboards.published_boards(zero_shot, settings.main_samples, classes=self.unseen)
        self.boards = {label: [(pool[row], score) for row, score in board] for label, board in first.items()}
        self.counts: list[float] | None = None
        self.step = 0

    def texts(self) -> Tensor:
        """Class features without the adapter."""
        layers = len(self.model.transformer.resblocks)
        vectors = torch.stack([self.parameters["context"], *self.parameters["deep"]])[:layers]
        return maple_text(self.model, self.tokens_KL, vectors)

    def images(self, pixels: Tensor) -> Tensor:
        """Image features without an adapter."""
        text = [self.parameters["context"], *self.parameters["deep"]]
        weights, biases = self.parameters["projection"], self.parameters["projection_bias"]
        vectors = [text[layer] @ weights[layer] + biases[layer] for layer in range(len(weights))]
        return maple_image(self.model, pixels, torch.stack(vectors))

    def adapted(self, features: Tensor, which: str) -> Tensor:
        """Features through an adapter."""
        one, two = (
            (self.parameters[f"{which}.{part}_weight"], self.parameters[f"{which}.{part}_bias"])
            for part in ("down", "up")
        )
        hidden = F.relu(features @ one[0].T + one[1])
        return F.normalize(features + self.settings.residual * (hidden @ two[0].T + two[1]), dim=-1)

    def run_epoch(self, number: int, batches: Callable[[int], Batch]) -> Epoch:
        """Train an epoch; `batches(step)` is asked after the boards of the epoch stand."""
        record = Epoch(self.margin())
        confident: list[tuple[int, float, int]] = []
        for step in range(self.settings.steps):
            record.losses.append(self.train(batches(step), record.margin, confident))
        self.counts = [float(sum(label == k for label, _, _ in confident)) for k in range(self.num_classes)]
        if number % self.settings.grow_every == 0:
            self.boards = leaderboards.grown_boards(self.boards, confident, max(1, self.size(number)))
        record.counts = [int(count) for count in self.counts]
        record.boards = {label: [image for image, _ in board] for label, board in self.boards.items()}
        return record

    def size(self, number: int) -> int:
        """Images a board may hold after epoch `number`."""
        start = self.settings.main_samples
        most = min(1000, int(len(self.pool) // len(self.unseen) * self.settings.max_ratio))
        return start + int((most - start) * min(1, number / (self.settings.epochs * 0.7)))

    @torch.no_grad()
    def margin(self) -> list[list[float]]:
        """M from the last epoch's counts; main samples are encoded anew."""
        nothing = [[0.0] * self.num_classes for _ in range(self.num_classes)]
        if self.counts is None or max(self.counts) == 0:
            return nothing
        plain = F.normalize(self.texts(), dim=-1)
        prototypes = []
        for label in range(self.num_classes):
            images = [image for image, _ in self.boards.get(label, [])]
            if label not in self.unseen:
                images = [image for image, own in self.labelled if own == label][: self.settings.main_samples]
            if not images:
                prototypes.append(plain[label])
                continue
            features = torch.stack([self.adapted(self.images(self.weak([image])), "main")[0] for image in images])
            prototypes.append(F.normalize(features.mean(0), dim=-1))
        means = torch.stack(prototypes)
        similarity = torch.maximum(plain @ plain.T, means @ means.T).tolist()
        member = [label in self.unseen for label in range(self.num_classes)]
        return losses.margin(similarity, self.counts, self.settings.margin_scale, "published", member)

    def train(self, batch: Batch, margin: list[list[float]], confident: list[tuple[int, float, int]]) -> float:
        """One step of SGD; confident pool predictions are appended to `confident`."""
        text = self.adapted(self.texts(), "text")
        with torch.no_grad():
            weak = self.adapted(self.images(self.weak(batch.pool)), "main")
            probs = [losses.softmax(row) for row in (self.settings.logit_scale * weak @ text.T).tolist()]
        loss = text.sum() * 0.0
        for trusted in (batch.labelled, batch.main):
            if trusted:
                features = self.adapted(self.images(self.weak([image for image, _ in trusted])), "main")
                rows = self.settings.logit_scale * features @ text.T
                loss = loss + sum(
                    self.cross_entropy(row, label, margin) for row, (_, label) in zip(rows, trusted, strict=True)
                ) / len(trusted)
        strong = self.settings.logit_scale * self.adapted(self.images(batch.strong), "pseudo") @ text.T
        learned = strong.sum() * 0.0
        taken = 0
        for image, row, p in zip(batch.pool, strong, probs, strict=True):
            label = p.index(max(p))
            if p[label] > self.settings.threshold:
                learned, taken = learned + self.cross_entropy(row, label, margin), taken + 1
                confident.append((label, p[label], image))
        loss = loss + learned / max(1, taken)
        self.descend(loss)
        return float(loss.detach())

    def cross_entropy(self, row: Tensor, label: int, margin: list[list[float]]) -> Tensor:
        """CE of one image, the other classes' logits raised by their margin."""
        raised = [row[j] if j == label else row[j] + margin[label][j] for j in range(self.num_classes)]
        return -torch.stack(raised).log_softmax(0)[label]

    def descend(self, loss: Tensor) -> None:
        """SGD with momentum and decay, at the schedule's rate."""
        settings = self.settings
        warm, total = settings.warmup_epochs * settings.steps, settings.epochs * settings.steps
        at = self.step
        share = at / warm if at < warm else 0.5 * (1 + math.cos(math.pi * (at - warm) / (total - warm)))
        names = list(self.parameters)
        gradients = torch.autograd.grad(loss, [self.parameters[name] for name in names], allow_unused=True)
        for name, gradient in zip(names, gradients, strict=True):
            if gradient is None:
                continue
            with torch.no_grad():
                value = self.parameters[name]
                step = gradient + settings.weight_decay * value
                if name in self.velocity:
                    step = settings.momentum * self.velocity[name] + step
                self.velocity[name] = step
                self.parameters[name] = (value - settings.learning_rate * share * step).requires_grad_(True)
        self.step += 1

    @torch.no_grad()
    def predictions(self, images: Sequence[int]) -> list[int]:
        """The class of every image, without adapters."""
        text = self.texts()
        return [int((self.images(self.weak([image])) @ text.T)[0].argmax()) for image in images]
