"""`--preset paper` for the commands that have it: the table of its settings, and the paper's whole table of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from captune.adapting import adapt_once
from captune.algorithms import default_config, method_named
from captune.algorithms.preset import (
    PAPER_DATASETS,
    PAPER_METHODS,
    PAPER_PARADIGMS,
    SPLIT_SEEDS,
    TRAINING_SEEDS,
    preset_rows,
    preset_task,
)
from captune.cli.options import COMMAND_LINE, names_in, resolve_paradigm
from captune.config import TaskConfig
from captune.data.catalog import load_dataset
from captune.data.roles import has_labels
from captune.errors import CaptuneError, DataError, TrainingFailed, UsageError
from captune.records.layout import METRICS


def check_show(preset: str | None) -> None:
    """`--show` shows a preset.

    Raises:
        UsageError: without one.
    """
    if preset is None:
        raise UsageError("--show must be used with --preset", got="no --preset", next_step="Add --preset paper.")


def datasets_shown(task_values: Mapping[str, Any]) -> list[str]:
    """The datasets named on the command line, or all of the paper's."""
    named = task_values.get("dataset", "all")
    return list(PAPER_DATASETS) if named == "all" else names_in(named, "--dataset")


def show_preset(datasets: Sequence[str], console: Console) -> None:
    """Print, for every dataset, each setting as the paper has it, as its code has it, and as the preset takes it."""
    for dataset in datasets:
        table = Table(
            Column("setting", no_wrap=True),
            "paper",
            "code",
            "ours",
            title=f"--preset paper: {dataset}",
            title_justify="left",
        )
        for row in preset_rows(dataset):
            table.add_row(row.setting, row.paper, row.code, row.ours)
        console.print(table)
    console.print(
        "fpl, grip, cpl: their own defaults (captune adapt --method NAME), with the splits, prompts and budget above.",
        highlight=False,
    )


def run_paper_table(
    task_values: dict[str, Any], trial_values: dict[str, Any], methods: str, out: Path, console: Console
) -> None:
    """Run every cell of the paper's table over its seeds, one after another, and write the table; what is in the folder
    already is not done again.

    Raises:
        DataError: nothing of what was asked for is on disk.
        TrainingFailed: some trials failed; the table holds the others.
    """
    datasets, paradigms, names = _asked(task_values, methods)
    missing, tasks = _found(datasets, task_values, console)
    fitting = {kind: _fitting(kind, names, task_values, console) for kind in paradigms}
    cells = [(dataset, kind, name) for dataset in tasks for kind in paradigms for name in fitting[kind]]
    for dataset, paradigm, name in cells:  # impossible combinations are reported before anything is trained
        task = _task(dataset, paradigm, SPLIT_SEEDS[0], task_values)
        default_config(name, task, trial_values.get("tuning"), "paper").with_values(trial_values, where=COMMAND_LINE)
    failed, notes = _run(cells, task_values, trial_values, out, console)

    from captune.results.paper_table import grid, paper_table, write_paper_table

    everything = [(dataset, kind, name) for dataset in datasets for kind in paradigms for name in fitting[kind]]
    table = paper_table(out / "runs", everything)
    for paradigm in paradigms:
        shown = grid(table, paradigm)
        screen = Table(paradigm, *map(str, shown.columns), box=None, pad_edge=False)
        for method, row in shown.iterrows():
            screen.add_row(str(method), *map(str, row))
        console.print(screen)
    for line in missing:
        console.print(f"not on disk: {line}", highlight=False, soft_wrap=True)
    files = write_paper_table(table, out, missing, notes)
    console.print(f"written: {', '.join(str(file) for file in files)}", highlight=False, soft_wrap=True)
    if failed:
        raise TrainingFailed(
            "every trial of the table must finish",
            got=f"{len(failed)} failed: {'; '.join(failed[:3])}",
            where=out,
            next_step="Run the same command again: finished trials are kept.",
        )


def _asked(task_values: dict[str, Any], methods: str) -> tuple[list[str], list[str], list[str]]:
    dataset, paradigm = task_values.get("dataset", "all"), task_values.get("paradigm", "all")
    datasets = list(PAPER_DATASETS) if dataset == "all" else names_in(dataset, "--dataset")
    paradigms = list(PAPER_PARADIGMS) if paradigm == "all" else names_in(paradigm, "--paradigm")
    names = list(PAPER_METHODS) if methods == "all" else names_in(methods, "--methods")
    return (
        datasets,
        [resolve_paradigm(name) for name in paradigms],
        [method_named(name).name for name in names],
    )


def _fitting(paradigm: str, names: list[str], task_values: dict[str, Any], console: Console) -> list[str]:
    """The methods that fit the paradigm; the others are named."""
    labelled = has_labels(TaskConfig.parse({**task_values, "dataset": "digits", "paradigm": paradigm}))
    kept = [name for name in names if labelled or not method_named(name).labels_only]
    for name in names:
        if name not in kept:
            console.print(f"{name} is left out of {paradigm}: it learns from labelled images alone.", highlight=False)
    return kept


def _task(dataset: str, paradigm: str, split_seed: int, values: dict[str, Any]) -> TaskConfig:
    given = {key: value for key, value in values.items() if key not in ("dataset", "paradigm", "split_seed")}
    own = {"dataset": dataset, "paradigm": paradigm, "split_seed": split_seed}
    return TaskConfig.parse(preset_task(dataset, given) | own, where=COMMAND_LINE)


def _found(datasets: list[str], values: dict[str, Any], console: Console) -> tuple[list[str], list[str]]:
    """What is missing, in a sentence each, and the datasets that are there."""
    missing, there = [], []
    for dataset in datasets:
        try:
            load_dataset(_task(dataset, "ul", SPLIT_SEEDS[0], values))
        except DataError as error:
            missing.append(f"{dataset}: {str(error).splitlines()[0]}")
        else:
            there.append(dataset)
    if not there:
        raise DataError(
            "at least one dataset of the table must be on disk",
            got="; ".join(missing),
            next_step="Name the folder that holds them by --data-root; `captune datasets` says what is found in it.",
        )
    for line in missing:
        console.print(f"not on disk, left out: {line}", highlight=False, soft_wrap=True)
    return missing, there


def _run(
    cells: list[tuple[str, str, str]],
    task_values: dict[str, Any],
    trial_values: dict[str, Any],
    out: Path,
    console: Console,
) -> tuple[list[str], list[str]]:
    """Run what is not there yet; what failed, and what a person should know."""
    from captune.training.notes import cell_notes

    failed: list[str] = []
    notes: list[str] = []
    for dataset, paradigm, name in cells:
        for split_seed, seed in zip(SPLIT_SEEDS, TRAINING_SEEDS, strict=True):
            folder = out / "runs" / f"{dataset}-{paradigm}-{name}" / f"seed{seed}"
            if (folder / METRICS).exists():
                continue
            task = _task(dataset, paradigm, split_seed, task_values)
            config = default_config(name, task, trial_values.get("tuning"), "paper").with_values(trial_values)
            folder.mkdir(parents=True, exist_ok=True)
            try:
                notes += [note for note in cell_notes(task) if note not in notes]
                report = adapt_once(task, name, config, folder, seed=seed, notes=notes)
            except CaptuneError as error:
                failed.append(f"{dataset} {paradigm} {name} seed {seed}: {str(error).splitlines()[0]}")
                console.print(f"failed: {failed[-1]}", highlight=False, soft_wrap=True)
            else:
                console.print(
                    f"{dataset} {paradigm} {name} seed {seed}: {100 * report['metric']:.2f} %", highlight=False
                )
    return failed, notes
