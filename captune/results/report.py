"""Write the report of studies: every CSV that their records support, figures of these tables, and one page.

`report_study` writes into the study's own directory; `report_studies` writes one report of many studies elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from captune.data.labelling import COLUMNS as PREDICTIONS_COLUMNS
from captune.decisions.candidates import advised_config, even_shares
from captune.decisions.criteria import ORACLE
from captune.errors import UsageError
from captune.plain_yaml import dump_yaml
from captune.records import (
    ANCHORED,
    BALANCED,
    ENSEMBLE,
    PROBE,
    TEXT_MIXTURE,
    TRANSCLIP,
    ZERO_SHOT,
    StudyRecord,
    atomic_write,
)
from captune.records.files import remove_leftovers
from captune.records.foreign import check_report_folder
from captune.records.layout import (
    BEST_CONFIG,
    COLUMNS_CSV,
    DATAPACKAGE,
    DERIVED,
    PAGE,
    PREDICTIONS_CSV,
)
from captune.results import class_plots, plots
from captune.results.answer import task_options
from captune.results.best import Choice, recorded_choice
from captune.results.best_configs import best_configs_table
from captune.results.classes import classes_table, pairs_table
from captune.results.comparisons import ALL_CELLS, comparisons_table, ranks_table
from captune.results.curves import curves_table
from captune.results.data_dictionary import columns_table, datapackage
from captune.results.findings_tables import confusion_table, jpegs_of, pictures_table, reliability_table
from captune.results.importance import importance_table, marginals_table
from captune.results.load import load_studies, load_study
from captune.results.matrix_page import render_matrix
from captune.results.overview import notes_table, studies_table
from captune.results.page import render_study
from captune.results.robustness import robustness_table
from captune.results.selection_tables import criteria_table, selection_table
from captune.results.tables import ORACLE_STAMP, confirm_table, epochs_table, stamped, trials_table, write_csv
from captune.results.transfer import transfer_table

Tables = dict[str, pd.DataFrame]
MOST_CURVES = 12
"""Most studies whose curves can be told apart in one figure."""


def report_study(study: StudyRecord | Path, *, images: bool = True) -> list[Path]:
    """Write every derived file of one study beside its journal, except those that its record cannot support.

    Args:
        study: the study, or its directory.
        images: whether the page shows small pictures of the images, if the study took any.

    Returns:
        The files, in the order written: CSVs, best_config.yaml, figures, columns.csv, datapackage.json, report.html.

    Raises:
        RecordError: no journal.
    """
    record = study if isinstance(study, StudyRecord) else load_study(study)
    return _write([record], record.directory, images=images)


def report_studies(directories: Iterable[Path | str], out_dir: Path) -> list[Path]:
    """Write the report of many studies into `out_dir` (made if missing); their own directories stay as they are.

    Raises:
        RecordError: a path holds no journal.
        UsageError: `out_dir` cannot be made, or holds files of other origin that the report would replace.
    """
    studies = load_studies(directories)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError("--out must be a folder that can be made", got=error.strerror, where=out_dir) from None
    check_report_folder(out_dir)
    return _write(studies, out_dir)


_MAKERS: dict[str, Callable[[Sequence[StudyRecord]], pd.DataFrame]] = {
    "studies.csv": studies_table,
    "notes.csv": notes_table,
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
    "criteria.csv": criteria_table,
    "transfer.csv": transfer_table,
    "classes.csv": classes_table,
    "pairs.csv": pairs_table,
    "confusion.csv": confusion_table,
    "reliability.csv": reliability_table,
    "pictures.csv": pictures_table,
}


def tables_of(studies: Sequence[StudyRecord]) -> Tables:
    """Every table that the records support, by file name; a table without rows is left out, except trials.csv."""
    tables = {name: make(studies) for name, make in _MAKERS.items()}
    return {name: table for name, table in tables.items() if len(table) or name == "trials.csv"}


def _write(studies: Sequence[StudyRecord], out_dir: Path, *, images: bool = False) -> list[Path]:
    remove_leftovers(out_dir)
    tables = tables_of(studies)
    if not images:
        tables.pop("pictures.csv", None)
    # First, as the mark by which the folder is known for a report's, should this one be killed.
    dictionary = _write_dictionary(tables, studies, out_dir)
    written = [write_csv(table, out_dir / name, studies) for name, table in tables.items()]
    if len(studies) == 1:
        written += write_best_config(studies[0], out_dir / BEST_CONFIG)
    drawn: dict[str, Path] = {}
    for name, figure in _figures(studies, tables).items():
        if any(study.select_by == ORACLE for study in studies):
            plots.stamp(figure, ORACLE_STAMP)
        png, svg = plots.save_figure(figure, out_dir / name)
        written += [png, svg]
        drawn[name] = svg
    _remove_stale(out_dir, {path.name for path in written})
    page = out_dir / PAGE
    written += dictionary
    files = [path.name for path in written if path.suffix in (".csv", ".yaml", ".json")]
    if (out_dir / PREDICTIONS_CSV).exists():
        files.append(PREDICTIONS_CSV)
    if len(studies) == 1:
        jpegs = jpegs_of(studies[0]) if "pictures.csv" in tables else []
        atomic_write(page, render_study(tables, drawn, files, jpegs))
    else:
        atomic_write(page, render_matrix(tables, drawn, files, _addresses(studies, out_dir)))
    return [*written, page]


def _remove_stale(out_dir: Path, written: set[str]) -> None:
    """Remove tables and figures that an earlier report wrote and this one did not."""
    for name in DERIVED - written:
        (out_dir / name).unlink(missing_ok=True)


def _write_dictionary(tables: Tables, studies: Sequence[StudyRecord], out_dir: Path) -> list[Path]:
    """What every column means, for people (columns.csv) and for programs (datapackage.json)."""
    columns = columns_table({name: stamped(table, studies) for name, table in tables.items()})
    more = {COLUMNS_CSV: stamped(columns, studies)}
    if (out_dir / PREDICTIONS_CSV).exists():
        more[PREDICTIONS_CSV] = pd.DataFrame(columns=list(PREDICTIONS_COLUMNS))
    columns = pd.concat([columns, columns_table(more)], ignore_index=True)
    title = studies[0].name if len(studies) == 1 else f"{len(studies)} captune studies"
    package = out_dir / DATAPACKAGE
    atomic_write(package, datapackage(title, columns))
    return [write_csv(columns, out_dir / COLUMNS_CSV, studies), package]


def _addresses(studies: Sequence[StudyRecord], out_dir: Path) -> dict[str, str]:
    """Study → its own page, relative to the report of many; only for studies that have a page."""
    pages = {study.name: study.directory / PAGE for study in studies}
    return {
        name: quote(Path(os.path.relpath(page.resolve(), out_dir.resolve())).as_posix())
        for name, page in pages.items()
        if page.exists()
    }


def _figures(studies: Sequence[StudyRecord], tables: Tables) -> dict[str, plots.Figure]:
    figures: dict[str, plots.Figure | None] = {}
    if len(studies) == 1:
        figures["study"] = plots.study_figure(tables["trials.csv"], tables.get("robustness.csv", robustness_table([])))
        if "robustness.csv" in tables:
            figures["robustness"] = plots.robustness_figure(tables["robustness.csv"])
        if "importance.csv" in tables:
            figures["importance"] = plots.importance_figure(tables["importance.csv"], tables["marginals.csv"])
        if "classes.csv" in tables:
            figures["shares"] = class_plots.shares_figure(tables["classes.csv"])
        if "reliability.csv" in tables:
            figures["reliability"] = class_plots.reliability_figure(tables["reliability.csv"])
    if "comparisons.csv" in tables:
        figures["comparisons"] = plots.comparisons_figure(_widest(tables["comparisons.csv"]))
    if "curves.csv" in tables and len(studies) <= MOST_CURVES:
        figures["curves"] = plots.curves_figure(tables["curves.csv"])
    return {name: figure for name, figure in figures.items() if figure is not None}


def _widest(comparisons: pd.DataFrame) -> pd.DataFrame:
    """The rows that answer the widest question: methods over all cells, else methods per cell, else configurations."""
    methods = comparisons[comparisons["scope"] == "methods"]
    pooled = methods[methods["cell"] == ALL_CELLS]
    return next(rows for rows in (pooled, methods, comparisons) if len(rows))


def write_best_config(study: StudyRecord, path: Path) -> list[Path]:
    """Write what is advised as YAML for `captune adapt --config`, with the advice in its header.

    An ensemble becomes a blend of its members. A study that has not chosen yet gives its best configuration so far.
    Returns the file, or nothing if there is no configuration to write.
    """
    choice = recorded_choice(study)
    method = next((t.method for t in study.trials if t.config_id == choice.config_id and t.method), study.method)
    values = choice.advised or ({"method": method, **choice.config} if choice.config else {})
    if not choice.advised and choice.name == ENSEMBLE:
        values = advised_config(study, even_shares(study))
    elif not choice.advised and choice.name == BALANCED:
        values = {"method": BALANCED}
    if not values:
        return []
    body = dump_yaml(values)
    atomic_write(path, f"{_header(study, choice)}{body}")
    return [path]


_WHAT = {
    ZERO_SHOT: "Zero-shot, which the study advises to keep; best configuration",
    ENSEMBLE: "The advised ensemble; best configuration",
    BALANCED: "Balanced zero-shot, ahead of the best configuration",
    ANCHORED: "The anchored mixture, ahead of the best configuration",
    TEXT_MIXTURE: "The text mixture, ahead of the best configuration",
    TRANSCLIP: "TransCLIP, ahead of the best configuration",
    PROBE: "The probe of the labelled images alone, ahead of the best configuration",
}


def _header(study: StudyRecord, choice: Choice) -> str:
    lines = [
        *([ORACLE_STAMP] if study.select_by == ORACLE else []),
        f"{_WHAT.get(choice.name, 'Best configuration')} of the study {study.name} (configuration {choice.config_id}).",
        f"Advice: {choice.sentence or f'{choice.advice}.'} {choice.reason}",
        f"Use it: captune adapt {' '.join(task_options(study.task))} --config best_config.yaml --out DIR",
    ]
    return "".join(f"# {' '.join(line.split())}\n" for line in lines)
