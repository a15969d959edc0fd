"""Algorithms made of others: each part has a loop of its own, and all of them train side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from captune.config import TrialConfig
from captune.training.checkpoint import prefixed, without_prefix
from captune.training.loop import Algorithm, Loop, Training


@dataclass(frozen=True)
class Part:
    """An algorithm within another, with its own configuration and number of epochs."""

    algorithm: Algorithm
    config: TrialConfig
    num_epochs: int


class Loops:
    """Trains the parts of an algorithm side by side, each by a loop of its own; short ones end before long ones.

    A checkpoint of an earlier captune, which trained one part behind another, goes on with all that is left.
    """

    def __init__(self, parts: list[Part], *, recorded: bool = True) -> None:
        self._loops = [Loop(part.algorithm, part.config, part.num_epochs, recorded=recorded) for part in parts]

    @property
    def epoch(self) -> int:
        """Epochs trained so far: those of the longest part less what any part still has to train."""
        left = (loop.num_epochs - loop.epoch for loop in self._loops)
        return max(loop.num_epochs for loop in self._loops) - max(left)

    @property
    def due(self) -> Sequence[Loop]:
        """The parts that are not done."""
        return [loop for loop in self._loops if loop.epoch < loop.num_epochs]

    def figures(self, each: Sequence[dict[str, float]]) -> dict[str, float]:
        """The mean of each figure that every part that trained reports."""
        names = [name for name in each[0] if all(name in own for own in each)]
        return {name: sum(own[name] for own in each) / len(each) for name in names}

    def state(self) -> dict[str, Tensor]:
        """The state of every part that trains; the others are solved when they are built."""
        tensors: dict[str, Tensor] = {}
        for number, loop in enumerate(self._loops):
            if loop.num_epochs:
                tensors |= prefixed(f"part{number}", loop.state())
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go on from a saved state."""
        for number, loop in enumerate(self._loops):
            if loop.num_epochs:
                loop.load_state(without_prefix(f"part{number}", tensors))


def training_of(algorithm: Algorithm, config: TrialConfig, num_epochs: int, *, recorded: bool = True) -> Training:
    """What trains an algorithm: loops for its `parts` where it is made of others, else one loop."""
    parts: list[Part] | None = getattr(algorithm, "parts", None)
    if parts is None:
        return Loop(algorithm, config, num_epochs, recorded=recorded)
    return Loops(parts, recorded=recorded)


def num_parameters(algorithm: Algorithm) -> int:
    """Learned numbers, of all parts."""
    parts: list[Part] | None = getattr(algorithm, "parts", None)
    if parts is not None:
        return sum(num_parameters(part.algorithm) for part in parts)
    classifier = algorithm.classifier
    return 0 if classifier is None else sum(parameter.numel() for parameter in classifier.parameters())
