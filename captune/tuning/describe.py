"""What a study must know of its cell before it starts: sizes, names, the method's first configuration."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from captune.algorithms import default_config, method_named
from captune.algorithms.automatic import AUTO, starting_configs
from captune.config import Paradigm, StudyConfig, TaskConfig, TrialConfig
from captune.data.catalog import TINY, TINY_WIDTH, default_backbone, load_dataset
from captune.data.paradigms import Task, build_task
from captune.data.roles import has_labels
from captune.decisions.criteria import CRITERIA, resolve_criterion
from captune.errors import UsageError
from captune.records import REFERENCES, Role
from captune.training.notes import cell_notes
from captune.tuning.allotment import cheap_in_packs, most_packed
from captune.tuning.specs import CellInfo

# Frozen features learn faster than prompts: after as many epochs they are long overfitted and rank nothing well.
SCREEN_BUDGET = 0.25


def cell_name(dataset: str, paradigm: Paradigm, method: str) -> str:
    """The name of a study's directory, `<dataset>-<paradigm>-<method>`, safe for every file system."""
    kind, _, rest = dataset.partition(":")
    readable = f"{kind}-{Path(rest).stem}" if rest else kind
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{readable}-{paradigm}-{method}")


def describe_cell(study: StudyConfig, methods: Sequence[str] = ()) -> CellInfo:
    """Facts of a study's cell, without labels. Builds the cell's split.

    Args:
        study: its settings.
        methods: of a study over several, those that its space names; default: all that fit the cell.

    Raises:
        UsageError: unknown method or criterion, or settings the method does not have.
        DataError: the cell cannot be built.
    """
    task_config = study.task
    criterion = resolve_criterion(study.select_by, task_config.paradigm)
    bases = starting_configs(study.method, task_config, study.fixed, study.preset, methods)
    base = next(iter(bases.values()))
    screen_base = _screen_base(study, base)
    score, _ = build_task(task_config, role=Role.SCORE)
    report, _ = build_task(task_config, role=Role.REPORT)
    # The score role does not see some of what is reported: classes (trzsl) or test images in the pool (tft).
    both_roles = bool(score.pseudo_unseen_K.any() or np.isin(score.holdout, report.test).any())
    if criterion == "oracle" and report.num_measurable == 0:
        raise UsageError(
            "--select-by oracle must have test images with labels",
            got="none",
            where=f"{task_config.dataset}, {task_config.paradigm}",
        )
    size = load_dataset(task_config).num_images, _width(task_config)
    return CellInfo(
        name=cell_name(task_config.dataset, task_config.paradigm, study.method),
        base=base,
        references=_references(task_config, both_roles),
        num_classes=score.num_classes,
        class_names=tuple(score.class_names),
        num_pool=len(report.pool),
        num_test=len(report.test),
        num_scored=_num_scored(score, criterion),
        class_size=max(1, int(score.estimated_class_size)),
        metric_name="harmonic_mean" if report.seen_K.any() else "accuracy",
        criterion=criterion,
        criterion_help=CRITERIA[criterion].help,
        both_roles=both_roles,
        notes=cell_notes(task_config, score),
        screen_base=screen_base,
        most_packed=most_packed(*size),
        cheap_in_packs=cheap_in_packs(*size),
        methods=bases if study.method == AUTO else {},
    )


def _screen_base(study: StudyConfig, base: TrialConfig) -> TrialConfig | None:
    """The first configuration on frozen features at the screen's budget; None without a screen.

    All other settings stay those of the search. A dataset's defaults for frozen features are not used: they are chosen
    to gain most there, whereas a screen asks which configuration will do best with prompts.

    Raises:
        UsageError: nothing can be screened on frozen features, or --screen-trials is given without a screen.
    """
    if study.screen == "none":
        if study.screen_trials is not None:
            raise UsageError(
                "--screen-trials must come with a screen", got=f"{study.screen_trials} without one",
                next_step="Say --screen features as well, or leave it out.",
            )  # fmt: skip
        return None
    if study.method == AUTO:
        raise UsageError(
            "--screen features must be used with one method", got=f"--method {AUTO}",
            next_step="Leave it out: a study over methods tries each method's default first.",
        )  # fmt: skip
    method = method_named(study.method)
    if not (method.trains and method.tunable):
        raise UsageError(
            "--screen features must be used with a method that trains", got=f"--method {study.method}",
            next_step="Leave it out: a trial of this method costs no more than a screening one.",
        )  # fmt: skip
    if base.tuning == "features":
        precomputed = study.task.dataset.startswith("features:")
        raise UsageError(
            "--screen features must come before prompt tuning",
            got="precomputed features" if precomputed else "a study that tunes frozen features itself",
            where=f"{study.task.dataset}, {study.task.paradigm}",
            next_step="Leave it out." if precomputed else "Leave it out, or say --tuning prompts as well.",
        )
    epochs = max(base.warmup_epochs, math.ceil(SCREEN_BUDGET * base.epochs))
    return base.with_values({"tuning": "features", "epochs": epochs}, where="the screen")


def _width(task_config: TaskConfig) -> int | None:
    """The dimension of a frozen feature; None if it is not known before the backbone is opened."""
    features = load_dataset(task_config).image_features_MD
    if features is not None:
        return int(features.shape[1])
    return TINY_WIDTH if default_backbone(task_config)[0] == TINY else None


def _num_scored(task: Task, criterion: str) -> int:
    """Images the criterion is measured on."""
    validation, holdout = len(task.validation.indices_N), len(task.holdout)
    images = CRITERIA[criterion].images
    if images == "test":
        return len(task.test)
    if images == "both":
        return validation + holdout
    return validation if images == "validation" or not holdout else holdout


def _references(task_config: TaskConfig, both_roles: bool) -> tuple[tuple[str, str, TrialConfig], ...]:
    found = []
    for name in REFERENCES:  # cheap, and without them no gain can be shown
        if has_labels(task_config) or not method_named(name).labels_only:
            config = default_config(name, task_config)
            found.append((name, name, config))
            if both_roles:
                # In the report, a reference must learn from the same images as the trials it is compared with.
                found.append((f"{name}-report", name, config))
    return tuple(found)
