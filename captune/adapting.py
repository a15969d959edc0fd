"""One adaptation without Ray: train a configuration once, predict, read the test labels, write what came of it.

`captune adapt` and `captune.adapt` are both this.
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
from captune.data.labelling import PREDICTIONS_CSV
from captune.errors import UsageError
from captune.records import ZERO_SHOT, Role, atomic_write
from captune.records.enums import PART, WHOLE
from captune.records.layout import CHECKPOINT, CONFIG, EPOCHS, METRICS

if TYPE_CHECKING:
    from captune.training.trial import TrainingTrial


def configuration(
    task: TaskConfig,
    *,
    method: str | None = None,
    config: Path | Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    paper: bool = False,
    where: object = "settings",
) -> tuple[str, TrialConfig, Role]:
    """The method, the configuration to train, and the role: its published one, with what a file and the caller say on
    top.

    Args:
        task: the cell.
        method: a key of ALGORITHMS; the file's, else cap, if None.
        config: best_config.yaml of a study, any file of trial settings, or such settings themselves.
        settings: settings that take precedence over it.
        paper: all published settings, budget included (`captune.algorithms.preset`).
        where: what messages call the place of the settings.

    Returns:
        The role is "report": everything is learned from. Where the configuration says `learn_from: part`, as a
        study's best_config.yaml does whose own trials held images out, it is "score": the same images are held out, and
        the study's accuracy comes out again.

    Raises:
        UsageError: unknown settings, or a method other than the file's.
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
    """Make the directory of an adaptation and see that it can be written before anything is trained.

    Raises:
        UsageError: it holds a finished adaptation, or may not be written.
    """
    if (directory / METRICS).exists():
        raise UsageError(
            "the directory of an adaptation must not hold a finished one",
            got=f"a {METRICS}",
            where=directory,
            next_step="Give another --out.",
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError("--out must be writable", got=error.strerror, where=directory) from None
    if not os.access(directory, os.W_OK):
        raise UsageError("--out must be writable", got="no permission", where=directory)


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
    opened: Callable[[TrainingTrial], None] = lambda _: None,
    trained: Callable[[TrainingTrial, dict[str, Any]], None] = lambda *_: None,
) -> dict[str, Any]:
    """Train one configuration with one seed and write checkpoint, predictions, epochs and metrics.

    An adaptation that was interrupted in `out` goes on from its last epoch.

    Args:
        task: the cell.
        method: a key of ALGORITHMS.
        config: the method's configuration.
        out: the directory, as `check_out` leaves it.
        seed: of the training.
        role: "report" learns from everything; "score" holds out what a study's own trials do.
        device: auto, cpu, cuda or cuda:N.
        notes: what a person should know, for metrics.json; what only the weights tell is added.
        opened: called with the trial before its first epoch.
        trained: called with the trial and the epoch's record after each epoch.

    Returns:
        What metrics.json holds.

    Raises:
        DataError, ModelError: the cell cannot be opened.
        TrainingFailed: the loss became NaN.
        KeyboardInterrupt: a first Ctrl-C or SIGTERM, after the epoch it came in.
    """
    from captune.training.evaluation import evaluate_trial
    from captune.training.labelling import write_predictions
    from captune.training.trial import TrainingTrial

    work = out / ".trial"
    trial = TrainingTrial.open(
        task, config, algorithm=ALGORITHMS[method], seed=seed, directory=work, role=role, device=device
    )
    # Some settings, such as the activation, follow from the weight file and the class names; the trial records them.
    told = list(dict.fromkeys([*(notes or []), *trial.context.notes, *held_out_note(role)]))
    opened(trial)
    while not trial.finished:
        record = trial.run_epoch()
        interruption.check()
        trained(trial, record)
    outcome = trial.finish()
    metrics = evaluate_trial(task, role, work)
    frozen = _zero_shot(task, role, work, device) if metrics["metric"] is not None and method != ZERO_SHOT else None
    write_predictions([work], task, role, out / PREDICTIONS_CSV)
    _write_epochs(work / EPOCHS, out / "epochs.csv")
    (work / CHECKPOINT).replace(out / CHECKPOINT)
    (work / CONFIG).replace(out / CONFIG)
    report = {
        "dataset": task.dataset,
        "paradigm": task.paradigm,
        "paradigm_means": PARADIGMS[task.paradigm],
        "method": method,
        "seed": seed,
        "learn_from": PART if role is Role.SCORE else WHOLE,
        **{key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in metrics.items()},
        "zero_shot": frozen,
        "num_parameters": outcome["num_parameters"],
        "class_names": list(trial.context.task.class_names),
        "notes": told,
    }
    atomic_write(out / METRICS, json.dumps(report, indent=2) + "\n")
    shutil.rmtree(work)
    return report


def held_out_note(role: Role) -> list[str]:
    """What a person should know of an adaptation that repeats a study's."""
    if role is Role.REPORT:
        return []
    return [
        "as in the study, the images held out for its choice are not learned from (learn_from: part in its "
        "best_config.yaml), so that its accuracy comes out again; --set learn_from=whole learns from all"
    ]


def _zero_shot(task: TaskConfig, role: Role, work: Path, device: str) -> dict[str, Any]:
    """What the frozen model reaches on the same test images; its predictions go with the folder `work`."""
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
    """The advice that a study wrote into the header of its best_config.yaml where it was not to adapt; else None."""
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
