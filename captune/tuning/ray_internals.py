"""What captune uses of Ray that is not public. No other module uses a private name of Ray.

Run on Ray 2.52.0, the lowest that pyproject.toml allows, and 2.60.0 (tests/tuning/test_versions.py); versions between
were not tried. Each docstring says what is used, and what would go wrong without the function.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import ray
import ray._private.ray_constants
import ray._private.services
import ray._private.utils
from ray.experimental import internal_kv

from captune.tuning import worker_start
from captune.tuning.environment import variables

# Named after the systems where it is off by default. If it is off, Ray knows a machine as 127.0.0.1 and listens only
# there. If it is on, Ray uses the network address, and GCS, raylet, agents and metrics listen on every interface.
NETWORK_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_HANDLER_SWITCH = "RAY_DISABLE_FAILURE_SIGNAL_HANDLER"
_GCS_WAIT = "RAY_gcs_server_port_wait_time_s"
_AGENTS_PORTS = (
    "metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port",
)  # fmt: skip
# Lower ports are the usual ones of services, Ray's own among them.
_LOWEST_PORT, _PORTS_OF_KERNEL = 20_000, Path("/proc/sys/net/ipv4/ip_local_port_range")
_NICENESS = "RAY_worker_niceness"


@contextlib.contextmanager
def _replaced(place: Any, **values: Any) -> Iterator[None]:
    """Give attributes of one of Ray's modules or classes other values while the block runs."""
    before = {name: getattr(place, name) for name in values}
    try:
        for name, value in values.items():
            setattr(place, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(place, name, value)


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Make Ray, started or joined in the block, know this machine by its loopback address.

    Uses `ray._private.ray_constants.ENABLE_RAY_CLUSTER`, which was read from the environment when ray was imported.
    Without it the ports of a private cluster listen on every interface.
    """
    # The variable is for the processes that Ray starts.
    with _replaced(ray._private.ray_constants, ENABLE_RAY_CLUSTER=False), variables({NETWORK_SWITCH: "0"}):
        yield


def asked_without_token(address: str, seconds: float) -> Literal["open", "token", "no Ray", "nothing"] | None:
    """How the head of a cluster answers a request that carries no token.

    Uses the gRPC method `ray.rpc.NodeInfoGcsService/GetClusterId` of Ray's head, and `ray.rpc.RayletDriver/ClusterInfo`
    of its client server (`ray://`).

    Returns:
        "open": it accepts the request; "token": it demands a token; "no Ray": something other than Ray answers;
        "nothing": there is no answer within `seconds`; None: the answer tells none of these.
    """
    import grpc

    name = "RayletDriver/ClusterInfo" if address.startswith("ray://") else "NodeInfoGcsService/GetClusterId"
    with grpc.insecure_channel(address.removeprefix("ray://"), [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(f"/ray.rpc.{name}")(b"", timeout=seconds)
        except grpc.RpcError as error:
            told: dict[Any, Literal["token", "no Ray", "nothing"]] = {
                grpc.StatusCode.UNAUTHENTICATED: "token",
                grpc.StatusCode.UNIMPLEMENTED: "no Ray",
                grpc.StatusCode.DEADLINE_EXCEEDED: "nothing",
            }
            return told.get(error.code())
        return "open"


@contextlib.contextmanager
def environment_heard() -> Iterator[None]:
    """Make Ray, started or joined in the block, follow the environment's settings for tokens and for SIGTERM.

    Ray read both when it was imported, before captune set them. Uses `ray._raylet.Config.initialize`, as Ray does when
    it turns tokens on by itself, and `ray._private.ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER`. The lowest Ray
    that is allowed (2.52) lacks the latter and always installs a C++ handler for SIGTERM; after the block Python's is
    installed again. Without this a cluster might ask for no token, and SIGTERM would abort the driver in C++.
    """
    constants: Any = ray._private.ray_constants
    before = getattr(constants, _HANDLER_SWITCH, None)
    if before is not None:
        setattr(constants, _HANDLER_SWITCH, constants.env_bool(_HANDLER_SWITCH, False))
    raylet: Any = ray._raylet
    raylet.Config.initialize("")
    try:
        yield
    finally:
        if before is not None:
            setattr(constants, _HANDLER_SWITCH, before)
        elif threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """Keep the command's SIGTERM handler while Ray starts, and keep SIGHUP from the processes that Ray starts.

    Ray installs its own handler at several moments of a start, by `ray._private.utils.set_sigterm_handler`. Without
    this a SIGTERM would end the driver in the middle of a study. A process inherits which signals are blocked. Without
    this a terminal that is closed would end Ray's processes before the driver has ended the study in order; a SIGHUP
    that arrives in the block takes effect after it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        with _replaced(ray._private.utils, set_sigterm_handler=lambda _handler: None):
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def patient_start(seconds: float) -> Iterator[None]:
    """Make Ray, started in the block, wait this long for its own node to come up, instead of half a minute.

    Replaces `ray._private.services.get_node`, which `ray._private.node.Node` asks until it knows the node or 30 s are
    over, and sets the variable that limits the wait for GCS. Without this a busy login node cannot start Ray.
    """
    services: Any = ray._private.services
    before, end = services.get_node, time.monotonic() + seconds

    def get_node(*arguments: Any, **options: Any) -> Any:
        while True:
            try:
                return before(*arguments, **options)
            except RuntimeError:  # the node is not known yet
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    wait = {} if _GCS_WAIT in os.environ else {_GCS_WAIT: str(int(seconds))}
    with _replaced(services, get_node=get_node), variables(wait):
        yield


@contextlib.contextmanager
def node_found_within(seconds: int) -> Iterator[None]:
    """Make Ray, joining a cluster in the block, look this long for its node on this machine, instead of a minute.

    Wraps `ray._private.services.get_node_to_connect_for_driver` if that takes a timeout, which it does not in the
    lowest Ray that is allowed. Without this a head whose node has died, and a machine that is no node of the cluster,
    are refused only after a minute.
    """
    services: Any = ray._private.services
    find = services.get_node_to_connect_for_driver
    if "timeout_seconds" in inspect.signature(find).parameters:
        find = functools.partial(find, timeout_seconds=seconds)
    with _replaced(services, get_node_to_connect_for_driver=find):
        yield


@contextlib.contextmanager
def dashboard_unawaited(niceness: int = 0) -> Iterator[None]:
    """Start Ray in the block without waiting for its dashboard, whose niceness is raised by `niceness`.

    The same is done to the processes that read logs and watch resources, because on two cores each of them delays the
    first trial.
    `ray._private.services.start_api_server` learns that the dashboard is up by asking
    `ray.experimental.internal_kv._internal_kv_get` for its address; here it gets an empty address at once. The niceness
    is set on what `ray._private.services.start_ray_process` starts. Without this a start takes seconds longer, and a
    dozen processes of the dashboard import their modules on the CPUs that the first trials need.
    """
    services: Any = ray._private.services
    constants: Any = ray._private.ray_constants
    get, start = internal_kv._internal_kv_get, services.start_ray_process
    kinds = ("PROCESS_TYPE_DASHBOARD", "PROCESS_TYPE_MONITOR", "PROCESS_TYPE_LOG_MONITOR")
    gives_way = [getattr(constants, kind, None) for kind in kinds]

    def known(key: Any, *arguments: Any, **options: Any) -> Any:
        return b"" if key == constants.DASHBOARD_ADDRESS else get(key, *arguments, **options)

    def started(command: Any, process_type: str, *arguments: Any, **options: Any) -> Any:
        process = start(command, process_type, *arguments, **options)
        if process_type in gives_way:
            with contextlib.suppress(OSError, AttributeError):
                os.setpriority(os.PRIO_PROCESS, process.process.pid, os.getpriority(os.PRIO_PROCESS, 0) + niceness)
        return process

    with _replaced(internal_kv, _internal_kv_get=known), _replaced(services, start_ray_process=started):
        yield


@contextlib.contextmanager
def agents_given_ports() -> Iterator[None]:
    """Give the two agents of a node that is started in the block free ports, so that the node waits less for them.

    One agent sets up environments, the other reports to the dashboard what the node does. If they choose their ports
    themselves, the node is up only after both have imported all they need and reported their ports. The ports are given
    by wrapping `ray._private.services.start_raylet`. Without this the first trial begins seconds later. The agents keep
    the usual priority, because a raylet whose agents have not reported within some 15 s ends with a failed check.
    """
    services: Any = ray._private.services
    start = services.start_raylet

    def started(*arguments: Any, **options: Any) -> Any:
        unset = [name for name in _AGENTS_PORTS if name in options and not options[name]]
        return start(*arguments, **options | dict(zip(unset, _free_ports(len(unset)), strict=False)))

    with _replaced(services, start_raylet=started):
        yield


def _free_ports(count: int) -> list[int]:
    """Free ports of this machine outside the range from which the kernel assigns ports; [] if it has not enough."""
    with contextlib.suppress(OSError, ValueError), contextlib.ExitStack() as bound:
        first = int(_PORTS_OF_KERNEL.read_text().split()[0])
        found: list[int] = []
        for port in random.SystemRandom().sample(range(_LOWEST_PORT, first), 20 * count):
            with contextlib.suppress(OSError):
                bound.enter_context(socket.socket()).bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == count:
                return found
    return []


@contextlib.contextmanager
def workers_ready(modules: Sequence[str], ready: Path, niceness: int) -> Iterator[None]:
    """Make workers of the cluster that is started in the block import modules as soon as they start, and set niceness.

    With the first driver Ray starts as many workers as there are CPUs, but it uses one for an actor only after it has
    imported. If an actor is asked for earlier, Ray starts another worker, which imports the same at the same time. Each
    worker therefore creates files in the folder `ready`, which tell when it is safe to ask. Sets the variable
    `ray._private.ray_constants.WORKER_PROCESS_SETUP_HOOK_ENV_VAR`, which names the function that a worker calls first,
    and `RAY_worker_niceness`, unless the user has set it. Without the first a worker imports what it needs only once it
    has a trial. Without the second workers run at niceness 15, where a dozen processes of the dashboard at 19 take most
    of two cores from two workers.
    """
    constants: Any = ray._private.ray_constants
    values = {} if _NICENESS in os.environ else {_NICENESS: str(niceness)}
    if modules:
        ready.mkdir(parents=True, exist_ok=True)
        values |= {
            constants.WORKER_PROCESS_SETUP_HOOK_ENV_VAR: f"{worker_start.__name__}.{worker_start.begin.__name__}",
            worker_start.MODULES: ",".join(modules),
            worker_start.READY: str(ready),
        }
    with variables(values):
        yield


@contextlib.contextmanager
def workers_taken_as_they_are() -> Iterator[None]:
    """Let Tune's actors in the block ask for no environment of their own, so that workers started in advance fit them.

    Only for a private cluster, whose workers already have the driver's variables. Replaces
    `ray.tune.execution.class_cache._ActorClassCache.get`, which asks for some of those variables again. Without this
    the workers that were started in advance stay idle, and others are started and import the same modules.
    """
    from ray.tune.execution import class_cache  # imported here: it imports Tune, which `captune status` does not need

    def get(self: Any, trainable_cls: Any) -> Any:
        if trainable_cls not in self._cache:
            self._cache[trainable_cls] = ray.remote(trainable_cls)
        return self._cache[trainable_cls]

    with _replaced(class_cache._ActorClassCache, get=get):
        yield


@contextlib.contextmanager
def loggers_uncounted() -> Iterator[None]:
    """Keep Tune, while the block runs, from counting which of the known loggers it was given.

    The count is part of Ray's telemetry, which is off. To make it, `ray.air._internal.usage.tag_callbacks` nevertheless
    imports MLflow, Weights & Biases and Comet if they are installed, which takes up to seven seconds.
    """
    from ray.air._internal import usage

    with _replaced(usage, tag_callbacks=lambda _callbacks: False):
        yield


def dead_processes_of_own_node() -> list[str]:
    """Those of the processes `raylet` and `gcs_server` of the node that this process started which have died.

    Without them no worker starts and no message arrives, which Ray itself notices only after minutes. Uses
    `ray._private.worker._global_node`, and its `dead_processes`, which asks the operating system.
    """
    node: Any = ray._private.worker._global_node
    constants: Any = ray._private.ray_constants
    needed = (constants.PROCESS_TYPE_GCS_SERVER, constants.PROCESS_TYPE_RAYLET)
    dead = {kind for kind, _ in node.dead_processes()} if node is not None else set()
    return [kind for kind in needed if kind in dead]


def kill_below_own_raylet() -> None:
    """Kill what the raylet of the node that this process started has started: its agents and workers.

    Uses `ray._private.worker._global_node` and psutil, which comes with Ray. Without this the agents of a node whose
    head has died outlive it.
    """
    import psutil

    node: Any = ray._private.worker._global_node
    for raylet in node.all_processes.get(ray._private.ray_constants.PROCESS_TYPE_RAYLET, ()):
        if raylet.process.poll() is not None:
            continue  # its number may be another process's by now; what it had started ends without it
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(raylet.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    process.kill()


def dashboard_address() -> str | None:
    """The `host:port` of the connected cluster's dashboard; None as long as it is not up.

    Uses the key `ray._private.ray_constants.DASHBOARD_ADDRESS`, which a dashboard sets once it answers. The address is
    stored for Ray under the key that `ray.init` would have set if it had waited for the dashboard.
    """
    constants: Any = ray._private.ray_constants
    found = internal_kv._internal_kv_get(constants.DASHBOARD_ADDRESS, namespace=constants.KV_NAMESPACE_DASHBOARD)
    if not found:
        return None
    internal_kv._internal_kv_put(b"webui:url", found, overwrite=True, namespace=constants.KV_NAMESPACE_DASHBOARD)
    return str(found.decode())


def address_of_this_machine() -> str | None:
    """The `host:port` that `auto` stands for on this machine; None if no cluster is known.

    Uses `ray._private.services.get_ray_address_from_environment`. Without it `--address auto` could not tell a cluster
    that listens on loopback from one that listens on the network.
    """
    services: Any = ray._private.services
    with contextlib.suppress(Exception):  # Ray raises several kinds if it finds nothing
        found = services.get_ray_address_from_environment("auto", None)
        return None if found is None else str(found)
    return None


def put_value(key: str, value: str, *, namespace: str) -> None:
    """Store a text in the cluster's key-value store (`ray.experimental.internal_kv`)."""
    internal_kv._internal_kv_put(key, value, overwrite=True, namespace=namespace)


def values_of(prefix: str, *, namespace: str) -> dict[str, str]:
    """The texts in the cluster's key-value store whose key begins with `prefix`."""
    keys = internal_kv._internal_kv_list(prefix, namespace=namespace)
    found = {key: internal_kv._internal_kv_get(key, namespace=namespace) for key in keys}
    return {key.decode(): value.decode() for key, value in found.items() if value is not None}


def fail_trial(tune_controller: Any, trial: Any, error: Exception) -> None:
    """End a Tune trial as failed with an error, and kill its process at once, whatever the process waits for.

    Uses `TuneController._process_trial_failure`, which tells scheduler and searcher, and the trial's actor. Tune itself
    would ask the process to end and wait ten minutes for it.
    """
    actor = trial.temporary_state.ray_actor
    tune_controller._process_trial_failure(trial, error)
    if actor is not None:
        ray.kill(actor)


def keep_actors(tune_controller: Any, resources: Any, count: int) -> None:
    """Let Tune keep up to `count` idle actors of these resources for later trials.

    Uses `TuneController._actor_cache`; by itself Tune keeps one. Without this all workers but one are ended between the
    last trial of a search and the first of the confirmation, and new ones have to import everything again.
    """
    cache = getattr(tune_controller, "_actor_cache", None)
    if cache is not None:
        cache.increase_max(resources, count)


def trials_with_an_actor(tune_controller: Any) -> Any:
    """The Tune trials for which an actor runs or starts, as a container.

    Uses `TuneController._trial_to_actor`. Without it a second actor never comes up where trials are shorter than the
    start of a process.
    """
    return getattr(tune_controller, "_trial_to_actor", {})
