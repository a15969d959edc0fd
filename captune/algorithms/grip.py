"""GRIP: pseudolabels grow iteratively, from the surest images to the whole pool.

for i = 1 … I
    p        the zero-shot probabilities (i = 1), else those of the model trained last
    boards   each class's K_i = ⌊i·N/(I·C)⌋ surest images by p; N pool images, C classes that may be pseudolabelled
    prompts  start afresh; train E epochs of L = CE(labelled) + CE(boards)

Menghini, Delworth & Bach, "Enhancing CLIP with CLIP: Exploring Pseudolabeling for Limited-Label Prompt Tuning",
NeurIPS 2023 (arXiv 2306.01669).
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from captune.algorithms.common import predict_probs
from captune.algorithms.configs import GripConfig
from captune.algorithms.fpl import boards
from captune.algorithms.learner import Learner
from captune.training.context import Context


class Grip(Learner):
    """GRIP on one cell; see the module's box.

    Attributes:
        epochs_per_round: after so many epochs the loop starts its optimiser and schedule afresh.
    """

    config: GripConfig

    def __init__(self, context: Context, config: GripConfig, seed: int) -> None:
        super().__init__(context, config, seed)
        self.epochs_per_round = config.epochs
        self._fresh = self.classifier.learned_state()

    def plan_epoch(self, epoch: int) -> None:
        """Choose new pseudolabels and start with fresh prompts if an iteration begins; draw the epoch's batches."""
        if epoch % self.epochs_per_round == 0:
            iteration = epoch // self.epochs_per_round + 1
            probs_NK = self.pool_probs(iteration)
            self.renew(probs_NK, growing_size(self.context, iteration, self.config.num_iterations))
            self.classifier.load_learned_state(self._fresh)
        super().plan_epoch(epoch)

    def renew(self, probs_NK: Tensor, size: int) -> None:
        """Choose the iteration's pseudolabels."""
        self.pseudolabel(*boards(self.context, probs_NK, size, self.config.leaderboard))

    def pool_probs(self, iteration: int) -> Tensor:
        """p of the pool (N, K), 0 for classes that may not be pseudolabelled."""
        task = self.context.task
        if iteration == 1:
            return self.context.pool_logits(self.context.zero_shot_logits(task.pool)).softmax(-1)
        probs_NK = predict_probs(self.classifier, self.views, task.pool, adapters=False)
        # log p is a logit as good as any: the softmax renormalises over the classes that are left.
        return self.context.pool_logits(probs_NK.log()).softmax(-1)


def growing_size(context: Context, iteration: int, num_iterations: int) -> int:
    """K_i = ⌊i·N/(I·C)⌋, at least 1."""
    num_classes = int(np.count_nonzero(context.task.pseudolabelled_K))
    return max(1, iteration * len(context.task.pool) // (num_iterations * num_classes))
