"""CPL, candidate pseudolabels: where an image could be two classes, both are kept.

for i = 1 … I
    p            the zero-shot probabilities (i = 1), else those of the model trained last
    candidates   S_n = intra-instance ∩ inter-instance selection on p
    images       each class's K_i = ⌊i·N/(I·C)⌋ surest, an image counting under one of its candidates
    prompts      start afresh; train E epochs of L = CE(labelled) - log Σ_{k in S_n} softmax(z_n)_k

Zhang, Wei, Liu & Feng, "Candidate Pseudolabel Learning: Enhancing Vision-Language Models by Prompt Tuning with
Unlabeled Data", ICML 2024 (arXiv 2406.10502).
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from captune.algorithms.configs import CplConfig
from captune.algorithms.grip import Grip
from captune.equations.candidate_labels import balanced_selection, candidate_sets
from captune.training.context import Context


class Cpl(Grip):
    """CPL on one cell; see the module's box."""

    config: CplConfig  # type: ignore[assignment]

    def __init__(self, context: Context, config: CplConfig, seed: int) -> None:
        super().__init__(context, config, seed)  # type: ignore[arg-type]

    def renew(self, probs_NK: Tensor, size: int) -> None:
        """Choose the iteration's images and their candidates."""
        open_K = self.context.pseudolabelled_K
        num_classes = int(open_K.sum())
        candidates_NK = candidate_sets(
            probs_NK[:, open_K],
            intra_quantile=self.config.intra_quantile,
            inter_quantile=max(0.0, 1 - self.config.inter_classes / num_classes),
        )
        rows = np.array(balanced_selection(probs_NK[:, open_K], candidates_NK, size), dtype=np.int64)
        candidates_PK = candidates_NK.new_zeros(len(rows), len(open_K))
        candidates_PK[:, open_K] = candidates_NK[rows]
        self.pseudolabel(self.context.task.pool[rows], candidates_PK)
