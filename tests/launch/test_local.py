"""local.sh: against a stand-in of Ray, and (slow) against Ray itself."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.launch.stand_ins import StandIns, is_alive
from tests.waiting import free_port, wait_until

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "local.sh"

# `ray start --block` listens and answers health checks while it lives; $HOME/ill makes it deaf, $HOME/brief makes it
# end after a second.
_RAY = """
listen() {
    exec python3 -c '
import os, socket, sys, time
at = socket.create_server(("127.0.0.1", int(sys.argv[2].partition("=")[2])))
until = time.monotonic() + (1 if os.path.exists(os.environ["HOME"] + "/brief") else 600)
while time.monotonic() < until: time.sleep(0.05)
' "start --head" "$1"
}
case $1 in
    start) for word in "$@"; do [[ $word == --port=* ]] && listen "$word"; done ;;
    health-check) [[ ! -e $HOME/ill ]] ;;
esac
"""


@pytest.fixture
def local(tmp_path: Path):
    stand_ins = StandIns(tmp_path)
    stand_ins.add("ray", _RAY)
    stand_ins.add("captune", "exit 7")
    stand_ins.environment |= {"CAPTUNE_RAY_PORT": str(free_port()), "CAPTUNE_STEADY_SECONDS": "0"}
    yield stand_ins
    stand_ins.add("ray", _RAY)
    _run(stand_ins, "down")


def _run(local: StandIns, *arguments: str, **environment: str) -> int:
    code = local.start(SCRIPT, *arguments, **environment).wait(timeout=110)
    print(local.output())  # shown where the caller's assertion fails
    return code


def _pid_file(home: Path, port: object) -> Path:
    return home / ".captune" / "local" / f"ray-{port}.pid"


def _pid(local: StandIns) -> int:
    return int(_pid_file(local.home, local.environment["CAPTUNE_RAY_PORT"]).read_text())


def _address(local: StandIns) -> str:
    return f"127.0.0.1:{local.environment['CAPTUNE_RAY_PORT']}"


def _starts(local: StandIns) -> list[list[str]]:
    return [call["argv"] for call in local.calls("ray") if call["argv"][0] == "start"]


def test_up_starts_one_node_on_loopback_with_a_token_of_mode_600(local: StandIns):
    assert _run(local, "up", CAPTUNE_CPUS="2") == 0
    assert _run(local, "up") == 0
    (start,) = _starts(local)
    assert {
        "--head",
        f"--port={local.environment['CAPTUNE_RAY_PORT']}",
        "--node-ip-address=127.0.0.1",
        "--dashboard-host=127.0.0.1",
    } <= set(start)
    assert "--num-cpus=2" in start
    token = local.home / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert len(token.read_text()) == 64
    assert all(call["auth"] == "token" for call in local.calls("ray"))


def test_an_existing_token_is_kept_and_closed_to_others(local: StandIns):
    token = local.home / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("mine")
    token.chmod(0o644)
    assert _run(local, "up") == 0
    assert token.read_text() == "mine"
    assert token.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("command", ["run", "resume"])
def test_run_and_resume_hand_everything_to_captune_and_return_its_exit_code(local: StandIns, command: str):
    assert _run(local, command, "--dataset", "folder:/a b") == 7
    (call,) = local.calls("captune")
    assert call["argv"] == [command, "--dataset", "folder:/a b", "--address", _address(local)]


def test_down_stops_its_own_node_only_and_a_second_down_is_harmless(local: StandIns):
    assert _run(local, "up") == 0
    pid = _pid(local)
    other = subprocess.Popen(["bash", "-c", "exec -a 'ray start --head --port=1' sleep 60"])
    try:
        assert _run(local, "down") == 0
        assert not is_alive(pid)
        assert is_alive(other.pid)
    finally:
        other.kill()
        other.wait()
    assert _run(local, "down") == 0
    assert "not up" in local.output()


def test_a_recycled_process_number_is_not_taken_for_the_node(local: StandIns):
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        pid_file = _pid_file(local.home, local.environment["CAPTUNE_RAY_PORT"])
        pid_file.parent.mkdir(parents=True)
        pid_file.write_text(f"{bystander.pid}\n")
        assert _run(local, "down") == 0
        assert is_alive(bystander.pid)
        assert _run(local, "up") == 0
        assert _pid(local) != bystander.pid
    finally:
        bystander.kill()
        bystander.wait()


def test_another_ray_on_the_port_is_left_alone(local: StandIns):
    with socket.create_server(("127.0.0.1", int(local.environment["CAPTUNE_RAY_PORT"]))):
        assert _run(local, "up") == 1
        assert f"another Ray answers on {_address(local)}" in local.output()
        (local.home / "ill").touch()
        assert _run(local, "up") == 1
        assert "something that is not Ray listens on" in local.output()
    assert _starts(local) == []


def test_up_is_said_of_a_node_that_stays_up_only(local: StandIns):
    (local.home / "brief").touch()
    assert _run(local, "up", CAPTUNE_STEADY_SECONDS="3") == 1
    assert "Ray did not start" in local.output()
    assert "up: 127.0.0.1" not in local.output()


def test_a_node_that_no_longer_answers_is_told_and_started_anew(local: StandIns):
    assert _run(local, "up") == 0
    pid = _pid(local)
    (local.home / "ill").touch()
    assert _run(local, "status") == 0
    assert "no longer answers" in local.output()
    (local.home / "ill").unlink()
    local.add("ray", _RAY.replace("health-check) ", 'health-check) kill -0 $(cat "$HOME/old") 2>/dev/null && exit 1; '))
    (local.home / "old").write_text(str(pid))
    assert _run(local, "up") == 0
    assert not is_alive(pid) and is_alive(_pid(local))


def test_the_client_servers_port_is_a_free_one_or_the_one_that_was_set(local: StandIns):
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # then somebody else has it, which is as good
            taken.bind(("127.0.0.1", 10001))
            taken.listen()
        assert _run(local, "up") == 0
    (start,) = _starts(local)
    (port,) = [word.partition("=")[2] for word in start if word.startswith("--ray-client-server-port=")]
    assert port != "10001"
    assert _run(local, "down") == 0
    assert _run(local, "up", CAPTUNE_CLIENT_PORT="20777") == 0
    assert "--ray-client-server-port=20777" in _starts(local)[1]


def test_two_nodes_on_one_machine_have_ports_of_their_own_and_end_by_themselves(local: StandIns):
    other = {"CAPTUNE_RAY_PORT": str(free_port())}
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # then somebody else has it, which is as good
            taken.bind(("127.0.0.1", 8265))
            taken.listen()
        assert _run(local, "up") == 0
        assert _run(local, "up", **other) == 0
    first, second = _starts(local)
    assert not {word for word in [*first, *second] if word == "--dashboard-port=8265"}
    pids = [
        int(_pid_file(local.home, port).read_text())
        for port in (local.environment["CAPTUNE_RAY_PORT"], *other.values())
    ]
    try:
        assert all(map(is_alive, pids))
        assert _run(local, "up") == 0 and "already up" in local.output()
        assert _run(local, "down") == 0
        assert [is_alive(pid) for pid in pids] == [False, True]
    finally:
        assert _run(local, "down", **other) == 0
    assert not is_alive(pids[1])


def test_a_node_that_a_slow_client_server_took_along_is_started_again(local: StandIns):
    slow = (
        'start) [[ -e $HOME/tried ]] || { touch "$HOME/tried"; echo "Timed out waiting for node info"; exit 1; }; for'
    )
    local.add("ray", _RAY.replace("start) for", slow))
    assert _run(local, "up") == 0
    assert len(_starts(local)) == 2 and "once more\nup: 127.0.0.1" in local.output()
    assert is_alive(_pid(local))


def test_a_node_that_does_not_start_shows_the_end_of_its_log(local: StandIns):
    local.add("ray", '[[ $1 == start ]] && echo "port taken" && exit 1; exit 1')
    assert _run(local, "up") == 1
    assert "port taken" in local.output()
    assert "Ray did not start" in local.output()


def test_an_unknown_command_shows_the_usage(local: StandIns):
    assert _run(local, "bogus") == 2
    assert "launch/local.sh up" in local.output()
    assert _starts(local) == []


def _listening(group: int) -> set[str]:
    """Hexadecimal addresses on which processes of a group accept TCP connections."""
    sockets = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(process.name)) != group:
                continue
            sockets |= {str(link.readlink()) for link in (process / "fd").iterdir() if link.is_symlink()}
        except (ProcessLookupError, FileNotFoundError, PermissionError):
            continue
    rows = [row.split() for table in ("tcp", "tcp6") for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}


@pytest.mark.slow
@pytest.mark.skipif(not Path(sys.executable).with_name("ray").exists(), reason="Ray's command is not installed")
def test_a_real_node_listens_on_loopback_only_and_refuses_whoever_has_no_token(tmp_path: Path):
    port, dashboard_port = free_port(), free_port()
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "CAPTUNE_RAY_PORT": str(port),
        "CAPTUNE_DASHBOARD_PORT": str(dashboard_port),
        "CAPTUNE_CPUS": "1",
    }
    jobs = f"http://127.0.0.1:{dashboard_port}/api/jobs/"

    def answer(**headers: str) -> int | None:
        try:
            with urllib.request.urlopen(urllib.request.Request(jobs, headers=headers), timeout=10) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None  # the dashboard is not there yet

    subprocess.run(["bash", str(SCRIPT), "up"], env=environment, check=True, timeout=120)
    try:
        wait_until(lambda: answer() is not None, seconds=60)
        group = int(_pid_file(tmp_path, port).read_text())
        loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
        assert _listening(group)
        assert _listening(group) <= loopback
        assert answer() == 401
        token = (tmp_path / ".ray" / "auth_token").read_text()
        assert answer(Authorization=f"Bearer {token}") == 200
    finally:
        subprocess.run(["bash", str(SCRIPT), "down"], env=environment, check=True, timeout=60)
    wait_until(lambda: not _listening(group), seconds=20)
