"""CoOp: prompts learned from the labelled images alone.

every step   L = CE(labelled)

A control for ssl and trzsl, as `probe` is: the pool is never looked at, so the lead of a semi-supervised method over it
is what the pool was worth. Zhou, Yang, Loy & Liu, "Learning to Prompt for Vision-Language Models", IJCV 2022 (arXiv
2109.01134), by the settings that Menghini et al. (NeurIPS 2023) compare their pseudolabels with.
"""

from __future__ import annotations

from captune.algorithms.configs import CoopConfig
from captune.algorithms.learner import Learner
from captune.errors import UsageError
from captune.training.context import Context


class Coop(Learner):
    """CoOp on one cell; see the module's box."""

    def __init__(self, context: Context, config: CoopConfig, seed: int) -> None:
        super().__init__(context, config, seed)
        if not len(self.labelled_NK):
            raise UsageError(
                "coop must be given labelled images",
                got="none",
                where=context.task.dataset,
                next_step="Use it in ssl or trzsl.",
            )
