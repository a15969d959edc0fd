"""The model of a study: the one its trials saved, or one adapted with its best configuration when first needed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from captune.adapting import adapt_once, advice_against, check_out, configuration
from captune.cli.console import labelled, plain_console, say
from captune.errors import StudyError, UsageError, did_you_mean_path
from captune.plain_text import resume_command, typed_path
from captune.records.layout import ADAPTED, BEST_CONFIG, OF_A_STUDY, STUDY
from captune.tuning.header import read_study

Yes = Annotated[
    bool, typer.Option("--yes", metavar="", help="With a study: adapt its best configuration without asking.")
]


def model_at(place: Path, *, yes: bool, device: str) -> Path:
    """The path of a model that was named by its checkpoint, its folder, an export or a study's directory.

    Args:
        place: what was named; a file of a study's directory, such as its study.yaml, names the study.
        yes, device: as for `model_of_study`.

    Raises:
        UsageError: nothing is there; the nearest path is named.
        CaptuneError: as `model_of_study`, for a study.
    """
    if place.name in OF_A_STUDY and place.is_file() and (place.parent / STUDY).is_file():
        place = place.parent
    if (place / STUDY).is_file():
        return model_of_study(place, yes=yes, device=device, console=plain_console(stderr=True))
    if not place.exists():
        raise UsageError("an adapted model must be there", got="none", where=place, next_step=did_you_mean_path(place))
    return place


def model_of_study(study: Path, *, yes: bool, device: str, console: Console) -> Path:
    """The folder of a study's model: what it advises, as its trials saved it; adapted now if nothing was saved.

    Args:
        study: the study's directory.
        yes: adapt without asking.
        device: auto, cpu, cuda or cuda:N.
        console: where to ask and tell.

    Raises:
        StudyError: the study has not chosen yet.
        CheckpointError: the model there is of an earlier choice.
        UsageError: it would have to be adapted, and nobody can be asked.
        typer.Abort: the answer was no.
    """
    best, place = study / BEST_CONFIG, study / ADAPTED
    if not best.is_file():
        raise StudyError(
            "a study must have ended before its model is used", got=f"no {BEST_CONFIG}", where=study,
            next_step=f"Go on with it: {resume_command(study)}",
        )  # fmt: skip
    from captune.adapted.opening import model_in  # brings PyTorch

    model = model_in(study)
    if model is not None:
        return model.parent
    settings, _ = read_study(study)
    method, trial, role = configuration(settings.task, config=best)
    against = advice_against(best)
    if against is not None:
        say(console, labelled("warning", f"the study advised not to adapt: {against}", "yellow"))
    if not os.access(place if place.exists() else study, os.W_OK):
        from captune.results.answer import task_options  # brings pandas and scipy, which nothing else here needs

        raise UsageError(
            "a study's directory must be writable for the model that is adapted in it", got="no permission",
            where=study,
            next_step=f"Adapt elsewhere: captune adapt {' '.join(task_options(settings.task.model_dump(mode='json')))} "
            f"--config {typed_path(best)} --out DIR",
        )  # fmt: skip
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(
                "a study's model must be adapted before it is used", got="none yet", where=study,
                next_step="Add --yes to adapt it now with the best configuration.",
            )  # fmt: skip
        typer.confirm(
            f"{study.name} has no model yet. Adapt one now with its best configuration?", abort=True, err=True
        )
    check_out(place)
    place.mkdir(parents=True, exist_ok=True)
    (place / BEST_CONFIG).write_bytes(best.read_bytes())
    with console.status(f"Adapting {study.name} with its best configuration"):
        adapt_once(settings.task, method, trial, place, role=role, device=device)
    console.print(f"Adapted with the best configuration: {place}", highlight=False, soft_wrap=True)
    return place
