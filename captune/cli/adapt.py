"""captune adapt: one trial (or one a seed) without Ray: train, write a checkpoint, open the seal, report."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress

from captune import interruption
from captune.algorithms import ALGORITHMS, method_named, paper_config
from captune.cli import options
from captune.config import PARADIGMS, TaskConfig, TrialConfig, read_yaml
from captune.data.catalog import DATASETS, check_dataset_name, published_results
from captune.data.labelling import PREDICTIONS_CSV
from captune.data.paradigms import NO_LABELS
from captune.errors import UsageError
from captune.records import Role, atomic_write

_PAPER_BUDGET = {"epochs": 50, "steps_per_epoch": 50}


@options.with_options("task", "trial")
def adapt(
    given: options.Given,
    out: Annotated[
        Path, typer.Option(help="Directory for checkpoint.safetensors, metrics.json and epochs.csv.", metavar="DIR")
    ],
    method: Annotated[str | None, typer.Option(help=f"Method: {', '.join(ALGORITHMS)}; default cap.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the training.", min=0)] = 0,
    seeds: Annotated[
        str | None, typer.Option(help="Several seeds, as '0,1,2' or 0 1 2: one directory per seed, and the mean.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="best_config.yaml of a study, or any trial configuration.", metavar="FILE")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="'paper': the published settings, budget and protocol.")] = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    set_: options.Set = None,
) -> None:
    """Adapt a model with one configuration.

    Example: captune adapt --dataset digits --paradigm ssl --seed 0 --out adapted
    """
    console = Console()
    if preset not in (None, "paper"):
        raise UsageError("--preset must be 'paper'", got=f"'{preset}'")
    options.required(given.task, "dataset", "paradigm")
    dataset = given.task["dataset"]
    check_dataset_name(dataset)
    settings = options.settings(given.trial, set_)
    task_values = dict(given.task)
    if preset == "paper" and "protocol" not in task_values and _has_paper_protocol(dataset):
        task_values["protocol"] = "paper"
    task = TaskConfig.parse(task_values, where=options.COMMAND_LINE)
    name, trial_config = _trial_config(task, method, config, preset, settings)
    numbers = _seed_list(seeds, seed)
    with console.status("Loading PyTorch"):
        from captune.training.context import cell_notes
        from captune.training.trial import limit_threads
    if threads is not None:
        limit_threads(threads)
    notes = list(cell_notes(task))
    options.say_notes(console, notes)
    for number in numbers:
        _refuse_other_contents(out / f"seed{number}" if len(numbers) > 1 else out)
    results = [
        _one(
            task, name, trial_config, number, out / f"seed{number}" if len(numbers) > 1 else out, device, console, notes
        )
        for number in numbers
    ]
    _say(console, task, results, out)


def _trial_config(
    task: TaskConfig, method: str | None, file: Path | None, preset: str | None, given: dict[str, Any]
) -> tuple[str, TrialConfig]:
    values = read_yaml(file) if file is not None else {}
    named = str(values.pop("method", method or "cap"))
    if method is not None and method != named:
        raise UsageError("--method must be the one --config was made for", got=f"'{method}' and '{named}'", where=file)
    base = paper_config(named, task, given.get("tuning", values.get("tuning"))).model_dump()
    if preset == "paper":
        base |= _PAPER_BUDGET | {"flip_probability": 1.0}
    where = file if file is not None else "the command line"
    return named, method_named(named).config_class.parse({**base, **values, **given}, where=where)


def _has_paper_protocol(dataset: str) -> bool:
    return dataset in DATASETS and "paper" in DATASETS[dataset].protocols


def _seed_list(seeds: str | None, seed: int) -> list[int]:
    if seeds is None:
        return [seed]
    try:
        numbers = [int(part) for part in seeds.replace(",", " ").split()]
    except ValueError:
        raise UsageError("--seeds must be whole numbers, as '0,1,2'", got=f"'{seeds}'") from None
    if not numbers or len(set(numbers)) < len(numbers) or min(numbers) < 0:
        raise UsageError("--seeds must be different numbers from 0, as '0,1,2'", got=f"'{seeds}'")
    return numbers


def _refuse_other_contents(directory: Path) -> None:
    if (directory / "metrics.json").exists():
        raise UsageError(
            "--out must not hold a finished adaptation",
            got="a metrics.json",
            where=directory,
            next_step="Give another --out.",
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError("--out must be writable", got=error.strerror, where=directory) from None
    if not os.access(directory, os.W_OK):
        raise UsageError("--out must be writable", got="no permission", where=directory)


def _one(
    task: TaskConfig,
    method: str,
    config: TrialConfig,
    seed: int,
    out: Path,
    device: str,
    console: Console,
    notes: list[str],
) -> dict[str, Any]:
    from captune.training.evaluation import evaluate_trial
    from captune.training.labelling import write_predictions
    from captune.training.trial import CHECKPOINT, EPOCHS, TrialRun

    work = out / ".trial"
    run = TrialRun.open(
        task, config, algorithm=ALGORITHMS[method], seed=seed, directory=work, role=Role.REPORT, device=device
    )
    # What only the weight file and the class names themselves tell, such as the activation.
    more = [note for note in run.context.notes if note not in notes]
    options.say_notes(console, more)
    notes += more
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(f"{method} seed {seed}", total=run.num_epochs, completed=run.epoch)
        while not run.finished:
            record = run.run_epoch()
            interruption.check()
            progress.update(bar, completed=run.epoch, description=f"{method} seed {seed}, loss {record['loss']:.3f}")
    outcome = run.finish()
    metrics = evaluate_trial(task, Role.REPORT, work)
    write_predictions([work], task, Role.REPORT, out / PREDICTIONS_CSV)
    _write_epochs(work / EPOCHS, out / "epochs.csv")
    (work / CHECKPOINT).replace(out / CHECKPOINT)
    (work / "config.yaml").replace(out / "config.yaml")
    report = {
        "dataset": task.dataset,
        "paradigm": task.paradigm,
        "paradigm_means": PARADIGMS[task.paradigm],
        "method": method,
        "seed": seed,
        **{key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in metrics.items()},
        "num_parameters": outcome["num_parameters"],
        "class_names": list(run.context.task.class_names),
        "notes": notes,
    }
    atomic_write(out / "metrics.json", json.dumps(report, indent=2) + "\n")
    shutil.rmtree(work)
    return report


def _write_epochs(source: Path, target: Path) -> None:
    rows = [json.loads(line) for line in source.read_text().splitlines()] if source.exists() else []
    for row in rows:
        row.update({f"score_{name}": value for name, value in row.pop("scores").items()})
    columns = list(dict.fromkeys(key for row in rows for key in row)) or ["epoch"]
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _say(console: Console, task: TaskConfig, results: list[dict[str, Any]], out: Path) -> None:
    what = "harmonic mean of seen and unseen accuracy" if task.paradigm == "trzsl" else "accuracy"
    measured = all(result["metric"] is not None for result in results)
    for result in results:
        if not measured:
            console.print(f"seed {result['seed']}: {NO_LABELS}", highlight=False)
            continue
        console.print(
            f"seed {result['seed']}: {what} {100 * result['metric']:.2f} %, worst class "
            f"{100 * result['worst_class_recall']:.1f} %"
            + (f", over the {result['num_test']} images with a label" if _in_part(result) else ""),
            highlight=False,
        )
    if len(results) > 1 and measured:
        values = 100 * np.array([result["metric"] for result in results])
        console.print(
            f"mean of {len(results)} seeds: {values.mean():.2f} % (sd {values.std(ddof=1):.2f})", highlight=False
        )
    for line in published_results(task, results[0]["method"]):
        console.print(line, highlight=False)
    console.print(f"written: {out}", highlight=False, soft_wrap=True)


def _in_part(result: dict[str, Any]) -> bool:
    return bool(result["num_test"] < result["num_classified"])
