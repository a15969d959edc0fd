"""slurm.sbatch against stand-ins of Slurm, Ray and captune: what is started, how it stops, when it comes back."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.launch.stand_ins import StandIns
from tests.waiting import wait_until

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "slurm.sbatch"
JOB = 4711
PORT = 20000 + JOB % 1000 * 10

# A driver that works until it is told to stop, and then stops in order, as captune does.
_WORK = "for _ in {1..2000}; do sleep 0.05; done"
# One that ends when the test says so.
_WORK_UNTIL_DONE = "for _ in {1..2000}; do [[ ! -e $HOME/done ]] || break; sleep 0.05; done"
_STOP = "trap 'note captune-stopped; exit 130' TERM"
# $HOME/preempted: what Slurm says of a job in its grace time.
_SCONTROL = """case "$1 $2" in
    "show hostnames") printf "node1\\nnode2\\nnode3\\n" ;;
    "show job") echo "Requeue=1 PreemptTime=$([[ -e $HOME/preempted ]] && echo 2026-01-01T00:00:00 || echo None)" ;;
esac"""
# A program that is ended before it has noted its call was never started, as far as a test can see.
_ONCE_ALL_ARE_NOTED = """for _ in {1..2000}; do
    [[ $(grep -cE '^[^ ]+ [^ ]+ (srun|ray) ' "$CALLS") -lt $STARTED ]] || break
    sleep 0.05
done"""


def _waits(call: dict[str, Any]) -> bool:
    """Whether a step is the one that waits for Slurm's signal."""
    return "bash" in call["argv"]


def _steps(slurm: StandIns) -> list[dict[str, Any]]:
    return [call for call in slurm.calls("srun") if not _waits(call)]


@pytest.fixture
def slurm(tmp_path: Path) -> StandIns:
    stand_ins = StandIns(tmp_path)
    # srun keeps the Ray of its step until TERM, like `ray start --block` does.
    stand_ins.add("srun", _WORK, before="trap 'exit 0' TERM")
    stand_ins.add("ray", _WORK, before="trap 'exit 0' TERM")
    stand_ins.add("scontrol", _SCONTROL)
    stand_ins.add("getent", 'echo "10.0.0.1 STREAM node1"')
    stand_ins.add("python3", "cat >/dev/null; echo 3")  # all three nodes have joined
    stand_ins.add("captune", f"{_ONCE_ALL_ARE_NOTED}; exit 0")
    stand_ins.environment |= {
        "SLURM_JOB_ID": str(JOB),
        "SLURM_JOB_NODELIST": "node[1-3]",
        "SLURM_CPUS_PER_TASK": "16",
        "SLURM_GPUS_ON_NODE": "4",
        "CAPTUNE_OUT": str(tmp_path / "runs" / "digits-ul-cap"),
        # For the stand-in of captune: the head, the workers' step, and the one that waits for Slurm's signal.
        "CALLS": str(stand_ins.calls_file),
        "STARTED": "3",
    }
    return stand_ins


def _token(slurm: StandIns) -> Path:
    return slurm.home / ".captune" / "tokens" / str(JOB)


def _finish(process: subprocess.Popen[str]) -> int:
    return process.wait(timeout=60)


def _started(slurm: StandIns) -> None:
    wait_until(lambda: slurm.calls("captune"))


def test_head_workers_and_driver_start_with_one_token_that_only_the_owner_reads(slurm: StandIns):
    assert _finish(slurm.start(SCRIPT, "--dataset", "digits", "--paradigm", "ul")) == 0
    (head,) = slurm.calls("ray")
    (workers,) = _steps(slurm)
    assert {"--head", f"--port={PORT}", "--dashboard-host=127.0.0.1"} <= set(head["argv"])
    assert {"--num-cpus=16", "--num-gpus=4", "--node-ip-address=10.0.0.1"} <= set(head["argv"])
    assert {"--nodes=2", "--nodelist=node2,node3", f"--address=10.0.0.1:{PORT}"} <= set(workers["argv"])
    assert "--kill-on-bad-exit=0" in workers["argv"]
    (driver,) = slurm.calls("captune")
    for call in (head, workers, driver):
        assert (call["auth"], call["token_mode"]) == ("token", "600")


def test_the_driver_gets_the_jobs_arguments_and_the_cluster(slurm: StandIns):
    assert _finish(slurm.start(SCRIPT, "--dataset", "folder:/a b", "--paradigm", "ul")) == 0
    (driver,) = slurm.calls("captune")
    run = slurm.environment["CAPTUNE_OUT"]
    assert driver["argv"] == [
        *("run", "--dataset", "folder:/a b", "--paradigm", "ul"),
        *("--out", run, "--resume", "--address", f"10.0.0.1:{PORT}"),
    ]


def test_the_token_is_gone_with_the_job_and_was_on_no_command_line(slurm: StandIns, tmp_path: Path):
    kept = tmp_path / "kept"
    slurm.add("captune", f'{_ONCE_ALL_ARE_NOTED}; cp "$RAY_AUTH_TOKEN_PATH" {kept}')
    assert _finish(slurm.start(SCRIPT, "--dataset", "digits", "--paradigm", "ul")) == 0
    token = kept.read_text()
    assert len(token) == 64
    assert not _token(slurm).exists()
    assert token not in slurm.calls_file.read_text()
    assert token not in slurm.output()


def test_without_arguments_every_study_in_the_directory_is_resumed(slurm: StandIns):
    parent = Path(slurm.environment["CAPTUNE_OUT"])
    for name in ("b", "a"):
        (parent / name).mkdir(parents=True)
        (parent / name / "journal.jsonl").touch()
    assert _finish(slurm.start(SCRIPT)) == 0
    (driver,) = slurm.calls("captune")
    assert driver["argv"] == ["resume", f"{parent}/a", f"{parent}/b", "--address", f"10.0.0.1:{PORT}"]


def test_the_drivers_exit_code_is_the_jobs(slurm: StandIns):
    slurm.add("captune", f"{_ONCE_ALL_ARE_NOTED}; exit 2")
    assert _finish(slurm.start(SCRIPT, "--dataset", "no", "--paradigm", "ul")) == 2
    assert ["requeue", str(JOB)] not in [call["argv"] for call in slurm.calls("scontrol")]


def test_near_the_time_limit_the_driver_stops_in_order_and_the_job_is_queued_again(slurm: StandIns):
    slurm.add("captune", _WORK, before=_STOP)
    process = slurm.start(SCRIPT, "--dataset", "digits", "--paradigm", "ul")
    _started(slurm)
    process.send_signal(signal.SIGUSR1)
    assert _finish(process) == 130
    assert len(slurm.calls("captune-stopped")) == 1
    assert ["requeue", str(JOB)] in [call["argv"] for call in slurm.calls("scontrol")]
    assert not _token(slurm).exists()


def test_a_warning_that_comes_just_as_the_driver_is_started_reaches_it(slurm: StandIns, tmp_path: Path):
    """Its number was not known at that moment: the job ended, and left the driver to Slurm's kill."""
    slurm.add("captune", _WORK, before=_STOP)
    hook = tmp_path / "hook.sh"
    hook.write_text(
        "warned() { until grep -q ' captune ' \"$CALLS\"; do sleep 0.05; done; kill -USR1 $$; }\n"
        "trap '[[ $BASH_COMMAND != \"driver_pid=\\$!\" ]] || warned' DEBUG\n"
    )
    process = slurm.start(SCRIPT, "--dataset", "digits", "--paradigm", "ul", BASH_ENV=str(hook))
    assert _finish(process) == 130
    assert len(slurm.calls("captune-stopped")) == 1
    assert ["requeue", str(JOB)] in [call["argv"] for call in slurm.calls("scontrol")]


def test_preemption_and_scancel_stop_in_order_and_leave_queueing_to_slurm(slurm: StandIns):
    slurm.add("captune", _WORK, before=_STOP)
    process = slurm.start(SCRIPT, "--dataset", "digits", "--paradigm", "ul")
    _started(slurm)
    process.send_signal(signal.SIGTERM)
    assert _finish(process) == 130
    assert len(slurm.calls("captune-stopped")) == 1
    assert ["requeue", str(JOB)] not in [call["argv"] for call in slurm.calls("scontrol")]


@pytest.mark.parametrize("preempted", [True, False])
def test_a_preemption_that_only_the_steps_are_told_of_stops_the_driver_in_order_and_queues_the_job(
    slurm: StandIns, preempted: bool
):
    slurm.add("captune", _WORK_UNTIL_DONE, before=_STOP)
    process = slurm.start(SCRIPT, "--dataset", "digits", "--paradigm", "ul")
    _started(slurm)
    if preempted:
        (slurm.home / "preempted").touch()
    wait_until(lambda: [call for call in slurm.calls("srun") if _waits(call)])
    for name in Path("/proc").iterdir():
        if name.name.isdigit() and _is_waiting_step(name, slurm):
            os.kill(int(name.name), signal.SIGTERM)
    wait_until(lambda: any(call["argv"][:2] == ["show", "job"] for call in slurm.calls("scontrol")))
    if not preempted:
        (slurm.home / "done").touch()
    assert _finish(process) == (130 if preempted else 0)
    assert len(slurm.calls("captune-stopped")) == int(preempted)
    requeued = ["requeue", str(JOB)] in [call["argv"] for call in slurm.calls("scontrol")]
    assert requeued == preempted


def _is_waiting_step(process: Path, slurm: StandIns) -> bool:
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return str(slurm.bin / "srun").encode() in words and b"bash" in words[2:]


def test_jobs_on_one_node_have_ports_of_their_own(slurm: StandIns):
    for job, started in ((4711, "3"), (4712, "6")):
        own = {"SLURM_JOB_ID": str(job), "STARTED": started}
        assert _finish(slurm.start(SCRIPT, "--dataset", "digits", "--paradigm", "ul", **own)) == 0
    first, second = (
        {word.partition("=")[2] for word in call["argv"] if "port" in word and not word.endswith("=0")}
        for call in slurm.calls("ray")
    )
    assert len(first) == len(second) == 3
    assert not first & second
    for call in [*slurm.calls("ray"), *_steps(slurm)]:
        # Any free port: Ray's usual ones would be another job's.
        assert {"--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"} <= set(call["argv"])


def test_steps_get_the_jobs_cpus(slurm: StandIns, tmp_path: Path):
    before = f"""trap 'exit 0' TERM; echo "$SRUN_CPUS_PER_TASK" >>{tmp_path}/cpus"""
    slurm.add("srun", _WORK, before=before)
    assert _finish(slurm.start(SCRIPT, "--dataset", "digits", "--paradigm", "ul")) == 0
    assert (tmp_path / "cpus").read_text().split() == ["16", "16"]


@pytest.mark.parametrize(
    ("share", "said"),
    [
        ("0.25", None),
        ("0.125", "16 CPUs a node carry 16 trials where 4 GPUs could carry 32: ask sbatch for --cpus-per-task=32"),
    ],
)
def test_too_few_cpus_for_the_gpus_that_are_shared_are_told(slurm: StandIns, share: str, said: str | None):
    arguments = ["--dataset", "digits", "--paradigm", "ul", f"--gpus-per-trial={share}"]
    assert _finish(slurm.start(SCRIPT, *arguments)) == 0
    output = " ".join(slurm.output().split())
    assert (said in output) if said is not None else ("CPUs a node carry" not in output)


def test_a_second_warning_does_not_reach_the_driver_who_would_take_it_as_at_once(slurm: StandIns):
    slurm.add("captune", f"{_WORK_UNTIL_DONE}; exit 130", before="trap 'note captune-stopped' TERM")
    process = slurm.start(SCRIPT, "--dataset", "digits", "--paradigm", "ul")
    _started(slurm)
    process.send_signal(signal.SIGUSR1)
    wait_until(lambda: slurm.calls("captune-stopped"))
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: "asked to leave" in slurm.output())
    (slurm.home / "done").touch()
    assert _finish(process) == 130
    assert len(slurm.calls("captune-stopped")) == 1


def test_a_driver_that_hangs_is_killed_in_time_and_the_job_comes_back(slurm: StandIns):
    slurm.add("captune", _WORK, before="trap '' TERM")
    process = slurm.start(SCRIPT, "--dataset", "digits", "--paradigm", "ul", CAPTUNE_WIND_DOWN_SECONDS="1")
    _started(slurm)
    process.send_signal(signal.SIGUSR1)
    assert _finish(process) == 128 + signal.SIGKILL
    assert ["requeue", str(JOB)] in [call["argv"] for call in slurm.calls("scontrol")]


def test_a_study_that_ends_after_the_warning_is_not_queued_again(slurm: StandIns):
    slurm.add("captune", _WORK, before="trap 'exit 0' TERM")
    process = slurm.start(SCRIPT, "--dataset", "digits", "--paradigm", "ul")
    _started(slurm)
    process.send_signal(signal.SIGUSR1)
    assert _finish(process) == 0
    assert ["requeue", str(JOB)] not in [call["argv"] for call in slurm.calls("scontrol")]


def test_one_node_needs_no_workers(slurm: StandIns):
    slurm.add("scontrol", "echo node1")
    slurm.environment["STARTED"] = "2"
    assert _finish(slurm.start(SCRIPT, "--dataset", "digits", "--paradigm", "ul")) == 0
    assert _steps(slurm) == []


def test_nodes_that_do_not_join_are_done_without(slurm: StandIns):
    slurm.add("python3", "cat >/dev/null; echo 2")
    process = slurm.start(SCRIPT, "--dataset", "digits", "--paradigm", "ul", CAPTUNE_JOIN_SECONDS="1")
    assert _finish(process) == 0
    assert "some nodes have not joined" in slurm.output()
    assert len(slurm.calls("captune")) == 1


def test_a_head_that_does_not_start_ends_the_job_with_its_reason(slurm: StandIns):
    slurm.add("python3", "cat >/dev/null; exit 1")
    process = slurm.start(SCRIPT, "--dataset", "digits", "--paradigm", "ul", CAPTUNE_JOIN_SECONDS="1")
    assert _finish(process) == 1
    assert "the Ray head did not start on node1" in slurm.output()
    assert slurm.calls("captune") == []
    assert not _token(slurm).exists()


def test_a_run_directory_must_be_named(slurm: StandIns):
    del slurm.environment["CAPTUNE_OUT"]
    assert _finish(slurm.start(SCRIPT, "--dataset", "digits", "--paradigm", "ul")) != 0
    assert "set CAPTUNE_OUT to the directory of the study" in slurm.output()
    assert slurm.calls("srun") == slurm.calls("ray") == []
