"""Ray: a private cluster of this machine, or one that runs already.

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
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray._private.ray_constants
import ray._private.services
import ray._private.utils
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from captune import interruption
from captune.config import TaskConfig
from captune.errors import CaptuneError, StudyError, UsageError
from captune.tuning.lock import is_running
from captune.tuning.packing import Node

_OBJECT_STORE_BYTES = 200 * 2**20
# Named after the systems where it is off by default. Off, Ray knows a machine as 127.0.0.1 and its ports stay there;
# on, it knows it by its network address, and GCS, raylet, agents and metrics listen on every interface.
_NETWORK_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_LOOPBACK = "127.0.0.1"
_OPEN_CLUSTER = (
    "this cluster asks for no token: whoever reaches its ports can run commands on it. "
    "Start its head with RAY_AUTH_MODE=token."
)


@dataclass(frozen=True)
class Cluster:
    """A cluster that is connected.

    Attributes:
        dashboard: its address (host:port), or None.
        nodes: what each has, as far as Ray was told.
        local: whether it was started here, for this study.
        authenticated: whether it asks for a token.
        warning: what its user should know, or None.
        storage: where Tune may keep its scraps while the study runs.
    """

    dashboard: str | None
    nodes: tuple[Node, ...]
    local: bool
    authenticated: bool
    storage: Path
    warning: str | None = None

    @property
    def cpus(self) -> float:
        """Of all nodes."""
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        """Of all nodes."""
        return sum(node.gpus for node in self.nodes)


@contextlib.contextmanager
def connected(
    address: str | None,
    *,
    threads: int,
    dashboard: bool = True,
    dashboard_host: str | None = None,
    cpus: int | None = None,
) -> Iterator[Cluster]:
    """Connect to a cluster, starting one on this machine if no address is given, and leave nothing behind.

    Args:
        address: `auto`, `host:port`, `ray://…`, or None for a cluster of one's own.
        threads: CPU threads of a run, set before its process imports torch.
        dashboard: whether an own cluster shows Ray's dashboard.
        dashboard_host: where that listens; None is loopback.
        cpus: CPUs of an own cluster (default: the machine's).

    Raises:
        StudyError: no cluster answers at the address.
    """
    scraps = _scraps()
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
        "runtime_env": {"env_vars": thread_variables(threads)},
    }
    # Also to join: a cluster that asks for none ignores it, one that asks says that it is another.
    ensure_token()
    if address is None:
        options |= {
            "include_dashboard": dashboard,
            "dashboard_host": dashboard_host or _LOOPBACK,
            "num_cpus": cpus,
            "object_store_memory": _OBJECT_STORE_BYTES,
            "_temp_dir": str(scraps / "ray"),
        }
    else:
        address = _found(address)
        options["address"] = address
    loopback = address is None or _listens_on_loopback_only(address)
    try:
        # A start that is broken off leaves processes, or hangs: it takes seconds, and the signal is heard after it.
        noted = interruption.noted(_say_that_ray_starts)
        with noted, _muted(), _signals_kept(), _on_loopback() if loopback else contextlib.nullcontext():
            context = ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError, RayError) as error:
        shutil.rmtree(scraps, ignore_errors=True)
        if address is None:
            raise StudyError(
                "a Ray cluster must start on this machine", got=str(error).strip().splitlines()[0]
            ) from error
        raise UsageError(
            "--address must lead to a running Ray cluster",
            got=f"'{address}': {str(error).strip().splitlines()[0]}",
            next_step="Start one with `ray start --head`, or leave --address out to use this machine.",
        ) from None
    except BaseException:
        # Interrupted: what of the cluster had started goes with this process.
        shutil.rmtree(scraps, ignore_errors=True)
        raise
    _silence()
    try:
        interruption.check()
        dashboard_url = getattr(context, "dashboard_url", None) or None
        authenticated = address is None or _asks_for_token(dashboard_url)
        yield Cluster(
            dashboard=dashboard_url,
            nodes=_nodes(),
            local=address is None,
            authenticated=authenticated and os.environ.get("RAY_AUTH_MODE") == "token",
            storage=scraps / "tune",
            warning=None if authenticated else _OPEN_CLUSTER,
        )
    finally:
        with interruption.noted(), _muted():
            ray.shutdown()
        shutil.rmtree(scraps, ignore_errors=True)


def _say_that_ray_starts() -> None:
    print(
        "Interrupted while Ray starts: it must have started to end in order; once more ends it at once.",
        file=sys.__stderr__,
    )


def _nodes() -> tuple[Node, ...]:
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return tuple(Node(has.get("CPU", 0.0), has.get("GPU", 0.0), has.get("memory", 0.0)) for has in resources)


def _scraps() -> Path:
    """A temporary folder of this process; those of killed drivers are removed."""
    # Ray puts sockets below it, whose paths may have some hundred characters.
    place = Path(tempfile.gettempdir())
    if len(str(place)) > 30 and Path("/tmp").is_dir():
        place = Path("/tmp")
    for left in place.glob("captune-*-*"):
        pid = left.name.split("-")[1]
        with contextlib.suppress(OSError):
            if pid.isdigit() and left.stat().st_uid == os.getuid() and not is_running(int(pid)):
                shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"captune-{os.getpid()}-", dir=place))


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    """Ray as it is started or joined in the block knows this machine by its loopback address."""
    constants: Any = ray._private.ray_constants
    before, variable = constants.ENABLE_RAY_CLUSTER, os.environ.get(_NETWORK_SWITCH)
    # The variable is for the processes that Ray starts; here it was read when ray was imported.
    constants.ENABLE_RAY_CLUSTER, os.environ[_NETWORK_SWITCH] = False, "0"
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before
        os.environ.pop(_NETWORK_SWITCH)
        if variable is not None:
            os.environ[_NETWORK_SWITCH] = variable


def _found(address: str) -> str:
    """`auto` as the address of the cluster that Ray finds on this machine; it would mistake one on loopback."""
    if address != "auto":
        return address
    with contextlib.suppress(Exception):  # what is wrong is said by the attempt to connect
        services: Any = ray._private.services
        return str(services.get_ray_address_from_environment("auto", None) or address)
    return address


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
def _signals_kept() -> Iterator[None]:
    """Ray puts its own SIGTERM handler in place at several moments of a start; the command's stays."""
    private: Any = ray._private.utils
    before = private.set_sigterm_handler
    private.set_sigterm_handler = lambda _handler: None
    try:
        yield
    finally:
        private.set_sigterm_handler = before


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    with Path(os.devnull).open("w") as sink, contextlib.redirect_stderr(sink), contextlib.redirect_stdout(sink):
        yield


def _asks_for_token(dashboard_url: str | None) -> bool:
    """Whether a cluster that runs already is authenticated, as its dashboard says (that page is open to all)."""
    if dashboard_url is None:
        return os.environ.get("RAY_AUTH_MODE") == "token"
    try:
        with urllib.request.urlopen(f"http://{dashboard_url}/api/authentication_mode", timeout=5) as answer:
            return '"token"' in answer.read().decode()
    except OSError:
        return os.environ.get("RAY_AUTH_MODE") == "token"


def _silence() -> None:
    for name in ("ray", "ray.tune", "ray._private", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def thread_variables(threads: int) -> dict[str, str]:
    """Environment that bounds a process to some CPU threads (read when numerical libraries load)."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


def token_file() -> str:
    """Where the token lies, as a person would type it."""
    return os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"


def ensure_token() -> Path | None:
    """The token file of clusters started here, made if there is none, readable by its owner only.

    None where the environment gives the token itself or turns authentication off.
    """
    if os.environ.get("RAY_AUTH_MODE") != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return None
    path = Path(token_file()).expanduser()
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
    return path


def check_nodes(
    runs: Sequence[tuple[Path, TaskConfig]], *, custom: bool = False, prepare: bool = True, here: bool = False
) -> None:
    """See from every node that runs can be written there, and build what its trials share, before the first trial.

    Args:
        runs: each study's directory and cell.
        custom: trials are stand-ins that need no data.
        prepare: build image store and feature bank, once per node.
        here: there is no node but this machine, without a GPU; it is checked in this process, which saves a start.

    Raises:
        StudyError: names the nodes that cannot see the runs' directories, the data or the weights, and why.
    """
    token = secrets.token_hex(8)
    tasks = [(str(directory), task.model_dump(mode="json")) for directory, task in runs]
    ask = _problems_here if here else _problems
    try:
        for directory, _ in runs:
            (directory / f".visible.{token}").write_text(token)
        problems = ask(tasks, token, prepare and not custom)
    finally:
        for directory, _ in runs:
            for path in directory.glob(f".visible.{token}*"):
                path.unlink(missing_ok=True)
    if problems:
        raise StudyError(
            "every node must see the runs' directory, the data and the weights",
            got="\n  " + "\n  ".join(problems),
            next_step="Put them on storage that all nodes share (--out, --data-root, --pretrained), or leave it out.",
        )


def _problems_here(tasks: list[tuple[str, dict[str, Any]]], token: str, prepare: bool) -> list[str]:
    if prepare:
        # What is wrong with data or weights of this machine is said in the error's own words.
        _prepare(tasks)
    problem = _probe_node(tasks, token, prepare=False)
    return [] if problem is None else [f"this machine: {problem}"]


def _problems(tasks: list[tuple[str, dict[str, Any]]], token: str, prepare: bool) -> list[str]:
    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    probe = ray.remote(num_cpus=0, max_retries=1)(_probe_node)
    pending = {
        probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            tasks, token, prepare
        ): node
        for node in nodes
    }
    problems = []
    for reference, node in pending.items():
        name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"
        try:
            problem = ray.get(reference)
        except RayError as error:
            problem = f"does not answer: {str(error).strip().splitlines()[0]}"
        if problem is not None:
            problems.append(f"{name}: {problem}")
    return problems


def _probe_node(tasks: list[tuple[str, dict[str, Any]]], token: str, prepare: bool) -> str | None:
    """What keeps this node from running trials, in words; None if nothing does."""
    for directory, _ in tasks:
        mark = Path(directory) / f".visible.{token}"
        try:
            if not mark.exists() or mark.read_text() != token:
                return f"does not see {directory}"
            mark.with_name(f"{mark.name}.{os.getpid()}").write_text(token)
        except OSError as error:
            return f"cannot write to {directory}: {error.strerror}"
    try:
        if prepare:
            _prepare(tasks)
    except CaptuneError as error:
        return str(error)
    return None


def _prepare(tasks: list[tuple[str, dict[str, Any]]]) -> None:
    from captune.training.context import prepare_node

    for _, task in tasks:
        prepare_node(TaskConfig.parse(task))
