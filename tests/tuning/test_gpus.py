"""GPUs that Ray counts and torch cannot use: told in words, refused before the first trial, never trained around."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import ray
import torch
from ray.cluster_utils import Cluster as LocalNodes

from captune.errors import StudyError, UsageError
from captune.records import JOURNAL
from captune.tuning import answering
from captune.tuning import cluster as cluster_module
from captune.tuning.allotment import Allotment
from captune.tuning.cluster import connected
from captune.tuning.engine import run_cells
from captune.tuning.gpus import judge
from captune.tuning.machine import BROKEN
from captune.tuning.nodes import check_gpus, examine_nodes
from tests.journals import journal_lines
from tests.tuning.test_engine import new_cell

H100 = "NVIDIA H100 80GB HBM3, capability 9.0, 80 GB"
GOOD = {
    "torch": "2.9.0+cu130", "cuda": "13.0", "hip": None, "driver": "580.82.07", "devices": [H100], "error": None,
    "expected": 1,
}  # fmt: skip


def test_a_gpu_on_which_torch_computes_is_proved_in_words() -> None:
    proof = judge(**GOOD)
    assert (proof.trouble, proof.devices, proof.driver, proof.cuda) == (None, (H100,), "580.82.07", "13.0")


@pytest.mark.parametrize(
    ("found", "trouble", "next_step"),
    [
        ({"torch": "2.9.0+cpu", "cuda": None, "devices": []}, "a build without CUDA", "Install a CUDA build of torch"),
        ({"driver": None, "devices": []}, "no NVIDIA driver answers", "580.65 or newer"),
        ({"driver": "570.172.08", "devices": []}, "570.172.08 is too old", "580.65 or newer"),
        ({"devices": [], "error": "no kernel image is available"}, "no kernel image", "built for this card"),
        ({"expected": 2}, "sees 1 of the 2 GPUs that Ray counts", "--num-gpus"),
        ({"cuda": "12.8", "driver": "470.1.1", "devices": []}, "470.1.1 is too old", "525.60 or newer"),
    ],
)
def test_why_a_gpu_cannot_be_used_and_what_to_do(found: dict[str, object], trouble: str, next_step: str) -> None:
    proof = judge(**(GOOD | found))
    assert proof.trouble is not None and trouble in proof.trouble
    assert proof.next_step is not None and next_step in proof.next_step


def test_a_driver_of_the_same_major_version_is_new_enough() -> None:
    assert judge(**(GOOD | {"cuda": "12.8", "driver": "535.104.05"})).trouble is None


# ── on a node that declares a GPU it does not have ────────────────────────────────────────────────

declared = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU that is to be missing")


@pytest.fixture(scope="module")
def node() -> Iterator[LocalNodes]:
    cluster_module.ensure_token()
    local = LocalNodes(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 1})
    yield local
    ray.shutdown()
    local.shutdown()


@declared
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_refuses_a_declared_gpu_and_allow_cpu_is_the_way_round(node: LocalNodes, tmp_path: Path) -> None:
    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from captune.cli.main import main; main()", "run", "--dataset", "digits"]
        command += ["--paradigm", "ul"]
        command += ["--trials", "1", "--confirm-top", "0", "--epochs", "1", "--steps-per-epoch", "2"]
        command += ["--out", str(tmp_path / "run"), "--address", str(node.address), "--logger", "none", *more]
        return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=dict(os.environ))

    refused = run()
    said = " ".join((refused.stdout + refused.stderr).split())
    assert refused.returncode == 1, said
    assert "torch must see every GPU that Ray counts" in said and "--allow-cpu" in said
    assert socket.gethostname() in said and torch.__version__ in said
    assert not (tmp_path / "run" / JOURNAL).exists()
    allowed = run("--allow-cpu")
    assert allowed.returncode == 0, allowed.stdout + allowed.stderr
    ends = [event for event in journal_lines(tmp_path / "run" / JOURNAL) if event["event"] == "finished"]
    assert ends and {event["state"] for event in ends} == {"COMPLETE"}


@declared
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_doctor_calls_a_declared_gpu_broken_on_its_node(node: LocalNodes, tmp_path: Path) -> None:
    with connected(node.address, threads=1):
        ((name, findings),) = examine_nodes([str(tmp_path)]).items()
    assert socket.gethostname() in name
    (gpu,) = [finding for finding in findings if finding.name == "GPU"]
    assert gpu.state == BROKEN and "Ray counts 1" in gpu.found
    assert [finding.state for finding in findings if finding.name == f"directory {tmp_path}"] == ["ok"]


@declared
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_trial_that_asked_for_a_gpu_and_finds_none_fails_with_that_reason(node: LocalNodes, tmp_path: Path) -> None:
    cell = new_cell(tmp_path / "run", trials=1, confirm_top=0)
    with connected(node.address, threads=1) as cluster:
        with pytest.raises(StudyError, match=r"torch must see every GPU that Ray counts"):
            check_gpus()
        assert check_gpus(allow_cpu=True) is False
        run_cells([cell], cluster, Allotment(1, gpus=0.5))
    reasons = {run.state: run.reason for run in cell.trials.values()}
    assert set(reasons) == {"FAILED"}
    assert "a trial that asked for a GPU must find it" in str(reasons["FAILED"])


# ── addresses where no cluster answers ────────────────────────────────────────────────────────────


# Seconds for which an answer that comes is waited for: more than a busy machine takes to give it.
_PATIENCE = 100.0


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets how long the first bytes of an answer and the head's answer are waited for. Ray, who waits minutes, is never
    asked to connect."""

    def connect(*_: object) -> None:
        raise AssertionError("the address must be refused before Ray is asked to connect")

    def wait(first_bytes: float = _PATIENCE, head: float = _PATIENCE) -> None:
        monkeypatch.setattr(answering, "ANSWER_SECONDS", first_bytes)
        monkeypatch.setattr(cluster_module, "ANSWER_SECONDS", head)

    monkeypatch.setattr(cluster_module, "_connection", connect)
    wait()
    return wait


def refusal(address: str) -> str:
    """Why an address is refused, long before patience ends."""
    began = time.monotonic()
    with (
        pytest.raises(UsageError, match="--address must lead to a running Ray cluster") as caught,
        connected(address, threads=1),
    ):
        pass
    assert time.monotonic() - began < _PATIENCE / 2
    return str(caught.value)


def test_no_wait_for_an_address_is_longer_than_a_few_seconds() -> None:
    assert answering.ANSWER_SECONDS == cluster_module.ANSWER_SECONDS <= 4.0


@pytest.mark.usefixtures("waits")
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_listens_is_refused_at_once(scheme: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        said = refusal(f"{scheme}127.0.0.1:{probe.getsockname()[1]}")
    assert "Connection refused" in said


def test_an_address_that_takes_connections_and_says_nothing_is_refused_in_time(waits: Callable[..., None]) -> None:
    waits(first_bytes=1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        said = refusal(f"127.0.0.1:{silent.getsockname()[1]}")
    assert "no answer within 1 s" in said


@pytest.mark.usefixtures("waits")
@pytest.mark.parametrize("banner", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n"])
def test_an_address_where_another_kind_of_server_answers_is_refused_at_once(banner: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(banner)

        threading.Thread(target=answer, daemon=True).start()
        said = refusal(f"127.0.0.1:{server.getsockname()[1]}")
    assert "something answers there that is not Ray" in said


@pytest.mark.usefixtures("waits")
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_grpc_server_that_is_not_ray_is_refused_at_once(scheme: str) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    said = refusal(f"{scheme}127.0.0.1:{port}")
    server.stop(None)
    assert "something answers there that is not Ray" in said


def test_a_head_that_takes_connections_and_hangs_is_refused_in_time(waits: Callable[..., None]) -> None:
    waits(head=1.0)
    ends = threading.Event()

    class Hanging(grpc.GenericRpcHandler):
        def service(self, _details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(lambda _request, _context: ends.wait())

    server = grpc.server(ThreadPoolExecutor(1), handlers=(Hanging(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    said = refusal(f"127.0.0.1:{port}")
    ends.set()
    server.stop(None)
    assert "its head takes connections and does not answer" in said
