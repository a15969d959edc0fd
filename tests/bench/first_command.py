"""Where the first command's time goes: `python -m tests.bench.first_command OUT.csv --tree before=DIR --tree now=DIR`.

Runs `captune run --dataset digits --paradigm ul` of each source tree in turn, again and again, in empty folders with an
empty cache, times the lines that it prints and watches its processes. Writes a row a run, and beside the CSV a figure
of medians: a stacked bar a tree of seconds by the clock, and one of CPU seconds by process. `--plot` draws the figure
anew from a CSV.
"""

from __future__ import annotations

import argparse
import compileall
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from tests.bench.processes import KINDS, Processes

# Also of a tree without `captune.__main__` or an end of its own.
CAPTUNE = (sys.executable, "-c", "import captune.cli.main as c; getattr(c, 'command_line', c.main)()")
COMMAND = ("run", "--dataset", "digits", "--paradigm", "ul")
# What a part of the run ends with, in the order of their ends.
PARTS = (
    "to the first line",
    "to the first score",
    "to the first search trial's end",
    "search",
    "confirmation",
    "choice, report, answer",
    "end of the process",
)


def compile_tree(tree: Path) -> None:
    """Compile a source tree, as an installation does: some machines keep no compiled files between processes."""
    for package in ("captune", "tests"):
        compileall.compile_dir(tree / package, quiet=2)


def timed(tree: Path, options: Sequence[str]) -> tuple[list[tuple[float, str]], dict[str, float]]:
    """The lines of one run with the seconds at which they came; the last one, empty, is the end of the process.

    Beside them the CPU seconds of its processes, by kind.

    Raises:
        RuntimeError: the command failed.
    """
    with tempfile.TemporaryDirectory(prefix="captune-first-") as folder:
        environment = os.environ | {"PYTHONPATH": str(tree), "CAPTUNE_CACHE": f"{folder}/cache"}
        began = time.monotonic()
        process = subprocess.Popen(
            [*CAPTUNE, *COMMAND, "--out", f"{folder}/study", *options],
            cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        with Processes(process.pid) as processes:
            lines = [(time.monotonic() - began, line.rstrip()) for line in process.stdout]
            code = process.wait()
        if code != 0:
            raise RuntimeError("\n".join(line for _, line in lines))
        return [*lines, (time.monotonic() - began, "")], processes.by_kind()


def parts_of(lines: Sequence[tuple[float, str]]) -> dict[str, float]:
    """Seconds of each part of a run, from what it printed and when."""
    ended = [at for at, line in lines if " finished " in line or " stopped early " in line]
    searched = [at for at, line in lines if (" finished " in line or " stopped early " in line) and _is_search(line)]
    answer = next(at for at, line in lines if line.startswith("candidate "))
    ends = (lines[0][0], ended[0], searched[0], searched[-1], ended[-1], answer, lines[-1][0])
    return {part: end - before for part, end, before in zip(PARTS, ends, (0.0, *ends), strict=False)}


def _is_search(line: str) -> bool:
    key = line.split()[1]
    return key.startswith("t") and key[1:].isdigit()


def draw(rows: Sequence[dict[str, str]], file: Path) -> None:
    """Two stacked bars a tree, of the medians of its runs: seconds by the clock, and CPU seconds."""
    trees = list(dict.fromkeys(row["tree"] for row in rows))
    runs = min(sum(row["tree"] == tree for row in rows) for tree in trees)
    figure, panels = plt.subplots(2, 1, figsize=(9, 2 * (1.1 + 0.5 * len(trees))), layout="constrained")
    words = "seconds by the clock", "CPU seconds of all processes"
    for axes, columns, unit in zip(panels, (PARTS, KINDS), words, strict=True):
        left = [0.0] * len(trees)
        for column in columns:
            lengths = [median(float(row[column]) for row in rows if row["tree"] == tree) for tree in trees]
            axes.barh(trees, lengths, left=left, label=column)
            left = [start + length for start, length in zip(left, lengths, strict=True)]
        axes.invert_yaxis()
        axes.set_xlabel(f"{unit} ({f'medians of {runs} runs' if runs > 1 else 'one run'})")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.4), ncols=4, frameon=False, fontsize=8)
    figure.savefig(file)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tree", action="append", default=[], help="name=DIR of a checkout; several")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--options", default="", help="of the command beside the dataset and the paradigm")
    parser.add_argument("--plot", action="store_true", help="only draw the figure")
    asked = parser.parse_args()
    columns = ["tree", "options", "load", "cpu", "seconds", *PARTS, *KINDS]
    if not asked.plot:
        for _, _, tree in (given.partition("=") for given in asked.tree):
            compile_tree(Path(tree))
        new = not asked.out.exists()
        with asked.out.open("a", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            if new:
                writer.writeheader()
            for _ in range(asked.repeats):
                for name, _, tree in (given.partition("=") for given in asked.tree):
                    load = os.getloadavg()[0]
                    lines, cpu = timed(Path(tree).absolute(), asked.options.split())
                    parts = parts_of(lines)
                    seconds = {part: round(value, 2) for part, value in parts.items()}
                    total = round(sum(parts.values()), 2)
                    row = {"tree": name, "options": asked.options, "load": load, "cpu": round(sum(cpu.values()), 1)}
                    spent = {kind: round(value, 1) for kind, value in cpu.items()}
                    writer.writerow({**row, "seconds": total, **seconds, **spent})
                    file.flush()
    with asked.out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    draw(rows, asked.out.with_suffix(".svg"))
    for tree in dict.fromkeys(row["tree"] for row in rows):
        own = [row for row in rows if row["tree"] == tree]
        shown = {name: median(float(row[name]) for row in own) for name in ("load", "cpu", "seconds", *PARTS, *KINDS)}
        print(f"{tree}: " + ", ".join(f"{name} {value:.1f}" for name, value in shown.items()))


if __name__ == "__main__":
    main()
