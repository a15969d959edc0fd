"""A night on a cluster in small: a matrix on raylets of this machine, with all that goes wrong, inside a time budget.

`python -m tests.bench.night [--budget SECONDS] [--paradigms ul,tft]` runs digits and three small folders of digits, one
of which is gone before its images are read, with two methods; a node is added while trials run and another is killed.
Prints what came of it, as Markdown.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captune.config import StudyConfig, TaskConfig
from captune.errors import StudyError
from captune.records import JOURNAL, StudyRecord, read_journal
from captune.records.events import Chosen, Finished, Preempted, Prepared
from captune.records.usage import covered
from captune.studies.planning import Plan, plan_study
from captune.studies.running import Settings, Watcher, run_studies
from captune.tuning import cluster as cluster_module
from tests.tuning.test_preparing import photographs


class Told(Watcher):
    """Keeps what was said, and when each study was closed."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.closed_at: dict[str, float] = {}

    def warn(self, text: str) -> None:
        self.said.append(text)

    def closed(self, record: StudyRecord, files: Sequence[Path]) -> None:
        self.closed_at[record.directory.name] = time.time()


def plans_of(root: Path, paradigms: Sequence[str]) -> list[Plan]:
    """Four datasets, so many paradigms, two methods."""
    store = root / "store"
    tasks = [TaskConfig(dataset="digits", paradigm="ul", cache_dir=store)]
    folders = {"small": 30, "smaller": 20, "gone": 30}
    # trzsl needs classes enough to take some for unseen.
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven")
    for name, each in folders.items():
        tasks.append(photographs(root / name, each, names).model_copy(update={"cache_dir": store}))
    found = []
    for task, name in zip(tasks, ("digits", *folders), strict=True):
        for paradigm in paradigms:
            for method in ("cap", "fpl"):
                study = StudyConfig(
                    task=task.model_copy(update={"paradigm": paradigm}), method=method, trials=3, confirm_top=1,
                    confirm_seeds=1, fixed={"tuning": "features", "epochs": 4},
                )  # fmt: skip
                found.append(plan_study(study, root / "runs" / f"{name}-{paradigm}-{method}"))
    return found


def ended_in(root: Path) -> int:
    """Trials that have ended in all studies."""
    return sum(path.read_text().count('"event":"finished"') for path in root.glob(f"runs/*/{JOURNAL}"))


@dataclass
class Nodes:
    """What is done to the nodes, and when (seconds of the clock)."""

    added: str | None = None
    process: subprocess.Popen[bytes] | None = None
    began: float = 0.0
    joined: float | None = None
    killed: float | None = None
    told: list[str] = field(default_factory=list)


def strike(nodes: Any, doomed: Any, root: Path, over: threading.Event, done: Nodes) -> None:
    """Start another node once four trials have ended and wait until it is there; then kill one.

    On a busy machine a node takes longer to come up than the half minute for which Ray's own helper waits.
    """
    if not _until(lambda: ended_in(root) >= 4, over):
        return
    count, before, done.began = ended_in(root), alive(nodes), time.time()
    # By Ray's own command, as on a real cluster: Ray starts no node in a thread that is not the main one.
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={nodes.address}", "--num-cpus=1"]
    done.process = subprocess.Popen([*command, "--block", "--disable-usage-stats"], stdout=subprocess.DEVNULL)
    if _until(lambda: bool(alive(nodes) - before), over):
        (done.added,) = alive(nodes) - before
        done.joined = time.time()
        done.told.append(f"a node added after {count} trials joined within {done.joined - done.began:.0f} s")
    if _until(lambda: ended_in(root) >= max(6, count), over):
        count, done.killed = ended_in(root), time.time()
        nodes.remove_node(doomed, allow_graceful=False)
        done.told.append(f"a node killed after {count} trials")


def alive(nodes: Any) -> set[str]:
    """Ids of the nodes that Ray counts as alive."""
    return {node["NodeID"] for node in nodes.global_state.node_table() if node["Alive"]}


def workers_on(nodes: Any, node: str) -> int:
    """Workers of trials that Ray placed on a node; a trial's record holds the host's name, the same for all raylets."""
    actors = nodes.global_state.actor_table(None, None, None).values()
    return sum(actor["Address"]["NodeID"] == node for actor in actors)


def _until(holds: Callable[[], bool], over: threading.Event) -> bool:
    while not holds():
        if over.wait(0.5):
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=600.0)
    parser.add_argument("--paradigms", default="ul,tft")
    asked = parser.parse_args()
    # Ray reads how it asks for a token when it is imported: after captune has said so.
    import ray
    from ray.cluster_utils import Cluster as LocalNodes

    cluster_module.ensure_token()
    root = Path(tempfile.mkdtemp(prefix="captune-night-"))
    plans = plans_of(root, asked.paradigms.split(","))
    (root / "gone").rename(root / "elsewhere")
    nodes = LocalNodes(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes.add_node(num_cpus=1)
    doomed = nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    told, over, done = Told(), threading.Event(), Nodes()
    thread = threading.Thread(target=strike, args=(nodes, doomed, root, over, done), daemon=True)
    began, refused = time.time(), ""
    thread.start()
    try:
        settings = Settings(
            address=nodes.address, dashboard=False, logger="none", time_budget=asked.budget, cpus_per_trial=1
        )
        run_studies(plans, settings, told)
    except StudyError as error:
        refused = str(error)
    finally:
        over.set()
        wall = time.time() - began
        if done.added is not None:
            done.told.append(f"{workers_on(nodes, done.added)} workers trained on the added one")
        report(root, told, done, wall, asked.budget, refused)
        ray.shutdown()
        if done.process is not None:
            done.process.terminate()
            done.process.wait(timeout=60)
        nodes.shutdown()
        shutil.rmtree(root, ignore_errors=True)


def report(root: Path, told: Told, done: Nodes, wall: float, budget: float, refused: str) -> None:
    """Print what came of it."""
    directories = sorted(path.parent for path in root.glob(f"runs/*/{JOURNAL}"))
    events = {path.name: read_journal(path / JOURNAL) for path in directories}
    made = [event for own in events.values() for event in own if isinstance(event, Prepared)]
    kinds = Counter(type(event).__name__ for own in events.values() for event in own)
    ends = Counter(event.state.value for own in events.values() for event in own if isinstance(event, Finished))
    chosen_before_last = 0
    times = [event.time or 0.0 for own in events.values() for event in own if isinstance(event, Finished)]
    last = max(times, default=0.0)
    for own in events.values():
        chosen_before_last += any(isinstance(event, Chosen) and (event.time or last) < last for event in own)
    sessions = [s for path in directories for s in StudyRecord(path, events[path.name]).usage.sessions()]
    print(
        f"- studies planned, with images, concluded: {len(directories)} with images, {kinds['Chosen']} concluded, "
        f"{chosen_before_last} of them before the last trial of all had ended"
    )
    print(
        f"- wall clock {wall:.0f} s of a budget of {budget:.0f} s; counted in the journals: {covered(sessions):.0f} s"
    )
    print(f"- trials ended: {dict(ends)}; preempted with their node: {kinds[Preempted.__name__]}")
    print(f"- nodes: {'; '.join(done.told) or 'none added, none killed'}")
    print(
        f"- images decoded {[e.decoded for e in made]}, encoded {[e.encoded for e in made]}, on {len(made)} occasions"
    )
    print(f"- page of all: {(root / 'runs' / 'report' / 'report.html').exists()}")
    print(f"- said: {told.said[-1].splitlines()[0] if told.said else 'nothing'}; {' '.join(refused.split())[:300]}")


if __name__ == "__main__":
    main()
