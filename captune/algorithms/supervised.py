"""Supervised: every pool image with its true label, the ceiling of what adaptation can reach.

every step   L = CE(labelled), where the task has unsealed the pool (`unseal_pool`, research only)
"""

from __future__ import annotations

from captune.algorithms.configs import SupervisedConfig
from captune.algorithms.learner import Learner
from captune.errors import UsageError
from captune.training.context import Context


class Supervised(Learner):
    """Supervised training on one cell; see the module's box."""

    def __init__(self, context: Context, config: SupervisedConfig, seed: int) -> None:
        super().__init__(context, config, seed)
        if not context.task.config.unseal_pool:
            raise UsageError(
                "supervised must be given the pool's true labels",
                got="a sealed pool",
                where="task: unseal_pool",
                next_step="Set `unseal_pool: true` (research only: it is stamped on every output).",
            )
