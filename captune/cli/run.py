"""captune run: studies over configurations, for one cell or for many."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from captune.algorithms import ALGORITHMS, refuse_unfit
from captune.algorithms.automatic import AUTO, check_method, starting_configs
from captune.algorithms.preset import preset_task
from captune.cli.console import plain_console
from captune.cli.options import COMMAND_LINE, Given, Set, names_in, required, resolve_paradigm, settings, with_options
from captune.cli.paper import check_show, paper_datasets_in, show_preset
from captune.config import (
    PARADIGMS,
    USES_SHOTS,
    MachineConfig,
    StudyConfig,
    TaskConfig,
    read_yaml,
    refuse_unused_shots,
)
from captune.data.catalog import DATASETS, check_dataset_name, data_root, is_found, paper_datasets
from captune.decisions.criteria import resolve_criterion
from captune.errors import ConfigError, UsageError
from captune.records.layout import STUDY
from captune.tuning.allotment import refuse_several_gpus
from captune.tuning.answering import check_answers
from captune.tuning.loggers import check_loggers

_PLACE = "The study's directory"
_SEVERAL = " (several: a,b or all)"
_DATASETS = " (several: a,b; all; paper: the paper's six in its splits; found: what is on disk)"


@with_options(
    "task", "study", "trial", "machine",
    notes={
        "dataset": _DATASETS,
        "paradigm": _SEVERAL,
        "method": f"; auto: one study over several, and their ensemble: {', '.join(ALGORITHMS)}{_SEVERAL}",
    },
)  # fmt: skip
def run(
    given: Given,
    study_file: Annotated[
        Path | None, typer.Argument(help="study.yaml that a study wrote; options given beside it take precedence.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="The same file as an option.", metavar="FILE", rich_help_panel=_PLACE)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Directory of the study (of several studies: their parent); default runs/NAME.",
            metavar="DIR", rich_help_panel=_PLACE,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", metavar="", help="Continue the study in the directory.", rich_help_panel=_PLACE)
    ] = False,
    fork: Annotated[
        str | None,
        typer.Option(
            help="Start a study of this name beside the one in the directory, from its best configurations.",
            metavar="NAME", rich_help_panel=_PLACE,
        ),
    ] = None,
    warm_start: Annotated[
        str | None,
        typer.Option(
            help="Configurations to try first: files or directories of studies (a,b), or 'cells': "
            "each study of several begins with the best of the one before.",
            rich_help_panel=StudyConfig.panel,
        ),
    ] = None,
    skip_missing: Annotated[
        bool,
        typer.Option(
            "--skip-missing", metavar="", help="Leave out datasets that are not on disk, and say which.",
            rich_help_panel=TaskConfig.panel,
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", metavar="", help="Show what would be run; run nothing.", rich_help_panel=_PLACE)
    ] = False,
    show: Annotated[
        bool, typer.Option("--show", metavar="", help="Print the preset's settings and end.", rich_help_panel=_PLACE)
    ] = False,
    set_: Set = None,
) -> None:  # fmt: skip
    """Search for the configuration that adapts best, confirm it over seeds, report on sealed labels.

    Example: captune run --dataset digits --paradigm ul
    """
    console = plain_console(file=sys.stdout)
    if show:
        check_show(given.study.get("preset"))
        show_preset(paper_datasets_in(given.task), console)
        return
    file = StudyFile.read(_one_file(study_file, config))
    machine = MachineConfig.parse(given.machine, where=COMMAND_LINE)
    check_loggers(machine.logger)
    refuse_several_gpus(machine.gpus_per_trial)
    check_answers(machine.address)
    datasets, missing = _datasets({**(file.values.get("task") or {}), **given.task}, skip_missing)
    if missing:
        console.print(f"Not on disk and left out: {', '.join(missing)}.", highlight=False, soft_wrap=True)
    studies = _studies(file, given, settings(given.trial, set_), datasets)
    for study in studies:
        if study.method != AUTO:
            refuse_unfit(study.method, study.task)
    what = " ".join(_cell_of(studies[0])) if len(studies) == 1 else f"{len(studies)} studies"
    console.print(f"{what}: loading PyTorch and Ray", highlight=False, soft_wrap=True)
    with console.status("Loading PyTorch and Ray"):
        from captune.cli.studies import execute
        from captune.studies.checks import check_before_ray
        from captune.studies.planning import Plan, plan_study
        from captune.studies.running import Settings
        from captune.tuning.describe import cell_name
        from captune.tuning.header import space_from
        from captune.tuning.open_study import with_storage
    with console.status("Reading what the studies need"):
        plans: list[Plan] = []
        for study in studies:
            study = with_storage(study, None)  # a recorded address lacks its password, which must be given anew
            name = cell_name(study.task.dataset, study.task.paradigm, study.method)
            plan = plan_study(
                study, _directory(out, name, len(studies)), fork=fork, warm_starts=_warm_starts(warm_start),
                space=space_from(file.space, str(file.path)) if file.space and file.same_space(study) else None,
                resume=resume,
            )  # fmt: skip
            if warm_start == "cells" and plans:
                plan = replace(plan, after=plans[-1].directory.name)
            plans.append(plan)
    how = Settings(**machine.model_dump(), resume=resume)
    if dry_run:
        # Imported here: measuring a cost needs PyTorch, which a study loads while Ray starts.
        from captune.cli.dry_run import show_cost, show_matrix, show_plan

        check_before_ray(plans, address=how.address, gpus_per_trial=how.gpus_per_trial, allow_cpu=how.allow_cpu)
        if len(plans) > 1:
            show_matrix(plans, how, console)
            return
        show_plan(plans[0], console)
        show_cost(plans[0], how, console)
        return
    execute(plans, how, console)


def _cell_of(study: StudyConfig) -> tuple[str, str, str]:
    return study.task.dataset, study.task.paradigm, study.method


def _warm_starts(text: str | None) -> list[Path]:
    if text is None or text == "cells":
        return []
    return [Path(name).expanduser() for name in names_in(text, "--warm-start")]


@dataclass(frozen=True)
class StudyFile:
    """What the file of a study gives to a new one.

    Attributes:
        path: the file; None without one.
        values: fields of `StudyConfig`, the cell's under "task".
        space: the resolved search space that study.yaml records; empty if the file has none.
    """

    path: Path | None = None
    values: dict[str, Any] = field(default_factory=dict)
    space: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path | None) -> StudyFile:
        """A study.yaml as a study wrote it, or a file with the fields of `StudyConfig` alone.

        Raises:
            ConfigError: unreadable, or of another shape.
        """
        if path is None:
            return cls()
        path = path / STUDY if path.is_dir() else path
        content = read_yaml(path)
        recorded = "study" in content
        values = content["study"] if recorded else content
        if not isinstance(values, dict) or not isinstance(values.get("task") or {}, dict):
            raise ConfigError(
                "the file of a study must hold its settings, with the cell's under `task`", got="something else",
                where=path, next_step="Give the study.yaml that a study wrote.",
            )  # fmt: skip
        # With a screen a study has two spaces; both are resolved again.
        resolved = recorded and not content.get("screen")
        return cls(path, values, (content.get("space") or {}) if resolved else {})

    def same_space(self, study: StudyConfig) -> bool:
        """Whether a study made from this file searches the space it records: nothing that shapes it was changed."""
        mine = StudyConfig.parse(self.values, where=self.path)
        return all(getattr(mine, name) == getattr(study, name) for name in ("task", "method", "space", "fixed"))


def _one_file(argument: Path | None, option: Path | None) -> Path | None:
    if argument is not None and option is not None:
        raise UsageError("one study file must be given", got=f"{argument} and --config {option}")
    return argument if argument is not None else option


def _datasets(task_values: dict[str, Any], skip_missing: bool) -> tuple[list[str], list[str]]:
    """The datasets that are asked for, and those of them that are missing and left out.

    Raises:
        UsageError: nothing is left.
    """
    required(task_values, "dataset", "paradigm")
    text = str(task_values["dataset"])
    words = {"all": tuple(DATASETS), "found": tuple(DATASETS), "paper": paper_datasets()}
    keys = list(words.get(text) or names_in(text, "--dataset"))
    if not skip_missing and text != "found":
        return keys, []
    root = task_values.get("data_root")
    place = data_root() if root is None else Path(root).expanduser().absolute()
    found = [key for key in keys if is_found(key, place, _protocol(task_values))]
    missing = [key for key in keys if key not in found]
    if not found:
        raise UsageError(
            "a dataset must be on disk", got=f"none of {', '.join(keys)}", where=place,
            next_step="Give --data-root, or run `captune datasets` to see what is looked for and how to get it.",
        )  # fmt: skip
    return found, missing


def _protocol(task_values: dict[str, Any]) -> str:
    """The protocol asked for; without one, `--dataset paper` means the paper's protocol."""
    default = "paper" if task_values.get("dataset") == "paper" else "coop"
    return str(task_values.get("protocol") or default)


def _studies(
    file: StudyFile, given: Given, fixed: dict[str, Any], datasets: Sequence[str] | None = None
) -> list[StudyConfig]:
    """The settings of every study that is asked for, checked as far as that needs neither data nor PyTorch.

    `datasets` are those that are there; by default all that are named.
    """
    task_values: dict[str, Any] = {**(file.values.get("task") or {}), **given.task}
    if datasets is None:
        datasets, _ = _datasets(task_values, skip_missing=False)
    if task_values["dataset"] == "paper":
        task_values["protocol"] = _protocol(task_values)
    study_values = {key: value for key, value in file.values.items() if key not in ("task", "fixed")} | given.study
    cells = _matrix(datasets, str(task_values["paradigm"]), str(study_values.get("method", "cap")))
    paradigms = {paradigm for _, paradigm, _ in cells}
    if study_values.get("space") is not None:
        if len({name for _, _, name in cells}) > 1:
            raise UsageError("--space must be given for one method", got=f"--method {study_values['method']}")
        read_yaml(Path(study_values["space"]).expanduser())
    where = COMMAND_LINE if file.path is None else f"{file.path} and {COMMAND_LINE}"
    studies = []
    for dataset, paradigm, method in cells:
        check_dataset_name(dataset)
        preset = study_values.get("preset")
        here = preset_task(dataset, task_values) if preset else task_values
        if len(paradigms) > 1 and paradigm not in USES_SHOTS:
            here = {key: value for key, value in here.items() if key != "shots"}  # it is meant for the other studies
        task = TaskConfig.parse(here | {"dataset": dataset, "paradigm": paradigm}, where=where)
        refuse_unused_shots(task)
        fixed_here = {**(file.values.get("fixed") or {}), **fixed}
        starting_configs(method, task, fixed_here, preset)  # mistakes in them are reported before PyTorch is loaded
        values = study_values | {"task": task.model_dump(), "method": method, "fixed": fixed_here}
        study = StudyConfig.parse(values, where=where)
        resolve_criterion(study.select_by, paradigm)  # a wrong name is reported before PyTorch is loaded
        studies.append(study)
    return studies


def _matrix(datasets: Sequence[str], paradigm: str, method: str) -> list[tuple[str, str, str]]:
    """Every combination asked for, once, in that order."""
    paradigms = (
        list(PARADIGMS) if paradigm == "all" else [resolve_paradigm(name) for name in names_in(paradigm, "--paradigm")]
    )
    tunable = [name for name, row in ALGORITHMS.items() if row.tunable and not row.unsealed]
    methods = tunable if method == "all" else [check_method(name) for name in names_in(method, "--method")]
    return list(dict.fromkeys((d, p, m) for d in datasets for p in paradigms for m in methods))


def _directory(out: Path | None, name: str, num_cells: int) -> Path:
    if out is None:
        return Path("runs").absolute() / name
    out = out.expanduser().absolute()
    return out if num_cells == 1 else out / name
