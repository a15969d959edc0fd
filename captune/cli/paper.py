"""`--preset paper` for the commands that have it: the table of its settings, and the paper's whole table of results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table

from captune.adapting import adapt_once
from captune.algorithms import default_config, method_named
from captune.algorithms.preset import (
    PAPER_DATASETS,
    PAPER_METHODS,
    PAPER_PARADIGMS,
    PRESETS,
    TRAINING_SEEDS,
    preset_rows,
    preset_task,
)
from captune.cli.options import COMMAND_LINE, Given, names_in, resolve_paradigm
from captune.config import OWN, USES_SHOTS, TaskConfig, TrialConfig, read_yaml
from captune.data.catalog import check_dataset_name, default_backbone, load_dataset
from captune.data.published_accuracies import BACKBONES, SPLIT_SEEDS, is_published_model, is_published_protocol
from captune.data.roles import has_labels
from captune.errors import CaptuneError, CheckpointError, DataError, TrainingFailed, UsageError
from captune.records import atomic_write
from captune.records.layout import CHECKPOINT, CONFIG, METRICS, TASK

if TYPE_CHECKING:
    from captune.results.paper_table import Cell

    _Planned = tuple[Cell, TaskConfig, TrialConfig]


def check_preset(preset: str) -> None:
    """Check that a preset exists.

    Raises:
        UsageError: it does not.
    """
    if preset not in PRESETS:
        raise UsageError(f"--preset must be '{PRESETS[0]}'", got=f"'{preset}'")


def check_show(preset: str | None) -> None:
    """Check that `--show` comes with a preset.

    Raises:
        UsageError: there is none, or it does not exist.
    """
    if preset is None:
        raise UsageError("--show must be used with --preset", got="no --preset", next_step="Add --preset paper.")
    check_preset(preset)


def paper_datasets_in(task_values: Mapping[str, Any]) -> list[str]:
    """The datasets named on the command line, or all of the paper's."""
    named = task_values.get("dataset", "all")
    datasets = list(PAPER_DATASETS) if named in ("all", "paper") else names_in(named, "--dataset")
    for dataset in datasets:
        check_dataset_name(dataset)
    return datasets


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
    """Run every cell of the paper's table over its seeds, one after another, and write the table.

    Runs that are already in the folder are not repeated. Published numbers stand only beside cells of the published
    splits, prompts and model. If settings are not the preset's, a note in the table says which.

    Raises:
        DataError: none of the datasets is on disk.
        UsageError: the folder holds adaptations with other settings than those that are asked for.
        TrainingFailed: some trials failed; the table holds the others.
    """
    datasets, paradigms, names = _asked(task_values, methods)
    missing, tasks = _found(datasets, task_values, console)
    fitting = {kind: _fitting(kind, names, task_values, console) for kind in paradigms}
    cells = [(dataset, kind, name) for dataset in datasets for kind in paradigms for name in fitting[kind]]
    # Impossible combinations, and adaptations of other settings in the folder, are reported before anything is trained.
    planned = [(cell, *_planned(cell, task_values, trial_values)) for cell in cells]
    _check_kept(cells, task_values, trial_values, out)
    others = {cell for cell, task, _ in planned if not is_published_protocol(task)}
    departures = _departures(planned, bool(others))
    for line in departures:
        console.print(line, highlight=False, soft_wrap=True)
    failed, notes = _run([cell for cell in cells if cell[0] in tasks], task_values, trial_values, out, console)

    from captune.results.paper_table import grid, paper_table, write_paper_table

    table = paper_table(out / "runs", cells, others)
    for paradigm in paradigms:
        shown = grid(table, paradigm)
        screen = Table(paradigm, *map(str, shown.columns), box=None, pad_edge=False)
        for method, row in shown.iterrows():
            screen.add_row(str(method), *map(str, row))
        console.print(screen)
    for line in missing:
        console.print(f"not on disk: {line}", highlight=False, soft_wrap=True)
    files = write_paper_table(table, out, missing, departures + notes)
    console.print(f"written: {', '.join(str(file) for file in files)}", highlight=False, soft_wrap=True)
    if failed:
        raise TrainingFailed(
            "every trial of the table must finish",
            got=f"{len(failed)} failed: {'; '.join(failed[:3])}",
            where=out,
            next_step="Run the same command again: finished trials are kept.",
        )


def refuse_settings_of_a_search(given: Given, defaults: Mapping[str, Any]) -> None:
    """Refuse options of a search that the paper's table would ignore, unless they are at the command's defaults.

    Raises:
        UsageError: there are such settings.
    """
    dropped = {**given.study, **given.machine, **{k: v for k, v in given.task.items() if k == "split_seed"}}
    names = [name for name, value in dropped.items() if name != "preset" and defaults.get(name) != value]
    if names:
        raise UsageError(
            "compare --preset paper must be given no settings of a search, a cluster or the split",
            got=", ".join(f"--{name.replace('_', '-')}" for name in sorted(names)),
            next_step="Leave them out: it runs each configuration as published, over the published seeds, one after "
            "another on this machine.",
        )


def _asked(task_values: dict[str, Any], methods: str) -> tuple[list[str], list[str], list[str]]:
    paradigm = task_values.get("paradigm", "all")
    datasets = paper_datasets_in(task_values)
    paradigms = list(PAPER_PARADIGMS) if paradigm == "all" else names_in(paradigm, "--paradigm")
    names = list(PAPER_METHODS) if methods == "all" else names_in(methods, "--methods")
    return (
        datasets,
        [resolve_paradigm(name) for name in paradigms],
        [method_named(name).name for name in names],
    )


def _fitting(paradigm: str, names: list[str], task_values: dict[str, Any], console: Console) -> list[str]:
    """The methods that fit the paradigm; the others are named on the console."""
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
    """A sentence for each missing dataset, and the datasets that are there."""
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


# Settings that do not change a cell's numbers: places, computations that are the same mathematics, and options for a
# user's own images. `pixels` is kept, as it says how images are read. The other options only say what is accepted, and
# images that are left out are in the notes.
_NO_MATTER = {"data_root", "cache_dir", "kernels", "micro_batch"} | {
    name for name, info in TaskConfig.model_fields.items() if OWN in info.metadata and name != "pixels"
}


def _planned(
    cell: Cell, task_values: dict[str, Any], trial_values: dict[str, Any], split_seed: int = SPLIT_SEEDS[0]
) -> tuple[TaskConfig, TrialConfig]:
    dataset, paradigm, method = cell
    task = _task(dataset, paradigm, split_seed, task_values)
    preset = default_config(method, task, trial_values.get("tuning"), "paper")
    return task, preset.with_values(trial_values, where=COMMAND_LINE)


def _folder(out: Path, cell: Cell, seed: int) -> Path:
    return out / "runs" / "-".join(cell) / f"seed{seed}"


def _settings(task: TaskConfig, config: TrialConfig) -> dict[str, Any]:
    """All settings that change numbers; where None was given, what stands for it."""
    backbone, pretrained = default_backbone(task)
    values = {
        **task.model_dump(mode="json"),
        **config.model_dump(mode="json"),
        "shots": task.num_shots if task.paradigm in USES_SHOTS else None,
        "backbone": BACKBONES[0] if is_published_model(backbone, pretrained) else backbone,
        "pretrained": pretrained,
        "pixels": "open_clip" if task.pixels == "auto" else task.pixels,
    }
    return {name: value for name, value in values.items() if name not in _NO_MATTER}


def _check_kept(cells: list[Cell], task_values: dict[str, Any], trial_values: dict[str, Any], out: Path) -> None:
    """Check that every run in the folder has the settings that are asked for, because these runs are kept.

    Raises:
        UsageError: a run has other settings, or nothing tells its settings any more.
    """
    for cell in cells:
        for split_seed, seed in zip(SPLIT_SEEDS, TRAINING_SEEDS, strict=True):
            folder = _folder(out, cell, seed)
            if not (folder / METRICS).exists():
                continue
            asked = _settings(*_planned(cell, task_values, trial_values, split_seed))
            kept = _settings(*_kept(folder, cell))
            other = [name for name in kept if asked[name] != kept[name]]
            if other:
                raise UsageError(
                    "adaptations that a folder keeps must be of the settings that are asked for",
                    got=", ".join(f"{name} {kept[name]} instead of {asked[name]}" for name in other),
                    where=folder,
                    next_step="Give another --out, or the settings with which this table was begun.",
                )


def _kept(folder: Path, cell: Cell) -> tuple[TaskConfig, TrialConfig]:
    """The settings of an adaptation in the folder. Earlier versions wrote the task's only into the checkpoint."""
    config_class = method_named(cell[2]).config_class
    if (folder / TASK).exists():
        task, config = folder / TASK, folder / CONFIG
        return TaskConfig.parse(read_yaml(task), where=task), config_class.parse(read_yaml(config), where=config)
    from captune.training.checkpoint import load_checkpoint

    try:
        meta = load_checkpoint(folder / CHECKPOINT)[1]
    except CheckpointError as error:
        raise UsageError(
            "an adaptation that a folder keeps must say its settings",
            got=f"no {TASK}, and of {CHECKPOINT}: {error.got}",
            where=folder,
            next_step=f"Delete its {METRICS} to train it again, put the checkpoint back, or give another --out.",
        ) from None
    return TaskConfig.parse(meta["task"], where=folder), config_class.parse(meta["config"], where=folder)


def _departures(planned: list[_Planned], other_protocol: bool) -> list[str]:
    """The settings that differ from the preset's, as sentences for readers of the table."""
    differ: dict[str, dict[str, None]] = {}
    for cell, task, config in planned:
        preset = _settings(*_planned(cell, {}, {}))
        for name, value in _settings(task, config).items():
            if value != preset[name]:
                differ.setdefault(name, {})[str(value)] = None
    lines = []
    if differ:
        settings = ", ".join(f"{name} {' or '.join(values)}" for name, values in differ.items())
        lines.append(f"settings other than the preset's: {settings}; this is not the published protocol")
    if other_protocol:
        lines.append(
            "published numbers are left out where the splits, prompts, shots or model are not the published ones"
        )
    return lines


def _run(
    cells: list[Cell],
    task_values: dict[str, Any],
    trial_values: dict[str, Any],
    out: Path,
    console: Console,
) -> tuple[list[str], list[str]]:
    """Run what is not there yet; returns what failed, and what a person should know about all runs in the folder."""
    from captune.training.notes import cell_notes

    failed: list[str] = []
    notes: list[str] = []
    for cell in cells:
        dataset, paradigm, name = cell
        for split_seed, seed in zip(SPLIT_SEEDS, TRAINING_SEEDS, strict=True):
            folder = _folder(out, cell, seed)
            if (folder / METRICS).exists():
                report = json.loads((folder / METRICS).read_text(encoding="utf-8"))
                notes += [note for note in report["notes"] if note not in notes]
                continue
            task, config = _planned(cell, task_values, trial_values, split_seed)
            folder.mkdir(parents=True, exist_ok=True)
            # Checkpoints contain it too, but they are what people delete when space is short.
            atomic_write(folder / TASK, task.model_copy(update={"data_root": None, "cache_dir": None}).to_yaml())
            try:
                report = adapt_once(task, name, config, folder, seed=seed, notes=list(cell_notes(task)))
            except CaptuneError as error:
                failed.append(f"{dataset} {paradigm} {name} seed {seed}: {str(error).splitlines()[0]}")
                console.print(f"failed: {failed[-1]}", highlight=False, soft_wrap=True)
            else:
                notes += [note for note in report["notes"] if note not in notes]
                console.print(
                    f"{dataset} {paradigm} {name} seed {seed}: {100 * report['metric']:.2f} %", highlight=False
                )
    return failed, notes
