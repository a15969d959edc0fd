"""The model of a study: the one its trials saved, or one adapted with its best configuration when first needed."""

from __future__ import annotations

import sys
from pathlib import Path

import typer
from rich.console import Console

from captune.adapting import adapt_once, advice_against, check_out, configuration
from captune.cli.console import labelled
from captune.errors import StudyError, UsageError
from captune.records.layout import ADAPTED, BEST_CONFIG, CHECKPOINT
from captune.tuning.header import read_study


def model_of_study(study: Path, *, yes: bool, device: str, console: Console) -> Path:
    """The folder of a study's model: what it advises as its trials saved it; adapted where nothing was saved.

    Args:
        study: the study's directory.
        yes: adapt without asking.
        device: auto, cpu, cuda or cuda:N.
        console: where to ask and tell.

    Raises:
        StudyError: the study has not chosen yet.
        UsageError: it would have to be adapted, and nobody can be asked.
        typer.Abort: the answer was no.
    """
    best, place = study / BEST_CONFIG, study / ADAPTED
    if not best.is_file():
        raise StudyError(
            "a study must have ended before its model is used", got=f"no {BEST_CONFIG}", where=study,
            next_step=f"Go on with it: captune resume {study}",
        )  # fmt: skip
    if (place / CHECKPOINT).is_file():
        if (place / BEST_CONFIG).read_bytes() != best.read_bytes():
            raise StudyError(
                "the model in a study's directory must be of its best configuration",
                got="one of an earlier choice", where=place, next_step=f"Remove {place}, and it is adapted anew.",
            )  # fmt: skip
        return place
    if (study / CHECKPOINT).is_file():
        return study
    settings, _ = read_study(study)
    method, trial, role = configuration(settings.task, config=best)
    against = advice_against(best)
    if against is not None:
        console.print(labelled("warning", f"the study advised not to adapt: {against}", "yellow"), soft_wrap=True)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(
                "a study's model must be adapted before it predicts", got="none yet", where=study,
                next_step="Add --yes to adapt it now with the best configuration.",
            )  # fmt: skip
        typer.confirm(
            f"{study.name} has no model yet. Adapt one now with its best configuration?", abort=True, err=True
        )
    check_out(place)
    (place / BEST_CONFIG).write_bytes(best.read_bytes())
    with console.status(f"Adapting {study.name} with its best configuration"):
        adapt_once(settings.task, method, trial, place, role=role, device=device)
    console.print(f"Adapted with the best configuration: {place}", highlight=False, soft_wrap=True)
    return place
