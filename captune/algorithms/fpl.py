"""FPL, few pseudolabels: zero-shot CLIP's most confident images of every class, learned as if they were labelled.

before training   each class's board (the list of its pseudolabelled images) takes its K surest by zero-shot
every step        L = CE(labelled) + CE(boards)

Huang, Chu & Wei, "Unsupervised Prompt Learning for Vision-Language Models" (UPL, arXiv 2204.03649); as FPL in Menghini,
Delworth & Bach, "Enhancing CLIP with CLIP", NeurIPS 2023 (arXiv 2306.01669), whose settings are the defaults.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from captune.algorithms.configs import FplConfig
from captune.algorithms.learner import Learner
from captune.equations.pseudolabels import top_k_leaderboard
from captune.training.context import Context


class Fpl(Learner):
    """FPL on one cell; see the module's box."""

    def __init__(self, context: Context, config: FplConfig, seed: int) -> None:
        super().__init__(context, config, seed)
        probs_NK = context.pool_logits(context.zero_shot_logits(context.task.pool)).softmax(-1)
        self.pseudolabel(*boards(context, probs_NK, config.num_pseudolabels, config.leaderboard))


def boards(context: Context, probs_NK: Tensor, size: int, rule: str) -> tuple[np.ndarray, Tensor]:
    """The boards of the pool as images (P,) and one-hot candidates (P, K), in class order."""
    columns = np.flatnonzero(context.task.pseudolabelled_K).tolist()
    chosen = top_k_leaderboard(probs_NK, size, rule=rule, class_ids=columns)
    rows = [(row, label) for label, board in chosen.items() for row, _ in board]
    table = np.array(rows, dtype=np.int64).reshape(-1, 2)
    labels_P = torch.as_tensor(table[:, 1], device=context.device)
    return context.task.pool[table[:, 0]], F.one_hot(labels_P, context.task.num_classes).bool()
