"""captune adapt: one trial (or one per seed) without Ray: train, write a checkpoint, read the test labels, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress, TaskID

from captune.adapting import adapt_seeds, advice_against, check_out, configuration, held_out_note
from captune.algorithms import ALGORITHMS
from captune.algorithms.preset import preset_task
from captune.cli import options
from captune.cli.console import labelled, plain_console, say
from captune.cli.paper import check_preset, check_show, paper_datasets_in, show_preset
from captune.config import TaskConfig, TrialConfig, refuse_unused_shots
from captune.data.catalog import check_dataset_name, published_results
from captune.data.paradigms import NO_LABELS
from captune.errors import UsageError
from captune.plain_text import typed_path
from captune.records import Role

if TYPE_CHECKING:
    from captune.training.trial import TrainingTrial


@options.with_options("task", "trial")
def adapt(
    given: options.Given,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory for checkpoint.safetensors, metrics.json and epochs.csv.", metavar="DIR"),
    ] = None,
    method: Annotated[str | None, typer.Option(help=f"Method: {', '.join(ALGORITHMS)}; default cap.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the training.", min=0)] = 0,
    seeds: Annotated[
        str | None, typer.Option(help="Several seeds, as '0,1,2' or 0 1 2: one directory per seed, and the mean.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="best_config.yaml of a study, or any trial configuration.", metavar="FILE")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="paper: the published settings, prompts, splits and budget.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", metavar="", help="Print the preset's settings and end.")] = False,
    device: options.Device = "auto",
    threads: options.Threads = None,
    set_: options.Set = None,
) -> None:
    """Adapt a model with one configuration.

    Example: captune adapt --dataset digits --paradigm ssl --seed 0 --out adapted
    """
    console = plain_console()
    if preset is not None:
        check_preset(preset)
    if show:
        check_show(preset)
        show_preset(paper_datasets_in(given.task), console)
        return
    options.required(given.task, "dataset", "paradigm")
    if out is None:
        raise UsageError("--out must name a directory", got="none")
    dataset = given.task["dataset"]
    check_dataset_name(dataset)
    settings = options.settings(given.trial, set_)
    task_values = preset_task(dataset, given.task) if preset == "paper" else dict(given.task)
    task = TaskConfig.parse(task_values, where=options.COMMAND_LINE)
    refuse_unused_shots(task)
    name, trial_config, role = configuration(
        task, method=method, config=config, settings=settings, paper=preset == "paper", where=options.COMMAND_LINE
    )
    numbers = _seed_list(seeds, seed)
    with console.status("Loading PyTorch"):
        from captune.training.notes import cell_notes
        from captune.training.trial import limit_threads
    if threads is not None:
        limit_threads(threads)
    notes = [*cell_notes(task), *held_out_note(role)]
    options.say_notes(console, notes)
    against = None if config is None else advice_against(config)
    if against is not None:
        say(console, labelled("warning", f"the study advised not to adapt: {against}", "yellow"))
    places = {number: out / f"seed{number}" if len(numbers) > 1 else out for number in numbers}
    for place in places.values():
        check_out(place)
    results = _train(console, task, name, trial_config, places, role=role, device=device, notes=notes)
    _say(console, task, results, out)


def _train(
    console: Console, task: TaskConfig, method: str, config: TrialConfig, places: dict[int, Path], *, role: Role,
    device: str, notes: list[str],
) -> list[dict[str, Any]]:  # fmt: skip
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bars: dict[int, TaskID] = {}

        def opened(trial: TrainingTrial) -> None:
            # Notes on settings that follow from the weight file and the class names, such as the activation.
            more = [note for note in trial.context.notes if note not in notes]
            options.say_notes(console, more)
            notes.extend(more)
            what = f"{method} seed {trial.seed}"
            bars[trial.seed] = progress.add_task(what, total=trial.num_epochs, completed=trial.epoch)

        def trained(trial: TrainingTrial, record: dict[str, Any]) -> None:
            what = f"{method} seed {trial.seed}, loss {record['loss']:.3f}"
            progress.update(bars[trial.seed], completed=trial.epoch, description=what)

        return adapt_seeds(
            task, method, config, places, role=role, device=device, notes=notes, opened=opened, trained=trained
        )


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


def _say(console: Console, task: TaskConfig, results: list[dict[str, Any]], out: Path) -> None:
    what = "harmonic mean of seen and unseen accuracy" if task.paradigm == "trzsl" else "accuracy"
    measured = all(result["metric"] is not None for result in results)
    for result in results:
        if not measured:
            console.print(f"seed {result['seed']}: {NO_LABELS}", highlight=False)
            continue
        console.print(
            f"seed {result['seed']}: {what} {100 * result['metric']:.2f} %{_beside_zero_shot(result)}, worst class "
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
    model = out if len(results) == 1 else out / f"seed{results[0]['seed']}"
    new = ("features", "NEW.npz") if task.dataset.startswith("features:") else ("images", "PHOTOS")
    command = f"captune predict {typed_path(model)} {new[1]}"
    console.print(f"Classify new {new[0]} with it: {command}", highlight=False, soft_wrap=True)


def _beside_zero_shot(result: dict[str, Any]) -> str:
    if result["zero_shot"] is None:
        return ""
    before = result["zero_shot"]["metric"]
    return f" (zero-shot {100 * before:.2f} %, {100 * (result['metric'] - before):+.2f} points)"


def _in_part(result: dict[str, Any]) -> bool:
    return bool(result["num_test"] < result["num_classified"])
