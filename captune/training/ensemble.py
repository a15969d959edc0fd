"""An ensemble of a study's candidates: the weighted mean of their probabilities, scored as any trial is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from captune.config import TaskConfig
from captune.equations.averaging import blend
from captune.metrics import balance
from captune.records import Role, atomic_write
from captune.records.layout import PREDICTIONS
from captune.training.checkpoint import load_checkpoint, prefixed, save_checkpoint
from captune.training.context import open_context
from captune.training.scoring import gain_errors, selection_scores


def write_ensemble(
    config: TaskConfig,
    role: Role,
    members: Sequence[Sequence[Path]],
    directory: Path,
    *,
    criterion: str,
    weights: Sequence[float] | None = None,
) -> dict[str, Any] | None:
    """Average the stored probabilities of finished trials into a directory of predictions.

    Reads no labels except those the selection score may see.

    Args:
        config: the cell.
        role: the role all members ran in.
        members: one group of trial directories (its seeds) per candidate.
        directory: where the ensemble's predictions go.
        criterion: what the study selects by.
        weights: of the candidates, of any sum; default: all weigh the same.

    Returns:
        The outcome of a trial (`score`, `scores`, `gain_errors`, `prediction_balance`, `num_parameters`), or None where
        a member left no predictions, or they differ in shape; without weights also where there are fewer than two.
    """
    groups = [[path / PREDICTIONS for path in group if (path / PREDICTIONS).exists()] for group in members]
    if weights is None:
        groups = [group for group in groups if group]
    tables = [[safetensors.torch.load_file(path) for path in group] for group in groups]
    enough = all(groups) and len(groups) > (0 if weights is not None else 1)
    averaged = _mean(tables, [1.0] * len(tables) if weights is None else list(weights)) if enough else None
    if averaged is None:
        return None
    stored = {name: tensor.half().contiguous() for name, tensor in averaged.items()}
    if "test_images" in stored:  # image indices, the same for all members
        stored["test_images"] = averaged["test_images"]
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


def write_ensemble_checkpoint(
    members: Sequence[Sequence[Path]], method: str | None, config: dict[str, Any], out: Path
) -> bool:
    """Put the checkpoints of an ensemble's members into one, as `blend` would have saved them.

    Args:
        members: one group of checkpoints (its seeds) a member, in the order of the configuration's members.
        method: "blend"; anything else: the one checkpoint there is, as it is.
        config: the blend's configuration.
        out: the file.

    Returns:
        Whether it was written: not where a checkpoint is missing.
    """
    files = [(group, path) for group, paths in enumerate(members) for path in paths]
    if not files or not all(path.exists() for _, path in files):
        return False
    opened = [(group, *load_checkpoint(path)) for group, path in files]
    _, tensors, first = opened[0]
    if method != "blend":
        save_checkpoint(out, tensors, {key: value for key, value in first.items() if key != "format"})
        return True
    together = {name: tensor for name, tensor in tensors.items() if name.startswith("frozen.")}
    said = []
    for number, (group, own, meta) in enumerate(opened):
        learned = {name: tensor for name, tensor in own.items() if not name.startswith("frozen.")}
        together |= prefixed(f"algorithm.member{number}", learned)
        said.append({"method": meta["method"], "config": meta["config"], "group": group})
    header = {key: value for key, value in first.items() if key not in ("format", "seed")}
    save_checkpoint(out, together, {**header, "method": "blend", "config": config, "members": said})
    return True


def _mean(groups: Sequence[Sequence[dict[str, Tensor]]], weights: list[float]) -> dict[str, Tensor] | None:
    """The blend of equally named, equally shaped tensors; None where they differ (another split, an older record).

    What only some have (an older captune stored less) is left out.
    """
    tables = [table for group in groups for table in group]
    names = [name for name in tables[0] if all(name in table for table in tables)]
    if any(table[name].shape != tables[0][name].shape for table in tables for name in names):
        return None
    return {
        name: blend([[table[name].float() for table in group] for group in groups], weights, "probabilities")
        if name != "test_images"
        else tables[0][name]
        for name in names
    }
