"""Label propagation over one graph of class texts and images (ZLaP), and its answer for images outside the graph.

Stojnić, Kalantidis & Tolias, "Label Propagation for Zero-shot Classification with Vision-Language Models", CVPR 2024
(arXiv 2404.04072), after Zhou et al., "Learning with Local and Global Consistency", NeurIPS 2003.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from captune.equations.cosine import unit
from captune.equations.shapes import check_shapes, require

_CHUNK = 2048
_SMALLEST_CHANGE = 1e-10


@dataclass(frozen=True)
class PropagatedLabels:
    """A graph whose labels have been propagated.

    Attributes:
        nodes_MD: features of its images, normalised.
        texts_KD: features of its class texts, normalised.
        reach_MK: d_i^(-1/2) z_i of its images, d a node's degree and z its scores.
        text_reach_KK: the same of its texts.
        num_neighbors, gamma: how an image is tied to the graph.
    """

    nodes_MD: Tensor
    texts_KD: Tensor
    reach_MK: Tensor
    text_reach_KK: Tensor
    num_neighbors: int
    gamma: float

    def scores(self, features_ND: Tensor) -> Tensor:
        """Scores (N, K), not negative, of images outside the graph: z = Σ_j s_j d_j^(-1/2) z_j.

        j are an image's n nearest images and texts, s_j = max(cosine, 0)^gamma. It is what one more row of the graph
        would get (up to a factor) if the others were left as they are, so images do not depend on one another.
        """
        rows = []
        for start in range(0, len(features_ND), _CHUNK):
            chunk_BD = unit(features_ND[start : start + _CHUNK])
            score_BK = chunk_BD.new_zeros(len(chunk_BD), len(self.texts_KD))
            for others, reach in ((self.nodes_MD, self.reach_MK), (self.texts_KD, self.text_reach_KK)):
                weight_Bn, at_Bn = _nearest(chunk_BD @ others.T, self.num_neighbors, self.gamma)
                score_BK = score_BK + torch.einsum("bn,bnk->bk", weight_Bn, reach[at_Bn])
            rows.append(score_BK)
        return torch.cat(rows) if rows else self.text_reach_KK[:0]


def propagate_labels(
    features_ND: Tensor,
    text_features_KD: Tensor,
    *,
    open_K: Tensor | None = None,
    labelled_features_MD: Tensor | None = None,
    labels_M: Tensor | None = None,
    num_neighbors: int = 5,
    gamma: float = 5.0,
    alpha: float = 0.3,
) -> tuple[Tensor, PropagatedLabels]:
    """Spread each class from its text (and its labelled images) over the graph of texts and images.

    z = (I - alpha·D^(-1/2) S D^(-1/2))⁻¹ Y, found by z ← Y + alpha·D^(-1/2) S D^(-1/2) z, whose error falls by alpha a
    round. Y is 1 where a node is the text or a labelled image of a class. An image is tied to its n nearest images and,
    by a search of its own, to its n nearest texts: in one search no text would be near any image. Texts are not tied to
    one another. s_ij = max(cosine, 0)^gamma, S the sum of both directions.

    Args:
        features_ND: unlabelled images, normalised here.
        text_features_KD: class texts, normalised here.
        open_K: classes that an unlabelled image may be of; it is tied to no text and no labelled image of another.
        labelled_features_MD, labels_M: labelled images and their classes, if any.
        num_neighbors: n; cut to what there is.
        gamma: how much more the nearest count.
        alpha: how far labels spread, below 1.

    Returns:
        Scores z (N, K) of the unlabelled images, not negative and 0 where they may not be of a class, and the graph for
        others. In double precision.

    Raises:
        ValueError: shapes do not fit or a value is out of range.
    """
    sizes = check_shapes(features_ND=features_ND, text_features_KD=text_features_KD)
    require(num_neighbors >= 1, "1 <= num_neighbors", num_neighbors=num_neighbors)
    require(gamma > 0, "0 < gamma", gamma=gamma)
    require(0 <= alpha < 1, "0 <= alpha < 1", alpha=alpha)
    num_pool, num_classes = sizes["N"], sizes["K"]
    text_KD, images_MD = unit(text_features_KD).double(), unit(features_ND).double()
    labels_A = torch.full((num_pool,), -1, device=features_ND.device)
    if labelled_features_MD is not None and labels_M is not None:
        images_MD = torch.cat([images_MD, unit(labelled_features_MD).double()])
        labels_A = torch.cat([labels_A, labels_M])
    open_K = torch.ones(num_classes, dtype=torch.bool, device=text_KD.device) if open_K is None else open_K
    may_A = torch.where(labels_A < 0, True, open_K[labels_A.clamp(min=0)])
    rows, columns, weights = [], [], []
    for start in range(0, len(images_MD), _CHUNK):
        at_C = torch.arange(start, min(start + _CHUNK, len(images_MD)), device=text_KD.device)
        unlabelled_C = labels_A[at_C] < 0
        cosine_CA = images_MD[at_C] @ images_MD.T
        # Two images of which one is unlabelled are tied only if it may be of the other's class.
        tied_CA = torch.where(unlabelled_C[:, None], may_A[None], may_A[at_C][:, None] | (labels_A >= 0)[None])
        tied_CA[torch.arange(len(at_C)), at_C] = False
        cosine_CK = images_MD[at_C] @ text_KD.T
        among = ((cosine_CA, tied_CA, 0), (cosine_CK, ~unlabelled_C[:, None] | open_K[None], len(images_MD)))
        for cosine, tied, offset in among:
            weight_Cn, at_Cn = _nearest(cosine.masked_fill(~tied, -1.0), num_neighbors, gamma)
            rows.append(at_C[:, None].expand_as(at_Cn).reshape(-1))
            columns.append(at_Cn.reshape(-1) + offset)
            weights.append(weight_Cn.reshape(-1))
    row, column, weight = torch.cat(rows), torch.cat(columns), torch.cat(weights)
    total = len(images_MD) + num_classes
    ends = torch.stack([torch.cat([row, column]), torch.cat([column, row])])
    both = torch.cat([weight, weight])
    degree_T = torch.zeros(total, dtype=torch.double, device=both.device).index_add(0, ends[0], both)
    scale_T = degree_T.clamp(min=1e-300).rsqrt().where(degree_T > 0, 0.0)
    graph = torch.sparse_coo_tensor(
        ends, both * scale_T[ends[0]] * scale_T[ends[1]], (total, total), check_invariants=False
    ).coalesce()
    labelled_AK = F.one_hot(labels_A.clamp(min=0), num_classes).double() * (labels_A >= 0)[:, None]
    seeds_TK = torch.cat([labelled_AK, torch.eye(num_classes, dtype=torch.double, device=both.device)])
    z_TK = seeds_TK
    num_rounds = 0 if alpha == 0 else math.ceil(math.log(_SMALLEST_CHANGE) / math.log(alpha))
    for _ in range(num_rounds):
        z_TK = seeds_TK + alpha * torch.sparse.mm(graph, z_TK)
    reach_TK = scale_T[:, None] * z_TK
    outside = PropagatedLabels(
        images_MD, text_KD, reach_TK[: len(images_MD)], reach_TK[len(images_MD) :], num_neighbors, gamma
    )
    return z_TK[:num_pool].where(open_K, 0.0), outside


def _nearest(cosine_BM: Tensor, count: int, gamma: float) -> tuple[Tensor, Tensor]:
    """Weights and places of the `count` nearest, (B, n) each."""
    values_Bn, at_Bn = cosine_BM.topk(min(count, cosine_BM.shape[1]), dim=1)
    return values_Bn.clamp(min=0) ** gamma, at_Bn
