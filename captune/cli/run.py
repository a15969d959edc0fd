"""captune run: studies over configurations, for one cell or a matrix of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from captune.algorithms import ALGORITHMS, method_named
from captune.benchmark.cost import cards, estimate_trial_cost
from captune.cli import options
from captune.cli.studies import Plan, Settings, execute
from captune.config import PARADIGMS, SCREENED_A_TRIAL, StudyConfig, TaskConfig, TrialConfig, read_yaml
from captune.data.catalog import DATASETS
from captune.errors import UsageError
from captune.records import COMPLETE, JOURNAL, SEARCH, read_journal
from captune.seeding import derive_seed
from captune.space import Space, load_space, space_file
from captune.training.trial import limit_threads
from captune.tuning.agenda import WARM_STARTS
from captune.tuning.describe import cell_name, describe_cell
from captune.tuning.samplers import Sampler
from captune.tuning.telemetry import check_loggers

_PREVIEW = 3
_PARADIGM_HELP = "; ".join(f"{key} = {text}" for key, text in PARADIGMS.items())


def run(
    dataset: Annotated[str, typer.Option(help="Catalogue key, folder:DIR, csv:FILE, features:FILE; a,b or all.")],
    paradigm: Annotated[str, typer.Option(help=f"{_PARADIGM_HELP} (alias: transductive); a,b or all.")],
    method: Annotated[str, typer.Option(help=f"{', '.join(ALGORITHMS)}; a,b or all.")] = "cap",
    trials: Annotated[int, typer.Option(help="Search trials, the paper's configuration included.")] = 12,
    space: Annotated[Path | None, typer.Option(help="Search-space YAML; default: the method's.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The study's directory (several studies: their parent); default runs/NAME.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study in the directory.")] = False,
    fork: Annotated[
        str | None, typer.Option(help="Start beside the study in the directory, from its best configurations.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Root seed of the study.")] = 0,
    sampler: Annotated[str, typer.Option(help="tpe, random, gp, qmc, cmaes or nsga2.")] = "tpe",
    scheduler: Annotated[str, typer.Option(help="asha (stops hopeless trials) or none.")] = "asha",
    screen: Annotated[
        str, typer.Option(help="features: first rank configurations on frozen features, promote the best; or none.")
    ] = "none",
    screen_trials: Annotated[
        int | None, typer.Option(help=f"Configurations to screen; default: {SCREENED_A_TRIAL} a search trial.")
    ] = None,
    select_by: Annotated[str, typer.Option(help="Selection criterion; auto: the paradigm's default.")] = "auto",
    objectives: Annotated[str, typer.Option(help="single, or balance (adds pseudolabel balance).")] = "single",
    confirm_top: Annotated[int, typer.Option(help="Best configurations confirmed over fresh seeds.")] = 3,
    confirm_seeds: Annotated[int, typer.Option(help="Fresh seeds a confirmed configuration.")] = 3,
    stress: Annotated[bool, typer.Option("--stress", help="Also run the choice on harder pools.")] = False,
    warm_start: Annotated[
        str | None,
        typer.Option(help="Configurations to try first: FILE or RUN directory (a,b), or 'cells': from cell to cell."),
    ] = None,
    concurrency: Annotated[int | None, typer.Option(help="Runs at once; default: what fits.")] = None,
    cpus_per_trial: Annotated[float | None, typer.Option(help="CPUs (threads) of a run; default 1.")] = None,
    gpus_per_trial: Annotated[float | None, typer.Option(help="GPUs of a run; 0.25 puts four on one.")] = None,
    memory_per_trial: Annotated[float | None, typer.Option(min=0.1, help="GB of a run; default: as measured.")] = None,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster: auto, HOST:PORT or ray://…")] = None,
    storage: Annotated[str | None, typer.Option(help="Database for the Optuna copy; default: a file.")] = None,
    max_failures: Annotated[int, typer.Option(help="Times a crashed run is tried again.")] = 1,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="One run at a time, repeatable.")] = False,
    no_dashboard: Annotated[bool, typer.Option("--no-dashboard", help="Start no Ray dashboard.")] = False,
    dashboard_host: Annotated[
        str | None, typer.Option(help="Where the dashboard listens; default: this machine only.")
    ] = None,
    logger: Annotated[str, typer.Option(help="tensorboard, mlflow, wandb (a,b) or none.")] = "tensorboard",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be run, and run nothing.")] = False,
    data_root: options.DataRoot = None,
    backbone: options.Backbone = None,
    pretrained: options.Pretrained = None,
    precision: options.Precision = "fp32",
    kernels: options.Kernels = "auto",
    protocol: options.Protocol = "coop",
    shots: options.Shots = None,
    split_seed: options.SplitSeed = 500,
    pool_imbalance: options.PoolImbalance = 1.0,
    open_set_fraction: options.OpenSet = 0.0,
    shot_noise: options.ShotNoise = 0.0,
    template: options.Template = None,
    class_names: options.ClassNames = None,
    descriptions: options.Descriptions = None,
    tuning: options.Tuning = None,
    epochs: options.Epochs = None,
    steps_per_epoch: options.StepsPerEpoch = None,
    batch_size: options.BatchSize = None,
    micro_batch: options.MicroBatch = None,
) -> None:
    """Search for the configuration that adapts best, confirm it over seeds, report on sealed labels.

    Example: captune run --dataset digits --paradigm ul
    """
    console = Console(file=sys.stdout)
    fixed = options.trial_values(
        tuning=tuning, epochs=epochs, steps_per_epoch=steps_per_epoch, batch_size=batch_size, micro_batch=micro_batch
    )
    loggers = check_loggers(logger)
    cells = _matrix(dataset, paradigm, method)
    if space is not None and len({name for _, _, name in cells}) > 1:
        raise UsageError("--space must be given for one method", got=f"--method {method}")
    plans: list[Plan] = []
    for key, kind, name in cells:
        task = options.task_config(
            kind, dataset=key, data_root=data_root, backbone=backbone, pretrained=pretrained, precision=precision,
            kernels=kernels,
            protocol=protocol, shots=shots, split_seed=split_seed, pool_imbalance=pool_imbalance,
            open_set_fraction=open_set_fraction, shot_noise=shot_noise, template=template,
            class_names=class_names, descriptions=descriptions,
        )  # fmt: skip
        values = {
            "task": task.model_dump(), "method": name, "space": space, "fixed": fixed, "trials": trials, "seed": seed,
            "sampler": sampler, "scheduler": scheduler, "screen": screen, "screen_trials": screen_trials,
            "select_by": select_by, "objectives": objectives,
            "confirm_top": confirm_top, "confirm_seeds": confirm_seeds, "stress": stress,
            "max_failures": max_failures, "deterministic": deterministic, "storage": storage,
        }  # fmt: skip
        study = StudyConfig.parse(values, where="the command line")
        plan = plan_of(study, _directory(out, task, name, len(cells)), fork=fork, warm_start=warm_start)
        if warm_start == "cells" and plans:
            plan = replace(plan, after=plans[-1].directory.name)
        plans.append(plan)
    settings = Settings(
        address=address, concurrency=concurrency, cpus_per_trial=cpus_per_trial, gpus_per_trial=gpus_per_trial,
        memory_per_trial=memory_per_trial, dashboard=not no_dashboard, dashboard_host=dashboard_host,
        loggers=loggers, resume=resume,
    )  # fmt: skip
    if dry_run:
        for plan in plans:
            _show(plan, console)
            _show_cost(plan, settings, console)
        return
    execute(plans, settings, console)


def _matrix(dataset: str, paradigm: str, method: str) -> list[tuple[str, str, str]]:
    """Every asked combination, once, in the order asked."""
    datasets = list(DATASETS) if dataset == "all" else names_in(dataset, "--dataset")
    paradigms = (
        list(PARADIGMS)
        if paradigm == "all"
        else [options.resolve_paradigm(name) for name in names_in(paradigm, "--paradigm")]
    )
    tunable = [name for name, row in ALGORITHMS.items() if row.tunable and not row.unsealed]
    methods = tunable if method == "all" else [method_named(name).name for name in names_in(method, "--method")]
    return list(dict.fromkeys((d, p, m) for d in datasets for p in paradigms for m in methods))


def names_in(text: str, option: str) -> list[str]:
    """The parts of an a,b option.

    Raises:
        UsageError: there is none.
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise UsageError(f"{option} must name something", got=f"'{text}'")
    return names


def _directory(out: Path | None, task: TaskConfig, method: str, num_cells: int) -> Path:
    name = cell_name(task.dataset, task.paradigm, method)
    if out is None:
        return Path("runs").absolute() / name
    out = out.expanduser().absolute()
    return out if num_cells == 1 else out / name


def plan_of(study: StudyConfig, directory: Path, *, fork: str | None = None, warm_start: str | None = None) -> Plan:
    """A study ready to be opened: its cell described, its space resolved, its first configurations gathered."""
    info = describe_cell(study)
    source = space_file(study.space, study.method) if method_named(study.method).tunable else None
    space = Space((), source=study.method)
    if source is not None:
        space = load_space(source, info.base, fixed=study.fixed, class_size=info.class_size)
        if info.screen_base is not None:
            screen = load_space(source, info.screen_base, fixed=study.fixed, class_size=info.class_size)
            space = replace(space, screen=screen)
    starts = [] if warm_start in (None, "cells") else _warm_starts(str(warm_start))
    if fork is not None:
        starts = _best_of(directory) + starts
        directory = directory.with_name(f"{directory.name}-{fork}")
    return Plan(directory, study, info, space, tuple(starts))


def _warm_starts(text: str) -> list[dict[str, Any]]:
    starts = []
    for name in names_in(text, "--warm-start"):
        path = Path(name).expanduser()
        starts += _best_of(path) if path.is_dir() else [read_yaml(path)]
    return starts


def _best_of(directory: Path) -> list[dict[str, Any]]:
    """The best configurations of a study on disk, by selection score, best first."""
    events = read_journal(directory / JOURNAL)
    planned = {event["key"]: event for event in events if event["event"] == "planned" and event["phase"] == SEARCH}
    scores = {
        event["key"]: event["score"]
        for event in events
        if event["event"] == "finished" and event["state"] == COMPLETE and event.get("score") is not None
    }
    ranked = sorted((key for key in planned if key in scores), key=lambda key: (-scores[key], key))
    return [planned[key]["config"] for key in ranked[:WARM_STARTS]]


def _show(plan: Plan, console: Console) -> None:
    """A study as it would be run: settings, space, first configurations."""
    info, study = plan.info, plan.study
    console.print(f"[bold]{info.name}[/] → {plan.directory}", highlight=False, soft_wrap=True)
    console.print(
        f"{info.num_classes} classes, pool {info.num_pool}, test {info.num_test}; selects by {info.criterion} "
        f"({info.criterion_help}) on {info.num_scored} images; reports {info.metric_name}",
        highlight=False,
    )
    console.print(_yaml({"study": study.model_dump(mode="json"), "space": plan.space.describe()}), highlight=False)
    if plan.space.screen is not None and info.screen_base is not None:
        screened = first_configurations(
            plan.space.screen, info.screen_base, study.sampler, derive_seed(study.seed, "screen"),
            count=min(_PREVIEW, study.num_screen_trials),
        )  # fmt: skip
        console.print(_yaml({"first screened configurations": screened}), highlight=False)
        console.print("The search begins with the paper's configuration and what the screen promotes.", highlight=False)
        return
    first = first_configurations(
        plan.space, info.base, study.sampler, study.seed, plan.warm_starts, count=min(_PREVIEW, study.trials)
    )
    console.print(_yaml({"first configurations": first}), highlight=False)


def _show_cost(plan: Plan, settings: Settings, console: Console) -> None:
    """What the study would cost on this machine, measured on a step or two."""
    if not method_named(plan.study.method).trains:
        return
    threads = max(1, int(settings.cpus_per_trial or 1))
    limit_threads(threads)
    at_once = settings.concurrency or max(1, (os.cpu_count() or 1) // threads)
    num_cards, card_bytes = cards()
    if num_cards and settings.concurrency is None and settings.gpus_per_trial != 0:
        at_once = max(1, int(num_cards / (settings.gpus_per_trial or 1.0) + 1e-9))
    task, method, info = plan.study.task, plan.study.method, plan.info
    cost = estimate_trial_cost(task, info.base, method)
    screen = estimate_trial_cost(task, info.screen_base, method) if info.screen_base is not None else None
    for sentence in cost.sentences(
        plan.study, concurrency=at_once, screen=screen, both_roles=info.both_roles,
        card_bytes=card_bytes if num_cards else None,
    ):  # fmt: skip
        console.print(sentence, highlight=False)
    if settings.address is not None:
        console.print("Measured on this machine; the cluster's nodes may be faster or slower.", highlight=False)


def first_configurations(
    space: Space, base: TrialConfig, sampler_name: str, seed: int, starts: Sequence[dict[str, Any]] = (), *, count: int
) -> list[dict[str, Any]]:
    """The searched values of the first trials, as far as they do not depend on outcomes."""
    paper = {parameter.name: getattr(base, parameter.name) for parameter in space.parameters}
    found: list[dict[str, Any]] = [paper]
    if not space.parameters:
        return found
    sampler = Sampler(sampler_name, space, seed=seed)
    sampler.take(0, paper, suggested=False)
    for number in range(1, count):
        if number <= len(starts):
            found.append(paper | space.clip(starts[number - 1]))
            sampler.take(number, found[-1], suggested=False)
        else:
            found.append(sampler.suggest(number))
    return found


def _yaml(values: dict[str, Any]) -> str:
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True)).replace("[", r"\[")
