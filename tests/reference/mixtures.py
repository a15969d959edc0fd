"""TransCLIP as the paper's Algorithm says, with full matrices and one class after another.

Nothing is taken from `captune.equations.transduction`: w is a dense matrix, densities are sums over dimensions, and
probabilities are products, not logarithms.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def unit(rows: Array) -> Array:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def fit(
    features: Array,
    log_text: Array,
    *,
    text_strength: float,
    num_neighbors: int,
    labelled: Array,
    labels: npt.NDArray[np.int64],
    labelled_weight: float,
    num_steps: int,
    num_inner: int,
    num_confident: int,
    form: str = "published",
) -> tuple[Array, Array, Array]:
    """Assignments, means and variances."""
    features, labelled = unit(features), unit(labelled) if len(labelled) else np.zeros((0, features.shape[1]))
    (count, width), num_classes, shots = features.shape, log_text.shape[1], len(labelled)
    y_hat = np.exp(log_text)
    fixed = np.zeros((shots, num_classes))
    fixed[np.arange(shots), labels] = 1
    w = affinity(features, labelled, num_neighbors, form)
    means = np.zeros((num_classes, width))
    for k in range(num_classes):
        if (labels == k).any():
            means[k] = labelled[labels == k].sum(0)
        else:
            surest = np.argsort(-y_hat[:, k], kind="stable")[:num_confident]
            means[k] = (y_hat[surest, k][:, None] * features[surest]).sum(0)
        if means[k].any():
            means[k] /= np.linalg.norm(means[k])
    variances = np.full(width, 1 / width)
    z = y_hat.copy()
    for step in range(num_steps + 1):
        density = np.stack([-0.5 * ((features - mean) ** 2 / variances).sum(1) for mean in means], axis=1)
        for _ in range(num_inner):
            everyone = np.concatenate([z, fixed])
            around = w.T @ everyone + (w @ z)[:count]
            total = density + 50 / (2 * num_neighbors) * around if num_neighbors else density
            total = total - total.max(1, keepdims=True)
            z = y_hat**text_strength * np.exp(total / 50)
            z = z / z.sum(1, keepdims=True)
        if step == num_steps:
            break
        gamma = labelled_weight * 50 / shots if shots else 0.0
        for k in range(num_classes):
            if z[:, k].sum() + gamma * fixed[:, k].sum() > 0:
                mean = z[:, k] @ features / count + gamma * fixed[:, k] @ labelled
                means[k] = mean / np.linalg.norm(mean)
        spread = sum(z[:, k] @ (features - means[k]) ** 2 / count for k in range(num_classes))
        spread = spread + sum(gamma * fixed[:, k] @ (labelled - means[k]) ** 2 for k in range(num_classes))
        variances = np.asarray(spread / (z.sum() / count + gamma * fixed.sum()))
    return z, means, variances


def affinity(features: Array, labelled: Array, num_neighbors: int, form: str) -> Array:
    """w: a row for every image, a column for every image of the pool."""
    count, shots = len(features), len(labelled)
    rows = []
    for i, v in enumerate([*labelled, *features]):
        cosines = features @ v
        order = np.argsort(-cosines, kind="stable")[: num_neighbors + 1].tolist()
        if i >= shots:
            order.remove(i - shots)
        elif form == "published":
            order = order[1:]
        row = np.zeros(count)
        row[order[:num_neighbors]] = cosines[order[:num_neighbors]]
        rows.append(row)
    w = np.array(rows)
    return w if form == "published" else np.concatenate([w[shots:], w[:shots]])
