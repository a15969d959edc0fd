"""The paper's main table: accuracies over the published seeds, each beside the number that was published for it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

import pandas as pd

from captune.data.published_accuracies import published
from captune.records import atomic_write
from captune.results import views
from captune.results.rendering import render

COLUMNS = (
    "dataset", "paradigm", "method", "metric", "num_seeds", "mean", "sd", "published", "published_sd", "difference",
    "within_published_sd", "source",
)  # fmt: skip


Cell = tuple[str, str, str]
"""Dataset, paradigm, method."""


def paper_table(runs: Path, cells: Iterable[Cell], other_protocol: Container[Cell] = ()) -> pd.DataFrame:
    """One row per (dataset, paradigm, method), all in percent; without runs, a row has no mean.

    Args:
        runs: the folder that holds `<dataset>-<paradigm>-<method>/seed*/metrics.json`.
        cells: the rows, in order.
        other_protocol: cells that are not run as the published numbers were, so no published number stands beside them.
    """
    rows = []
    for dataset, paradigm, method in cells:
        files = sorted((runs / f"{dataset}-{paradigm}-{method}").glob("seed*/metrics.json"))
        values = [100 * float(json.loads(file.read_text())["metric"]) for file in files]
        mean = statistics.mean(values) if values else None
        elsewhere = (dataset, paradigm, method) in other_protocol
        known = None if elsewhere else published(dataset, paradigm, method)
        difference = None if known is None or mean is None else mean - known.value
        within = None if difference is None or known is None or known.sd is None else abs(difference) <= known.sd
        rows.append(
            {
                "dataset": dataset,
                "paradigm": paradigm,
                "method": method,
                "metric": "harmonic_mean" if paradigm == "trzsl" else "accuracy",
                "num_seeds": len(values),
                "mean": mean,
                "sd": statistics.stdev(values) if len(values) > 1 else None,
                "published": None if known is None else known.value,
                "published_sd": None if known is None else known.sd,
                "difference": difference,
                "within_published_sd": within,
                "source": None if known is None else known.source,
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def cell_text(row: pd.Series) -> str:
    """A cell's text: our number, and in brackets the published number and the difference."""
    if pd.isna(row["mean"]):
        ours = "not run"
    else:
        ours = f"{row['mean']:.1f}" + ("" if pd.isna(row["sd"]) else f" ± {row['sd']:.1f}")
    if pd.isna(row["published"]):
        return ours
    beside = f"{row['published']:.1f}" + ("" if pd.isna(row["published_sd"]) else f" ± {row['published_sd']:.1f}")
    if not pd.isna(row["difference"]):
        beside += f", {row['difference']:+.1f}"
    if row["within_published_sd"] is not None and not pd.isna(row["within_published_sd"]):
        beside += ", within its sd" if row["within_published_sd"] else ", outside its sd"
    return f"{ours} ({beside})"


def grid(table: pd.DataFrame, paradigm: str) -> pd.DataFrame:
    """The cells of a paradigm as text: one row per method, one column per dataset, in the table's order."""
    part = table[table["paradigm"] == paradigm]
    methods, datasets = (list(dict.fromkeys(part[name])) for name in ("method", "dataset"))
    texts = {(row["method"], row["dataset"]): cell_text(row) for _, row in part.iterrows()}
    rows = [[texts.get((method, dataset), "") for dataset in datasets] for method in methods]
    return pd.DataFrame(rows, index=methods, columns=datasets)


def write_paper_table(table: pd.DataFrame, out: Path, missing: Sequence[str], notes: Sequence[str]) -> list[Path]:
    """Write `paper_table.csv` and `paper_table.html` into a folder; returns the files."""
    files = [out / "paper_table.csv", out / "paper_table.html"]
    atomic_write(files[0], table.to_csv(index=False))
    atomic_write(files[1], _page(table, missing, notes))
    return files


def _page(table: pd.DataFrame, missing: Sequence[str], notes: Sequence[str]) -> str:
    sources = [source for source in dict.fromkeys(table["source"]) if isinstance(source, str)]
    grids = []
    for paradigm in dict.fromkeys(table["paradigm"]):
        cells = grid(table, str(paradigm))
        rows = [
            views.GridRow(str(method), tuple(views.GridCell(str(text)) for text in row))
            for method, row in cells.iterrows()
        ]
        grids.append((str(paradigm), views.Grid("", tuple(str(name) for name in cells.columns), tuple(rows))))
    lists = {"Not on disk": missing, "Notes": notes, "Sources": sources}
    return render("paper_table.html", title="The paper's table", grids=grids, lists=lists)
