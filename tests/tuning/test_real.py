"""The whole command on real digits: killed, interrupted and continued it ends like the one left alone."""

from __future__ import annotations

import os
import pty
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from captune.records import JOURNAL
from captune.tuning.lock import LOCK
from tests.journals import journal_lines
from tests.tuning.processes import assert_gone, descendants
from tests.tuning.test_faults import wait_for_events

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

COMMAND = [sys.executable, "-X", "faulthandler", "-c", "from captune.cli.main import main; main()"]
QUICK = [
    "--dataset", "digits", "--paradigm", "ul", "--tuning", "features", "--trials", "5", "--confirm-top", "1",
    "--confirm-seeds", "2", "--epochs", "6", "--deterministic", "--no-dashboard",
]  # fmt: skip
# What a clock or a machine decides.
_NOT_COMPARED = ("seconds", "started", "node", "attempts", "preemptions", "study", "time", "memory")


def captune(*arguments: object) -> subprocess.Popen[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    try:
        output, _ = process.communicate(timeout=400)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # faulthandler prints where every thread stands
        output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    return output


def tables(directory: Path) -> dict[str, pd.DataFrame]:
    found = {}
    for name in ("trials", "epochs", "confirm"):
        table = pd.read_csv(directory / f"{name}.csv")
        found[name] = table.drop(columns=[c for c in table if any(c.startswith(word) for word in _NOT_COMPARED)])
    return found


def assert_same_tables(first: Path, second: Path) -> None:
    for name, table in tables(first).items():
        pd.testing.assert_frame_equal(table, tables(second)[name], check_exact=True, obj=f"{name}.csv")


def test_a_killed_study_ends_with_the_tables_of_the_uninterrupted_one(tmp_path: Path) -> None:
    finish(captune("run", *QUICK, "--out", tmp_path / "whole"))
    seed = int(os.environ.get("CAPTUNE_FAULT_SEED") or random.SystemRandom().randrange(10**6))
    print(f"CAPTUNE_FAULT_SEED={seed}")
    draw = random.Random(seed)
    killed = tmp_path / "killed"
    driver = captune("run", *QUICK, "--out", killed)
    for _ in range(3):
        wait_for_events(killed, driver, draw.randrange(4, 16))
        time.sleep(draw.random())
        driver.kill()
        driver.communicate()
        driver = captune("resume", killed, "--no-dashboard")
    finish(driver)
    assert_same_tables(tmp_path / "whole", killed)


def _is_searched(event: dict[str, Any]) -> bool:
    return event["event"] == "epoch" and bool(re.fullmatch(r"t\d+", event["key"]))


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(COLUMNS="120", LINES="40", TERM="xterm")
        os.execv(sys.executable, [*COMMAND, "run", *QUICK, "--out", str(directory)])
    screen = b""
    os.set_blocking(terminal, False)
    deadline, pressed = time.monotonic() + 300, False
    while time.monotonic() < deadline:
        try:
            screen += os.read(terminal, 65536)
        except BlockingIOError:
            time.sleep(0.1)
        except OSError:
            break
        journal = directory / JOURNAL
        # The references have ended before the search begins.
        if not pressed and journal.exists() and any(_is_searched(event) for event in journal_lines(journal)):
            os.write(terminal, b"\x03")
            pressed = True
    _, status = os.waitpid(pid, 0)
    shown = screen.decode(errors="replace")
    assert os.waitstatus_to_exitcode(status) == 130, shown
    assert f"captune resume {directory}" in shown.replace("\r\n", "")
    assert "searching" in shown and "zero-shot" in shown, f"the live table must be shown: {shown}"
    assert "Traceback" not in shown and "(raylet)" not in shown
    finish(captune("resume", directory, "--no-dashboard"))
    assert (directory / "trials.csv").exists() and (directory / "best_config.yaml").exists()


def test_a_term_signal_ends_a_study_in_order(tmp_path: Path) -> None:
    driver = captune("run", *QUICK, "--out", tmp_path / "run")
    wait_for_events(tmp_path / "run", driver, 12)
    driver.send_signal(signal.SIGTERM)
    output = finish(driver, code=130)
    assert "Continue with: captune resume" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_trial_ends_in_order_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    directory = tmp_path / "run"
    driver = captune("run", *QUICK, "--out", directory)
    deadline = time.monotonic() + 120
    while not (directory / LOCK).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    # Ray takes some seconds to start, in which it puts handlers of its own in place.
    time.sleep(random.uniform(0.0, 4.0))
    below = list(descendants(driver.pid))
    driver.send_signal(number)
    output = finish(driver, code=130)
    assert "Traceback" not in output and "received" not in output and "Abort" not in output
    if "Interrupted before the first trial: nothing is left behind" in " ".join(output.split()):
        assert not directory.exists()
    else:  # a trial was planned just before
        assert f"captune resume {directory}" in output
        assert any(event["event"] == "planned" for event in journal_lines(directory / JOURNAL))
    assert_gone(below)
