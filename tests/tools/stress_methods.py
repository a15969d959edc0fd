"""Every method's default configuration in harder worlds, over seeds: stress.csv (no study, no Ray).

python -m tests.tools.stress_methods --dataset digits --seeds 3 --out stress.csv
"""

from __future__ import annotations

import csv
import io
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import yaml

from captune.algorithms import ALGORITHMS, default_config
from captune.config import TaskConfig
from captune.data.catalog import load_dataset
from captune.records import Role, atomic_write
from captune.seeding import numpy_generator
from captune.training.evaluation import evaluate_trial
from captune.training.trial import TrainingTrial, limit_threads

# world → paradigm and what the task is given; "wrong_names" stands for two names of things the dataset does not show.
WORLDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("ul", {}),
    "imbalance 10": ("ul", {"pool_imbalance": 10.0}),
    "imbalance 50": ("ul", {"pool_imbalance": 50.0}),
    "quarter of the pool": ("ul", {"pool_fraction": 0.25}),
    "two wrong names": ("ul", {"class_names": "wrong_names"}),
    "open set, 20 %": ("ul", {"open_set_fraction": 0.2}),
    "shots": ("ssl", {}),
    "shots, 20 % wrong": ("ssl", {"shot_noise": 0.2}),
    "shots, 40 % wrong": ("ssl", {"shot_noise": 0.4}),
}
_WRONG = ("tiger", "sofa")


def main(
    dataset: Annotated[str, typer.Option(help="Catalogue key, folder:DIR, csv:FILE or features:FILE.")] = "digits",
    methods: Annotated[str, typer.Option(help="a,b or all.")] = "all",
    seeds: Annotated[int, typer.Option(help="Seeds; each draws pool, classes and split anew.")] = 3,
    out: Annotated[Path, typer.Option(help="The CSV; rows that are there already are kept.")] = Path("stress.csv"),
) -> None:
    """Train and report each (method, world, seed) that the CSV lacks, then print means and standard deviations."""
    limit_threads(1)
    names = list(ALGORITHMS) if methods == "all" else methods.split(",")
    found: dict[tuple[str, str, int], float] = {}
    if out.exists():
        with out.open(encoding="utf-8", newline="") as file:
            found = {
                (row["method"], row["world"], int(row["seed"])): float(row["accuracy"]) for row in csv.DictReader(file)
            }
    for seed in range(seeds):
        for method in names:
            for world, (paradigm, settings) in WORLDS.items():
                if (method, world, seed) in found:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    accuracy = _accuracy(dataset, method, paradigm, settings, seed, Path(folder))
                found[method, world, seed] = round(accuracy, 5)
                _write(out, found)
    for method in names:
        cells = [[found[method, world, seed] for seed in range(seeds)] for world in WORLDS]
        shown = [f"{100 * np.mean(cell):.1f} ± {100 * np.std(cell, ddof=min(1, seeds - 1)):.1f}" for cell in cells]
        print(f"| `{method}` | {' | '.join(shown)} |")


def _write(out: Path, found: dict[tuple[str, str, int], float]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "world", "seed", "accuracy"])
    writer.writerows([*key, value] for key, value in found.items())
    atomic_write(out, text.getvalue())


def _accuracy(dataset: str, method: str, paradigm: str, settings: dict[str, Any], seed: int, folder: Path) -> float:
    values = {"dataset": dataset, "paradigm": paradigm, "split_seed": 500 + seed, **settings}
    if settings.get("class_names") == "wrong_names":
        values["class_names"] = _wrong_names(dataset, seed, folder / "names.yaml")
    task = TaskConfig.parse({**values, "unseal_pool": ALGORITHMS[method].unsealed})
    config = default_config(method, task, "features")
    run = TrainingTrial.open(
        task, config, algorithm=ALGORITHMS[method], seed=seed, directory=folder / "run", role=Role.REPORT, device="cpu"
    )
    while not run.trained:
        run.run_epoch()
    run.finish()
    return float(evaluate_trial(task, Role.REPORT, folder / "run")["accuracy"])


def _wrong_names(dataset: str, seed: int, file: Path) -> Path:
    """The dataset's class names, two of them (seeded) replaced by what it does not show."""
    names = list(load_dataset(TaskConfig.parse({"dataset": dataset, "paradigm": "ul"})).class_names)
    for label, wrong in zip(numpy_generator(seed, "wrong-names").permutation(len(names)), _WRONG, strict=False):
        names[label] = wrong
    file.write_text(yaml.safe_dump(names), encoding="utf-8")
    return file


if __name__ == "__main__":
    typer.run(main)
