"""Connect to Ray: a private cluster on this machine, or one that already runs.

Every cluster captune starts asks for a token (a file that only its owner can read), listens on the loopback address
alone and is gone when the study ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from captune import interruption, own_process
from captune.errors import StudyError, UsageError, first_line
from captune.tuning import ray_internals
from captune.tuning.allotment import Node
from captune.tuning.answering import ANSWER_SECONDS, check_answers, no_cluster
from captune.tuning.environment import ray_environment, variables, worker_variables
from captune.tuning.lock import is_running
from captune.tuning.quiet import muted, unlogged

_OBJECT_STORE_BYTES = 200 * 2**20
_LOOPBACK = "127.0.0.1"
_START_SECONDS = 180.0
# A node that is joined has started already.
_JOIN_SECONDS = 30.0
_USUAL_START_SECONDS = 15.0
# A node that has just been started registers within this time.
_NODE_SECONDS = 5
# The driver has priority over workers, and both over the dashboard's dozen processes, which import much.
_WORKER_NICENESS, _DASHBOARD_NICENESS = 3, 19
_OPEN_CLUSTER = (
    "this cluster asks for no token: whoever reaches its ports can run commands on it. "
    "Start its head with RAY_AUTH_MODE=token."
)


class Ending:
    """Ends a connection. For a private cluster this takes seconds, because its processes are stopped one by one."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Begin to end the connection in the background. Ray must not be used after this call."""
        if self._thread is None:
            self._thread = threading.Thread(target=ray.shutdown, name="captune-ray-ends")
            self._thread.start()

    def wait(self) -> None:
        """End the connection; if `begin` was called, wait until it has ended."""
        with interruption.noted():
            if self._thread is not None:
                self._thread.join()
                return
            with muted():
                if ray_internals.dead_processes_of_own_node():
                    ray_internals.kill_below_own_raylet()
                ray.shutdown()


@dataclass(frozen=True)
class Cluster:
    """A connected cluster.

    Attributes:
        starts_dashboard: whether Ray's dashboard is being started; nothing waits for it.
        known_dashboard: address (host:port) of a dashboard that was up before, or None.
        nodes: the resources of each node, as Ray reports them.
        local: whether it was started here, for this study.
        authenticated: whether it asks for a token.
        warning: a warning for the user, or None.
        storage: directory for Tune's own files, deleted when the study ends.
        ready: folder in which workers of a private cluster create a file once they have imported what trials need.
        ending: ends the connection; `ending.begin` may be called before the block of `connected` ends.
    """

    starts_dashboard: bool
    nodes: tuple[Node, ...]
    local: bool
    authenticated: bool
    storage: Path
    ready: Path
    warning: str | None = None
    known_dashboard: str | None = None
    ending: Ending = field(default_factory=Ending, compare=False)

    @property
    def dashboard(self) -> str | None:
        """The dashboard's address (host:port); None if there is none, or if it is not up yet."""
        return ray_internals.dashboard_address() if self.starts_dashboard else self.known_dashboard

    @property
    def dead(self) -> list[str]:
        """Which of Ray's processes have died, of a cluster that was started here."""
        return ray_internals.dead_processes_of_own_node() if self.local else []

    @property
    def cpus(self) -> float:
        """CPUs of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)


@contextlib.contextmanager
def connected(
    address: str | None,
    *,
    threads: int,
    dashboard: bool = True,
    dashboard_host: str | None = None,
    cpus: int | None = None,
    modules: Sequence[str] = (),
) -> Iterator[Cluster]:
    """Connect to a cluster, or start a private one on this machine if no address is given; clean up after the block.

    Captune's environment variables for Ray (`captune.tuning.environment`) are set while the block runs.

    Args:
        address: `auto`, `host:port`, `ray://…`, or None for a private cluster.
        threads: CPU threads of a trial, set before its process imports torch.
        dashboard: whether a private cluster starts Ray's dashboard.
        dashboard_host: the address on which the dashboard listens; None: loopback.
        cpus: CPUs of a private cluster (default: the machine's).
        modules: modules that a private cluster's workers import as soon as they start.

    Raises:
        UsageError: no cluster answers at the address, the token's file cannot be written, or this process uses Ray.
        StudyError: a private cluster does not start.
    """
    if ray.is_initialized():
        raise UsageError(
            "a process that runs a study must not use Ray for something else",
            got="one that has called ray.init, or runs another study now",
            next_step="Call ray.shutdown() before, or run the study in a process of its own.",
        )
    with ray_environment():
        if address is not None:
            address = _found(address)
            check_answers(address)
        head = None if address is None else ray_internals.asked_without_token(address, ANSWER_SECONDS)
        if head == "no Ray":
            raise no_cluster(f"'{address}': something answers there that is not Ray")
        if head == "nothing":
            raise no_cluster(f"'{address}': its head takes connections and does not answer")
        # A cluster without tokens sends none, so it loses a process that asks for one, and the actors of that process.
        is_open = head == "open"
        with (
            variables({"RAY_AUTH_MODE": "disabled"} if is_open else {}),
            _connection(address, threads, dashboard, dashboard_host, cpus, modules) as cluster,
        ):
            yield cluster


@contextlib.contextmanager
def _connection(
    address: str | None,
    threads: int,
    dashboard: bool,
    dashboard_host: str | None,
    cpus: int | None,
    modules: Sequence[str],
) -> Iterator[Cluster]:
    scraps = _scraps()
    workers = thread_variables(threads) | worker_variables() | own_process.VARIABLES
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    ensure_token()
    if address is None:
        options |= {
            "address": "local",  # otherwise Ray would join a cluster that RAY_ADDRESS names
            "include_dashboard": dashboard,
            "dashboard_host": dashboard_host or _LOOPBACK,
            "num_cpus": cpus,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "_temp_dir": str(scraps / "ray"),
        }
        # Ray's processes inherit these variables. Workers that Ray starts in advance can therefore be used, and no
        # worker waits for the agent that sets up environments.
        inherited = workers
    else:
        options |= {"address": address, "runtime_env": {"env_vars": workers}}
        inherited = {}
    loopback = address is None or _listens_on_loopback_only(address)
    try:
        # Starting Ray takes seconds and leaves processes behind if it is interrupted, so a signal takes effect only
        # after the start.
        noted = interruption.noted(_say_that_ray_starts)
        with (
            noted,
            muted(),
            ray_internals.signals_kept(),
            ray_internals.environment_heard(),
            ray_internals.on_loopback() if loopback else contextlib.nullcontext(),
            ray_internals.patient_start(_START_SECONDS if address is None else _JOIN_SECONDS),
            ray_internals.node_found_within(_NODE_SECONDS),
            _own_processes_quick(modules, scraps / "ready") if address is None else contextlib.nullcontext(),
            variables(inherited),
            _said_if_slow(address),
        ):
            context = ray.init(**options)
    except Exception as error:  # Ray also raises plain exceptions, if its processes are slow to start
        shutil.rmtree(scraps, ignore_errors=True)
        if address is None:
            raise StudyError(
                f"a Ray cluster must start on this machine within {_START_SECONDS:.0f} s",
                got=first_line(error),
                next_step="A machine under heavy load needs longer: try again, or join a cluster by --address.",
            ) from error
        reason = first_line(error)
        if "No node info found" in reason:
            reason = "no live node of it runs on this machine (ray start --address joins one)"
        raise no_cluster(f"'{address}': {reason}") from None
    except BaseException:
        # Interrupted: the parts of the cluster that had started end with this process.
        shutil.rmtree(scraps, ignore_errors=True)
        raise
    ending = Ending()
    with contextlib.ExitStack() as last:
        last.callback(shutil.rmtree, scraps, ignore_errors=True)
        last.enter_context(unlogged())
        last.callback(ending.wait)
        interruption.check()
        known_dashboard = None if address is None else getattr(context, "dashboard_url", None) or None
        authenticated = os.environ.get("RAY_AUTH_MODE") == "token"
        yield Cluster(
            starts_dashboard=dashboard and address is None,
            known_dashboard=known_dashboard,
            nodes=_nodes(),
            local=address is None,
            authenticated=authenticated,
            storage=scraps / "tune",
            ready=scraps / "ready",
            warning=None if authenticated or address is None else _OPEN_CLUSTER,
            ending=ending,
        )


@contextlib.contextmanager
def _said_if_slow(address: str | None) -> Iterator[None]:
    """Print what is being waited for if Ray takes longer than usual to start in the block."""
    timer = threading.Timer(_USUAL_START_SECONDS, _say_that_ray_is_slow, [address])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _say_that_ray_is_slow(address: str | None) -> None:
    # On a terminal the current line may already show what the command is waiting for.
    begin = "\r" if sys.__stderr__ is not None and sys.__stderr__.isatty() else ""
    what = (
        f"Ray's node to start on this machine, up to {_START_SECONDS:.0f} s"
        if address is None
        else f"the cluster at {address} to answer"
    )
    print(f"{begin}Waiting for {what} …", file=sys.__stderr__)


def _say_that_ray_starts() -> None:
    print(
        "Interrupted while Ray starts: it must have started to end in order; once more ends it at once.",
        file=sys.__stderr__,
    )


def _nodes() -> tuple[Node, ...]:
    return tuple(Node.of(node["Resources"]) for node in ray.nodes() if node["Alive"])  # type: ignore[no-untyped-call]


def _scraps() -> Path:
    """Make a temporary folder for this process, and remove those of killed drivers."""
    # Ray puts sockets into it, and a socket's path may have about a hundred characters at most.
    place = Path(tempfile.gettempdir())
    if len(str(place)) > 30 and Path("/tmp").is_dir():
        place = Path("/tmp")
    for left in place.glob("captune-*-*"):
        pid = left.name.split("-")[1]
        with contextlib.suppress(OSError):
            if pid.isdigit() and left.stat().st_uid == os.getuid() and not is_running(int(pid)):
                shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"captune-{os.getpid()}-", dir=place))


def _found(address: str) -> str:
    """The address that `auto` stands for on this machine, which tells whether that cluster listens on loopback."""
    if address != "auto":
        return address
    # If there is none, `auto` is kept, and the attempt to connect reports what is wrong.
    return ray_internals.address_of_this_machine() or address


def check_address(address: str) -> None:
    """Check that a cluster answers at an address, without connecting to it.

    Raises:
        UsageError: none answers within seconds, or `auto` finds no cluster on this machine.
    """
    found = _found(address)
    if found == "auto":
        raise no_cluster("'auto', and none runs on this machine")
    check_answers(found)


def _listens_on_loopback_only(address: str) -> bool:
    """Whether an address of this machine leads to a cluster that was started on loopback, as captune's own are."""
    host, _, port = address.rpartition(":")
    if host not in (_LOOPBACK, "localhost") or not port.isdigit():
        return False
    network: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    with contextlib.suppress(OSError), socket.create_connection((network, int(port)), timeout=5):
        return False
    return True


@contextlib.contextmanager
def _own_processes_quick(modules: Sequence[str], ready: Path) -> Iterator[None]:
    """Start a private cluster in the block without waiting for processes that are not needed yet."""
    with (
        ray_internals.dashboard_unawaited(_DASHBOARD_NICENESS),
        ray_internals.agents_given_ports(),
        ray_internals.workers_ready(modules, ready, _WORKER_NICENESS),
    ):
        yield


def thread_variables(threads: int) -> dict[str, str]:
    """Environment variables that limit a process to `threads` CPU threads; numerical libraries read them on import."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


def token_file() -> str:
    """The path of the token file, as a person would type it."""
    return os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"


def ensure_token() -> Path | None:
    """The token file of clusters started here, readable by its owner only; it is made if there is none.

    None if the environment holds the token itself or turns authentication off.

    Raises:
        UsageError: the file cannot be written.
    """
    if os.environ.get("RAY_AUTH_MODE") != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return None
    path = Path(token_file()).expanduser()
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "w") as file:
                    file.write(secrets.token_hex(32))
        except OSError as error:
            raise UsageError(
                "the token of Ray's clusters must have a file that can be written",
                got=error.strerror,
                where=path,
                next_step="This account's home folder is missing or read-only: name another file by "
                "RAY_AUTH_TOKEN_PATH, for example RAY_AUTH_TOKEN_PATH=/tmp/ray-token-of-mine.",
            ) from None
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
    return path
