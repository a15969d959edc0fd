"""The profile of the first command: how lines become parts of a bar, and one real run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.first_command import PARTS, draw, parts_of, timed
from tests.bench.processes import KINDS, Processes
from tests.waiting import wait_until

LINES = [
    (0.9, "digits ul cap: loading PyTorch and Ray"),
    (9.0, "1 study on this machine: 2 trials at once, 1 CPU, 1.2 GB each"),
    (9.1, "digits-ul-cap: references"),
    (9.5, "digits-ul-cap zero_shot        finished      agree-smooth 0.8068  [1/27, zero-shot 0.8068]"),
    (9.7, "digits-ul-cap text_mixture     finished      agree-smooth 0.8521  [2/27, zero-shot 0.8068]"),
    (16.0, "digits-ul-cap t0001            stopped early agree-smooth 0.8203  [4/27, zero-shot 0.8068, 9 s left]"),
    (22.0, "digits-ul-cap t0000            finished      agree-smooth 0.8502  [9/27, best 0.8587, zero-shot 0.8068]"),
    (30.0, "digits-ul-cap c0-s3            finished      agree-smooth 0.8477  [24/24, best 0.8635, zero-shot 0.8068]"),
    (36.0, "candidate     score (all unlabelled images)  accuracy (sealed test)  seeds"),
    (36.1, "  report.html"),
    (39.0, ""),
]


def test_the_parts_of_a_run_add_up_to_it() -> None:
    parts = parts_of(LINES)
    assert list(parts) == list(PARTS)
    assert list(parts.values()) == pytest.approx([0.9, 8.6, 6.5, 6.0, 8.0, 6.0, 3.0])
    assert sum(parts.values()) == pytest.approx(39.0)


def test_the_bars_are_drawn(tmp_path: Path) -> None:
    row = {part: f"{seconds:.2f}" for part, seconds in parts_of(LINES).items()} | dict.fromkeys(KINDS, "3.0")
    draw([{"tree": "before", **row}, {"tree": "now", **row}, {"tree": "now", **row}], tmp_path / "bars.svg")
    drawn = (tmp_path / "bars.svg").read_text()
    assert drawn.startswith("<?xml") and drawn.count("<path") > 2 * (len(PARTS) + len(KINDS))


def test_the_seconds_of_a_process_and_of_what_it_starts_are_told_apart() -> None:
    # Each says what it has used, its start included, and waits until that has been seen.
    busy = (
        "import sys, time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass\n"
        "print(time.process_time(), flush=True)\nsys.stdin.readline()"
    )
    script = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {busy!r}, 'ray::worker'])\n{busy}"
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    used = {}
    with Processes(process.pid) as processes:
        for kind in ("workers", "driver"):
            used[kind] = float(process.stdout.readline())
            before = processes.looks
            wait_until(lambda before=before: processes.looks >= before + 2)  # type: ignore[misc]
            process.stdin.write("\n")
            process.stdin.flush()
        assert process.wait() == 0
    assert min(used.values()) >= 0.5
    assert processes.by_kind() == pytest.approx(dict.fromkeys(KINDS, 0.0) | used, abs=0.1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_real_run_has_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    load = os.getloadavg()[0]
    lines, cpu = timed(Path(__file__).parents[2], [])
    parts = parts_of(lines)
    with capsys.disabled():
        shown = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in parts.items())
        print(f"\nload {load:.0f}: {sum(parts.values()):.1f} s, {sum(cpu.values()):.0f} CPU s: {shown}")
    assert all(seconds >= 0 for seconds in parts.values())
    assert parts["to the first line"] < parts["to the first score"], "the first line waits for nothing"
