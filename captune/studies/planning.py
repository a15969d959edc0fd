"""Prepare a study: describe its cell, resolve its search space, gather its first configurations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from captune.algorithms import method_named
from captune.algorithms.automatic import AUTO, methods_for
from captune.algorithms.configs import BlendConfig
from captune.conditions import METHOD
from captune.config import StudyConfig, read_yaml
from captune.errors import ConfigError, DataError, UsageError
from captune.plain_text import typed_path
from captune.records import JOURNAL, Phase, StudyRecord, read_journal
from captune.records.layout import STUDY
from captune.space import Space, load_space, space_file
from captune.tuning.agenda import WARM_STARTS
from captune.tuning.allotment import PACKED_SEEDS, PACKED_TRIALS
from captune.tuning.describe import describe_cell
from captune.tuning.header import read_study
from captune.tuning.open_study import with_storage
from captune.tuning.specs import CellInfo


@dataclass(frozen=True)
class Plan:
    """A study that is ready to be opened.

    Attributes:
        directory: where it is written.
        study: its settings.
        info: facts of its cell.
        space: the search space, resolved for the cell.
        warm_starts: configurations to try after the first.
        after: directory name of the study beside it whose best configurations are tried first.
    """

    directory: Path
    study: StudyConfig
    info: CellInfo
    space: Space
    warm_starts: tuple[dict[str, Any], ...] = ()
    after: str | None = None


def plan_study(
    study: StudyConfig,
    directory: Path,
    *,
    fork: str | None = None,
    warm_starts: Sequence[Path] = (),
    space: Space | None = None,
    resume: bool = False,
) -> Plan:
    """Plan a new study, or one that is continued by the command that began it.

    Args:
        study: its settings.
        directory: where it is written.
        fork: a name; the new study is then `<directory>-<fork>` and starts from the best configurations of the study in
            `directory`.
        warm_starts: configurations to try first: YAML files, or directories of studies, whose best are taken.
        space: the resolved search space; None: the study's space file is read and resolved.
        resume: whether a study in `directory` is continued. It keeps the space that it began with, unless the user
            names a file, and its numbers of trials and seeds, unless the user gives others: what comes with captune
            may have changed since.

    Raises:
        UsageError: there are settings that the method or the paradigm does not have.
        DataError: the cell cannot be built.
    """
    tunable = study.method == AUTO or method_named(study.method).tunable
    source = space_file(study.space, study.method) if tunable else None
    info = describe_cell(study, _methods_in(study, source))
    begun = None
    if resume and fork is None and (directory / STUDY).is_file():
        begun, recorded = read_study(directory)
        if space is None and study.space is None and (begun.method, begun.fixed) == (study.method, study.fixed):
            space = recorded
    study = with_packed_budget(study, info) if begun is None else _with_budget_of(begun, study)
    if source is None:
        space = Space((), source=study.method)
    elif space is None:
        _refuse_space_of_another_method(source, study.method)
        space = load_space(source, info.base, fixed=study.fixed, class_size=info.class_size, methods=info.methods)
        if info.screen_base is not None:
            screen = load_space(source, info.screen_base, fixed=study.fixed, class_size=info.class_size)
            space = replace(space, screen=screen)
    starts = [{METHOD: name} for name in list(info.methods)[1:]]
    starts += [one for path in warm_starts for one in (best_configs(path) if path.is_dir() else [read_yaml(path)])]
    if fork is not None:
        starts = best_configs(directory) + starts
        if "/" in fork or "\0" in fork:
            raise UsageError("--fork must be a name without a slash", got=f"'{fork}'", where=directory)
        directory = directory.with_name(f"{directory.name}-{fork}")
    return Plan(directory, study, info, space, tuple(starts))


def with_packed_budget(study: StudyConfig, info: CellInfo) -> StudyConfig:
    """The study with more search trials and confirmation seeds where packs make them cheap and the user gave none.

    If the user asked for fewer trials than that, the seeds are not raised either. study.yaml holds both numbers, so a
    study that is continued or repeated keeps them.
    """
    # A study over methods rarely proposes the same method twice in a row, and a pack holds one method only. A blend
    # already trains several members.
    one = study.method != AUTO and not isinstance(info.base, BlendConfig)
    packs = one and method_named(study.method).packs and study.task.kernels == "auto"
    if not packs or info.base.tuning != "features" or not info.cheap_in_packs:
        return study
    said = study.model_fields_set
    changes = {} if "trials" in said else {"trials": PACKED_TRIALS}
    if "confirm_seeds" not in said and ("trials" not in said or study.trials >= PACKED_TRIALS):
        changes["confirm_seeds"] = PACKED_SEEDS
    return study.model_copy(update=changes)


def _refuse_space_of_another_method(file: Path, method: str) -> None:
    named = read_yaml(file).get("method")
    if named is not None and named != method:
        raise ConfigError(
            "a search space must be one of the study's method", got=f"one of '{named}' for a study of '{method}'",
            where=file, next_step=f"Say --method {named}, or leave --space out for the space of {method}.",
        )  # fmt: skip


def _with_budget_of(begun: StudyConfig, study: StudyConfig) -> StudyConfig:
    said = study.model_fields_set
    kept = {name: getattr(begun, name) for name in ("trials", "confirm_seeds") if name not in said}
    return study.model_copy(update=kept)


def plan_to_continue(directory: Path, *, trials: int | None = None, storage: str | None = None) -> Plan:
    """Plan to continue the study in a directory.

    Args:
        directory: where it lies.
        trials: the new total of search trials; None: as before.
        storage: address of the Optuna copy's database, which must be given again if it has a password.

    Raises:
        StudyError: there is no study.
        UsageError: the password is needed and was not given.
    """
    study, space = read_study(directory)
    if trials is not None:
        study = study.model_copy(update={"trials": trials})
    study = with_storage(study, storage)
    methods = next((p.choices for p in space.parameters if p.name == METHOD), ()) if study.method == AUTO else ()
    try:
        return Plan(directory, study, describe_cell(study, methods), space)
    except DataError as error:
        kind, _, place = study.task.dataset.partition(":")
        if place and not Path(place).exists():
            again = f"captune run {typed_path(directory / STUDY)} --dataset {kind}:NEW --out {typed_path(directory)}"
            told = [error.next_step, f"If the data were moved: {again} --resume"]
            error.next_step = " ".join(filter(None, told))
        raise


def _methods_in(study: StudyConfig, source: Path | None) -> tuple[str, ...]:
    """The methods that the space of a study over several methods names and that fit the cell; () for other studies.

    Raises:
        ConfigError: the space names no methods.
    """
    if study.method != AUTO or source is None:
        return ()
    parameters = read_yaml(source).get("parameters")
    entry = parameters.get(METHOD) if isinstance(parameters, dict) else None
    names = entry.get("choices") if isinstance(entry, dict) else None
    if not isinstance(names, list) or not names:
        raise ConfigError(
            "a space over methods must name them", got=f"{entry!r}", where=source,
            next_step="Begin it with method: {type: categorical, choices: [grip, cap]}.",
        )  # fmt: skip
    return methods_for(study.task, [str(name) for name in names])


def best_configs(directory: Path) -> list[dict[str, Any]]:
    """The configurations of the three best search trials of a study on disk, best first.

    Raises:
        RecordError: no journal.
    """
    record = StudyRecord(directory, read_journal(directory / JOURNAL))
    finished = [trial for trial in record.of_phase(Phase.SEARCH) if trial.scored]
    ranked = sorted(finished, key=lambda trial: (-(trial.score or 0.0), trial.key))
    return [trial.config for trial in ranked[:WARM_STARTS]]
