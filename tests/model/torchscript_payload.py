"""A TorchScript module that brings code of its own for being unpacked; its annotations must be types, not text."""

import torch
from torch import Tensor, nn


class Payload(nn.Module):
    """Writes a file when it is unpacked: TorchScript lets an archive bring a `__setstate__` of its own."""

    target: str
    weight: Tensor

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target
        self.training = False
        self.weight = torch.ones(2)

    @torch.jit.export
    def __getstate__(self) -> tuple[str, Tensor, bool]:
        return (self.target, self.weight, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, Tensor, bool]) -> None:
        self.target = state[0]
        self.weight = state[1]
        self.training = state[2]
        torch.save(self.weight, self.target)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight
