"""What a study spends beside training, read from its journal, and a quick study to read it from."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from captune.errors import RecordError
from captune.records import JOURNAL, Phase, StudyRecord, read_journal
from captune.records.events import Finished, Started


@dataclass(frozen=True)
class Overhead:
    """Seconds a search trial takes beside its epochs: dispatch, opening, final predictions, reporting, recording.

    Attributes:
        median: of the trials behind the first, whose actor starts fresh.
        first: of the first.
        num_trials: that were counted.
    """

    median: float
    first: float
    num_trials: int


def measure_overhead(*, trials: int) -> Overhead:
    """Overhead of frozen-feature trials on digits, one at a time, by `captune run` in a temporary folder.

    It is read off the clock on the wall: other work on the machine is part of it.

    Raises:
        OSError: the study did not end well.
    """
    with tempfile.TemporaryDirectory(prefix="captune-bench-") as folder:
        out = Path(folder) / "study"
        options = (
            "--dataset digits --paradigm ul --tuning features --scheduler none --sampler random --confirm-top 0 "
            "--concurrency 1 --no-dashboard --logger none"
        )
        done = subprocess.run(
            [sys.executable, "-c", "from captune.cli.main import main; main()", "run", *options.split(),
             "--trials", str(trials), "--out", str(out)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True, text=True, timeout=60 * trials, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise OSError(f"a study to measure overhead on must end well, but said: {done.stderr[-500:]}")
        return trial_overhead(out)


def trial_overhead(run: Path) -> Overhead:
    """Overhead of a study's search trials that ran one at a time (`--concurrency 1`).

    From the end of one trial to the end of the next, less the seconds of the epochs between.

    Raises:
        RecordError: fewer than two finished search trials, or trials that ran beside each other.
    """
    events = read_journal(run / JOURNAL)
    record = StudyRecord(run, events)
    search = {trial.key for trial in record.of_phase(Phase.SEARCH)}
    started = {event.key: event.time or 0.0 for event in events if isinstance(event, Started)}
    ended = {event.key: event.time or 0.0 for event in events if isinstance(event, Finished)}
    training = {trial.key: trial.trained_seconds for trial in record.trials}
    order = sorted((key for key in ended if key in started), key=lambda key: started[key])
    spent, first = [], None
    for before, key in zip([None, *order], order, strict=False):
        if before is not None and started[key] < ended[before]:
            raise RecordError(
                "trials must have run one at a time for their overhead to be told apart",
                got=f"{before} and {key} beside each other",
                where=run,
                next_step="Measure on a study run with --concurrency 1.",
            )
        since = started[key] if before is None else ended[before]
        seconds = ended[key] - since - training.get(key, 0.0)
        if key in search and first is None:
            first = seconds
        elif key in search:
            spent.append(seconds)
    if first is None or not spent:
        raise RecordError(
            "a run must have two finished search trials to measure overhead on", got=len(spent), where=run
        )
    return Overhead(median(spent), first, 1 + len(spent))
