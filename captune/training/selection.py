"""Selection criteria: scores on labelled validation images where the paradigm has them, and label-free ones.

Every label-free criterion is computed from probabilities at CLIP's own logit scale on pool images held out of
training (trzsl, whose pool is not held out: on the validation images). Higher is better for all of them. `infomax`,
`entropy`, `bnm`, `corr-c` and `snd` reward sharp predictions and select very bad models on real features: they are
diagnostics and can never be a default.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score
from torch import Tensor

from captune.data.paradigms import Task
from captune.decisions.evidence import validation_accuracy
from captune.decisions.neighbours import nearest_images, neighbour_consistency
from captune.equations.prior import half_sinkhorn

NUM_NEIGHBOURS = 5


@dataclass(frozen=True)
class Reference:
    """What the frozen CLIP says of the held-out pool, for the label-free criteria.

    Attributes:
        zero_shot_N: zero-shot predictions.
        balanced_N: half-Sinkhorn predictions.
        neighbours_Nk: each image's nearest others among the held-out ones, by cosine of the frozen features.
    """

    zero_shot_N: Tensor
    balanced_N: Tensor
    neighbours_Nk: Tensor

    @classmethod
    def from_features(cls, logits_pool_NK: Tensor, features_HD: Tensor) -> Reference:
        """References for the H held-out images, which are the first rows of the pool's zero-shot logits.

        The balance is estimated on the whole pool (it needs no label); only the held-out rows are compared.
        """
        num_holdout = len(features_HD)
        neighbours_Hk = nearest_images(features_HD, NUM_NEIGHBOURS)
        balanced_NK = half_sinkhorn(logits_pool_NK)
        return cls(logits_pool_NK[:num_holdout].argmax(-1), balanced_NK[:num_holdout].argmax(-1), neighbours_Hk)


def validation_score(predicted_N: Tensor, labels_N: Tensor, task: Task) -> float:
    """Accuracy, or with pseudo-unseen classes the harmonic mean of accuracy on seen and pseudo-unseen classes."""
    return validation_accuracy(predicted_N.cpu(), labels_N.cpu(), torch.tensor(task.pseudo_unseen_K))


def label_free_scores(
    probs_NK: Tensor,
    reference: Reference,
    *,
    strong_probs_NK: Tensor | None,
    clusters_N: np.ndarray | None,
    diagnostics: bool = True,
) -> dict[str, float]:
    """Every label-free criterion of one model (probabilities, held-out pool).

    `strong_probs_NK` and `clusters_N` may be None: `stability` and `ami` are then left out. Without `diagnostics` those
    are too: they take longer than all others together.
    """
    if len(probs_NK) == 0:
        return {}
    predicted_N = probs_NK.argmax(-1)
    balanced = _agreement(predicted_N, reference.balanced_N)
    neighbours = neighbour_consistency(predicted_N, reference.neighbours_Nk, probs_NK.shape[1])
    scores = {
        "agree-zero-shot": _agreement(predicted_N, reference.zero_shot_N),
        "agree-balanced": balanced,
        "neighbours": neighbours,
        "agree-smooth": (2 * neighbours + balanced) / 3,
        **(_diagnostics(probs_NK.float()) if diagnostics else {}),
    }
    if strong_probs_NK is not None:
        scores["stability"] = _agreement(predicted_N, strong_probs_NK.argmax(-1))
    if clusters_N is not None:
        scores["ami"] = float(adjusted_mutual_info_score(clusters_N, predicted_N.cpu().numpy()))
    return scores


def feature_clusters(features_ND: Tensor, num_classes: int, seed: int) -> np.ndarray:
    """k-means clusters of frozen features (N,), at most one per class, for `ami`."""
    features = features_ND.cpu().numpy()
    return KMeans(min(num_classes, len(features)), n_init=4, random_state=seed % 2**32).fit_predict(features)


def _agreement(first_N: Tensor, second_N: Tensor) -> float:
    return float((first_N == second_N).float().mean())


def _diagnostics(probs_NK: Tensor) -> dict[str, float]:
    entropy_N = torch.special.entr(probs_NK).sum(-1)
    mean_K = probs_NK.mean(0)
    gram_KK = probs_NK.T @ probs_NK
    return {
        "infomax": float(torch.special.entr(mean_K).sum() - entropy_N.mean()),
        "entropy": float(-entropy_N.mean()),
        "bnm": float(torch.linalg.matrix_norm(probs_NK, "nuc") / len(probs_NK)),
        "corr-c": float(torch.trace(gram_KK) / torch.linalg.matrix_norm(gram_KK)),
        "snd": _soft_neighbourhood_density(probs_NK),
    }


def _soft_neighbourhood_density(probs_NK: Tensor, temperature: float = 0.05) -> float:
    """Mean entropy of each image's softmax similarity to all others (Saito et al., ICCV 2021, Eq. 3-4)."""
    if len(probs_NK) < 2:
        return 0.0
    unit_NK = torch.nn.functional.normalize(probs_NK, dim=-1)
    similarity_NN = unit_NK @ unit_NK.T / temperature
    similarity_NN.fill_diagonal_(float("-inf"))
    neighbours_NN = similarity_NN.softmax(-1)
    return float(torch.special.entr(neighbours_NN).sum(-1).mean())
