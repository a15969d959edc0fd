"""The ensemble of confirmed configurations: the mean of their probabilities, scored as any trial is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from captune.config import TaskConfig
from captune.metrics import balance
from captune.records import Role, atomic_write
from captune.records.layout import PREDICTIONS
from captune.training.context import open_context
from captune.training.scoring import gain_errors, selection_scores


def write_ensemble(
    config: TaskConfig, role: Role, members: Sequence[Sequence[Path]], directory: Path, *, criterion: str
) -> dict[str, Any] | None:
    """Average the stored probabilities of finished trials into a directory of predictions; no label is read but those
    the selection score may see.

    Args:
        config: the cell.
        role: the role all members ran in.
        members: one group of trial directories (its seeds) per configuration; every configuration weighs the same.
        directory: where the ensemble's predictions go.
        criterion: what the study selects by.

    Returns:
        The outcome of a trial (`score`, `scores`, `gain_errors`, `prediction_balance`, `num_parameters`), or None where
        fewer than two configurations left predictions of one shape.
    """
    groups = [[path / PREDICTIONS for path in group if (path / PREDICTIONS).exists()] for group in members]
    means = [_mean([safetensors.torch.load_file(path) for path in group]) for group in groups if group]
    averaged = _mean(means) if len(means) > 1 else None
    if averaged is None:
        return None
    stored = {name: tensor.half().contiguous() for name, tensor in averaged.items()}
    if "test_images" in stored:  # indices, equal in all
        stored["test_images"] = averaged["test_images"].long()
    directory.mkdir(parents=True, exist_ok=True)
    atomic_write(directory / PREDICTIONS, safetensors.torch.save(stored))
    scores: dict[str, float] = {}
    errors: dict[str, float] = {}
    context = open_context(config, role)
    nothing_NK = torch.empty(0, context.task.num_classes)
    holdout_NK = averaged.get("holdout_probs", nothing_NK).to(context.device)
    if role == Role.SCORE:
        validation_NK = averaged.get("validation_probs", nothing_NK).to(context.device)
        scores = selection_scores(context, holdout_NK, validation_NK, clustered=True)
        errors = gain_errors(context, holdout_NK, validation_NK)
    seen_NK = holdout_NK if len(holdout_NK) else averaged["test_probs"]
    counts_K = np.bincount(seen_NK.argmax(-1).cpu().numpy(), minlength=context.task.num_classes)
    return {
        "score": scores.get(criterion),
        "scores": scores,
        "gain_errors": errors,
        "prediction_balance": balance(counts_K),
        "num_parameters": None,
    }


def _mean(tables: Sequence[dict[str, Tensor] | None]) -> dict[str, Tensor] | None:
    """The mean of equally named, equally shaped tensors; None where they differ (another split, an older record)."""
    known = [table for table in tables if table is not None]
    if len(known) < len(tables) or not known:
        return None
    shapes = [{name: tensor.shape for name, tensor in table.items()} for table in known]
    if any(shape != shapes[0] for shape in shapes):
        return None
    return {name: torch.stack([table[name].float() for table in known]).mean(0) for name in known[0]}
