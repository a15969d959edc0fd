"""Write method_values.json: what the loop versions say about one fixed case.

The inputs are sines, not random numbers, so no library's generator can move them. Run it as
`python -m tests.golden.make_method_values`, and only if the method itself is meant to change.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from tests.reference import leaderboards, losses, priors

PATH = Path(__file__).with_name("method_values.json")
NUM_CLASSES = 6


def waves(rows: int, columns: int, phase: float, scale: float) -> list[list[float]]:
    """Numbers with three decimals, exact in JSON and without ties."""
    return [
        [round(scale * math.sin(phase + 1.7 * i + 2.3 * j + 0.31 * i * j), 3) for j in range(columns)]
        for i in range(rows)
    ]


def main() -> None:
    weak, strong = waves(20, NUM_CLASSES, 0.0, 4.0), waves(20, NUM_CLASSES, 0.4, 4.0)
    counts = [20.0, 7.0, 0.0, 3.0, 12.0, 1.0]
    similarity = [
        [1.0 if i == j else round(0.5 + 0.4 * math.sin(i + j) * math.cos(i * j), 3) for j in range(NUM_CLASSES)]
        for i in range(NUM_CLASSES)
    ]
    text, prototypes = waves(NUM_CLASSES, 5, 0.1, 1.0), waves(NUM_CLASSES, 5, 0.9, 1.0)
    probs = [losses.softmax(row) for row in weak]
    scores = waves(40, NUM_CLASSES, 0.2, 1.0)
    published = losses.margin(similarity, counts, 12.0, "published")
    weights = losses.class_weights(counts, 0.5, 10.0)
    loss, labels, mask = losses.self_training(weak, strong, published, 0.6, weights)
    uniform = [1 / NUM_CLASSES] * NUM_CLASSES
    values = {
        "inputs": {
            "weak": weak,
            "strong": strong,
            "counts": counts,
            "similarity": similarity,
            "text": text,
            "prototypes": prototypes,
            "scores": scores,
        },
        "outputs": {
            "published_margin": published,
            "paper_margin": losses.margin(similarity, counts, 12.0, "paper"),
            "class_weights": weights,
            "margin_loss": losses.mean_margin_loss(strong, labels, published),
            "self_training_loss": loss,
            "labels": labels,
            "mask": mask,
            "alignment_loss": losses.alignment(text, prototypes, 0.1),
            "soft_confusion": losses.confusion(probs, labels, NUM_CLASSES),
            "sinkhorn_bias": priors.sinkhorn_bias(weak, uniform, 20),
            "published_boards": boards(leaderboards.published_boards(scores, 4)),
            "exclusive_boards": boards(leaderboards.exclusive_boards(scores, 4)),
        },
    }
    PATH.write_text(json.dumps(values, indent=1) + "\n")


def boards(leaderboard: leaderboards.Boards) -> list[list[int]]:
    """Image indices only, class by class."""
    return [[image for image, _ in leaderboard[label]] for label in sorted(leaderboard)]


if __name__ == "__main__":
    main()
