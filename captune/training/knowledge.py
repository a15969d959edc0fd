"""Whether a frozen backbone knows the classes it is asked for, by its features and texts alone."""

from __future__ import annotations

import numpy as np
import torch

from captune.decisions.advice import NUM_NEIGHBOURS, measure_knowledge
from captune.seeding import torch_generator
from captune.training.context import Context

_MOST_IMAGES = 4000


def classes_unknown(context: Context) -> str | None:
    """Why the backbone seems not to know the classes of its pool; None where it does.

    Zero-shot's predictions on the pool (a seeded part of a large one) are compared with those of the same texts turned
    at random (`captune.decisions.advice.Knowledge`). Only the classes that an image of the pool may be of are compared.

    Args:
        context: the cell.
    """
    task = context.task
    generator = torch_generator(task.config.split_seed, "knowledge")
    pool = np.concatenate([task.pool, task.holdout])
    rows = torch.as_tensor(pool)[torch.randperm(len(pool), generator=generator)[:_MOST_IMAGES]].to(context.device)
    features_ND = context.image_features_MD[rows]
    text_KD = context.text_features_KD[context.pseudolabelled_K]
    # Labelled images teach what the names do not.
    if len(task.labelled) or len(rows) <= NUM_NEIGHBOURS or len(text_KD) < 3:
        return None
    similarity_NN = features_ND @ features_ND.T
    similarity_NN.fill_diagonal_(float("-inf"))
    neighbours_Nk = similarity_NN.topk(NUM_NEIGHBOURS).indices
    knowledge = measure_knowledge(features_ND, text_KD, neighbours_Nk, generator)
    confidence = (context.logit_scale * features_ND @ text_KD.T).softmax(-1).amax(-1).mean()
    if knowledge.known(float(confidence)):
        return None
    return f"this backbone does not know these classes: {knowledge.evidence}"
