"""Studies to files: every CSV their records support, figures of the same tables, one page.

`report_study` writes into the study's own directory; `report_studies` puts many side by side into another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pandas as pd

from captune.decisions.criteria import ORACLE
from captune.plain_yaml import dump_yaml
from captune.records import BALANCED, ENSEMBLE, StudyRecord, atomic_write
from captune.records.files import remove_leftovers
from captune.records.layout import OUTDATED
from captune.results import plots
from captune.results.best import Choice, best_configs_table, ensemble_config, recorded_choice
from captune.results.comparisons import ALL_CELLS, comparisons_table, ranks_table
from captune.results.concepts import concepts_table
from captune.results.curves import curves_table
from captune.results.importance import importance_table, marginals_table
from captune.results.load import load_studies, load_study
from captune.results.overview import studies_table
from captune.results.page import render_page
from captune.results.robustness import robustness_table
from captune.results.selection import selection_table
from captune.results.tables import ORACLE_STAMP, confirm_table, epochs_table, trials_table, write_csv
from captune.results.transfer import transfer_table

Tables = dict[str, pd.DataFrame]


def report_study(study: StudyRecord | Path) -> list[Path]:
    """Write every derived file of one study beside its journal; whatever its record cannot support is left out.

    Returns:
        The files, in the order written: CSVs, best_config.yaml, figures, report.html.

    Raises:
        RecordError: no journal.
    """
    record = study if isinstance(study, StudyRecord) else load_study(study)
    return _write([record], record.directory)


def report_studies(directories: Iterable[Path | str], out_dir: Path) -> list[Path]:
    """Write the report of many studies into `out_dir` (made if missing); their own directories stay as they are.

    Raises:
        RecordError: a path holds no journal.
    """
    studies = load_studies(directories)
    out_dir.mkdir(parents=True, exist_ok=True)
    return _write(studies, out_dir)


def tables_of(studies: Sequence[StudyRecord]) -> Tables:
    """Every table the records support, by file name; a table without rows is left out."""
    makers: dict[str, Callable[[Sequence[StudyRecord]], pd.DataFrame]] = {
        "studies.csv": studies_table,
        "trials.csv": trials_table,
        "epochs.csv": epochs_table,
        "confirm.csv": confirm_table,
        "best_configs.csv": best_configs_table,
        "robustness.csv": robustness_table,
        "comparisons.csv": comparisons_table,
        "ranks.csv": ranks_table,
        "importance.csv": importance_table,
        "marginals.csv": marginals_table,
        "curves.csv": curves_table,
        "selection.csv": selection_table,
        "transfer.csv": transfer_table,
        "concepts.csv": concepts_table,
    }
    tables = {name: make(studies) for name, make in makers.items()}
    return {name: table for name, table in tables.items() if len(table) or name == "trials.csv"}


def _write(studies: Sequence[StudyRecord], out_dir: Path) -> list[Path]:
    remove_leftovers(out_dir)
    for name in OUTDATED:
        (out_dir / name).unlink(missing_ok=True)
    tables = tables_of(studies)
    written = [write_csv(table, out_dir / name, studies) for name, table in tables.items()]
    if len(studies) == 1:
        written += write_best_config(studies[0], out_dir / "best_config.yaml")
    drawn: dict[str, Path] = {}
    for name, figure in _figures(studies, tables).items():
        if any(study.select_by == ORACLE for study in studies):
            plots.stamp(figure, ORACLE_STAMP)
        png, svg = plots.save_figure(figure, out_dir / name)
        written += [png, svg]
        drawn[name] = svg
    page = out_dir / "report.html"
    atomic_write(page, render_page(tables, drawn))
    return [*written, page]


def _figures(studies: Sequence[StudyRecord], tables: Tables) -> dict[str, plots.Figure]:
    figures: dict[str, plots.Figure | None] = {}
    if len(studies) == 1:
        figures["study"] = plots.study_figure(tables["trials.csv"], tables.get("robustness.csv", robustness_table([])))
        if "robustness.csv" in tables:
            figures["robustness"] = plots.robustness_figure(tables["robustness.csv"])
        if "importance.csv" in tables:
            figures["importance"] = plots.importance_figure(tables["importance.csv"], tables["marginals.csv"])
    if "comparisons.csv" in tables:
        figures["comparisons"] = plots.comparisons_figure(_widest(tables["comparisons.csv"]))
    if "curves.csv" in tables:
        figures["curves"] = plots.curves_figure(tables["curves.csv"])
    return {name: figure for name, figure in figures.items() if figure is not None}


def _widest(comparisons: pd.DataFrame) -> pd.DataFrame:
    """The rows that answer the widest question there is: methods over all cells, methods in a cell, configurations."""
    methods = comparisons[comparisons["scope"] == "methods"]
    pooled = methods[methods["cell"] == ALL_CELLS]
    return next(rows for rows in (pooled, methods, comparisons) if len(rows))


def write_best_config(study: StudyRecord, path: Path) -> list[Path]:
    """The best configuration as YAML for `captune adapt --config`, the advice in its header; nothing without one.

    Where the advice is another thing than a configuration, it is that: the ensemble as a blend of its members, or
    balanced zero-shot.
    """
    choice = recorded_choice(study)
    if not choice.config:
        return []
    values = {"method": study.method, **choice.config}
    if choice.name == ENSEMBLE:
        values = ensemble_config(study)
    elif choice.name == BALANCED:
        values = {"method": BALANCED}
    body = dump_yaml(values)
    atomic_write(path, f"{_header(study, choice)}{body}")
    return [path]


_WHAT = {
    ENSEMBLE: "Ensemble of the confirmed configurations, best configuration",
    BALANCED: "Balanced zero-shot, ahead of the best configuration",
}


def _header(study: StudyRecord, choice: Choice) -> str:
    lines = [
        *([ORACLE_STAMP] if study.select_by == ORACLE else []),
        f"{_WHAT.get(choice.name, 'Best configuration')} of the study {study.name} (configuration {choice.config_id}).",
        f"Advice: {choice.advice}. {choice.reason}",
        f"Use it: captune adapt --dataset {study.dataset} --paradigm {study.paradigm} "
        "--config best_config.yaml --out DIR",
    ]
    return "".join(f"# {' '.join(line.split())}\n" for line in lines)
