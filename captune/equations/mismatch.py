"""Concept mismatch: which class names do not describe their images (README.md, row § 2, Algorithm 1 of the paper)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from captune.equations.cosine import cosines, unit
from captune.equations.shapes import check_shapes, require

Floats = NDArray[np.floating]
Cluster = Callable[[Tensor, int], tuple[Tensor, Tensor]]

# Above this many images a run of k-means sees mini-batches, and each image at most a few times.
MANY_IMAGES = 20_000
MINI_BATCH = 4_096
MINI_BATCH_PASSES = 3
# Only the first run starts from scratch. The later ones start from its centres, so a poor start would last.
FIRST_RUN_STARTS = 4


@dataclass(frozen=True, eq=False)
class MismatchReport:
    """What Algorithm 1 did and found.

    Attributes:
        removal_order: classes in the order in which they were matched with a cluster and taken.
        chosen_cluster: the cluster of each of them, as numbered by that run.
        num_removed: how many images went with each of them.
        assigned: for every class, its images in the order they were taken (none for a candidate).
        candidates: classes left at the end, rising: no cluster was a clear match.
        mismatched: the candidates that are also among the `threshold` classes with the fewest zero-shot predictions,
            rising.
        zero_shot_counts: zero-shot predictions of every class over the whole pool.
        centres: for every candidate, the centre [D] (length 1) of the cluster it is left with.
        cluster_similarity: for every candidate, the cosine of its text feature to that centre.
        threshold: how many classes were to be left.
    """

    removal_order: list[int]
    chosen_cluster: list[int]
    num_removed: list[int]
    assigned: dict[int, list[int]]
    candidates: list[int]
    mismatched: list[int]
    zero_shot_counts: list[int]
    centres: dict[int, Tensor]
    cluster_similarity: dict[int, float]
    threshold: int


def mismatch_threshold(num_classes: int) -> int:
    """t = ⌈K/10⌉, the classes the paper leaves as candidates."""
    return -(-num_classes // 10)


def detect_mismatch(
    image_features_ND: Tensor,
    text_features_KD: Tensor,
    *,
    logit_scale: float,
    threshold: int | None = None,
    seed: int = 42,
    cluster: Cluster | None = None,
) -> MismatchReport:
    """Match classes with clusters of images, surest first; the classes left over may be badly named.

    While more than t classes are left: k-means of the images left into as many clusters; P = softmax over the
    normalised centres of s·cos(text, centre); take the pair of the largest entry (ties: the lowest class, then the
    lowest cluster); remove its class, and up to ⌊N/K⌋ images that are predicted as it among the classes left: those in
    its cluster by falling (confidence, index), then others in the same order. See Wang et al., ICML 2025 (arXiv
    2505.02056), Algorithm 1.

    The images left at the end are clustered once more, into as many clusters as there are candidates; the one-to-one
    matching with the highest sum of cosines says which cluster each candidate is left with. (A name that means nothing
    matches at random: `alignment.choose_descriptions_together` asks the descriptions instead.)

    Args:
        image_features_ND: pool features, normalised here.
        text_features_KD: class text features, normalised here.
        logit_scale: s, 100 for OpenAI's models. Large ones saturate P, and the tie rule decides.
        threshold: t, default ⌈K/10⌉; 0 goes on until no class is left.
        seed: of k-means.
        cluster: (features [M, D], n) -> (labels [M], centres [n, D]), from scratch at each call. The default is
            scikit-learn's k-means, each run after the first started from the centres left; mini-batches past 20,000
            images.

    Returns:
        A MismatchReport.

    Raises:
        ValueError: shapes do not fit, there is no image or class, or a value is out of range.
    """
    sizes = check_shapes(image_features_ND=image_features_ND, text_features_KD=text_features_KD)
    num_images, num_classes = sizes["N"], sizes["K"]
    require(num_images >= 1 and num_classes >= 1, "1 <= N and 1 <= K", N=num_images, K=num_classes)
    require(logit_scale > 0, "0 < logit_scale", logit_scale=logit_scale)
    threshold = mismatch_threshold(num_classes) if threshold is None else threshold
    require(threshold >= 0, "0 <= threshold", threshold=threshold)
    images_ND = unit(image_features_ND.detach()).float().cpu()
    texts_KD = unit(text_features_KD.detach()).float().cpu()
    finite = torch.isfinite(images_ND).all() and torch.isfinite(texts_KD).all()
    require(bool(finite), "finite features", num_images=num_images, num_classes=num_classes)
    logits_NK: Floats = (logit_scale * images_ND @ texts_KD.T).numpy()
    predicted_N = logits_NK.argmax(axis=1)
    zero_shot_counts = np.bincount(predicted_N, minlength=num_classes)

    left_C = np.arange(num_classes)
    left_R = np.arange(num_images)
    removal_order: list[int] = []
    chosen_cluster: list[int] = []
    assigned: dict[int, list[int]] = {label: [] for label in range(num_classes)}
    centres_nD: Tensor | None = None

    while len(left_C) > threshold:
        labels_R, centres_nD = _run(images_ND[left_R], len(left_C), centres_nD, cluster, seed)
        probs_Cn = (logit_scale * cosines(texts_KD[left_C], centres_nD)).softmax(dim=1).numpy()
        place, chosen = (int(at) for at in np.unravel_index(probs_Cn.argmax(), probs_Cn.shape))
        label = int(left_C[place])

        is_label_R = predicted_N[left_R] == label
        own_M = left_R[is_label_R]
        confidence_M = _softmax_at(logits_NK[np.ix_(own_M, left_C)], place)
        outside_M = labels_R[is_label_R] != chosen
        taken = own_M[np.lexsort((-own_M, -confidence_M, outside_M))][: num_images // num_classes]

        removal_order.append(label)
        chosen_cluster.append(chosen)
        assigned[label] = taken.tolist()
        left_R = left_R[~np.isin(left_R, taken)]
        left_C = np.delete(left_C, place)
        centres_nD = torch.cat([centres_nD[:chosen], centres_nD[chosen + 1 :]])
        # Only images predicted as the class that left must choose again.
        again_M = left_R[predicted_N[left_R] == label]
        if len(left_C):
            predicted_N[again_M] = left_C[logits_NK[np.ix_(again_M, left_C)].argmax(axis=1)]

    candidates = left_C.tolist()
    centres: dict[int, Tensor] = {}
    if candidates:
        # From scratch: the inherited centres have drifted to what the quota left of the largest classes.
        centres = _match(texts_KD, candidates, _run(images_ND[left_R], len(candidates), None, cluster, seed)[1])
    fewest = np.lexsort((np.arange(num_classes), zero_shot_counts))[:threshold].tolist()
    return MismatchReport(
        removal_order=removal_order,
        chosen_cluster=chosen_cluster,
        num_removed=[len(assigned[label]) for label in removal_order],
        assigned=assigned,
        candidates=candidates,
        mismatched=sorted(set(candidates) & set(fewest)),
        zero_shot_counts=zero_shot_counts.tolist(),
        centres=centres,
        cluster_similarity={label: float(centre @ texts_KD[label]) for label, centre in centres.items()},
        threshold=threshold,
    )


def _run(
    features_RD: Tensor, num_clusters: int, warm_nD: Tensor | None, cluster: Cluster | None, seed: int
) -> tuple[NDArray[np.integer], Tensor]:
    """One clustering: labels, and centres of length 1. There are never more clusters than images."""
    num_clusters = min(num_clusters, len(features_RD))
    if cluster is not None:
        labels_R, centres_nD = cluster(features_RD, num_clusters)
        return torch.as_tensor(labels_R).cpu().numpy(), unit(torch.as_tensor(centres_nD).float().cpu())
    features = features_RD.numpy()
    many = len(features) > MANY_IMAGES
    warm = warm_nD is not None and len(warm_nD) == num_clusters
    settings = {
        "n_clusters": num_clusters,
        "init": warm_nD.numpy() if warm_nD is not None and warm else "k-means++",
        "n_init": 1 if warm or many else FIRST_RUN_STARTS,
        "random_state": seed,
    }
    model = (
        MiniBatchKMeans(batch_size=MINI_BATCH, max_iter=MINI_BATCH_PASSES, **settings) if many else KMeans(**settings)
    )
    with warnings.catch_warnings():
        # With fewer distinct images than classes, the spare clusters stay empty; nothing below minds.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features)
    return model.labels_, unit(torch.from_numpy(np.asarray(model.cluster_centers_, dtype=np.float32)))


def _softmax_at(logits_MC: Floats, place: int) -> Floats:
    """softmax(logits)[:, place] in float32, so that saturated confidences tie as they do in the published code."""
    result: Floats = torch.from_numpy(logits_MC).softmax(dim=1)[:, place].numpy()
    return result


def _match(texts_KD: Tensor, candidates: list[int], centres_nD: Tensor) -> dict[int, Tensor]:
    """A centre for each candidate: one-to-one as far as centres go, the nearest one for the rest."""
    cosine_Cn = cosines(texts_KD[candidates], centres_nD).numpy()
    chosen = dict(enumerate(cosine_Cn.argmax(axis=1).tolist()))
    rows, columns = linear_sum_assignment(cosine_Cn, maximize=True)
    chosen.update(zip(rows.tolist(), columns.tolist(), strict=True))
    return {label: centres_nD[chosen[row]] for row, label in enumerate(candidates)}
