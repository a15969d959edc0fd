"""Five hundred trials of milliseconds: nothing grows with the number of trials."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest

from captune.records import JOURNAL
from captune.records.event import Event
from captune.records.events import Finished
from captune.space import load_space
from captune.tuning.cluster import connected
from captune.tuning.engine import Allotment, run_cells
from captune.tuning.open_study import OpenStudy
from tests.journals import journal_lines
from tests.tuning.fakes import info, open_fake, space_path, study

NUM_TRIALS = 500


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_long_study_neither_slows_down_nor_grows_and_restarts_fast(tmp_path: Path) -> None:
    facts = info(epochs=2)
    space = load_space(space_path(tmp_path), facts.base)
    settings = study(trials=NUM_TRIALS, confirm_top=0, scheduler="none")
    opened = OpenStudy(tmp_path / "run", settings, facts, space)
    memory: list[int] = []
    cpu: list[float] = []

    def note(event: Event, _run: object) -> None:
        if isinstance(event, Finished):
            memory.append(_resident_bytes())
            cpu.append(time.process_time())

    opened.cell.listeners.append(note)
    with connected(None, threads=1, dashboard=False, cpus=2) as cluster:
        assert run_cells([opened.cell], cluster, Allotment(2), open_trial=open_fake)
    opened.close()
    ends = [e["time"] for e in journal_lines(tmp_path / "run" / JOURNAL) if e["event"] == "finished"]
    early, late = ends[150] - ends[50], ends[-1] - ends[-101]
    # What others do on the machine shows in the clock on the wall; the driver's own work does not grow.
    early_cpu, late_cpu = cpu[150] - cpu[50], cpu[-1] - cpu[-101]
    growth = (memory[-1] - memory[100]) / (len(memory) - 101)
    started = time.monotonic()
    again = OpenStudy(tmp_path / "run", settings, facts, space, resume=True)
    again.close()
    restart = time.monotonic() - started
    print(
        f"ms a run: {10 * early:.1f} early, {10 * late:.1f} late; of the driver's CPU {10 * early_cpu:.1f} and "
        f"{10 * late_cpu:.1f}; {growth / 1024:.1f} KB a run; restart {restart:.1f} s"
    )
    assert late_cpu < 1.5 * early_cpu
    assert growth < 100 * 1024
    assert restart < 20
    assert again.cell.finished


def _resident_bytes() -> int:
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
