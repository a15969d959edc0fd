"""Metrics on labels and predictions (NumPy; every value is a fraction in [0, 1] unless stated otherwise)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.integer[Any]]
FloatArray = NDArray[np.floating[Any]]


def accuracy(predicted_N: IntArray, labels_N: IntArray) -> float:
    """Share of images whose prediction is their label; NaN without images."""
    return float(np.mean(predicted_N == labels_N)) if len(labels_N) else float("nan")


def per_class_recall(predicted_N: IntArray, labels_N: IntArray, num_classes: int) -> FloatArray:
    """Recall of each class (K,); NaN for a class without images."""
    totals_K = np.bincount(labels_N, minlength=num_classes)
    hits_K = np.bincount(labels_N[predicted_N == labels_N], minlength=num_classes)
    return np.divide(hits_K, totals_K, out=np.full(num_classes, np.nan), where=totals_K > 0)


def harmonic_mean(first: float, second: float) -> float:
    """2ab / (a + b); 0 when either is 0."""
    return 2 * first * second / (first + second) if first > 0 and second > 0 else 0.0


def balance(counts_K: FloatArray | IntArray) -> float:
    """Normalised entropy of K class counts: 1 when equal, 0 when one class has all; 0 without counts, 1 if K is 1."""
    total = float(np.sum(counts_K))
    if total == 0:
        return 0.0
    if len(counts_K) == 1:
        return 1.0
    shares = np.asarray(counts_K, dtype=np.float64) / total
    shares = shares[shares > 0]
    return float(max(0.0, -np.sum(shares * np.log(shares)) / np.log(len(counts_K))))


def coefficient_of_variation(counts_K: FloatArray | IntArray) -> float:
    """Standard deviation of class counts over their mean (population); 0 when equal; NaN without counts."""
    mean = float(np.mean(counts_K))
    return float(np.std(counts_K) / mean) if mean > 0 else float("nan")


def expected_calibration_error(
    confidences_N: FloatArray, predicted_N: IntArray, labels_N: IntArray, num_bins: int = 15
) -> float:
    """Expected calibration error with equal-width bins (Guo et al., ICML 2017, Eq. 3); NaN without images."""
    if len(labels_N) == 0:
        return float("nan")
    bins_N = np.minimum((confidences_N * num_bins).astype(int), num_bins - 1)
    error = 0.0
    for bin_index in np.unique(bins_N):
        inside_N = bins_N == bin_index
        gap = accuracy(predicted_N[inside_N], labels_N[inside_N]) - float(np.mean(confidences_N[inside_N]))
        error += float(np.mean(inside_N)) * abs(gap)
    return error
