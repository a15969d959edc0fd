"""A row of the table of speed targets, and how a source tree is measured for it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

HERE = Path(__file__).parents[2]


@dataclass(frozen=True)
class Target:
    """A row of the table.

    Attributes:
        what: is measured, and in what.
        wanted: the target.
        before, now: medians as text; the former way, and this one.
        ratio: how many times less.
        repeats: measured.
        note: the former way, where it is not the tree before; why a target cannot be had.
    """

    what: str
    wanted: str
    before: str
    now: str
    ratio: str
    repeats: int
    note: str = ""

    def line(self) -> str:
        """In Markdown."""
        cells = (self.what, self.wanted, self.before, self.now, self.ratio, str(self.repeats), self.note)
        return "| " + " | ".join(cells) + " |"


def compared(
    what: str, wanted: str, before: float, now: float, unit: str, repeats: int, note: str = "", *, digits: int = 1
) -> Target:
    """A row of two numbers; what the tree before cannot measure is not a number."""
    missing = np.isnan(before)
    shown = "–" if missing else f"{before:,.{digits}f} {unit}"
    ratio = "–" if missing else f"{before / now:.2g}×"
    return Target(what, wanted, shown, f"{now:,.{digits}f} {unit}", ratio, repeats, note)


@dataclass(frozen=True)
class Asked:
    """What to measure: the trees before, how often, and features of 59 classes if there are any.

    Attributes:
        before: whose whole commands are measured.
        benched: whose `tests.bench` measures what is inside.
        repeats, long_repeats: of what takes seconds, and of what takes half a minute and more.
        features: a feature file.
    """

    before: Path
    benched: Path
    repeats: int
    long_repeats: int
    features: Path | None

    @property
    def trees(self) -> dict[str, Path]:
        """In the order in which they are measured."""
        return {"before": self.before, "now": HERE}


def numbers_of(tree: Path, *python: str) -> tuple[float, ...]:
    """The numbers in the last line that a Python command prints, which imports captune and tests of a source tree.

    Raises:
        RuntimeError: it failed.
    """
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", *python], env=environment, cwd=tree, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{shlex.join(python)} in {tree} ended with {done.returncode}: {done.stderr[-500:]}")
    return tuple(map(float, done.stdout.splitlines()[-1].split()))


def of_both(asked: Asked, repeats: int, *python: str, most: Mapping[str, int] | None = None) -> dict[str, list[float]]:
    """Medians of the numbers that a command prints, of both trees in turn; none where the tree before cannot do it."""
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in asked.trees}
    for number in range(repeats):
        for name, tree in (("before", asked.benched), ("now", HERE)):
            if number < (most or {}).get(name, repeats) and (tree / "tests" / "bench").is_dir():
                found[name].append(numbers_of(tree, *python))
    medians = {name: [median(each) for each in zip(*told, strict=True)] for name, told in found.items()}
    return {name: told or [float("nan")] * 9 for name, told in medians.items()}
