"""Find directories of studies as users name them: a study, its study.yaml, a folder of studies, or a shell's *."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from captune.errors import UsageError, did_you_mean_path
from captune.records.layout import JOURNAL, OF_A_STUDY, PAGE, STUDY


def studies_in(places: Sequence[Path], passed_over: list[str] | None = None) -> list[Path]:
    """The directories of studies under some paths, each once, in the order given.

    Args:
        places: each a study's directory, a file in it that names it (study.yaml, report.html), or a folder of studies.
        passed_over: collects, one sentence each, the paths without a study if others have one (a shell's * names both);
            if it is None, such a path is an error.

    Raises:
        UsageError: a path is not there (the nearest is named), or none of them holds a study.
    """
    found: list[Path] = []
    without: list[Path] = []
    for place in (path.expanduser() for path in places):
        if not place.exists():
            raise UsageError(
                "a study's directory must be there", got="none", where=place, next_step=did_you_mean_path(place)
            )
        inside = _studies_of(place)
        found += [directory for directory in inside if directory not in found]
        if not inside:
            without.append(place)
    if without and (not found or passed_over is None):
        raise UsageError(
            f"a study's directory must hold {STUDY}, itself or one below",
            got=f"{_what(without[0])}" + (f" and {len(without) - 1} more without one" if len(without) > 1 else ""),
            where=without[0],
            next_step=None if found else "Give the directory that `captune run` wrote, or the folder of several.",
        )
    if passed_over is not None:
        passed_over += [f"{place}: {_what(place)}, passed over" for place in without]
    return found


def _studies_of(place: Path) -> list[Path]:
    if place.is_file():
        return [place.parent] if place.name in OF_A_STUDY and _is_study(place.parent) else []
    if _is_study(place):
        return [place]
    depths = [f"{depth}/{name}" for depth in ("*", "*/*", "*/*/*") for name in (STUDY, JOURNAL)]
    return sorted({file.parent for depth in depths for file in place.glob(depth)})


def _is_study(directory: Path) -> bool:
    return (directory / STUDY).is_file() or (directory / JOURNAL).is_file()


def _what(place: Path) -> str:
    if place.is_file():
        return "a file"
    if (place / PAGE).is_file():
        return "a report of several studies, no study"
    return "none" if any(place.iterdir()) else "an empty folder"
