"""How much a pack saves: CPU time of a training step on frozen features, by autograd, alone and in packs.

`python -m tests.bench.packs OUT.csv [--features FILE.npz] [--repeats 5]`

All ways train the same configurations in turn, repeat by repeat, so that what else the machine does meets them all.
A ratio is taken within a repeat; the table has their medians.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from captune.algorithms import ALGORITHMS, default_config
from captune.config import TaskConfig, TrialConfig
from captune.cost.measure import machine
from captune.records import Role
from captune.training.context import open_context
from captune.training.loop import Loop, train_together
from captune.training.trial import limit_threads

SIZES = (1, 2, 4, 8, 16, 32)
_STEPS = 50


class Calls(TorchDispatchMode):
    """Counts operator calls."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def configurations(method: str, task: TaskConfig, count: int) -> list[TrialConfig]:
    """Configurations that a search might try, all different."""
    base = default_config(method, task, "features").with_values({"epochs": 50, "steps_per_epoch": _STEPS})
    different = [{"learning_rate": 0.01 * 1.1**number} for number in range(count)]
    if method != "fpl":
        different = [
            values | {"margin_scale": 12.0 - number / 4, "alignment_weight": 0.02 * number, "reweighting_strength": 0.5}
            for number, values in enumerate(different)
        ]
    return [base.with_values(values) for values in different]


def loops(method: str, task: TaskConfig, count: int) -> list[Loop]:
    """Trials with an epoch behind them, so that margins and boards are as in a trial's middle."""
    context = open_context(task, Role.SCORE, "cpu")
    built = [
        Loop(ALGORITHMS[method].build(context, config, 0), config, config.epochs)
        for config in configurations(method, task, count)
    ]
    train_together(built)
    return built


def cpu_milliseconds(work: Callable[[], object], steps: int) -> float:
    """CPU time a step."""
    started = time.process_time()
    work()
    return 1000 * (time.process_time() - started) / steps


def calls_of(work: Callable[[], object], steps: int) -> float:
    """Operator calls a step, what an epoch does between its steps included."""
    with Calls() as calls:
        work()
    return calls.count / steps


def measured(name: str, dataset: str, method: str, sizes: tuple[int, ...], repeats: int) -> list[dict[str, Any]]:
    """A row for autograd and one for each size of pack."""
    plain_task, task = (
        TaskConfig.parse({"dataset": dataset, "paradigm": "ul", "kernels": kernels}) for kernels in ("plain", "auto")
    )
    (plain,) = loops(method, plain_task, 1)
    packs = {size: loops(method, task, size) for size in sizes}
    ways: dict[str, tuple[int, Callable[[], object]]] = {"autograd": (1, plain.run_epoch)}
    ways |= {f"pack of {n}": (n, lambda pack=pack: train_together(pack)) for n, pack in packs.items()}  # type: ignore[misc]
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, (size, work) in ways.items():
            times[way].append(cpu_milliseconds(work, _STEPS * size))
    return [
        {
            "cell": name, "method": method, "way": way, "cpu_ms_a_step": round(median(times[way]), 3),
            "times_less": round(median(a / b for a, b in zip(times["autograd"], times[way], strict=True)), 2),
            "least": round(min(a / b for a, b in zip(times["autograd"], times[way], strict=True)), 2),
            "most": round(max(a / b for a, b in zip(times["autograd"], times[way], strict=True)), 2),
            "operator_calls_a_step": round(calls_of(work, _STEPS * size), 1),
        }
        for way, (size, work) in ways.items()
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--features", type=Path, help="a file of features with many classes")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    asked = parser.parse_args()
    limit_threads(1)
    sizes = tuple(int(size) for size in asked.sizes.split(","))
    cells = {"digits": "digits"}
    if asked.features is not None:
        cells[asked.features.stem] = f"features:{asked.features}"
    rows = [
        row for name, dataset in cells.items() for method in ("cap", "fpl")
        for row in measured(name, dataset, method, sizes, asked.repeats)
    ]  # fmt: skip
    with asked.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    import torch

    print(machine(torch.device("cpu")), "load", os.getloadavg())
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
