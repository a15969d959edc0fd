"""Who can reach a cluster: the claims that take a cluster with its dashboard, or one that is open."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from captune.errors import StudyError
from captune.tuning.asking import Asking
from tests.tuning.processes import assert_gone, descendants, listening
from tests.waiting import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

COMMAND = [sys.executable, "-X", "faulthandler", "-c", "from captune.cli.main import main; main()"]
# A driver that holds a cluster of captune's own open until its input ends.
HOLD = """
import sys, time, ray
from captune.tuning.cluster import connected
with connected(None, threads=1, cpus=1) as cluster:
    while cluster.dashboard is None:
        time.sleep(0.1)
    print(cluster.dashboard, ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def own() -> Iterator[tuple[int, str, str]]:
    """A cluster in a process of its own: the process, the dashboard's address, the GCS's."""
    holder = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdin is not None and holder.stdout is not None
    try:
        dashboard, gcs = holder.stdout.readline().split()
        yield holder.pid, dashboard, gcs
    finally:
        below = list(descendants(holder.pid))
        holder.stdin.close()
        holder.wait(timeout=120)
        assert_gone(below)


def status_of(url: str, token: str | None = None, data: bytes | None = None) -> int:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=data, headers=headers), timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def captune(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    process = subprocess.Popen(
        [*COMMAND, *arguments], env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        said, errors = process.communicate(timeout=180)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # faulthandler prints where every thread stands
        said, errors = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, said, errors)


def test_nobody_without_the_token_runs_a_command_through_the_dashboard(own: tuple[int, str, str]) -> None:
    _, dashboard, _ = own
    jobs = f"http://{dashboard}/api/jobs/"
    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text()
    for url in (jobs, f"http://{dashboard}/nodes?view=summary"):
        assert status_of(url) == 401
        assert status_of(url, "0" * 64) in (401, 403)
        assert status_of(url, token) == 200
    assert status_of(jobs, data=b'{"entrypoint": "true"}') == 401


def test_dashboard_gcs_and_metrics_listen_on_loopback(own: tuple[int, str, str]) -> None:
    pid, dashboard, gcs = own
    sockets = listening(pid)
    assert {address for address, _ in sockets} == {"127.0.0.1"}
    ports = {port for _, port in sockets}
    assert {int(address.rpartition(":")[2]) for address in (dashboard, gcs)} <= ports


def test_status_reaches_a_cluster_on_loopback_by_its_address_and_not_without_the_token(
    own: tuple[int, str, str], tmp_path: Path
) -> None:
    _, _, gcs = own
    for done in (captune("status", gcs), captune("status", "auto", RAY_ADDRESS=gcs)):
        assert (done.returncode, done.stdout.strip()) == (0, "No studies."), done.stderr
    (tmp_path / "token").write_text("0" * 64)
    refused = captune("status", gcs, RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    assert refused.returncode == 2
    assert "--address must lead to a running Ray cluster" in " ".join(refused.stderr.split())


def test_status_of_a_cluster_whose_node_stopped_ends_with_what_to_do(own: tuple[int, str, str]) -> None:
    pid, _, gcs = own
    (raylet,) = [one for one, command in descendants(pid).items() if command.split(" ")[0].endswith("/raylet")]
    os.kill(raylet, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(StudyError, match=r"captune status DIR reads them without Ray"), Asking(gcs) as asking:
            asking.standings(seconds=40)
        assert time.monotonic() - began < 80
    finally:
        os.kill(raylet, signal.SIGCONT)
    assert captune("status", gcs).stdout.strip() == "No studies."


_JOIN = """
import sys
from captune.tuning.cluster import connected

class Actor:
    def answer(self):
        return "an actor answers"

with connected(sys.argv[1], threads=1) as cluster:
    import ray
    print(cluster.authenticated, cluster.warning)
    print(ray.get(ray.remote(num_cpus=0)(Actor).remote().answer.remote()))
"""


def test_joining_a_cluster_that_asks_for_no_token_is_warned_about_and_its_actors_live() -> None:
    # On loopback, as everything here, and started by Ray's own command.
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    port = free_port()
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    start += ["--node-ip-address=127.0.0.1", "--include-dashboard=false", "--num-cpus=1", "--disable-usage-stats"]
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        ray = subprocess.Popen([*start, f"--temp-dir={folder}"], env=environment, stdout=subprocess.DEVNULL)
        try:
            wait_for_nodes(port, environment)
            # Whoever joins it need not know that: as captune is started, it would ask for tokens.
            usual = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"}
            done = subprocess.run(
                [sys.executable, "-c", _JOIN, f"127.0.0.1:{port}"],
                env=usual, capture_output=True, text=True, timeout=180, check=False,
            )  # fmt: skip
            assert done.stdout.startswith("False this cluster asks for no token: whoever reaches its ports can"), done
            assert done.stdout.endswith("an actor answers\n"), done
        finally:
            below = list(descendants(ray.pid))
            ray.send_signal(signal.SIGTERM)
            ray.wait(timeout=60)
            assert_gone(below)


def wait_for_nodes(port: int, environment: dict[str, str]) -> None:
    check = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", f"127.0.0.1:{port}"]
    for _ in range(20):
        if subprocess.run(check, env=environment, capture_output=True, check=False).returncode == 0:
            return
        time.sleep(1)
