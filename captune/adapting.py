"""Adapt without a search and without Ray: train one configuration, predict, read the test labels, write the results.

`captune adapt` and `captune.adapt` both use this module.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from captune import interruption
from captune.algorithms import ALGORITHMS, default_config, method_named, refuse_unfit
from captune.config import PARADIGMS, TaskConfig, TrialConfig, read_yaml
from captune.errors import CaptuneError, TrainingFailed, UsageError, first_line
from captune.records import ZERO_SHOT, Role, atomic_write
from captune.records.enums import PART, WHOLE
from captune.records.files import missing_folders, remove_empty
from captune.records.layout import (
    CHECKPOINT,
    CONFIG,
    EPOCHS,
    EPOCHS_CSV,
    JOURNAL,
    METRICS,
    PREDICTIONS_CSV,
    STUDY,
)

if TYPE_CHECKING:
    from captune.training.trial import TrainingTrial

# Subdirectory of an adaptation where its trial keeps its files until it is finished.
_WORK = ".trial"


def configuration(
    task: TaskConfig,
    *,
    method: str | None = None,
    config: Path | Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    paper: bool = False,
    where: object = "settings",
) -> tuple[str, TrialConfig, Role]:
    """What to train. The caller's settings take precedence over those of a file, and these over the method's defaults.

    Args:
        task: the cell.
        method: a key of ALGORITHMS; None: the one that `config` names, else cap.
        config: best_config.yaml of a study, any file of trial settings, or such settings themselves.
        settings: settings that take precedence over `config`.
        paper: all published settings, budget included (`captune.algorithms.preset`).
        where: how error messages name the source of the settings.

    Returns:
        The method, its configuration, and the role. The role is "report", in which the model learns from all images,
        unless the settings say `learn_from: part`. Then it is "score", in which the images that the study held out are
        held out again, so that the study's accuracy is reproduced. best_config.yaml says `learn_from: part` if the
        trials that the study reports held images out.

    Raises:
        UsageError: settings are unknown, or `method` is not the one that `config` names.
    """
    values = dict(config) if isinstance(config, Mapping) else read_yaml(config) if config is not None else {}
    place = config if isinstance(config, Path) else where
    named = str(values.pop("method", method or "cap"))
    if method is not None and method != named:
        raise UsageError(
            "the method must be the one the configuration was made for", got=f"'{method}' and '{named}'", where=place
        )
    refuse_unfit(named, task)
    given = dict(settings or {})
    learned = given.pop("learn_from", values.pop("learn_from", WHOLE))
    if learned not in (PART, WHOLE):
        raise UsageError(f"learn_from must be '{PART}' or '{WHOLE}'", got=f"'{learned}'", where=place)
    preset = "paper" if paper else None
    base = default_config(named, task, given.get("tuning", values.get("tuning")), preset).model_dump()
    role = Role.SCORE if learned == PART else Role.REPORT
    return named, method_named(named).config_class.parse({**base, **values, **given}, where=place), role


def check_out(directory: Path) -> None:
    """Check that the directory of an adaptation can be made and written, before anything is trained; leave it unmade.

    Raises:
        UsageError: it holds a finished adaptation, a study or another model, or is not writable.
    """
    if (directory / METRICS).exists():
        raise UsageError(
            "the directory of an adaptation must not hold a finished one",
            got=f"a {METRICS}",
            where=directory,
            next_step="Give another --out.",
        )
    # An adaptation that was interrupted has its trial's files there, and goes on.
    if not (directory / _WORK).is_dir():
        for name in (STUDY, JOURNAL, CHECKPOINT, CONFIG, PREDICTIONS_CSV, EPOCHS_CSV):
            if (directory / name).exists():
                raise UsageError(
                    "the directory of an adaptation must hold no study and no other model", got=f"a {name}",
                    where=directory, next_step="Give another --out.",
                )  # fmt: skip
    made = missing_folders(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK):
            raise UsageError("--out must be writable", got="no permission", where=directory)
    except OSError as error:
        raise UsageError("--out must be writable", got=error.strerror, where=directory) from None
    finally:
        # Data and device are looked at later, and a command that these refuse must leave nothing behind.
        remove_empty(made)


def adapt_once(
    task: TaskConfig,
    method: str,
    config: TrialConfig,
    out: Path,
    *,
    seed: int = 0,
    role: Role = Role.REPORT,
    device: str = "auto",
    notes: list[str] | None = None,
) -> dict[str, Any]:
    """`adapt_seeds` with one seed; returns the content of its metrics.json."""
    (report,) = adapt_seeds(task, method, config, {seed: out}, role=role, device=device, notes=notes)
    return report


def adapt_seeds(
    task: TaskConfig,
    method: str,
    config: TrialConfig,
    places: Mapping[int, Path],
    *,
    role: Role = Role.REPORT,
    device: str = "auto",
    notes: list[str] | None = None,
    opened: Callable[[TrainingTrial], None] = lambda _: None,
    trained: Callable[[TrainingTrial, dict[str, Any]], None] = lambda *_: None,
) -> list[dict[str, Any]]:
    """Train one configuration with several seeds, and write checkpoint, predictions, epochs and metrics of each.

    Seeds train together if the method allows it (`captune.training.packs`) and memory suffices, else one after another;
    the numbers are the same. An adaptation that was interrupted continues after its last epoch.

    Args:
        task: the cell.
        method: a key of ALGORITHMS.
        config: the method's configuration.
        places: the directory of each seed, as `check_out` leaves it.
        role: "report" learns from all images; "score" holds out those that a study's own trials hold out.
        device: auto, cpu, cuda or cuda:N.
        notes: notes for the user, written to metrics.json; those that need the opened weights are added.
        opened: called with each trial before its first epoch.
        trained: called with the trial and the epoch's record after each epoch.

    Returns:
        The content of each metrics.json, in the order of the seeds.

    Raises:
        DataError, ModelError: the cell cannot be opened.
        TrainingFailed: a seed failed, for example because its loss became NaN. The other seeds are finished first.
        KeyboardInterrupt: on Ctrl-C, and on SIGTERM inside `captune.interruption.handled`.
    """
    from captune.training.context import open_context
    from captune.training.memory import free_memory, is_out_of_memory
    from captune.training.pack_sizes import MOST_AT_ONCE, most_in_memory
    from captune.training.trial import TrainingTrial

    def trial_of(seed: int) -> TrainingTrial:
        trial = TrainingTrial.open(
            task, config, algorithm=ALGORITHMS[method], seed=seed, directory=places[seed] / _WORK, role=role,
            device=device,
        )  # fmt: skip
        if seed not in told:
            told.add(seed)
            opened(trial)
        return trial

    told: set[int] = set()
    most = 1
    if len(places) > 1 and ALGORITHMS[method].packs and config.tuning == "features":
        context = open_context(task, role, device)
        most = min(MOST_AT_ONCE, most_in_memory(*context.image_features_MD.shape)) if context.packs else 1
    waiting = list(places)
    frozen: dict[str, Any] | None = None
    reports: list[dict[str, Any]] = []
    failed: dict[int, Exception] = {}
    while waiting:
        seeds, waiting = waiting[:most], waiting[most:]
        trials: dict[int, TrainingTrial] = {}
        try:
            for seed in seeds:
                trials[seed] = trial_of(seed)
            failed |= _train(trials, trained)
        except RuntimeError as error:
            if len(seeds) == 1 or not is_out_of_memory(error):
                raise
            # Memory is freed after this block: until then the error's frames keep the open trials alive.
            trials, waiting, most = {}, seeds + waiting, 1
        if not trials:
            free_memory()
        for seed, trial in trials.items():
            try:
                report = _finish(trial, task, method, places[seed], notes or [])
            except TrainingFailed as error:
                failed[seed] = error
                continue
            if report["metric"] is not None and method != ZERO_SHOT:
                # The frozen model is the same for every seed.
                frozen = frozen or _zero_shot(task, role, places[seed] / _WORK, device)
                report["zero_shot"] = frozen
            _hand_over(places[seed], report)
            reports.append(report)
    for seed, reason in failed.items():
        if len(places) > 1 and isinstance(reason, CaptuneError):
            others = [
                f"seed {other} failed too: {first_line(error)}" for other, error in failed.items() if other != seed
            ]
            reason.where = "; ".join([", ".join(str(part) for part in (f"seed {seed}", reason.where) if part), *others])
        raise reason
    return reports


def _train(
    trials: dict[int, TrainingTrial], trained: Callable[[TrainingTrial, dict[str, Any]], None]
) -> dict[int, Exception]:
    """Train trials together to their ends. Removes those that fail from `trials` and returns their errors by seed.

    Raises:
        RuntimeError: memory ran out while several trained together; one alone goes on in micro-batches.
    """
    from captune.training.trial import run_epochs_together

    failed: dict[int, Exception] = {}
    while alive := {seed: trial for seed, trial in trials.items() if not trial.trained}:
        if len(alive) == 1:
            ((_, trial),) = alive.items()
            try:
                records: list[dict[str, Any] | Exception] = [trial.run_epoch()]
            except TrainingFailed as error:
                records = [error]
        else:
            records = run_epochs_together(list(alive.values()))
        interruption.check()
        for (seed, trial), record in zip(alive.items(), records, strict=True):
            if isinstance(record, Exception):
                failed[seed] = record
                del trials[seed]
            else:
                trained(trial, record)
    return failed


def _finish(trial: TrainingTrial, task: TaskConfig, method: str, out: Path, notes: list[str]) -> dict[str, Any]:
    """Predict, read the test labels, write predictions and epochs; returns what metrics.json will hold."""
    from captune.training.evaluation import evaluate_trial
    from captune.training.trial_predictions import write_predictions

    work, role = trial.directory, trial.role
    outcome = trial.finish()
    metrics = evaluate_trial(task, role, work)
    write_predictions([work], task, role, out / PREDICTIONS_CSV)
    _write_epochs(work / EPOCHS, out / EPOCHS_CSV)
    return {
        "dataset": task.dataset,
        "paradigm": task.paradigm,
        "paradigm_means": PARADIGMS[task.paradigm],
        "method": method,
        "seed": trial.seed,
        "learn_from": PART if role is Role.SCORE else WHOLE,
        **{key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in metrics.items()},
        "zero_shot": None,
        "num_parameters": outcome["num_parameters"],
        "class_names": list(trial.context.task.class_names),
        # The context adds notes on settings that follow from the weight file and class names, such as the activation.
        "notes": list(dict.fromkeys([*notes, *trial.context.notes, *held_out_note(role)])),
    }


def _hand_over(out: Path, report: dict[str, Any]) -> None:
    """Move a finished trial's files to `out` and write metrics.json last, so that a killed call can be repeated."""
    for name in (CHECKPOINT, CONFIG):
        if (out / _WORK / name).exists():
            (out / _WORK / name).replace(out / name)
    atomic_write(out / METRICS, json.dumps(report, indent=2) + "\n")
    shutil.rmtree(out / _WORK)


def held_out_note(role: Role) -> list[str]:
    """The note for an adaptation that holds out the same images as the study that it repeats; none for others."""
    if role is Role.REPORT:
        return []
    return [
        "as in the study, the images held out for its choice are not learned from (learn_from: part in its "
        "best_config.yaml), so that its accuracy comes out again; --set learn_from=whole learns from all"
    ]


def _zero_shot(task: TaskConfig, role: Role, work: Path, device: str) -> dict[str, Any]:
    """Metrics of the frozen model on the same test images. Its files lie in `work` and are deleted with it."""
    from captune.training.evaluation import evaluate_trial
    from captune.training.trial import TrainingTrial

    place = work / ZERO_SHOT
    trial = TrainingTrial.open(
        task, default_config(ZERO_SHOT, task), algorithm=ALGORITHMS[ZERO_SHOT], seed=0, directory=place,
        role=role, device=device,
    )  # fmt: skip
    trial.finish()
    metrics = evaluate_trial(task, role, place)
    return {name: metrics[name] for name in ("metric", "accuracy", "worst_class_recall", "ece")}


def advice_against(config: Path) -> str | None:
    """The advice in the header of a study's best_config.yaml, if it advises against adapting; else None."""
    lines = [line.removeprefix("#").strip() for line in config.read_text(encoding="utf-8").splitlines()[:10]]
    advice = next((line.removeprefix("Advice:").strip() for line in lines if line.startswith("Advice:")), "")
    against = ("keep zero-shot", "adaptation changed nothing")
    return advice if advice.lower().startswith(against) else None


def _write_epochs(source: Path, target: Path) -> None:
    rows = [json.loads(line) for line in source.read_text().splitlines()] if source.exists() else []
    for row in rows:
        row.update({f"score_{name}": value for name, value in row.pop("scores").items()})
    columns = list(dict.fromkeys(key for row in rows for key in row)) or ["epoch"]
    with target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
