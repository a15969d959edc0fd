"""What `captune run --dry-run` shows: a study as it would be run, and what it would cost here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import yaml
from rich.console import Console
from rich.text import Text

from captune.algorithms import method_named
from captune.algorithms.automatic import AUTO
from captune.cost.trial import cards, estimate_trial_cost
from captune.seeding import derive_seed
from captune.space import Space
from captune.studies.planning import Plan
from captune.studies.running import Settings
from captune.training.trial import limit_threads
from captune.tuning.samplers import Sampler
from captune.tuning.specs import CellInfo

_PREVIEW = 3


def show_plan(plan: Plan, console: Console) -> None:
    """A study as it would be run: settings, space, first configurations."""
    info, study = plan.info, plan.study
    console.print(Text.assemble((info.name, "bold"), f" → {plan.directory}"), soft_wrap=True)
    console.print(
        f"{info.num_classes} classes, pool {info.num_pool}, test {info.num_test}; selects by {info.criterion} "
        f"({info.criterion_help}) on {info.num_scored} images; reports {info.metric_name}",
        highlight=False,
    )
    console.print(_yaml({"study": study.model_dump(mode="json"), "space": plan.space.describe()}), highlight=False)
    if plan.space.screen is not None and info.screen_base is not None:
        screened = first_configurations(
            plan.space.screen, replace(info, base=info.screen_base), study.sampler, derive_seed(study.seed, "screen"),
            count=min(_PREVIEW, study.num_screen_trials),
        )  # fmt: skip
        console.print(_yaml({"first screened configurations": screened}), highlight=False)
        console.print("The search begins with the first configuration and what the screen promotes.", highlight=False)
        return
    first = first_configurations(
        plan.space, info, study.sampler, study.seed, plan.warm_starts, count=min(_PREVIEW, study.trials)
    )
    console.print(_yaml({"first configurations": first}), highlight=False)


def show_cost(plan: Plan, settings: Settings, console: Console, *, num_studies: int = 1) -> None:
    """What the study would cost on this machine, measured on a step or two; studies share budgets evenly."""
    if plan.study.method == AUTO:
        console.print("What a study over several methods costs is not estimated.", highlight=False)
        return
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
        card_bytes=card_bytes if num_cards else None, budget_seconds=_share_of_budget(settings, at_once, num_studies),
    ):  # fmt: skip
        console.print(sentence, highlight=False)
    if settings.address is not None:
        console.print("Measured on this machine; the cluster's nodes may be faster or slower.", highlight=False)


def _share_of_budget(settings: Settings, at_once: int, num_studies: int) -> float | None:
    """Seconds on the clock that one of the studies has, by the narrower of the two budgets."""
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


def _yaml(values: dict[str, Any]) -> str:
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
