"""What is shared by methods that assign the pool's images to classes while they are fitted."""

from __future__ import annotations

import torch
from torch import Tensor

from captune.algorithms.zero_shot import Untrained
from captune.data.paradigms import IntArray
from captune.training.context import Context


class Transductive(Untrained):
    """An image of the pool is answered by its assignment, any other by what was learned of the pool.

    Args:
        context: of the cell.
        weights_KD, bias_K: class weights and bias for images outside the pool; the bias is zero if None.
        assigned_PK: probabilities of the pool's images.
    """

    def __init__(self, context: Context, weights_KD: Tensor, bias_K: Tensor | None, assigned_PK: Tensor) -> None:
        super().__init__(context, weights_KD, bias_K)
        self.assigned_PK = assigned_PK
        self._row_of = {int(image): row for row, image in enumerate(context.task.pool)}

    def predict(self, indices: IntArray) -> Tensor:
        """Probabilities (N, K)."""
        probs_NK = self.predict_other(indices)
        known = [(at, self._row_of[int(image)]) for at, image in enumerate(indices) if int(image) in self._row_of]
        if known:
            at, rows = (torch.tensor(column, device=self.context.device) for column in zip(*known, strict=True))
            probs_NK[at] = self.assigned_PK[rows]
        return probs_NK

    def predict_other(self, indices: IntArray) -> Tensor:
        """Probabilities (N, K) of images as if they were outside the pool."""
        return super().predict(indices)
