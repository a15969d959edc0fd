"""A linear probe on labelled images that starts at the class texts and is held there, class by class (CLAP).

Silva-Rodríguez, Hajimiri, Ben Ayed & Dolz, "A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models",
CVPR 2024 (arXiv 2312.12730).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from captune.equations.cosine import unit
from captune.equations.shapes import check_shapes, require


def text_penalties(probs_MK: Tensor, labels_M: Tensor) -> Tensor:
    """lambda_k: the mean zero-shot probability of class k over its labelled images, 0 for a class without any.

    The better the text knows its images, the tighter the class is held to it (the paper's class-wise multipliers after
    their one update, section 4.2).

    Args:
        probs_MK: zero-shot probabilities of the labelled images.
        labels_M: their classes.

    Raises:
        ValueError: shapes do not fit.
    """
    sizes = check_shapes(probs_MK=probs_MK, labels_M=labels_M)
    one_hot_MK = F.one_hot(labels_M, sizes["K"]).to(probs_MK.dtype)
    return (one_hot_MK * probs_MK).sum(dim=0) / one_hot_MK.sum(dim=0).clamp(min=1)


def fit_text_initialised_probe(
    features_MD: Tensor,
    labels_M: Tensor,
    text_features_KD: Tensor,
    *,
    logit_scale: float,
    penalty: float = 1.0,
    num_steps: int = 200,
) -> Tensor:
    """Class weights w [K, D] in place of the text features, for logits s·v·w.

    Minimises (1/M)·Σ_i CE(s·v_i·w, y_i) + penalty·Σ_k lambda_k·|w_k - t_k|², lambda from `text_penalties`, over the
    classes that have labelled images: the others keep their text and stand aside, so that seen classes are not raised
    over unseen ones (trzsl). Convex; solved by L-BFGS from w = t, so nothing depends on a seed. The paper goes by SGD
    and normalises w after every step; here |w| may move.

    Args:
        features_MD: labelled image features, normalised here.
        labels_M: their classes.
        text_features_KD: class text features t, normalised here.
        logit_scale: s.
        penalty: factor on all lambda (1 as published).
        num_steps: most iterations.

    Returns:
        w, the texts themselves where nothing is labelled.

    Raises:
        ValueError: shapes do not fit or a value is out of range.
    """
    check_shapes(features_MD=features_MD, labels_M=labels_M, text_features_KD=text_features_KD)
    require(penalty >= 0, "0 <= penalty", penalty=penalty)
    require(num_steps >= 0, "0 <= num_steps", num_steps=num_steps)
    features_MD, text_KD = unit(features_MD).double(), unit(text_features_KD).double()
    known_C, at_M = torch.unique(labels_M, return_inverse=True)
    if len(known_C) < 2 or num_steps == 0:
        return text_KD.float()
    text_CD = text_KD[known_C]
    lambda_C = penalty * text_penalties((logit_scale * features_MD @ text_KD.T).softmax(dim=1), labels_M)[known_C]
    weights_CD = text_CD.clone().requires_grad_(True)
    solver = torch.optim.LBFGS([weights_CD], max_iter=num_steps, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        solver.zero_grad()
        held = (lambda_C * (weights_CD - text_CD).square().sum(dim=1)).sum()
        loss = F.cross_entropy(logit_scale * features_MD @ weights_CD.T, at_M) + held
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        solver.step(objective)  # type: ignore[no-untyped-call]
    return text_KD.index_copy(0, known_C, weights_CD.detach()).float()
