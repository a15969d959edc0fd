"""What `captune run --dry-run` shows: a study as it would be run, and what it would cost here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from captune.algorithms import method_named
from captune.algorithms.automatic import AUTO
from captune.config import StudyConfig, TrialConfig
from captune.cost.estimate import TrialCost, cards, estimate_trial_cost, num_confirmations
from captune.data.catalog import default_backbone
from captune.decisions.confirming import num_confirmed
from captune.durations import duration
from captune.plain_text import counted
from captune.seeding import derive_seed
from captune.space import Parameter, Space
from captune.studies.planning import Plan
from captune.studies.running import Settings
from captune.training.trial import limit_threads
from captune.tuning.allotment import search_block
from captune.tuning.samplers import Sampler
from captune.tuning.specs import CellInfo

_PREVIEW = 3


def show_plan(plan: Plan, console: Console) -> None:
    """Print a study as it would be run: its cell, its search, and the ranges beside the first configurations."""
    info, study = plan.info, plan.study
    task = study.task
    backbone, weights = default_backbone(task)
    console.print(Text.assemble((info.name, "bold"), f" → {plan.directory}"), soft_wrap=True)
    console.print(
        f"{info.num_classes} classes, pool {info.num_pool}, test {info.num_test}; "
        f"backbone {backbone}, weights {weights or 'embedded in captune'}, "
        f"tuning {info.base.tuning}, {info.base.epochs} epochs.\n"
        f"Selects by {info.criterion} ({info.criterion_help}) on {counted(info.num_scored, 'image')}; "
        f"reports {info.metric_name}.\n"
        f"Search: {counted(study.trials, 'trial')}, sampler {study.sampler}, scheduler {study.scheduler}, "
        f"seed {study.seed}; "
        f"then {_confirmed(study)} over {counted(study.confirm_seeds, 'seed')} each.",
        highlight=False,
    )
    for name, value in study.fixed.items():
        console.print(f"Fixed: {name} {_short(value)}", highlight=False)
    space, seed, count, what = plan.space, study.seed, min(_PREVIEW, study.trials), "trial"
    starts = plan.warm_starts
    if plan.space.screen is not None and info.screen_base is not None:
        console.print(
            f"Screens {study.num_screen_trials} configurations on frozen features first and promotes the best.",
            highlight=False,
        )
        space, seed, starts = plan.space.screen, derive_seed(study.seed, "screen"), ()
        info = replace(info, base=info.screen_base)
        count, what = min(_PREVIEW, study.num_screen_trials), "screened"
    first = first_configurations(space, info, study.sampler, seed, starts, count=count)
    table = Table("searched", "range", *(f"{what} {number}" for number in range(count)), box=None, pad_edge=False,
                  header_style="dim")  # fmt: skip
    for parameter in space.parameters:
        table.add_row(parameter.name, _range(parameter), *(_short(values.get(parameter.name, "")) for values in first))
    if space.parameters:
        console.print(table)


def _confirmed(study: StudyConfig) -> str:
    """Which configurations are confirmed, in words."""
    if study.method == AUTO:
        return "the best of each method"
    plateau = num_confirmed(study.trials, study.confirm_top) > min(study.confirm_top + 1, study.trials)
    others = ", the first and the one with the best neighbours" if plateau else " and the first"
    return f"the best {study.confirm_top}{others}"


def _range(parameter: Parameter) -> str:
    if parameter.kind == "categorical":
        return " | ".join(str(choice) for choice in parameter.choices)
    return f"{_short(parameter.low)} … {_short(parameter.high)}" + (" log" if parameter.log else "")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def show_cost(plan: Plan, settings: Settings, console: Console, *, num_studies: int = 1) -> None:
    """Print what the study would cost on this machine, measured on a step or two; studies share budgets evenly."""
    over_methods = plan.study.method == AUTO
    if not over_methods and not method_named(plan.study.method).trains:
        return
    at_once, card_bytes = _at_once(settings)
    screen: TrialCost | None = None
    if over_methods:
        costs = _by_method(plan)
        each = ", ".join(f"{name} {duration(cost.trial_seconds)}" for name, cost in costs.items())
        console.print(f"A trial of each method: {each}.", highlight=False)
        cost = TrialCost.mean(costs.values())
    else:
        cost, screen = _measured(plan, at_once)
    for sentence in cost.sentences(
        plan.study, concurrency=at_once, screen=screen, both_roles=plan.info.both_roles,
        num_methods=len(plan.info.methods), card_bytes=card_bytes,
        budget_seconds=_share_of_budget(settings, at_once, num_studies),
        name="The mean of them, if all have as many trials" if over_methods else "A trial",
    ):  # fmt: skip
        console.print(sentence, highlight=False)
    if settings.address is not None:
        console.print("Measured on this machine; the cluster's nodes may be faster or slower.", highlight=False)


def show_matrix(plans: Sequence[Plan], settings: Settings, console: Console) -> None:
    """Print several studies on one screen: one row per dataset, what each would take at most, and the total."""
    columns = list(dict.fromkeys((plan.study.task.paradigm, plan.study.method) for plan in plans))
    one_method = len({method for _, method in columns}) == 1
    headings = [paradigm if one_method else f"{paradigm} {method}" for paradigm, method in columns]
    table = Table("dataset", "classes", *headings, box=None, pad_edge=False, header_style="dim")
    at_once, _ = _at_once(settings)
    rows: dict[str, dict[tuple[str, str], str]] = {}
    total, num_trials = 0.0, 0
    for plan in plans:
        study, seconds = plan.study, 0.0
        trials = study.trials + num_confirmations(
            study, both_roles=plan.info.both_roles, num_methods=len(plan.info.methods)
        )
        screen: TrialCost | None = None
        if study.method == AUTO:
            seconds = TrialCost.mean(_by_method(plan).values()).study_seconds(trials, concurrency=at_once)
        elif method_named(study.method).trains:
            cost, screen = _measured(plan, at_once)
            seconds = cost.study_seconds(trials, concurrency=at_once)
            if screen is not None:
                seconds += screen.study_seconds(study.num_screen_trials, concurrency=at_once) - screen.prepare_seconds
        total, num_trials = total + seconds, num_trials + trials + study.num_screen_trials
        row = rows.setdefault(study.task.dataset, {})
        row[study.task.paradigm, study.method] = duration(seconds)
    classes = {plan.study.task.dataset: str(plan.info.num_classes) for plan in plans}
    for dataset, row in rows.items():
        table.add_row(dataset, classes[dataset], *(row.get(column, "") for column in columns))
    console.print(table)
    console.print(
        f"Total: {len(plans)} studies, {num_trials} trials, at most {duration(total)} on this machine, {at_once} at a "
        f"time (early stopping makes it less). Directories: {plans[0].directory.parent}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    budget = _share_of_budget(settings, at_once, 1)
    if budget is not None:
        fits = "they fit" if total <= budget else f"about {100 * budget / total:.0f} % of it fits"
        console.print(f"A budget of {duration(budget)} is shared by all: {fits}.", highlight=False)
    console.print("One of them in full: the same command with one dataset, paradigm and method.", highlight=False)


def _at_once(settings: Settings) -> tuple[int, int | None]:
    """How many trials run at once on this machine, and the bytes of its GPU, if it has one."""
    threads = max(1, int(settings.cpus_per_trial or 1))
    limit_threads(threads)
    at_once = settings.concurrency or max(1, (os.cpu_count() or 1) // threads)
    num_cards, card_bytes = cards()
    if num_cards and settings.concurrency is None and settings.gpus_per_trial != 0:
        at_once = max(1, int(num_cards / (settings.gpus_per_trial or 1.0) + 1e-9))
    return at_once, card_bytes if num_cards else None


def _by_method(plan: Plan) -> dict[str, TrialCost]:
    """Method → the cost of a trial of the configuration that it begins with, in a study over several methods."""
    return {
        name: estimate_trial_cost(plan.study.task, config, name, advice=False)
        for name, config in plan.info.methods.items()
    }


def _measured(plan: Plan, at_once: int) -> tuple[TrialCost, TrialCost | None]:
    study, info = plan.study, plan.info

    def measured(config: TrialConfig, num_trials: int) -> TrialCost:
        packed = search_block(num_trials, info.most_packed, workers=at_once)
        return estimate_trial_cost(study.task, config, study.method, packed=packed)

    screen = None if info.screen_base is None else measured(info.screen_base, study.num_screen_trials)
    return measured(info.base, study.trials), screen


def _share_of_budget(settings: Settings, at_once: int, num_studies: int) -> float | None:
    """Wall-clock seconds that each study has under the tighter of the two budgets; None without a budget."""
    limits = []
    if settings.time_budget is not None:
        limits.append(settings.time_budget)
    if settings.gpu_hours is not None:
        limits.append(3600 * settings.gpu_hours / (at_once * (settings.gpus_per_trial or 1.0)))
    return min(limits) / num_studies if limits else None


def first_configurations(
    space: Space, info: CellInfo, sampler_name: str, seed: int, starts: Sequence[dict[str, Any]] = (), *, count: int
) -> list[dict[str, Any]]:
    """The searched values of the first trials, as far as they do not depend on outcomes."""
    first = info.starting_values(space)
    found: list[dict[str, Any]] = [first]
    if not space.parameters:
        return found
    sampler = Sampler(sampler_name, space, seed=seed)
    sampler.take(0, first, suggested=False)
    for number in range(1, count):
        if number <= len(starts):
            found.append(info.starting_values(space, space.clip(starts[number - 1])))
            sampler.take(number, found[-1], suggested=False)
        else:
            found.append(sampler.suggest(number))
    return found
