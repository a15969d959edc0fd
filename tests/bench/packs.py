"""How much a pack saves: CPU time of a training step on frozen features, by autograd, alone and in packs.

`python -m tests.bench.packs OUT.csv [--features FILE.npz] [--repeats 5] [--device cuda]`

All ways train the same configurations in turn, repeat by repeat, so that what else the machine does meets them all.
A ratio is taken within a repeat; the table has their medians. On a GPU the clock is read instead: a whole epoch of all
trials together, and how much longer it takes per further step (a step is recorded once per epoch and then replayed).
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

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from captune.algorithms import ALGORITHMS, default_config
from captune.config import TaskConfig, TrialConfig
from captune.cost.measure import machine
from captune.records import Role
from captune.training.context import open_context
from captune.training.loop import Loop, train_together
from captune.training.pack_sizes import MOST_AT_ONCE, SIZE_ON_A_GPU
from captune.training.trial import limit_threads

SIZES = (1, 2, 4, 8, 16)
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
    # From the 49th on they are the first ones again: a learning rate cannot grow for ever.
    different = [{"learning_rate": 0.01 * 1.1 ** (number % 48)} for number in range(count)]
    if method != "fpl":
        different = [
            values
            | {
                "margin_scale": 12.0 - number % 48 / 4,
                "alignment_weight": 0.02 * (number % 48),
                "reweighting_strength": 0.5,
            }
            for number, values in enumerate(different)
        ]
    return [base.with_values(values) for values in different]


def loops(method: str, task: TaskConfig, count: int, device: str = "cpu") -> list[Loop]:
    """Trials with an epoch behind them, so that margins and boards are as in a trial's middle."""
    context = open_context(task, Role.SCORE, device)
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


def on_a_gpu(name: str, dataset: str, method: str, sizes: tuple[int, ...], repeats: int) -> list[dict[str, Any]]:
    """A row for a trial whose steps autograd takes and a graph replays, and one for each size of pack."""
    task = TaskConfig.parse({"dataset": dataset, "paradigm": "ul"})
    alone = loops(method, task, 1, "cuda")
    alone[0].algorithm.pack_key = lambda: None  # type: ignore[attr-defined]
    ways = {"autograd, recorded": alone} | {f"pack of {size}": loops(method, task, size, "cuda") for size in sizes}
    rows = []
    for way, pack in ways.items():
        seconds = [[epoch_seconds(pack, steps) for steps in (_STEPS, 5 * _STEPS)] for _ in range(repeats + 1)][1:]
        epoch, longer = (1000 * median(times) for times in zip(*seconds, strict=True))
        rows.append(
            {
                "cell": name, "method": method, "way": way, "ms_an_epoch_of_50_steps": round(epoch, 1),
                "ms_an_epoch_and_trial": round(epoch / len(pack), 2),
                "ms_a_further_step": round((longer - epoch) / (4 * _STEPS), 3),
            }
        )  # fmt: skip
    return rows


def epoch_seconds(pack: list[Loop], steps: int) -> float:
    """The clock's time of an epoch of so many steps, of all together."""
    for loop in pack:
        loop.config = loop.config.with_values({"steps_per_epoch": steps})
        loop.algorithm.config = loop.config  # type: ignore[attr-defined]
    torch.cuda.synchronize()
    started = time.perf_counter()
    outcomes = train_together(pack)
    torch.cuda.synchronize()
    if failed := [outcome for outcome in outcomes if isinstance(outcome, Exception)]:
        raise failed[0]
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--features", type=Path, help="a file of features with many classes")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sizes", help="default: powers of two up to what training takes together")
    asked = parser.parse_args()
    limit_threads(1)
    most = SIZE_ON_A_GPU if asked.device == "cuda" else MOST_AT_ONCE
    sizes = tuple(map(int, asked.sizes.split(","))) if asked.sizes else tuple(size for size in SIZES if size <= most)
    if max(sizes) > most:
        parser.error(f"at most {most} trials are taken together on this device: larger packs are cut")
    cells = {"digits": "digits"}
    if asked.features is not None:
        cells[asked.features.stem] = f"features:{asked.features}"
    rows = [
        row for name, dataset in cells.items() for method in ("cap", "fpl")
        for row in (measured if asked.device == "cpu" else on_a_gpu)(name, dataset, method, sizes, asked.repeats)
    ]  # fmt: skip
    with asked.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(machine(torch.device(asked.device)), "load", os.getloadavg())
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
