"""What the advice may know of a cell: the stored predictions of its candidates, and which images are alike.

Every score trial stores its probabilities on the same unlabelled images, so candidates are compared on all of them and
in pairs; and on the validation images, whose labels are for selection (ssl, trzsl). No other label is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from captune.config import TaskConfig
from captune.data.paradigms import IntArray, Task
from captune.decisions.evidence import NUM_NEIGHBOURS, Evidence, Knowledge, Validation, measure_knowledge
from captune.decisions.neighbours import nearest_images
from captune.records import BALANCED, ZERO_SHOT, Role
from captune.records.layout import PREDICTIONS
from captune.seeding import numpy_generator, torch_generator
from captune.training.context import Context, open_context

MOST_IMAGES = 4000
"""Of a larger pool a seeded part: enough for the scores, and small files."""
POOL_PROBS, HOLDOUT_PROBS, VALIDATION_PROBS = "pool_probs", "holdout_probs", "validation_probs"


def evidence_images(task: Task) -> IntArray:
    """The unlabelled images that candidates are compared on, rising: all, or a seeded part of a large pool."""
    unlabelled = np.sort(np.concatenate([task.pool, task.holdout]))
    if len(unlabelled) <= MOST_IMAGES:
        return unlabelled
    draw = numpy_generator(task.config.split_seed, "evidence").permutation(len(unlabelled))[:MOST_IMAGES]
    return np.sort(unlabelled[draw])


def pool_evidence(
    config: TaskConfig, candidates: Mapping[str, Sequence[Path]], methods: Mapping[str, str]
) -> Evidence | None:
    """The evidence of a cell's finished score trials.

    Args:
        config: the cell.
        candidates: candidate → the directories of its trials (seeds), whose probabilities are averaged.
        methods: candidate → its method.

    Returns:
        None where zero-shot or balanced zero-shot left no predictions, or none of the right images. Where a trial of
        an older captune stored held-out predictions only, all candidates are compared on the held-out images.
    """
    context = open_context(config, Role.SCORE)
    for name, images in ((POOL_PROBS, evidence_images(context.task)), (HOLDOUT_PROBS, context.task.holdout)):
        shape = (len(images), context.task.num_classes)
        probs = {candidate: _mean(paths, name, shape) for candidate, paths in candidates.items()}
        known = {candidate: mean for candidate, mean in probs.items() if mean is not None}
        if len(images) > 1 and len(known) == len(candidates) and {ZERO_SHOT, BALANCED} <= known.keys():
            return _evidence(context, images, known, methods, _validation(context, candidates))
    return None


def _validation(context: Context, candidates: Mapping[str, Sequence[Path]]) -> Validation | None:
    """What candidates predict of the validation images; None where there are none, or a trial stored none."""
    task = context.task
    shape = (len(task.validation), task.num_classes)
    probs = {candidate: _mean(paths, VALIDATION_PROBS, shape) for candidate, paths in candidates.items()}
    known = {candidate: mean for candidate, mean in probs.items() if mean is not None}
    if not len(task.validation) or len(known) < len(candidates):
        return None
    return Validation(known, torch.tensor(task.validation.labels_N), torch.tensor(task.pseudo_unseen_K))


def _mean(paths: Sequence[Path], name: str, shape: tuple[int, int]) -> Tensor | None:
    """The mean of stored probabilities; None where a trial has none of these images."""
    tables = [safetensors.torch.load_file(path / PREDICTIONS) for path in paths if (path / PREDICTIONS).exists()]
    found = [table[name].float() for table in tables if name in table and tuple(table[name].shape) == shape]
    return torch.stack(found).mean(0) if found and len(found) == len(paths) else None


def _evidence(
    context: Context,
    images: IntArray,
    probs: dict[str, Tensor],
    methods: Mapping[str, str],
    validation: Validation | None,
) -> Evidence:
    features_ND = context.image_features_MD[torch.tensor(images, device=context.device)]
    neighbours_Nk = nearest_images(features_ND, NUM_NEIGHBOURS)
    knowledge = knowledge_of(context, features_ND, neighbours_Nk)
    families = {candidate: methods.get(candidate, candidate) for candidate in probs}
    return Evidence(probs, neighbours_Nk.cpu(), knowledge, families, validation)


def knowledge_of(context: Context, features_ND: Tensor, neighbours_Nk: Tensor) -> Knowledge | None:
    """Zero-shot on some images against random texts (`captune.decisions.evidence.measure_knowledge`).

    Only the classes that an unlabelled image may be of are compared. None where that tells nothing: labelled images
    teach what the names do not, and very few images or classes are always alike.
    """
    text_KD = context.text_features_KD[context.pseudolabelled_K]
    if len(context.task.labelled) or len(features_ND) <= NUM_NEIGHBOURS or len(text_KD) < 3:
        return None
    generator = torch_generator(context.task.config.split_seed, "knowledge")
    return measure_knowledge(features_ND, text_KD, neighbours_Nk, generator)
