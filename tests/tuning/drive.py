"""A driver to be killed: a study of quick runs in a process of its own.

`python -m tests.tuning.drive DIRECTORY --trials N --concurrency C --pause SECONDS [--resume]`
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path

from captune.space import load_space
from captune.tuning.cluster import connected
from captune.tuning.engine import Allotment, run_cells
from captune.tuning.open_study import OpenStudy
from tests.tuning.fakes import FakeTrial, info, space_path, study


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--confirm-seeds", type=int, default=1)
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--pause", type=float, default=0.05)
    parser.add_argument("--max-failures", type=int, default=1)
    parser.add_argument("--address")
    parser.add_argument("--resume", action="store_true")
    asked = parser.parse_args()
    facts = info()
    asked.directory.mkdir(parents=True, exist_ok=True)
    settings = study(
        trials=asked.trials, confirm_top=1, confirm_seeds=asked.confirm_seeds, max_failures=asked.max_failures
    )
    opened = OpenStudy(
        asked.directory, settings, facts, load_space(space_path(asked.directory), facts.base), resume=asked.resume
    )
    try:
        with connected(asked.address, threads=1, dashboard=False, cpus=asked.concurrency) as cluster:
            print(json.dumps({"pid": os.getpid()}), flush=True)
            finished = run_cells(
                [opened.cell], cluster, Allotment(asked.concurrency), open_trial=partial(FakeTrial, pause=asked.pause)
            )
    finally:
        opened.close()
    sys.exit(0 if finished else 130)


if __name__ == "__main__":
    main()
