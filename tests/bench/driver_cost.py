"""What a report of a trial costs the driver, in CPU time of its process, all threads.

`python -m tests.bench.driver_cost` hands the reports of 4, 32 and 128 trials to the code that takes them in, as fast as
it does: planner, journal, Optuna copy, TensorBoard, lines. `--real 4` measures so many sleeping trials on Ray, with
Tune's own part; more real workers than cores measure the starvation of a machine. Both print Markdown rows.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
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
from types import SimpleNamespace

from rich.console import Console

from captune.records import Event
from captune.records.events import Epoch
from captune.space import load_space
from captune.studies.planning import Plan
from captune.studies.running import Settings, Watcher, run_studies
from captune.tuning.cell import Cell
from captune.tuning.engine import gathering_seconds
from captune.tuning.open_study import OpenStudy
from captune.tuning.planner import Planner, StudyScheduler
from captune.tuning.progress import Progress
from captune.tuning.specs import TrialSpec
from captune.tuning.stopping import request_stop
from captune.tuning.telemetry import TensorBoard
from captune.tuning.trainable import PAYLOAD
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

    def __init__(self, directory: Path, trials: int, seconds: float) -> None:
        self.directory, self.trials, self.seconds = directory, trials, seconds
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
        elif self.began is not None and self.cost is None and now - self.began[0] > self.seconds:
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


def measure(trials: int, *, seconds: float, pause: float) -> Cost:
    """The cost with so many trials at once, over a window of `seconds`."""
    with tempfile.TemporaryDirectory(prefix="captune-driver-") as folder:
        directory = Path(folder) / "study"
        facts = info(epochs=100_000)
        space = load_space(space_path(Path(folder)), facts.base)
        plan = Plan(directory, study(trials=trials, confirm_top=0), facts, space)
        window = Window(directory, trials, seconds)
        settings = Settings(
            concurrency=trials, cpus_per_trial=1 / 128, dashboard=False, open_trial=partial(open_sleeping, pause=pause)
        )
        # Less than the option allows, since these trials only sleep and a hundred of them must fit.
        settings = settings.model_copy(update={"memory_per_trial": 0.001})
        with contextlib.suppress(KeyboardInterrupt):
            run_studies([plan], settings, window)
        for name, seconds in window.threads.most_common(8):
            print(f"    {name}: {1000 * seconds / max(window.reports, 1):.2f} ms a report", file=sys.stderr)
        if window.cost is None:
            raise RuntimeError("the trials must all run at once, but they did not")
        return window.cost


def measure_in_process(trials: int, *, report_seconds: float, reports: int) -> Cost:
    """The cost of captune's own part: reports of trials whose epochs take a second."""
    with tempfile.TemporaryDirectory(prefix="captune-driver-") as folder:
        directory, facts = Path(folder) / "study", info(epochs=100_000)
        settings = study(trials=trials, confirm_top=0, sampler="random")
        opened = OpenStudy(directory, settings, facts, load_space(space_path(Path(folder)), facts.base))
        board = TensorBoard(opened.cell)
        Progress([opened.cell], Console(file=io.StringIO()), concurrency=trials)
        planner = Planner([opened.cell])
        scheduler = StudyScheduler(planner)
        names = [f"tune-{number}" for number in range(trials + len(facts.references))]
        for name in names:
            planner.suggest(name)
            planner.started(name, None)
        keys = {name: key for name, (_, (key,)) in planner._trials.items()}
        for name in names[: len(facts.references)]:
            ended = {"score": 0.7, "scores": {"fake": 0.7}}
            planner.on_trial_complete(name, {PAYLOAD: _payload(keys[name], outcome=ended)})
        running = [SimpleNamespace(trial_id=name) for name in names[len(facts.references) :]]
        epochs = max(1, round(report_seconds))
        began, cpu = time.monotonic(), time.process_time()
        for number in range(reports):
            rows = [_row(number * epochs + at + 1) for at in range(epochs)]
            for trial in running:
                told = _payload(keys[trial.trial_id], rows)
                scheduler.on_trial_result(None, trial, {PAYLOAD: told, "done": False})
        opened.settle()
        board.close()
        cost = Cost(
            trials, reports * trials, reports * trials * epochs, time.process_time() - cpu, time.monotonic() - began
        )
        opened.close()
        return cost


def _payload(key: str, rows: Sequence[dict[str, object]] = (), outcome: dict[str, object] | None = None) -> str:
    return json.dumps({"told": [{"key": key, "rows": rows, "outcome": outcome}], "node": "node"})


def _row(epoch: int) -> dict[str, object]:
    return {
        "epoch": epoch, "fidelity": epoch / 100_000, "score": 0.5, "scores": {"fake": 0.5}, "loss": 0.5,
        "num_confident": 10, "num_main": 5, "balance": 0.9, "learning_rate": 0.1, "seconds": 1.0, "images": 64,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[4, 32, 128])
    parser.add_argument("--reports", type=int, default=30, help="of each trial")
    parser.add_argument("--gathered", type=float, help="seconds a report gathers; default: what a study would")
    parser.add_argument("--real", type=int, help="so many sleeping trials on Ray instead")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long those are watched")
    asked = parser.parse_args()
    print("| trials at once | reports a second | CPU ms a report | CPU ms an epoch | % of a core |", flush=True)
    print("|---|---|---|---|---|", flush=True)
    if asked.real is not None:
        print(measure(asked.real, seconds=asked.seconds, pause=1.0).row(), flush=True)
        return
    for trials in asked.trials:
        gathered = asked.gathered or gathering_seconds(trials)
        print(measure_in_process(trials, report_seconds=gathered, reports=asked.reports).row(), flush=True)


if __name__ == "__main__":
    main()
