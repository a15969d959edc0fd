"""How alike two classes look, from features or from predictions: the S of the margin (README.md, row § 7)."""

from __future__ import annotations

import torch
from torch import Tensor

from captune.equations.cosine import cosines, precise
from captune.equations.shapes import check_shapes, require


def class_similarity(text_KD: Tensor, prototypes_KD: Tensor) -> Tensor:
    """S = max(T·Tᵀ, V·Vᵀ), elementwise: classes are alike if their names or their images are.

    See Wang et al., ICML 2025, and README.md, row § 7.

    Args:
        text_KD: text features without adapter; normalised here.
        prototypes_KD: class means of image features; normalised here. A row of zeros stands for a class without main
            samples and is replaced by the class's text feature.

    Returns:
        Cosines [K, K], symmetric, 1 on the diagonal.

    Raises:
        ValueError: shapes do not fit.
    """
    check_shapes(text_KD=text_KD, prototypes_KD=prototypes_KD)
    absent_K1 = (prototypes_KD == 0).all(dim=1, keepdim=True)
    prototypes_KD = torch.where(absent_K1, precise(text_KD), precise(prototypes_KD).to(precise(text_KD).dtype))
    return torch.maximum(cosines(text_KD, text_KD), cosines(prototypes_KD, prototypes_KD))


def soft_confusion(probs_BK: Tensor, labels_B: Tensor, num_classes: int) -> Tensor:
    """S from the model's own predictions: the probability that images predicted as class i give to the other classes.

    `confusion_sums` over all images, then `confusion_to_similarity`. Ours (`confusion: matrix`), README.md, row § 7.

    Args:
        probs_BK: probabilities of an epoch's images.
        labels_B: their predicted classes, long.
        num_classes: K.

    Returns:
        [K, K] in [0, 1], see `confusion_to_similarity`.

    Raises:
        ValueError: shapes do not fit.
    """
    return confusion_to_similarity(*confusion_sums(probs_BK, labels_B, num_classes))


def confusion_sums(probs_BK: Tensor, labels_B: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Σ p_j over images predicted i, [K, K], and how many those are, [K]: both add up over batches.

    Raises:
        ValueError: shapes do not fit, or probs_BK has not num_classes columns.
    """
    sizes = check_shapes(probs_BK=probs_BK, labels_B=labels_B)
    require(sizes["K"] == num_classes, "K == num_classes", K=sizes["K"], num_classes=num_classes)
    probs_BK = precise(probs_BK.detach())
    # A product adds in one order, where adding row by row on a GPU does not.
    predicted_KB = (labels_B == torch.arange(num_classes, device=labels_B.device)[:, None]).to(probs_BK.dtype)
    return predicted_KB @ probs_BK, predicted_KB.sum(1)


def confusion_to_similarity(sums_KK: Tensor, counts_K: Tensor) -> Tensor:
    """Turn summed confusions into a similarity for the margin, in this order:

    1. mean over the images of each prediction: C_ij = E[p_j | ŷ = i], whose rows sum to 1 (0 for a class never
       predicted);
    2. symmetrise: (C + Cᵀ)/2;
    3. zero the diagonal: a class is not confused with itself, and the loss ignores its margin;
    4. divide each row by its maximum: the likeliest mix-up of every class counts 1. This undoes the symmetry of step 2
       on purpose: step 2 gives a class that is never predicted a row: the probability it has where other classes are
       predicted.

    Returns:
        [K, K] in [0, 1]; a row without any confusion is 0, which makes its margin 0.

    Raises:
        ValueError: shapes do not fit.
    """
    check_shapes(sums_KK=sums_KK, counts_K=counts_K)
    mean_KK = precise(sums_KK) / counts_K.to(precise(sums_KK).dtype).clamp(min=1)[:, None]
    symmetric_KK = (mean_KK + mean_KK.T) / 2
    symmetric_KK = symmetric_KK * (1 - torch.eye(len(counts_K), device=mean_KK.device, dtype=mean_KK.dtype))
    most_K1 = symmetric_KK.amax(dim=1, keepdim=True)
    return symmetric_KK / torch.where(most_K1 > 0, most_K1, torch.ones_like(most_K1))
