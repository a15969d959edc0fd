"""Selection scores of a trial from its probabilities: while it trains, at its end, and for an ensemble of trials."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from captune.config import TaskConfig
from captune.data.paradigms import IntArray, Task
from captune.decisions.neighbours import neighbour_gain_error
from captune.records import Role
from captune.seeding import derive_seed
from captune.training.context import Context, open_context
from captune.training.selection import (
    Reference,
    feature_clusters,
    label_free_scores,
    validation_score,
)


def selection_scores(
    context: Context,
    holdout_NK: Tensor,
    validation_NK: Tensor,
    *,
    strong_NK: Tensor | None = None,
    clustered: bool = False,
    diagnostics: bool = True,
) -> dict[str, float]:
    """Every criterion the cell supports; no sealed label is read.

    Args:
        context: the cell, in the role "score".
        holdout_NK: probabilities of the held-out pool images, or of the first of them.
        validation_NK: probabilities of the labelled validation images, all or none.
        strong_NK: probabilities of strong views of the judged images, for `stability`.
        clustered: compute `ami` too.
        diagnostics: compute those criteria too that are no more than diagnostics.

    Returns:
        {criterion: score}. Label-free criteria are measured on held-out pool images; where there are none (trzsl), on
        the validation images, whose labels they leave alone.
    """
    task = context.task
    scores: dict[str, float] = {}
    if len(validation_NK):
        name = "pseudo-unseen" if task.pseudo_unseen_K.any() else "val"
        labels_N = torch.tensor(task.validation.labels_N)
        scores[name] = validation_score(validation_NK.argmax(-1).cpu(), labels_N, task)
    judged_NK = holdout_NK if len(task.holdout) else validation_NK
    if len(judged_NK):
        clusters_N = _clusters(task.config, str(context.device)) if clustered else None
        reference = _reference(context, len(judged_NK))
        scores |= label_free_scores(
            judged_NK, reference, strong_probs_NK=strong_NK, clusters_N=clusters_N, diagnostics=diagnostics
        )
    if "val" in scores and "agree-smooth" in scores:
        scores["val-smooth"] = (scores["val"] + scores["agree-smooth"]) / 2
    return scores


def gain_errors(context: Context, holdout_NK: Tensor, validation_NK: Tensor) -> dict[str, float]:
    """Standard errors, over the judged images, of gains over zero-shot: {criterion: error}, for `neighbours`.

    `neighbours` needs the jackknife. The other criteria are treated as shares of images, whose error follows from the
    number of images alone; for criteria that are no such shares this is an approximation.
    """
    judged_NK = holdout_NK if len(context.task.holdout) else validation_NK
    if not len(judged_NK):
        return {}
    reference = _reference(context, len(judged_NK))
    error = neighbour_gain_error(
        judged_NK.argmax(-1), reference.zero_shot_N, reference.neighbours_Nk, judged_NK.shape[1]
    )
    return {} if error is None else {"neighbours": error}


def judged_images(task: Task) -> IntArray:
    """The images label-free criteria are measured on."""
    return task.holdout if len(task.holdout) else task.validation.indices_N


def _reference(context: Context, num_rows: int) -> Reference:
    known: dict[int, Reference] = context.remembered.setdefault("reference", {})
    if num_rows not in known:
        known[num_rows] = _make_reference(context, num_rows)
    return known[num_rows]


def _make_reference(context: Context, num_rows: int) -> Reference:
    task = context.task
    images = judged_images(task)
    if len(task.holdout):
        logits_NK = context.pool_logits(context.zero_shot_logits(np.concatenate([images, task.pool])))
    else:
        # Validation images are of seen classes too, which the pool's logits leave out.
        logits_NK = context.zero_shot_logits(images)
    return Reference.from_features(logits_NK, context.image_features_MD[torch.tensor(images[:num_rows])])


@lru_cache(maxsize=8)
def _clusters(config: TaskConfig, device: str) -> np.ndarray | None:
    context = open_context(config, Role.SCORE, device)
    num_classes = context.task.num_classes
    features_ND = context.image_features_MD[torch.tensor(judged_images(context.task))]
    # k-means over long class lists costs more than the trial it would judge.
    if len(features_ND) <= num_classes or len(features_ND) * num_classes > 2_000_000:
        return None
    return feature_clusters(features_ND, num_classes, derive_seed(config.split_seed, "ami"))
