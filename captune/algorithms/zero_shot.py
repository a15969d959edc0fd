"""The rivals that need no training: zero-shot CLIP, and zero-shot with half a step toward a balanced pool."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from captune.algorithms.configs import BalancedConfig, ZeroShotConfig
from captune.data.paradigms import IntArray
from captune.equations.prior import logit_adjustment_bias, sinkhorn_bias
from captune.errors import ModelError
from captune.model.class_prompts import class_prompts
from captune.training.context import Context
from captune.training.step import Batch


class Untrained:
    """softmax(s · v·w + b) with class weights w and a bias b that were found without training."""

    classifier = None

    def __init__(self, context: Context, weights_KD: Tensor, bias_K: Tensor | None = None) -> None:
        self.context, self.weights_KD = context, weights_KD
        self.bias_K = torch.zeros(context.task.num_classes, device=context.device) if bias_K is None else bias_K

    def start_epoch(self, epoch: int) -> None:
        """There are no epochs."""

    def batch(self, step: int) -> Batch:
        """There are no steps."""
        raise NotImplementedError("this method does not train")

    def loss(self, batch: Batch) -> tuple[Tensor, Batch]:
        """There is no loss."""
        raise NotImplementedError("this method does not train")

    def observe(self, seen: Batch) -> None:
        """There are no steps."""

    def moving_state(self) -> list[Tensor]:
        """There are no steps."""
        return []

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """There are no epochs."""
        return {}

    def predict(self, indices: IntArray) -> Tensor:
        """Probabilities (N, K)."""
        return (self.logits(indices) + self.bias_K).softmax(-1)

    def logits(self, indices: IntArray) -> Tensor:
        """s · v·w without the bias, (N, K)."""
        rows = torch.as_tensor(np.array(indices), device=self.context.device)
        return self.context.logit_scale * self.context.image_features_MD[rows] @ self.weights_KD.T

    def tensors(self) -> dict[str, Tensor]:
        """Weights and bias."""
        return {"class_weights": self.weights_KD.clone(), "bias": self.bias_K}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Go on from `tensors`."""
        self.weights_KD = tensors["class_weights"].to(self.context.device)
        self.bias_K = tensors["bias"].to(self.context.device)


class ZeroShot(Untrained):
    """The frozen CLIP: w are text features, b = 0, or a bias that evens out the pool's predictions."""

    def __init__(self, context: Context, config: ZeroShotConfig, seed: int = 0) -> None:
        super().__init__(context, ensemble_features(context, config.templates))
        if isinstance(config, BalancedConfig):
            self.bias_K = self._balancing_bias(config)

    def _balancing_bias(self, config: BalancedConfig) -> Tensor:
        """Bias over the classes that may be pseudolabelled, from all unlabelled images."""
        task = self.context.task
        columns = torch.as_tensor(np.flatnonzero(task.pseudolabelled_K), device=self.context.device)
        logits_NK = self.logits(np.concatenate([task.holdout, task.pool]))[:, columns]
        if config.balance_rule == "sinkhorn":
            part_K = config.balance_strength * sinkhorn_bias(logits_NK)
        else:
            part_K = logit_adjustment_bias(logits_NK, config.balance_strength)
        bias_K = torch.zeros(task.num_classes, device=self.context.device)
        bias_K[columns] = (part_K - part_K.mean()).float()
        return bias_K


def ensemble_features(context: Context, templates: tuple[str, ...]) -> Tensor:
    """Class features (K, D): the mean of normalised text features over the templates, normalised again (Radford et al.,
    2021, section 3.1.4); the cell's own features without templates.

    Raises:
        ModelError: precomputed features come without a text tower.
        ConfigError: a template does not hold exactly one {}.
    """
    if not templates:
        return context.text_features_KD
    if context.backbone is None:
        raise ModelError(
            "templates must have a text tower to go through",
            got="precomputed features",
            where=context.task.dataset,
            next_step="Leave `templates` empty.",
        )
    features = [
        F.normalize(context.backbone.encode_texts(class_prompts(context.task.class_names, template)).float(), dim=-1)
        for template in templates
    ]
    return F.normalize(torch.stack(features).mean(0), dim=-1)
