"""Work in a process of its own, to see how several get on beside each other: `python -m tests.bench.worker`.

A worker prepares, prints "ready", waits for a line on standard input, works, and prints its seconds, first by the clock
on the wall, then of CPU. `trial` is a digits trial of prompt tuning by one thread; `steps` are training steps on a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captune.records import Role

_READY = "ready"
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Worked:
    """Seconds of one worker's epochs or steps: by the clock on the wall, and of CPU."""

    wall: float
    cpu: float


def concurrent_seconds(num_workers: int, *, epochs: int = 5) -> list[Worked]:
    """What each of some simultaneous one-thread trials takes for `epochs` epochs of prompt tuning on digits.

    Raises:
        OSError: a worker could not be started or ended early.
    """
    return _together(num_workers, {"what": "trial", "epochs": epochs}, {"CUDA_VISIBLE_DEVICES": ""})


def concurrent_steps(num_workers: int, **settings: Any) -> list[Worked]:
    """What each of some processes takes for its training steps, all on one device.

    Args:
        num_workers: processes.
        settings: `backbone`, `pretrained`, `device`, `classes`, `batch_size`, `precision`, `steps`.

    Raises:
        OSError: a worker could not be started or ended early.
    """
    return _together(num_workers, {"what": "steps", **settings}, {})


def _together(num_workers: int, settings: dict[str, Any], variables: dict[str, str]) -> list[Worked]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.bench.worker", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=_ROOT,
        )
        for _ in range(num_workers)
    ]
    try:
        for worker in workers:
            if _line(worker) != _READY:
                raise OSError("a benchmark worker ended before it was ready; run with --debug to see why")
        for worker in workers:
            assert worker.stdin is not None  # for the type checker: it was asked for
            worker.stdin.write("\n")
            worker.stdin.flush()
        return [Worked(float(_line(worker)), float(_line(worker))) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def _line(worker: subprocess.Popen[str]) -> str:
    assert worker.stdout is not None  # for the type checker
    for line in worker.stdout:
        # Libraries may print first.
        if line.strip() == _READY or line.strip().replace(".", "", 1).isdigit():
            return line.strip()
    return ""


def main(settings: dict[str, Any]) -> None:
    """Be such a worker."""
    import torch

    torch.set_num_threads(1)
    what = settings.pop("what")
    with (_trial if what == "trial" else _steps)(**settings) as work:
        print(_READY, flush=True)
        sys.stdin.readline()
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        print(f"{time.perf_counter() - wall:.6f}\n{time.process_time() - cpu:.6f}", flush=True)


@contextmanager
def _trial(epochs: int) -> Iterator[Callable[[], None]]:
    from captune.algorithms import ALGORITHMS, default_config
    from captune.config import TaskConfig
    from captune.training.trial import TrainingTrial

    task = TaskConfig.parse({"dataset": "digits", "paradigm": "ul"})
    config = default_config("cap", task).with_values({"epochs": epochs + 1, "tuning": "prompts"})
    with tempfile.TemporaryDirectory(prefix="captune-") as folder:
        run = TrainingTrial.open(
            task, config, algorithm=ALGORITHMS["cap"], seed=0, directory=Path(folder), role=Role.REPORT, device="cpu"
        )
        run.run_epoch()

        def work() -> None:
            while not run.trained:
                run.run_epoch()

        yield work


@contextmanager
def _steps(
    backbone: str, pretrained: str | None, device: str, classes: int, batch_size: int, precision: Any, steps: int
) -> Iterator[Callable[[], None]]:
    from captune.cost.measure import synchronize
    from tests.bench.workbench import Workbench, open_backbone

    model = open_backbone(backbone, pretrained, device)
    with tempfile.TemporaryDirectory(prefix="captune-") as folder:
        step = Workbench(Path(folder), model, classes, batch_size=batch_size).fast(precision)
        step(2)
        synchronize(model.device)

        def work() -> None:
            step(steps)
            synchronize(model.device)

        yield work


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
