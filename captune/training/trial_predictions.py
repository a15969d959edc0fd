"""Stored predictions of finished trials as predictions.csv; no label is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch

from captune.config import TaskConfig
from captune.data.catalog import load_dataset
from captune.data.labelling import image_names, predictions, predictions_csv
from captune.data.paradigms import build_task
from captune.records import Role, atomic_write
from captune.records.layout import PREDICTIONS


def write_predictions(directories: Sequence[Path], config: TaskConfig, role: Role, file: Path) -> int:
    """Write what finished trials together (the mean of their probabilities) say of the cell's reported images.

    Args:
        directories: of the trials; all had one role.
        config: the cell.
        role: theirs.
        file: predictions.csv.

    Returns:
        how many images were classified; 0, and no file, where no trial left predictions of these images.
    """
    stored = [path / PREDICTIONS for path in directories if (path / PREDICTIONS).exists()]
    task, _ = build_task(config, role=role)
    tables = [safetensors.torch.load_file(path) for path in stored]
    # Unreadable images were left out; all trials of a machine leave out the same ones.
    test = task.test if not tables or "test_images" not in tables[0] else tables[0]["test_images"].numpy()
    probs = [table["test_probs"].float() for table in tables]
    probs = [probs_NK for probs_NK in probs if probs_NK.shape == (len(test), task.num_classes)]
    if not probs:
        return 0
    mean_NK = torch.stack(probs).mean(0).numpy()
    found = predictions(image_names(load_dataset(config), test), mean_NK, task.class_names)
    atomic_write(file, predictions_csv(found))
    return len(found)
