"""The text-anchored mixture by loops over images and classes, one linear solve at a time."""

from __future__ import annotations

import numpy as np


def unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v)


def softmax(values: list[float]) -> list[float]:
    powers = [np.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def fit(
    features: np.ndarray,
    texts: np.ndarray,
    scale: float,
    *,
    open_classes: list[bool],
    labelled: list[tuple[np.ndarray, int]],
    kappa: float | None,
    pool_prior: bool,
    shrinkage: float,
    num_steps: int,
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Logits of the unlabelled images, pi, kappa, and the weights."""
    num_classes, width = texts.shape
    images = [unit(v) for v in features]
    known = [(unit(v), label) for v, label in labelled]
    texts = np.array([unit(t) for t in texts])
    rows = [k for k in range(num_classes) if open_classes[k]]
    t = [scale * (texts[k] - texts.mean(0)) for k in range(num_classes)]

    def assign(logits: list[list[float]]) -> list[list[float]]:
        q = []
        for row in logits:
            part = softmax([row[k] for k in rows])
            q.append([part[rows.index(k)] if k in rows else 0.0 for k in range(num_classes)])
        return q

    q = assign([[float(v @ t[k]) for k in range(num_classes)] for v in images])
    pi = [1 / len(rows) if k in rows else 0.0 for k in range(num_classes)]
    used, logits, w = 0.0, [[0.0]], np.zeros(1)
    for step in range(num_steps + 1):
        everyone = [(v, qi) for v, qi in zip(images, q, strict=True)]
        everyone += [(v, [float(k == label) for k in range(num_classes)]) for v, label in known]
        n = [sum(qi[k] for _, qi in everyone) for k in range(num_classes)]
        overall = sum(v for v, _ in everyone) / len(everyone)
        mean = [sum(qi[k] * v for v, qi in everyone) / n[k] if n[k] > 1e-9 else overall for k in range(num_classes)]
        c = sum(mean) / num_classes
        sigma = np.zeros((width, width))
        for v, qi in everyone:
            for k in range(num_classes):
                sigma += qi[k] * np.outer(v - mean[k], v - mean[k]) / len(everyone)
        for i in range(width):
            for j in range(width):
                if i != j:
                    sigma[i, j] *= 1 - shrinkage
            sigma[i, i] += 1e-9
        inverse = np.linalg.inv(sigma)
        m = [c + sigma @ t[k] for k in range(num_classes)]
        far = [(mean[k] - m[k]) @ inverse @ (mean[k] - m[k]) / width for k in range(num_classes)]
        excess = sum(n[k] * (far[k] - 1 / max(n[k], 1)) for k in range(num_classes)) / sum(n)
        used = kappa or 1 / max(excess, 1e-4)
        mu = [(n[k] * mean[k] + used * m[k]) / (n[k] + used) - c for k in range(num_classes)]
        w = np.array([inverse @ mu[k] for k in range(num_classes)])
        bias = []
        for k in range(num_classes):
            text_share = used / (n[k] + used)
            # What v - c is given beyond s·v·(t_k - t̄) by the discriminant of the text's own mean.
            own = -0.5 * (m[k] - c) @ inverse @ (m[k] - c) - t[k] @ c
            bias.append(-0.5 * mu[k] @ inverse @ mu[k] - text_share * own)
        logits = [[float((v - c) @ w[k] + bias[k]) for k in range(num_classes)] for v in images]
        if step == num_steps:
            break
        q = assign([[row[k] + (np.log(pi[k]) if pi[k] else 0.0) for k in range(num_classes)] for row in logits])
        if pool_prior:
            total = [sum(qi[k] for qi in q) + 1 if k in rows else 0.0 for k in range(num_classes)]
            pi = [value / (len(images) + len(rows)) for value in total]
    return np.array(logits), np.array(pi), float(used), w
