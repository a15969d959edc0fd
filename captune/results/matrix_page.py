"""report.html of several studies side by side: gains, methods, transfers, criteria."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from captune.config import PARADIGMS
from captune.decisions.criteria import ORACLE
from captune.plain_text import counted
from captune.results import views
from captune.results.comparisons import ALL_CELLS
from captune.results.formats import NOTHING, fixed, is_known, percent, points, sentence, short_datasets, short_name
from captune.results.page import COMPARED
from captune.results.rendering import render, shown_figures
from captune.results.tables import ORACLE_STAMP
from captune.results.transfer import BEST_ON_AVERAGE

Tables = Mapping[str, pd.DataFrame]
_CAPTIONS = {
    "comparisons": "Paired differences; blue: the first is better, red: the second, green: equal, grey: undecided.",
    "curves": "What a shorter search would have found, one line per study.",
}
_DEEPEST = 0.2
"""Gains and losses of this size (20 points) or more get the deepest shade."""
_ONE_GRID = 16
"""Most studies whose transfers fit in one grid."""
_NAMED = 5
"""Most studies that a remark names."""


def render_matrix(
    tables: Tables, figures: Mapping[str, Path], files: Sequence[str], addresses: Mapping[str, str]
) -> str:
    """The page of several studies.

    Args:
        tables: by file name, as they were written.
        figures: SVG files by name, to be put into the page.
        files: names of the files beside the page that it links to.
        addresses: study → its own page, relative to this one.
    """
    best, studies = views.rows_of(tables["best_configs.csv"]), views.rows_of(tables["studies.csv"])
    sentence, lines = _answer(best)
    parts: dict[str, Any] = {
        "broad": True,
        "title": f"{len(studies)} studies side by side",
        "subtitle": _subtitle(studies),
        "stamps": [f"{row['study']}: {ORACLE_STAMP}" for row in studies if row["select_by"] == ORACLE],
        "answer": sentence,
        "answer_lines": lines,
        "gains": _gain_grids(best, addresses),
        "chosen": _chosen(best, addresses),
        "ranks": _ranks(tables),
        "compared": _compared(tables),
        "transfers": _transfer_grids(tables, _labels(studies)),
        "criteria": _criteria(tables),
        "remarks": _remarks(tables),
        "figures": shown_figures(figures, _CAPTIONS),
        "files": files,
    }
    has = {
        ("gains", "Gains"): True,
        ("methods", "Methods"): parts["ranks"].rows or parts["compared"].rows,
        ("transfer", "Transfer"): parts["transfers"],
        ("criteria", "Choosing without labels"): parts["criteria"].rows,
        ("search", "Fewer trials"): "curves" in parts["figures"],
        ("limits", "What to keep in mind"): parts["remarks"],
        ("files", "Files"): True,
    }
    return render("matrix.html", contents=[entry for entry, there in has.items() if there], **parts)


def _subtitle(studies: Sequence[views.Row]) -> str:
    return ", ".join(counted(len({row[name] for row in studies}), name) for name in ("dataset", "paradigm", "method"))


def _answer(best: Sequence[views.Row]) -> tuple[str, list[str]]:
    """How often each advice was given, and how the advised candidates did on the test."""
    advised = Counter(str(row["advice"]) for row in best)
    counts = [f"{advice} in {count}" for advice, count in advised.most_common()]
    gains = [float(row["advised_gain"]) for row in best if is_known(row["advised_gain"])]
    lines = []
    if gains:
        above, below = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
        lines.append(
            f"In {len(gains)} of them something other than zero-shot is advised. On the test it is better than "
            f"zero-shot in {above} and worse in {below}; its gain is {points(sum(gains) / len(gains))} points on "
            f"average, {points(min(gains))} in the worst."
        )
    return f"The advice of {len(best)} studies: {', '.join(counts)}.", lines


def _gain_grids(best: Sequence[views.Row], addresses: Mapping[str, str]) -> list[views.Grid]:
    """For each method a grid of datasets and paradigms: the advised candidate's gain over zero-shot, in points."""
    grids = []
    shown = short_datasets(str(row["dataset"]) for row in best)
    for method in dict.fromkeys(str(row["method"]) for row in best):
        own = [row for row in best if str(row["method"]) == method]
        datasets = sorted({str(row["dataset"]) for row in own}, key=lambda name: shown[name])
        paradigms = [name for name in PARADIGMS if any(row["paradigm"] == name for row in own)]
        rows = []
        for dataset in datasets:
            cells = []
            for paradigm in paradigms:
                here = [row for row in own if row["dataset"] == dataset and row["paradigm"] == paradigm]
                cells.append(_gain_cell(here, addresses))
            rows.append(views.GridRow(shown[dataset], tuple(cells)))
        note = (
            f"{method}: points that what is advised gains over zero-shot on the test; 0 where zero-shot is kept, a "
            "dash where nothing was measured. Blue: gain, red: loss. Each number leads to the study's own page."
        )
        grids.append(views.Grid("", tuple(paradigms), tuple(rows), note))
    return grids


def _gain_cell(rows: Sequence[views.Row], addresses: Mapping[str, str]) -> views.GridCell:
    """A cell of the grid of gains. Of several studies of one cell it shows the first; the others are in the table."""
    if not rows:
        return views.GridCell("")
    row, address = rows[0], addresses.get(str(rows[0]["study"]))
    if not is_known(row["advised_gain"]):
        kept = is_known(row["advised_test"])
        return views.GridCell("0" if kept else NOTHING, href=address)
    gain = float(row["advised_gain"])
    depth = round(60 * min(1.0, abs(gain) / _DEEPEST))
    return views.GridCell(points(gain), depth, "blue" if gain > 0 else "red", href=address)


def _chosen(best: Sequence[views.Row], addresses: Mapping[str, str]) -> views.Table:
    columns = [
        views.linked(views.text("study", "study"), lambda row: addresses.get(str(row["study"]))),
        views.text("advised", "advised_candidate", short_name),
        views.number("test %", "advised_test", percent),
        views.number("zero-shot %", "zero_shot", percent),
        views.number("gain", "advised_gain", points),
        views.interval("95 % interval", "advised_gain_low", "advised_gain_high", points),
        views.number("below the best candidate", "regret", percent),
    ]
    return views.table(best, columns, "Means over seeds on the sealed test; the reasons are in best_configs.csv.")


def _ranks(tables: Tables) -> views.Table:
    columns = [
        views.text("method", "method", short_name),
        views.number("mean rank", "mean_rank", fixed),
        views.number("mean test %", "mean_metric", percent),
        views.number("cells", "num_cells"),
    ]
    return views.table(views.rows_of(tables.get("ranks.csv")), columns, "Over the cells that hold every method.")


def _compared(tables: Tables) -> views.Table:
    rows = [row for row in views.rows_of(tables.get("comparisons.csv")) if row["scope"] == "methods"]
    pooled = [row for row in rows if row["cell"] == ALL_CELLS]
    columns = (views.number("cells", "num_cells"), *COMPARED, views.text("what limits it", "note"))
    if pooled:
        return views.table(pooled, columns, "Each cell weighs the same; intervals are over cells.")
    return views.table(rows, (views.text("cell", "cell"), *COMPARED), "Differences are paired by seed.")


def _labels(studies: Sequence[views.Row]) -> dict[str, str]:
    """Study → dataset and paradigm; its own name if several studies of a method share these."""
    shown = short_datasets(str(row["dataset"]) for row in studies)
    labels = {str(row["study"]): f"{shown[str(row['dataset'])]} {row['paradigm']}" for row in studies}
    times = Counter((labels[str(row["study"])], row["method"]) for row in studies)
    return {
        str(row["study"]): str(row["study"]) if times[labels[str(row["study"])], row["method"]] > 1
        else labels[str(row["study"])]
        for row in studies
    }  # fmt: skip


def _transfer_grids(tables: Tables, labels: Mapping[str, str]) -> list[views.Grid]:
    """For each method: the regret, in points, of the row's best configuration on the column's cell.

    With more than `_ONE_GRID` studies, one grid per paradigm; transfers between paradigms are only in transfer.csv.
    """
    grids = []
    moved = views.rows_of(tables.get("transfer.csv"))
    paradigm = {str(row["study"]): str(row["paradigm"]) for row in views.rows_of(tables["studies.csv"])}
    for method in dict.fromkeys(str(row["method"]) for row in moved):
        own = [row for row in moved if str(row["method"]) == method]
        targets = list(dict.fromkeys(str(row["target_study"]) for row in own))
        if len(targets) <= _ONE_GRID:
            grids.append(_transfer_grid(method, own, targets, labels))
            continue
        for name in PARADIGMS:
            inside = [target for target in targets if paradigm[target] == name]
            kept = [row for row in own if row["target_study"] in inside
                    and (row["source"] == BEST_ON_AVERAGE or row["source_study"] in inside)]  # fmt: skip
            if len(inside) > 1:
                here = {study: label.removesuffix(f" {name}") for study, label in labels.items()}
                grids.append(_transfer_grid(f"{method}, {name}", kept, inside, here))
    return grids


def _transfer_grid(
    what: str, own: Sequence[views.Row], targets: Sequence[str], labels: Mapping[str, str]
) -> views.Grid:
    def source_of(row: views.Row) -> str:
        return BEST_ON_AVERAGE if row["source"] == BEST_ON_AVERAGE else str(row["source_study"])

    regrets = {(source_of(row), str(row["target_study"])): row["regret"] for row in own}
    targets = sorted(targets, key=lambda target: labels[target])
    sources = sorted(
        dict.fromkeys(source for source, _ in regrets),
        key=lambda source: (source == BEST_ON_AVERAGE, labels.get(source, source)),
    )
    rows = [
        views.GridRow(
            labels.get(source, source),
            tuple(_regret_cell(regrets.get((source, target)), source == target) for target in targets),
        )
        for source in sources
    ]
    note = (
        "Points below the best known there, when the best configuration of the row's cell is used on "
        "the column's. Where it was not run there, a forest on the column's trials predicts it (transfer.csv says "
        "which); a dash where neither can say."
    )
    return views.Grid("best of ↓ used on →", tuple(labels[target] for target in targets), tuple(rows), note, what)


def _regret_cell(regret: Any, own: bool) -> views.GridCell:
    if not is_known(regret):
        return views.GridCell(NOTHING, own=own)
    depth = round(60 * min(1.0, float(regret) / _DEEPEST))
    return views.GridCell(percent(regret), depth, "red", own=own)


def _criteria(tables: Tables) -> views.Table:
    rows = views.rows_of(tables.get("criteria.csv"))
    columns = [
        views.text("criterion", "criterion"),
        views.number("Spearman", "spearman", fixed),
        views.number("its pick, test %", "pick_metric", percent),
        views.number("below the best (points)", "pick_regret", percent),
        views.number("studies", "num_studies"),
    ]
    note = (
        "Means over the studies that have all of these criteria: rank correlation with the test metric, the test "
        "metric of the trial it would pick, and how far that is below the best trial by test."
    )
    return views.table(rows, columns, note)


def _remarks(tables: Tables) -> list[tuple[str, str]]:
    """Each remark once, with the studies that it is about; remarks about most studies first."""
    about: dict[str, list[str]] = {}
    for row in views.rows_of(tables.get("notes.csv")):
        about.setdefault(sentence(row["text"]), []).append(str(row["study"]))
    ordered = sorted(about.items(), key=lambda item: -len(item[1]))
    return [(text, _named(studies)) for text, studies in ordered]


def _named(studies: Sequence[str]) -> str:
    if len(studies) <= _NAMED:
        return ", ".join(studies)
    return f"{len(studies)} studies: {', '.join(studies[:_NAMED])}, …; all in notes.csv"
