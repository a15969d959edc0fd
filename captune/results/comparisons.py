"""comparisons.csv and ranks.csv: which of two configurations or methods is better, by how much, and how sure it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from captune.config import TaskConfig
from captune.decisions import statistics
from captune.records import BALANCED, ZERO_SHOT, Role, State, StudyRecord
from captune.results.best import configuration_name, metrics_by_seed, recorded_choice, reference_metric

ALL_CELLS = "all cells"
FEWEST_CELLS = 5
"""An interval over cells needs this many: with fewer, resampling draws the same few again and again."""
BySeed = Mapping[int | None, float]
_COLUMNS = (
    "scope", "cell", "study", "first", "second", "measure", "num_cells", "num_pairs", "mean_first", "mean_second",
    "difference", "low", "high", "improvement_probability", "improvement_low", "improvement_high", "wilcoxon_p",
    "holm_p", "rope_first", "rope_equal", "rope_second", "minimum_effect", "verdict", "note",
)  # fmt: skip


def comparisons_table(studies: Iterable[StudyRecord]) -> pd.DataFrame:
    """Pairs of configurations within each study, and of methods across studies of the same cell; one row per pair.

    Differences are paired by seed, in fractions. Holm's correction is over the rows of one scope (a study's
    configurations; all method pairs). Before the test labels are read, configurations are compared by selection score
    (`measure`).
    """
    studies = list(studies)
    rows = [row for study in studies for row in _with_holm(_within(study))]
    rows += _with_holm(_across(studies))
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def cell_of(study: StudyRecord) -> str:
    """Dataset, paradigm and every task setting that is not the default. Studies of one cell may be compared."""
    task = study.task
    ignored = {"dataset", "paradigm", "data_root", "cache_dir"}
    plain = {name: field.default for name, field in TaskConfig.model_fields.items()}
    # The supervised ceiling shares the cell of the methods that it bounds. Others that saw labels get their own cell.
    plain["unseal_pool"] = study.method == "supervised"
    special = {k: v for k, v in sorted(task.items()) if k not in ignored and v is not None and v != plain.get(k)}
    words = " ".join(f"{key}={json.dumps(value).strip(chr(34))}" for key, value in special.items())
    return f"{study.dataset} {study.paradigm}{' ' + words if words else ''}"


def _within(study: StudyRecord) -> list[dict[str, Any]]:
    measure = "metric" if study.sealed_opened else "score"
    values: dict[str, BySeed] = {}
    for name in study.configurations():
        values[name] = metrics_by_seed(study, name) if measure == "metric" else _scores_by_seed(study, name)
    values = {name: by_seed for name, by_seed in values.items() if by_seed}
    # A criterion built on balanced zero-shot scores it 1 by construction, so compare it by test metric only.
    for reference in (ZERO_SHOT, BALANCED) if measure == "metric" else (ZERO_SHOT,):
        trial = study.find(reference)
        level = reference_metric(study, reference) if measure == "metric" else (trial.score if trial else None)
        if level is not None and values:
            seeds = {seed for by_seed in values.values() for seed in by_seed}
            values[reference] = dict.fromkeys(seeds, level)
    context = {"scope": "configurations", "cell": cell_of(study), "study": study.name, "measure": measure}
    frozen = {ZERO_SHOT, BALANCED}
    return [
        context | {"first": a, "second": b} | compare([(values[a], values[b])])
        for a, b in statistics.pairs_of(list(values))
        if not {a, b} <= frozen
    ]


def _scores_by_seed(study: StudyRecord, name: str) -> BySeed:
    trials = [t for t in study.configurations()[name] if t.role == Role.SCORE and t.state == State.COMPLETE]
    return {trial.seed: trial.score for trial in trials if trial.score is not None}


def _method_values(studies: Sequence[StudyRecord]) -> dict[str, dict[str, BySeed]]:
    """Cell → method → test metric by seed of the chosen configuration.

    Zero-shot and balanced zero-shot count as methods too.
    """
    cells: dict[str, dict[str, BySeed]] = {}
    for study in studies:
        name = configuration_name(study, recorded_choice(study).config_id)
        by_seed = metrics_by_seed(study, name) if name else {}
        methods = cells.setdefault(cell_of(study), {})
        if by_seed:
            methods[_free_name(methods, study)] = by_seed
        for reference in (ZERO_SHOT, BALANCED):
            level = reference_metric(study, reference)
            if level is not None:
                known = methods.get(reference, {})
                methods[reference] = {**known, **dict.fromkeys(by_seed or [0], level)}
    return cells


def _free_name(methods: Mapping[str, BySeed], study: StudyRecord) -> str:
    # A second study of the same method and cell (another space or sampler, say) goes by its own name.
    return study.method if study.method not in methods else study.name


def _across(studies: Sequence[StudyRecord]) -> list[dict[str, Any]]:
    cells = _method_values(studies)
    if sum(study.sealed_opened for study in studies) < 2:
        return []
    names = list(dict.fromkeys(name for methods in cells.values() for name in methods))
    rows = []
    for a, b in statistics.pairs_of(names):
        shared = {cell: (m[a], m[b]) for cell, m in cells.items() if a in m and b in m}
        if {a, b} <= {ZERO_SHOT, BALANCED}:
            continue  # neither depends on a seed, and best_configs.csv already has both numbers
        context = {"scope": "methods", "first": a, "second": b, "measure": "metric"}
        for cell, pair in shared.items():
            rows.append(context | {"cell": cell} | compare([pair]))
        if len(shared) > 1:
            rows.append(context | {"cell": ALL_CELLS} | compare(list(shared.values())))
    return rows


def compare(strata: Sequence[tuple[BySeed, BySeed]]) -> dict[str, Any]:
    """Compare one pair, over the seeds of one cell or over several cells.

    Over several cells, each cell counts as one value, the mean of its differences. Interval, test and verdict are then
    about cells like these, so cells are resampled; with fewer than `FEWEST_CELLS` there is no interval.
    """
    paired = [
        ([first[seed] for seed in first if seed in second], [second[seed] for seed in first if seed in second])
        for first, second in strata
    ]
    paired = [(a, b) for a, b in paired if a]
    if not paired:
        return {"num_pairs": 0, "verdict": "undecided", "note": "no seed was used with both"}
    differences = [[x - y for x, y in zip(a, b, strict=True)] for a, b in paired]
    single = len(paired) == 1
    units = differences[0] if single else [float(np.mean(d)) for d in differences]
    generator = np.random.default_rng(0)
    if single:
        interval = statistics.t_interval(units)
    else:
        few = len(units) < FEWEST_CELLS
        interval = None if few else statistics.stratified_bootstrap([units], generator)
    improvements = [statistics.probability_of_improvement(a, b) or 0.0 for a, b in paired]
    bounds = statistics.probability_of_improvement_interval(*paired[0], generator) if single else None
    posterior = statistics.rope_posterior([units])
    return {
        "num_pairs": sum(len(d) for d in differences),
        "mean_first": float(np.mean([np.mean(a) for a, _ in paired])),
        "mean_second": float(np.mean([np.mean(b) for _, b in paired])),
        "difference": float(np.mean(units)),
        "num_cells": len(paired),
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "improvement_probability": float(np.mean(improvements)),
        "improvement_low": bounds.low if bounds else None,
        "improvement_high": bounds.high if bounds else None,
        "wilcoxon_p": statistics.wilcoxon_p(units),
        "rope_first": posterior.better if posterior else None,
        "rope_equal": posterior.same if posterior else None,
        "rope_second": posterior.worse if posterior else None,
        "minimum_effect": statistics.MINIMUM_EFFECT,
        "verdict": statistics.verdict([units]),
        "note": _note(min(len(d) for d in differences), len(units), single),
    }


def _note(num_seeds: int, num_units: int, single: bool) -> str | None:
    if not single and num_units < FEWEST_CELLS:
        return f"no interval over {num_units} cells: it needs {FEWEST_CELLS}"
    if single and num_seeds < statistics.MINIMUM_PAIRS:
        return f"too few seeds for a verdict ({num_seeds}, at least {statistics.MINIMUM_PAIRS})"
    if num_units < 6:
        return (
            f"Wilcoxon's p cannot fall below {2 / 2**num_units:.4g} with {num_units} {'seeds' if single else 'cells'}"
        )
    return None


def _with_holm(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    adjusted = statistics.holm([row.get("wilcoxon_p") for row in rows])
    return [{**row, "holm_p": p} for row, p in zip(rows, adjusted, strict=True)]


def ranks_table(studies: Iterable[StudyRecord]) -> pd.DataFrame:
    """Mean rank (1 is best; ties share a rank) and mean test metric of each method.

    Only cells in which every method was run count.
    """
    studies = list(studies)
    cells = _method_values(studies) if len(studies) > 1 else {}
    names = list(dict.fromkeys(name for methods in cells.values() for name in methods))
    whole = {cell: methods for cell, methods in cells.items() if set(methods) == set(names)}
    columns = ["method", "mean_rank", "best_rank", "worst_rank", "num_cells", "mean_metric"]
    if not whole:
        return pd.DataFrame(columns=columns)
    means_CM = np.array([[np.mean(list(methods[name].values())) for name in names] for methods in whole.values()])
    ranks_CM = stats.rankdata(-means_CM, axis=1)
    rows = [
        {
            "method": name,
            "mean_rank": float(ranks_CM[:, column].mean()),
            "best_rank": float(ranks_CM[:, column].min()),
            "worst_rank": float(ranks_CM[:, column].max()),
            "num_cells": len(whole),
            "mean_metric": float(means_CM[:, column].mean()),
        }
        for column, name in enumerate(names)
    ]
    return pd.DataFrame(rows, columns=columns).sort_values(["mean_rank", "method"], ignore_index=True)
