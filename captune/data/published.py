"""Published accuracies, printed beside a reproduction."""

from __future__ import annotations

from captune.config import TaskConfig

_SOURCE = '"Unsupervised long-tailed adaptation of vision-language models", which re-ran the official codes'
# dataset → method → accuracy in percent; UL, ViT-B/32, a balanced pool of at most 100 images a class.
_BALANCED_UL: dict[str, dict[str, float]] = {
    "caltech101": {"zero-shot": 90.30, "FPL": 92.08, "CPL": 92.37, "CAP": 94.36, "MARS": 94.89},
    "flowers102": {"zero-shot": 63.67, "FPL": 67.47, "CPL": 68.20, "CAP": 72.35, "MARS": 72.35},
    "oxford_pets": {"zero-shot": 84.36, "FPL": 87.41, "CPL": 90.32, "CAP": 91.22, "MARS": 91.58},
}
_RATIO_10_UL: dict[str, dict[str, str]] = {"caltech101": {"FPL": "90.67 ± 0.39", "CAP": "89.72 ± 3.51"}}


def published_results(task: TaskConfig, method: str) -> list[str]:
    """Lines with published numbers that belong beside a result of this cell; none where there are none.

    Args:
        task: the cell.
        method: ours; its published number comes first where there is one.
    """
    if task.paradigm != "ul" or task.backbone not in (None, "ViT-B-32", "ViT-B-32-quickgelu"):
        return []
    if task.open_set_fraction or task.shot_noise:
        return []
    table: dict[str, str] = {}
    what = ""
    if task.pool_imbalance == 1:
        table = {name: f"{value:.2f}" for name, value in _BALANCED_UL.get(task.dataset, {}).items()}
        what = "balanced pool of at most 100 images a class"
    elif task.pool_imbalance == 10:
        table, what = _RATIO_10_UL.get(task.dataset, {}), "pool with imbalance ratio 10"
    if not table:
        return []
    first = [name for name in table if name.lower().replace("-", "_") == method]
    order = [*first, *(name for name in table if name not in first)]
    return [
        f"published (ViT-B/32, UL, {what}): " + ", ".join(f"{name} {table[name]} %" for name in order),
        f"  from {_SOURCE}",
    ]
