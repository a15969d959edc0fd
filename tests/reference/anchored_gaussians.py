"""The mixture anchored in means and covariance, by loops over images and classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def shrunk(matrix: Array, shrinkage: float) -> Array:
    result = matrix.copy()
    for i in range(len(matrix)):
        for j in range(len(matrix)):
            if i != j:
                result[i, j] *= 1 - shrinkage
        result[i, i] += 1e-9
    return result


def assignment(scores: Array, open_classes: Sequence[bool]) -> Array:
    powers = np.array(
        [np.exp(x - scores[list(open_classes)].max()) if o else 0.0 for x, o in zip(scores, open_classes, strict=True)]
    )
    return powers / powers.sum()


def class_means(images: Array, q: Array) -> Array:
    rows = []
    for k in range(q.shape[1]):
        count = q[:, k].sum()
        rows.append(sum(q[i, k] * v for i, v in enumerate(images)) / count if count > 1e-9 else images.mean(axis=0))
    return np.array(rows)


def scatter(images: Array, q: Array, centres: Array) -> Array:
    total = np.zeros((images.shape[1], images.shape[1]))
    for i, v in enumerate(images):
        for k, centre in enumerate(centres):
            total += q[i, k] * np.outer(v - centre, v - centre)
    return total


def fit(
    pool: Array,
    texts: Array,
    scale: float,
    *,
    open_classes: Sequence[bool],
    labelled: list[tuple[Array, int]],
    kappa: float,
    nu: float,
    beta: float,
    text_strength: float,
    shrinkage: float,
    num_steps: int,
) -> tuple[Array, Array, Array]:
    """Logits of the pool [N, K], pi and n."""
    num_classes, num_pool = len(texts), len(pool)
    pool = np.array([v / np.linalg.norm(v) for v in pool])
    texts = np.array([t / np.linalg.norm(t) for t in texts])
    fixed = [[1.0 if k == label else 0.0 for k in range(num_classes)] for _, label in labelled]
    images = np.array([*pool, *[v / np.linalg.norm(v) for v, _ in labelled]])
    zero_shot = np.array([[scale * v @ t for t in texts] for v in pool])
    q = np.array([*[assignment(row, open_classes) for row in zero_shot], *fixed])
    centre = class_means(images, q).mean(axis=0)
    spread = shrunk(scatter(images, q, class_means(images, q)), shrinkage) / len(images)
    anchors = np.array([centre + scale * spread @ (t - texts.mean(axis=0)) for t in texts])
    prior = np.array([1.0 if o else 0.0 for o in open_classes]) / sum(open_classes)
    logits = np.empty((num_pool, num_classes))
    for _ in range(num_steps):
        counts, means = q.sum(axis=0), class_means(images, q)
        mu = np.array([(n * v + kappa * m) / (n + kappa) for n, v, m in zip(counts, means, anchors, strict=True)])
        sigma = shrunk(scatter(images, q, mu), shrinkage) + nu * num_classes * spread
        for m, mean in zip(anchors, mu, strict=True):
            sigma += kappa * np.outer(m - mean, m - mean)
        sigma /= len(images) + num_classes + nu * num_classes
        for i, v in enumerate(pool):
            for k, mean in enumerate(mu):
                density = -0.5 * (v - mean) @ np.linalg.inv(sigma) @ (v - mean)
                logits[i, k] = text_strength * zero_shot[i, k] + beta * density
        with np.errstate(divide="ignore"):
            q = np.array([*[assignment(row + np.log(prior), open_classes) for row in logits], *fixed])
        prior = np.array([(q[:num_pool, k].sum() + 0.1) if o else 0.0 for k, o in enumerate(open_classes)])
        prior /= prior.sum()
    return logits, prior, q.sum(axis=0)
