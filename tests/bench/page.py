"""What tables, figures and page of a long study cost, by its number of trials: `python -m tests.bench.page 1000 5000`.

CPU seconds of the whole process from the records on, children included, and its peak memory. The study is that of
`tests.bench.opening`: a search of four epochs per trial.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from captune.results.report import report_study
from tests.bench.opening import write_long_study


def measure(num_trials: int) -> tuple[float, float]:
    """CPU seconds, and megabytes, of the report of a study in a process of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        directory = Path(folder) / "study"
        write_long_study(directory, num_trials)
        said = subprocess.run(
            [sys.executable, __file__, "--report", str(directory)], env=os.environ, capture_output=True, text=True,
            check=True,
        ).stdout.split()  # fmt: skip
    return float(said[-2]), float(said[-1])


def main() -> None:
    if sys.argv[1] == "--report":
        whole = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        before = sum(sum(resource.getrusage(who)[:2]) for who in whole)
        report_study(Path(sys.argv[2]))
        seconds = sum(sum(resource.getrusage(who)[:2]) for who in whole) - before
        print(f"{seconds:.2f} {max(resource.getrusage(who).ru_maxrss for who in whole) / 1e3:.0f}")
        return
    if sys.argv[1] == "--numbers":
        print(*measure(int(sys.argv[2])))
        return
    for num_trials in map(int, sys.argv[1:]):
        seconds, megabytes = measure(num_trials)
        print(f"{num_trials} trials: {seconds:.2f} CPU s, {megabytes:.0f} MB", flush=True)


if __name__ == "__main__":
    main()
