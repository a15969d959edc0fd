"""Which asked-for names the pool of a cell seems to hold no image of: the numbers for captune.decisions.presence."""

from __future__ import annotations

import numpy as np
import torch

from captune.algorithms.anchored import Anchored
from captune.algorithms.configs import AnchoredConfig
from captune.decisions.evidence import NUM_NEIGHBOURS
from captune.decisions.neighbours import nearest_images
from captune.decisions.presence import Absent, absent_classes
from captune.seeding import torch_generator
from captune.training.context import Context
from captune.training.pool_evidence import knowledge_of

_MOST_IMAGES = 4000


def absent_names(context: Context) -> list[Absent]:
    """The classes that seem to have no image among the unlabelled ones (a seeded part of a large pool), surest first.

    None are named where images are labelled, since each name then has labelled images or lacks them by design (trzsl),
    and where the backbone does not know the classes.
    """
    task = context.task
    generator = torch_generator(task.config.split_seed, "presence")
    pool = np.sort(np.concatenate([task.pool, task.holdout]))
    if len(task.labelled) or len(pool) <= NUM_NEIGHBOURS or task.num_classes < 3:
        return []
    pool = pool[np.sort(torch.randperm(len(pool), generator=generator)[:_MOST_IMAGES].numpy())]
    features_ND = context.image_features_MD[torch.as_tensor(pool, device=context.device)]
    neighbours_Nk = nearest_images(features_ND, NUM_NEIGHBOURS)
    zero_shot_NK = context.zero_shot_logits(pool).softmax(-1)
    knowledge = knowledge_of(context, features_ND, neighbours_Nk)
    if knowledge is not None and not knowledge.known(float(zero_shot_NK.amax(-1).mean())):
        return []
    mixture = Anchored(context, AnchoredConfig.parse({}), 0)
    return absent_classes(zero_shot_NK.cpu(), mixture.predict(pool).cpu(), neighbours_Nk.cpu())
