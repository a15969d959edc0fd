"""What a report of a trial costs the driver: CPU time of its process a report, while many sleeping trials run.

`python -m tests.bench.driver_cost --trials 4 32 128` runs a study of trials that sleep for a second and report, with
all that a real study has around it (journal, Optuna copy, TensorBoard, gauges, live lines), and prints a Markdown row
for each number of trials.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import os
import pstats
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from captune.records import Event
from captune.records.events import Epoch
from captune.space import load_space
from captune.studies.planning import Plan
from captune.studies.running import Settings, Watcher, run_studies
from captune.tuning.cell import Cell
from captune.tuning.specs import TrialSpec
from captune.tuning.stopping import request_stop
from tests.tuning.fakes import FakeTrial, info, space_path, study


@dataclass(frozen=True)
class Cost:
    """Of a window in which all trials ran.

    Attributes:
        trials: at once.
        reports, epochs: that came in; a report may hold several epochs.
        cpu_seconds: of the driver's process, all threads.
        wall_seconds: of the window.
    """

    trials: int
    reports: int
    epochs: int
    cpu_seconds: float
    wall_seconds: float

    def row(self) -> str:
        """As a row of a Markdown table."""
        return (
            f"| {self.trials} | {self.reports / self.wall_seconds:.1f} | {1000 * self.cpu_seconds / self.reports:.2f} "
            f"| {1000 * self.cpu_seconds / self.epochs:.2f} | {100 * self.cpu_seconds / self.wall_seconds:.1f} |"
        )


class Sleeping(FakeTrial):
    """A trial that keeps its result in memory: its own files would be all that a machine of two cores does."""

    def run_epoch(self) -> dict[str, object]:
        time.sleep(self.pause)
        self.epoch += 1
        score = self.score(self.epoch)
        return {
            "epoch": self.epoch, "fidelity": self.epoch / self.num_epochs, "score": score, "scores": {"fake": score},
            "loss": 1 - score, "num_confident": 10, "num_main": 5, "balance": 0.9, "learning_rate": 0.1,
            "seconds": self.pause, "images": 64,
        }  # fmt: skip


def open_sleeping(spec: TrialSpec, *, pause: float) -> Sleeping:
    return Sleeping(spec, pause=0.0 if spec.key in ("zero_shot", "balanced") else pause)


class Window(Watcher):
    """Measures from the moment all trials run until `seconds` are over, then asks the study to stop."""

    def __init__(self, directory: Path, trials: int, seconds: float, profile: cProfile.Profile | None = None) -> None:
        self.directory, self.trials, self.seconds, self.profile = directory, trials, seconds, profile
        self.reports = self.epochs = 0
        self.began: tuple[float, float] | None = None
        self.threads: Counter[str] = Counter()
        self.cost: Cost | None = None

    @contextlib.contextmanager
    def watching(self, cells: Sequence[Cell], **_: object) -> Iterator[Callable[[], None]]:
        (cell,) = cells
        deliver = cell.deliver

        def counted(key: str, payload: dict[str, object]) -> bool:
            self.reports += 1
            return deliver(key, payload)

        def note(event: Event, _trial: object) -> None:
            self.epochs += isinstance(event, Epoch)

        cell.deliver = counted  # type: ignore[method-assign]
        cell.listeners.append(note)
        yield lambda: self._look(cell)

    def _look(self, cell: Cell) -> None:
        now = time.monotonic()
        reported = sum(bool(trial.num_epochs) and not trial.ended for trial in cell.search)
        if self.began is None and reported >= self.trials:
            self.began, self.reports, self.epochs = (now, time.process_time()), 0, 0
            self.threads = cpu_by_thread()
            if self.profile is not None:
                self.profile.enable()
        elif self.began is not None and self.cost is None and now - self.began[0] > self.seconds:
            if self.profile is not None:
                self.profile.disable()
            cpu = time.process_time() - self.began[1]
            self.threads = cpu_by_thread() - self.threads
            self.cost = Cost(self.trials, self.reports, self.epochs, cpu, now - self.began[0])
            request_stop(self.directory)


def cpu_by_thread() -> Counter[str]:
    """CPU seconds of this process's threads by name, those whose names differ by a number together."""
    python = {thread.native_id: thread.name for thread in threading.enumerate()}
    found: Counter[str] = Counter()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            fields = (task / "stat").read_text()
            name = python.get(int(task.name), fields[fields.index("(") + 1 : fields.rindex(")")])
            ticks = sum(map(int, fields[fields.rindex(")") + 2 :].split()[11:13]))
            found[re.sub(r"\d+", "N", name)] += ticks / os.sysconf("SC_CLK_TCK")
    return found


def measure(trials: int, *, seconds: float, pause: float, profile: cProfile.Profile | None = None) -> Cost:
    """The cost with so many trials at once, over a window of `seconds`."""
    with tempfile.TemporaryDirectory(prefix="captune-driver-") as folder:
        directory = Path(folder) / "study"
        facts = info(epochs=100_000)
        space = load_space(space_path(Path(folder)), facts.base)
        plan = Plan(directory, study(trials=trials, confirm_top=0), facts, space)
        window = Window(directory, trials, seconds, profile)
        settings = Settings(
            concurrency=trials, cpus_per_trial=1 / 128, memory_per_trial=0.001, dashboard=False,
            open_trial=partial(open_sleeping, pause=pause),
        )  # fmt: skip
        with contextlib.suppress(KeyboardInterrupt):
            run_studies([plan], settings, window)
        for name, seconds in window.threads.most_common(8):
            print(f"    {name}: {1000 * seconds / max(window.reports, 1):.2f} ms a report", file=sys.stderr)
        if window.cost is None:
            raise RuntimeError("the trials must all run at once, but they did not")
        return window.cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[4, 32, 128])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds a trial sleeps between reports")
    parser.add_argument("--profile", action="store_true", help="print where the main thread spends its time")
    asked = parser.parse_args()
    print(
        "| trials at once | reports a second | CPU ms a report | CPU ms an epoch | % of a core |\n|---|---|---|---|---|"
    )
    for trials in asked.trials:
        profile = cProfile.Profile() if asked.profile else None
        print(measure(trials, seconds=asked.seconds, pause=asked.pause, profile=profile).row(), flush=True)
        if profile is not None:
            pstats.Stats(profile).sort_stats("cumulative").print_stats(70)


if __name__ == "__main__":
    main()
