"""slurm.sbatch on a real Slurm: a controller and three virtual nodes on this machine, started and ended here.

Needs Slurm and munge (Debian: slurmctld, slurmd, slurm-client, munge) and root, whose daemons these are. The nodes
share this machine, so nothing is measured here; what is shown is what Slurm does to the script: steps, signals, queue.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from captune.records import JOURNAL
from tests.journals import journal_lines

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "slurm.sbatch"
PROGRAMS = ("slurmctld", "slurmd", "munged", "mungekey", "sbatch", "scontrol", "squeue", "scancel")
MISSING = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(5400),
    pytest.mark.skipif(bool(MISSING), reason=f"Slurm is not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="Slurm's daemons are started by root"),
]

CONFIGURATION = """
ClusterName=captune
SlurmctldHost={host}
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.sock
CredType=cred/munge
StateSaveLocation={root}/controller
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/controller.pid
SlurmdPidFile={root}/%n.pid
SlurmctldLogFile={root}/controller.log
SlurmdLogFile={root}/%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=30
MinJobAge=3600
SchedulerParameters=bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=vn[1-3] NodeHostname={host} NodeAddr={address} Port={first}-{last} CPUs=4 RealMemory=8000 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=240
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def _wait(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so after {seconds:.0f} s"
        time.sleep(0.5)


def _free_ports(count: int) -> int:
    """The first of some ports in a row that nobody uses."""
    for first in range(27000 + os.getpid() % 1000 * 4, 32000):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("", port))
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")


class Slurm:
    """A Slurm of its own below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        first = _free_ports(4)
        address = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout.split()[0]
        for name in ("controller", "bin", "tokens"):
            (root / name).mkdir(mode=0o700)
        (root / "slurm.conf").write_text(
            CONFIGURATION.format(
                host=socket.gethostname(), root=root, address=address, port=first, first=first + 1, last=first + 3
            )
        )
        self.environment = os.environ | {
            "SLURM_CONF": str(root / "slurm.conf"),
            "PATH": f"{root / 'bin'}:{Path(sys.executable).parent}:/usr/sbin:{os.environ['PATH']}",
            "CAPTUNE_TOKEN_DIR": str(root / "tokens"),
            "OMP_NUM_THREADS": "1",
        }
        for name in ("RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN", "RAY_ADDRESS"):
            self.environment.pop(name, None)
        self.stand_in("captune", f'exec {sys.executable} -c "from captune.cli.main import main; main()" "$@"')

    def stand_in(self, name: str, body: str) -> None:
        path = self.root / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)

    def run(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self) -> None:
        root = self.root
        self.run("mungekey", "--create", f"--keyfile={root}/munge.key")
        files = {"key-file": "munge.key", "socket": "munge.sock", "pid-file": "munge.pid", "log-file": "munge.log"}
        files["seed-file"] = "munge.seed"
        self.run("munged", *(f"--{option}={root}/{name}" for option, name in files.items()))
        self.run("slurmctld")
        for number in (1, 2, 3):
            self.run("slurmd", "-N", f"vn{number}")
        _wait(lambda: self.run("sinfo", "-h", "-p", "low", "-o", "%T").split() == ["idle"], 60)

    def stop(self) -> None:
        """End the jobs, then the daemons, then what is left of either.

        The daemons must outlive the jobs: a slurmstepd that cannot report to slurmd never ends.
        """
        for words in (["--signal=KILL"], []):
            command = ["scancel", "--user=root", "--full", *words]
            subprocess.run(command, env=self.environment, capture_output=True, check=False)
        deadline = time.monotonic() + 60
        while self.queue() and time.monotonic() < deadline:
            time.sleep(0.5)
        for name in ("vn1", "vn2", "vn3", "controller", "munge"):
            path = self.root / f"{name}.pid"
            if path.exists():
                subprocess.run(["kill", path.read_text().strip()], check=False)
        deadline = time.monotonic() + 60
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.5)
        for number in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        assert not left, f"processes of this Slurm are left: {left}"

    def queue(self) -> list[str]:
        """The jobs that are waiting, running or completing; none where the controller does not answer."""
        asked = ["squeue", "--noheader", "--format=%i %T", "--states=PENDING,RUNNING,COMPLETING"]
        done = subprocess.run(asked, env=self.environment, capture_output=True, text=True, timeout=120, check=False)
        return done.stdout.splitlines() if done.returncode == 0 else []

    def processes(self) -> dict[int, str]:
        """Number and command of every process that was started with this Slurm's folder in its environment or words."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                words, environment = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
                command = words.replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue
            mine = str(self.root).encode() in words + environment and int(path.name) != os.getpid()
            if mine and command:  # a process that has ended has no command
                found[int(path.name)] = command
        return found

    def submit(self, *words: str, **environment: str) -> str:
        done = subprocess.run(
            ["sbatch", "--parsable", *words], env=self.environment | environment, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def told(self, job: str, field: str) -> str:
        found = re.search(rf"\b{field}=(\S+)", self.run("scontrol", "show", "job", "-o", job))
        assert found is not None, field
        return found[1]

    def log(self, job: str) -> str:
        path = self.root / f"job-{job}.log"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    # Short: munge's socket is a path of at most a hundred characters, below folders that others may pass.
    root = Path(tempfile.mkdtemp(prefix="captune-slurm-", dir="/tmp"))
    root.chmod(0o711)
    cluster = Slurm(root)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        for log in root.glob("*.log"):
            shutil.copy(log, tmp_path)
        shutil.rmtree(root, ignore_errors=True)


def _submit_study(slurm: Slurm, run: Path, *words: str, options: tuple[str, ...] = ()) -> str:
    sizes = ["--nodes=2", "--cpus-per-task=2", "--gpus-per-node=0", "--mem=1G", "--time=01:00:00"]
    return slurm.submit(
        *sizes,
        f"--output={slurm.root}/job-%j.log",
        *options,
        str(SCRIPT),
        *words,
        CAPTUNE_OUT=str(run),
        CAPTUNE_JOIN_SECONDS="1500",
    )


def test_a_preempted_study_stops_in_order_comes_back_and_ends(slurm: Slurm, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["--dataset", "digits", "--paradigm", "ul", "--trials", "6", "--confirm-top", "0", "--epochs", "8"]
    job = _submit_study(slurm, run, *words, "--logger", "none")
    _wait(lambda: "digits-ul-cap: searching" in slurm.log(job), 1500)
    assert "2 node(s), 2 CPUs and 0 GPUs each" in slurm.log(job)
    urgent = slurm.submit(
        "--partition=high", "--nodes=3", "--cpus-per-task=4", "--wrap", "sleep 1", "--output=/dev/null"
    )
    _wait(lambda: slurm.told(urgent, "JobState") in ("RUNNING", "COMPLETED"), 600)
    assert "preempted: asking the study to stop" in slurm.log(job)
    assert "captune ended with exit code 130" in slurm.log(job), "in order, before the grace time was over"
    assert "queued again" in slurm.log(job)
    before = [event for event in journal_lines(run / JOURNAL) if event["event"] == "study_opened"]
    _wait(lambda: slurm.told(job, "JobState") == "PENDING", 60)
    slurm.run(
        "scontrol", "update", f"jobid={job}", "StartTime=now"
    )  # Slurm lets a job that is queued again wait for two minutes
    _wait(lambda: slurm.told(job, "JobState") in ("COMPLETED", "FAILED", "CANCELLED"), 1800)
    assert slurm.told(job, "JobState") == "COMPLETED", slurm.log(job)
    assert slurm.told(job, "Restarts") == "1"
    assert "start 1 of this job; 1 study(ies)" in slurm.log(job)
    events = journal_lines(run / JOURNAL)
    assert len([event for event in events if event["event"] == "study_opened"]) == len(before) + 1
    ended = [event["key"] for event in events if event["event"] == "finished"]
    assert len(ended) == len(set(ended)) and {f"t{number:04d}" for number in range(6)} <= set(ended)
    assert {event["state"] for event in events if event["event"] == "finished"} <= {"COMPLETE", "PRUNED"}
    assert not list((slurm.root / "tokens").iterdir()), "the token is gone with the job"


def test_two_jobs_share_nodes_and_a_cancelled_one_stops_in_order_and_stays_away(slurm: Slurm, tmp_path: Path) -> None:
    slurm.stand_in(
        "captune",
        f"""exec {sys.executable} - "$@" <<'PYTHON'
import signal, sys, time
import ray
ray.init(address=sys.argv[sys.argv.index("--address") + 1], log_to_driver=False)
print("CPUS", ray.cluster_resources()["CPU"], flush=True)
def told(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm tells it as well as the script
    print("TOLD", flush=True)
    sys.exit(130)
signal.signal(signal.SIGTERM, told)
time.sleep(3000)
PYTHON""",
    )
    jobs = [_submit_study(slurm, tmp_path / name, "--dataset", "digits", "--paradigm", "ul") for name in ("a", "b")]
    for job in jobs:
        _wait(lambda job=job: "CPUS" in slurm.log(job), 1200)
        assert "CPUS 4.0" in slurm.log(job), "its own two nodes, not the other job's"
    assert slurm.told(jobs[0], "NodeList") == slurm.told(jobs[1], "NodeList")
    slurm.run("scancel", jobs[0])
    _wait(lambda: "captune ended with exit code" in slurm.log(jobs[0]), 60)
    assert slurm.log(jobs[0]).count("TOLD") == 1 and "exit code 130" in slurm.log(jobs[0])
    assert "queued again" not in slurm.log(jobs[0])
    _wait(lambda: slurm.told(jobs[0], "JobState") == "CANCELLED", 90)
    assert "TOLD" not in slurm.log(jobs[1])
