"""Refuse folders that hold files which a study or a report would replace and which no study or report wrote."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from captune.errors import UsageError
from captune.records.layout import (
    BEST_CONFIG,
    CHECKPOINT,
    COLUMNS_CSV,
    DATAPACKAGE,
    DERIVED,
    FINDINGS,
    JOURNAL,
    METRICS,
    OPTUNA_COPY,
    PAGE,
    PREDICTIONS_CSV,
    STUDY,
    TRIALS,
)

_NEXT_STEP = "Give another --out, or move these files away."


def check_new_study(directory: Path) -> None:
    """Check that a directory holds a study, or nothing that a new study would replace in the end.

    A driver that was killed before it wrote study.yaml left no such file.

    Raises:
        UsageError: there are another model, trials, tables, figures or pages.
    """
    if any((directory / name).exists() for name in (JOURNAL, STUDY)):
        return
    for name in (CHECKPOINT, METRICS, PREDICTIONS_CSV):
        if (directory / name).exists():
            raise UsageError(
                "the directory of a new study must hold no other model", got=f"a {name}", where=directory,
                next_step="Give another --out.",
            )  # fmt: skip
    found = _found(directory, {*DERIVED, COLUMNS_CSV, DATAPACKAGE, BEST_CONFIG, PAGE, FINDINGS, OPTUNA_COPY})
    if (directory / TRIALS).is_dir() and any((directory / TRIALS).iterdir()):
        found.append(f"{TRIALS}/")
    if found:
        raise UsageError(
            "the directory of a new study must hold no files that the study would replace",
            got=", ".join(found), where=directory, next_step=_NEXT_STEP,
        )  # fmt: skip


def check_report_folder(directory: Path, *, more: Iterable[str] = ()) -> None:
    """Check that a folder holds an earlier report, or no files that a report would replace or remove.

    Args:
        directory: of the report; it need not exist.
        more: names of other files that would be replaced.

    Raises:
        UsageError: there are such files, and no sign of an earlier report.
    """
    if any((directory / name).exists() for name in (DATAPACKAGE, PAGE, JOURNAL)):
        return
    found = _found(directory, {*DERIVED, COLUMNS_CSV, *more})
    if found:
        raise UsageError(
            "the folder of a report must be new or hold an earlier report",
            got=f"files that a report would replace: {', '.join(found)}", where=directory, next_step=_NEXT_STEP,
        )  # fmt: skip


def _found(directory: Path, names: Iterable[str]) -> list[str]:
    return sorted(name for name in set(names) if (directory / name).exists())
