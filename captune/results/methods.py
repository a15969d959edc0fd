"""methods.csv: each method's default configuration beside its tuned one, and what the tuning cost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from captune.records import BALANCED, ZERO_SHOT, Phase, StudyRecord
from captune.results.best import configuration_name, first_name, metrics_by_seed, recorded_choice, reference_metric
from captune.results.comparisons import cell_of

_COLUMNS = (
    "cell", "method", "default_mean", "default_sd", "tuned_mean", "tuned_sd", "num_seeds", "zero_shot", "chosen",
    "search_trials", "search_epochs", "search_seconds", "study",
)  # fmt: skip


def methods_table(studies: Iterable[StudyRecord]) -> pd.DataFrame:
    """One row per study (and one per cell for balanced zero-shot), best tuned mean of a cell first.

    `default` is the configuration that the search began with, `tuned` the one that the study chose. Both are fractions
    on the test, over the confirmed seeds. `search_*` is the cost of the search: trials, epochs, and seconds of one
    worker.
    """
    rows: list[dict[str, Any]] = []
    balanced: dict[str, float] = {}
    for study in studies:
        if not study.sealed_opened:
            continue
        rows.append(_row(study))
        level = reference_metric(study, BALANCED)
        if level is not None:
            balanced[cell_of(study)] = level
    # Balanced zero-shot has one number per cell: it does not depend on a seed.
    known = {row["cell"]: row["zero_shot"] for row in rows}
    rows += [
        {"cell": cell, "method": BALANCED, "default_mean": level, "tuned_mean": level, "zero_shot": known.get(cell)}
        for cell, level in balanced.items()
    ]
    table = pd.DataFrame(rows, columns=list(_COLUMNS))
    return table.sort_values(["cell", "tuned_mean", "method"], ascending=[True, False, True], ignore_index=True)


def _row(study: StudyRecord) -> dict[str, Any]:
    chosen = configuration_name(study, recorded_choice(study).config_id)
    default = _mean_sd(study, first_name(study))
    # Without a chosen configuration, zero-shot stands for the tuned method.
    tuned = _mean_sd(study, chosen) if chosen else (reference_metric(study, ZERO_SHOT), None, default[2])
    search = study.of_phase(Phase.SEARCH)
    return {
        "cell": cell_of(study),
        "method": study.method,
        "default_mean": default[0],
        "default_sd": default[1],
        "tuned_mean": tuned[0],
        "tuned_sd": tuned[1],
        "num_seeds": tuned[2],
        "zero_shot": reference_metric(study, ZERO_SHOT),
        "chosen": chosen or "zero-shot",
        "search_trials": len(search),
        "search_epochs": sum(len(trial.epochs) for trial in search),
        "search_seconds": sum(trial.seconds or 0.0 for trial in search),
        "study": study.name,
    }


def _mean_sd(study: StudyRecord, name: str | None) -> tuple[float | None, float | None, int]:
    values = list(metrics_by_seed(study, name).values()) if name else []
    if not values:
        return None, None, 0
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, len(values)
