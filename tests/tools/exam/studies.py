"""Whole studies on worlds of the exam: what each advised, and the best of its candidates by the labels.

    python -m tests.tools.exam.studies --features FOLDER --out analysis/measurements/advice_studies.csv

A world that the file has already is passed over, so that it can be cut short and continued. Trials run one after
another in this process, without Ray: the numbers are those of `captune run --method METHOD`. The column `cpu_seconds`
is the CPU time of this process for the whole study, its report included; `seconds` is that by the clock. With
`--command` the study is `captune run` itself, with Ray and with its defaults for all that is not said here.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from captune.algorithms.automatic import AUTO
from captune.config import StudyConfig
from captune.records import ZERO_SHOT, Phase, StudyRecord
from captune.results.best import reference_metric, report_trials
from captune.results.load import load_study
from captune.studies.closing import close_study
from captune.studies.planning import plan_study
from tests.studies.lives import run_trials
from tests.tools.exam.candidates import BUDGETS
from tests.tools.exam.worlds import KINDS as KINDS_OF_WORLDS
from tests.tools.exam.worlds import World

DATASETS, PARADIGMS, KINDS = "whu19,pets24,caltech101_59", "ul,tft", "plain,present-10,imbalance-50"
COLUMNS = ("world", "zero_shot", "advised", "accuracy", "gain", "expected", "low", "high", "risk", "best",
           "best_accuracy", "regret", "cpu_seconds", "seconds", "sentence")  # fmt: skip


def main(
    out: Annotated[Path, typer.Option(help="The CSV file; rows are added.")],
    features: Annotated[Path, typer.Option(help="Folder of feature files.")] = Path("../shared/data/features"),
    datasets: str = DATASETS,
    paradigms: str = PARADIGMS,
    kinds: str = KINDS,
    method: str = AUTO,
    trials: int = 12,
    confirm_seeds: int = 3,
    budget: str = "full",
    command: bool = False,
) -> None:
    """One study a world; its trials train in full, or as short as the exam's candidates (quick)."""
    if command and (method, trials, confirm_seeds, budget) != (AUTO, 12, 3, "full"):
        raise typer.BadParameter("--command runs the command with its own defaults")
    if out.exists() and next(csv.reader(out.open(encoding="utf-8"))) != list(COLUMNS):
        raise typer.BadParameter(f"{out} has other columns: name another file")
    done = {row["world"] for row in csv.DictReader(out.open(encoding="utf-8"))} if out.exists() else set()
    for kind in kinds.split(","):
        for dataset in datasets.split(","):
            for paradigm in paradigms.split(","):
                world = World(dataset, paradigm, kind, 0)
                if world.key in done:
                    continue
                began, clock = time.process_time(), time.monotonic()
                with tempfile.TemporaryDirectory() as scratch:
                    task, directory = world.open(features, Path(scratch)), Path(scratch) / "study"
                    if command:
                        arguments = ["--dataset", task.dataset, "--paradigm", paradigm, "--no-dashboard"]
                        for name, value in KINDS_OF_WORLDS[kind].task.items():
                            arguments += [f"--{name.replace('_', '-')}", str(value)]
                        subprocess.run([sys.executable, "-m", "captune", "run", *arguments, "--out", directory],
                                       check=True, stdin=subprocess.DEVNULL)  # fmt: skip
                        write(out, row_of(world.key, load_study(directory), None, time.monotonic() - clock))
                        continue
                    size = {"trials": trials, "confirm_seeds": confirm_seeds, "fixed": BUDGETS[budget]}
                    study = StudyConfig(task=task, method=method, **size)
                    plan = plan_study(study, directory)
                    run_trials(plan).close()
                    record, _ = close_study(plan.directory)
                write(out, row_of(world.key, record, time.process_time() - began, time.monotonic() - clock))


def write(out: Path, row: dict[str, Any]) -> None:
    """Add a row to the file, and print it."""
    new = not out.exists()
    with out.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(row, flush=True)


def row_of(world: str, record: StudyRecord, cpu_seconds: float | None, seconds: float) -> dict[str, Any]:
    """What a closed study came to that took so long; accuracies in percent."""
    choice = record.choice
    assert choice is not None
    names = [trial.name for trial in record.complete() if trial.phase in (Phase.REFERENCE, Phase.CONFIRM)]
    measured: dict[str, float] = {}
    for name in dict.fromkeys(names):
        metrics = [trial.metric for trial in report_trials(record, name) if trial.metric is not None]
        if metrics and name != "ensemble":
            trial = report_trials(record, name)[0]
            label = name if trial.config_id is None else f"{trial.method} ({name})"
            measured[label] = 100 * sum(metrics) / len(metrics)
    zero = 100 * (reference_metric(record, ZERO_SHOT) or 0.0)
    accuracy = 100 * (reference_metric(record, str(choice.name)) or 0.0)
    best = max(measured, key=lambda name: measured[name])
    expected = {name: round(choice.expected.get(name, float("nan")), 2) for name in ("gain", "low", "high", "risk")}
    return {
        "world": world, "zero_shot": round(zero, 2), "advised": choice.advice, "accuracy": round(accuracy, 2),
        "gain": round(accuracy - zero, 2), "expected": expected["gain"], "low": expected["low"],
        "high": expected["high"], "risk": expected["risk"], "best": best, "best_accuracy": round(measured[best], 2),
        "regret": round(measured[best] - accuracy, 2),
        "cpu_seconds": cpu_seconds and round(cpu_seconds, 1), "seconds": round(seconds, 1), "sentence": choice.sentence,
    }  # fmt: skip


if __name__ == "__main__":
    typer.run(main)
