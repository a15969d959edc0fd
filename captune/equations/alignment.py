"""Concept alignment: descriptions for mismatched classes, prototypes, the contrastive loss (README.md, row § 3)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from captune.equations.cosine import cosines, precise, unit
from captune.equations.shapes import check_shapes, require


def choose_description(description_features_nD: Tensor, centre_D: Tensor) -> int:
    """Index of the description whose text feature is nearest to a cluster centre by cosine; the first on a tie.

    See Wang et al., ICML 2025.

    Raises:
        ValueError: shapes do not fit, or there is no description.
    """
    sizes = check_shapes(description_features_nD=description_features_nD, centre_D=centre_D)
    require(sizes["n"] >= 1, "1 <= number of descriptions", n=sizes["n"])
    return int(cosines(description_features_nD, centre_D[None])[:, 0].cpu().numpy().argmax())


def choose_descriptions_together(
    description_features: Mapping[int, Tensor], centres: Mapping[int, Tensor]
) -> dict[int, tuple[int, int]]:
    """Choose descriptions and clusters of several mismatched classes together.

    The paper fixes each class's cluster by its name, which is the very thing that is wrong. Here a class scores a
    cluster by the best cosine of any of its descriptions, and the one-to-one matching with the highest sum decides.
    Ours.

    Args:
        description_features: for every mismatched class, text features [n, D] of its descriptions.
        centres: `MismatchReport.centres`, the clusters left, [D] each, by the candidate they were matched with.

    Returns:
        {class: (index of its description, candidate whose centre it takes)}.

    Raises:
        ValueError: shapes do not fit, a class has no description, or there are fewer centres than classes.
    """
    require(
        len(description_features) <= len(centres),
        "number of classes <= number of centres",
        classes=list(description_features),
        centres=list(centres),
    )
    if not description_features:
        return {}
    owners = list(centres)
    centres_CD = torch.stack([centres[owner] for owner in owners])
    scores, chosen = [], []
    for features_nD in description_features.values():
        sizes = check_shapes(features_nD=features_nD, centres_CD=centres_CD)
        require(sizes["n"] >= 1, "1 <= number of descriptions", n=sizes["n"])
        cosine_nC = cosines(features_nD, centres_CD).detach().cpu().numpy()
        scores.append(cosine_nC.max(axis=0))
        chosen.append(cosine_nC.argmax(axis=0))
    rows, columns = linear_sum_assignment(np.stack(scores), maximize=True)
    labels = list(description_features)
    return {labels[row]: (int(chosen[row][column]), owners[column]) for row, column in zip(rows, columns, strict=True)}


def nearest_images(
    image_features_ND: Tensor, text_feature_D: Tensor, k: int, eligible_N: Tensor | None = None
) -> list[int]:
    """The k images with the highest cosine to a text, whatever they are predicted as: main samples of a mismatched
    class.

    Args:
        image_features_ND: pool features.
        text_feature_D: feature of the chosen description.
        k: how many; fewer come back if fewer are eligible.
        eligible_N: bool, False for labelled and test images.

    Returns:
        Image indices by falling (cosine, index).

    Raises:
        ValueError: shapes do not fit or k is negative.
    """
    check_shapes(image_features_ND=image_features_ND, text_feature_D=text_feature_D, eligible_N=eligible_N)
    require(k >= 0, "0 <= k", k=k)
    cosine_N = cosines(image_features_ND, text_feature_D[None])[:, 0].detach().cpu().numpy()
    images_N = np.arange(len(cosine_N))
    if eligible_N is not None:
        images_N = np.flatnonzero(eligible_N.detach().cpu().numpy().astype(bool))
    order_N = np.lexsort((-images_N, -cosine_N[images_N]))
    return [int(image) for image in images_N[order_N[:k]]]


def class_prototypes(features_MD: Tensor, labels_M: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Normalised mean of each class's normalised features.

    Args:
        features_MD: features of M main samples (an image on two boards comes twice).
        labels_M: their classes, long.
        num_classes: K.

    Returns:
        Prototypes [K, D] of length 1 (zeros for a class without samples), and present [K], bool.

    Raises:
        ValueError: shapes do not fit.
    """
    check_shapes(features_MD=features_MD, labels_M=labels_M)
    features_MD = unit(features_MD)
    # A product adds in one order, where adding row by row on a GPU does not.
    member_KM = (labels_M == torch.arange(num_classes, device=labels_M.device)[:, None]).to(features_MD.dtype)
    counts_K = member_KM.sum(1)
    return unit(member_KM @ features_MD / counts_K.clamp(min=1)[:, None]), counts_K > 0


def ema_update(
    old_KD: Tensor, old_present_K: Tensor, new_KD: Tensor, new_present_K: Tensor, *, momentum: float = 0.9
) -> tuple[Tensor, Tensor]:
    """Move prototypes towards new ones: normalise(momentum·old + (1 - momentum)·new).

    A class that is present in only one of the two keeps that one's prototype.

    Returns:
        Prototypes [K, D] of length 1 or 0, and present [K], bool.

    Raises:
        ValueError: shapes do not fit or momentum is not in [0, 1].
    """
    check_shapes(old_KD=old_KD, old_present_K=old_present_K, new_KD=new_KD, new_present_K=new_present_K)
    require(0 <= momentum <= 1, "0 <= momentum <= 1", momentum=momentum)
    both_K1 = (old_present_K & new_present_K)[:, None]
    mixed_KD = unit(momentum * precise(old_KD) + (1 - momentum) * precise(new_KD))
    either_KD = torch.where(old_present_K[:, None], unit(old_KD), unit(new_KD))
    present_K = old_present_K | new_present_K
    return torch.where(both_K1, mixed_KD, either_KD) * present_K[:, None], present_K


def alignment_loss(
    text_KD: Tensor, prototypes_KD: Tensor, *, temperature: float, present_K: Tensor | None = None
) -> Tensor:
    """Symmetric contrastive loss between the classes' texts and their prototypes.

    L = ½·[CE(T·Mᵀ/tau, diag) + CE(M·Tᵀ/tau, diag)] over the classes with a prototype. The form is InfoNCE as in CLIP
    (Radford et al., 2021, Fig. 3), over classes; ours, README.md, row § 3.

    Args:
        text_KD: text features, normalised here.
        prototypes_KD: prototypes, normalised here.
        temperature: tau, positive; CLIP's own is 0.01.
        present_K: bool, False for a class without prototype, which is neither a row nor a column (default all).

    Returns:
        A scalar in nats; 0 with one class present or none.

    Raises:
        ValueError: shapes do not fit or the temperature is not positive.
    """
    check_shapes(text_KD=text_KD, prototypes_KD=prototypes_KD, present_K=present_K)
    require(temperature > 0, "0 < temperature", temperature=temperature)
    logits_KK = cosines(text_KD, prototypes_KD) / temperature
    if present_K is None:
        present_K = torch.ones(len(text_KD), dtype=torch.bool, device=text_KD.device)
    absent_K = ~present_K.to(logits_KK.device).bool()
    num_present = (~absent_K).sum().clamp(min=1)
    total = logits_KK.new_zeros(())
    for one_way_KK in (logits_KK, logits_KK.T):
        # Absent columns leave the softmax; absent rows become zeros, which are finite and pass no gradient.
        open_KK = one_way_KK.masked_fill(absent_K[None], float("-inf")).masked_fill(absent_K[:, None], 0.0)
        losses_K = -open_KK.log_softmax(dim=1).diagonal()
        total = total + losses_K.masked_fill(absent_K, 0.0).sum() / num_present
    return total / 2
