"""What the two text-anchored Gaussian mixtures share: inputs, class means, and a covariance that can be inverted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captune.equations.cosine import unit
from captune.equations.shapes import check_shapes, require

_SMALLEST = 1e-9


@dataclass(frozen=True)
class MixtureInputs:
    """Images and texts in double precision, normalised, on the device of the images.

    Attributes:
        pool_ND: unlabelled image features.
        images_XD: the same and the labelled images behind them, X = N + M.
        text_KD: class text features.
        one_hot_MK: classes of the labelled images.
        closed_K: bool, classes that no unlabelled image may be of.
        even_prior_K: the same share for every other class.
    """

    pool_ND: Tensor
    images_XD: Tensor
    text_KD: Tensor
    one_hot_MK: Tensor
    closed_K: Tensor
    even_prior_K: Tensor

    def assign(self, logits_NK: Tensor) -> Tensor:
        """Assignments q [X, K]: probabilities of the unlabelled images over their classes, labels of the others."""
        q_NK = logits_NK.masked_fill(self.closed_K, float("-inf")).softmax(dim=1)
        return torch.cat([q_NK, self.one_hot_MK])


def mixture_inputs(
    features_ND: Tensor,
    text_features_KD: Tensor,
    open_K: Tensor | None,
    labelled_features_MD: Tensor | None,
    labels_M: Tensor | None,
    shrinkage: float,
    num_steps: int,
) -> MixtureInputs:
    """Check and normalise what a mixture is fitted to; the arguments are those of the fits.

    Raises:
        ValueError: shapes do not fit, there is no image, or a value is out of range.
    """
    sizes = check_shapes(
        features_ND=features_ND,
        text_features_KD=text_features_KD,
        open_K=open_K,
        labelled_features_MD=labelled_features_MD,
        labels_M=labels_M,
    )
    require(sizes["N"] >= 1, "1 <= N", N=sizes["N"])
    require(0 < shrinkage <= 1, "0 < shrinkage <= 1", shrinkage=shrinkage)
    require(num_steps >= 1, "1 <= num_steps", num_steps=num_steps)
    pool_ND, num_classes = unit(features_ND).double(), sizes["K"]
    open_K = torch.ones(num_classes, dtype=torch.bool) if open_K is None else open_K
    closed_K = ~open_K.to(pool_ND.device)
    labelled_MD = pool_ND[:0] if labelled_features_MD is None else unit(labelled_features_MD).double()
    labels_M = torch.zeros(0, dtype=torch.long, device=pool_ND.device) if labels_M is None else labels_M
    return MixtureInputs(
        pool_ND=pool_ND,
        images_XD=torch.cat([pool_ND, labelled_MD]),
        text_KD=unit(text_features_KD).double(),
        one_hot_MK=torch.nn.functional.one_hot(labels_M, num_classes).double(),
        closed_K=closed_K,
        even_prior_K=(~closed_K).double() / (~closed_K).sum(),
    )


def class_means(images_XD: Tensor, q_XK: Tensor) -> Tensor:
    """v̄ [K, D]; a class without an image stands where all images do."""
    counts_K1 = q_XK.sum(dim=0)[:, None]
    means_KD = (q_XK.T @ images_XD) / counts_K1.clamp(min=_SMALLEST)
    return torch.where(counts_K1 > _SMALLEST, means_KD, images_XD.mean(dim=0))


def shrunk(scatter_DD: Tensor, shrinkage: float) -> Tensor:
    """The off-diagonal part times 1 - shrinkage.

    A direction without variance (the border pixels of digits) gets a little, or the matrix would be singular.
    """
    diagonal_D = scatter_DD.diagonal().clamp(min=0) + _SMALLEST
    shrunk_DD = (1 - shrinkage) * scatter_DD
    shrunk_DD.diagonal().copy_(diagonal_D)
    return shrunk_DD
