"""What captune needs of Ray that Ray does not promise to keep: every private name stands here and nowhere else.

Run on Ray 2.52.0, the lowest that pyproject.toml allows, and 2.60.0 (tests/tuning/test_versions.py); those between were
not tried. For each: what is used, and what would be lost without it.
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

# Named after the systems where it is off by default. Off, Ray knows a machine as 127.0.0.1 and its ports stay there;
# on, it knows it by its network address, and GCS, raylet, agents and metrics listen on every interface.
NETWORK_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_HANDLER_SWITCH = "RAY_DISABLE_FAILURE_SIGNAL_HANDLER"
_GCS_WAIT = "RAY_gcs_server_port_wait_time_s"
_AGENTS_PORTS = (
    "metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port",
)  # fmt: skip
# Below these are the usual ones of services, Ray's own among them.
_LOWEST_PORT, _PORTS_OF_KERNEL = 20_000, Path("/proc/sys/net/ipv4/ip_local_port_range")
_NICENESS = "RAY_worker_niceness"


@contextlib.contextmanager
def _replaced(place: Any, **values: Any) -> Iterator[None]:
    """Attributes of a module or class of Ray's have other values in the block; afterwards they are as before."""
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
    """Ray as it is started or joined in the block knows this machine by its loopback address.

    Uses `ray._private.ray_constants.ENABLE_RAY_CLUSTER`, which was read from the environment when ray was imported.
    Without it the ports of a private cluster listen on every interface.
    """
    # The variable is for the processes that Ray starts.
    with _replaced(ray._private.ray_constants, ENABLE_RAY_CLUSTER=False), variables({NETWORK_SWITCH: "0"}):
        yield


def asked_without_token(address: str, seconds: float) -> Literal["open", "token", "no Ray", "nothing"] | None:
    """What a head answers who sends no token: that anyone may, that a token is needed, what no Ray would, or nothing.

    None where that cannot be told. Uses the gRPC method `ray.rpc.NodeInfoGcsService/GetClusterId` of Ray's head, and
    `ray.rpc.RayletDriver/ClusterInfo` of its client server (`ray://`).
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
    """Ray as it is started or joined in the block has the environment's RAY_AUTH_MODE and leaves SIGTERM as it says.

    Ray read both when it was imported, before captune set them. Uses `ray._raylet.Config.initialize`, as Ray does when
    it turns tokens on by itself, and `ray._private.ray_constants.RAY_DISABLE_FAILURE_SIGNAL_HANDLER`, which the lowest
    Ray that is allowed (2.52) does not have: it always puts a C++ handler of its own in place, which is replaced again
    here. Without it a cluster might ask for no token, and SIGTERM would abort the driver in C++.
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
    """The command's SIGTERM handler stays while Ray starts.

    Ray puts its own in place at several moments of a start, by `ray._private.utils.set_sigterm_handler`. Without this
    a SIGTERM would end the driver in the middle of a study.
    """
    with _replaced(ray._private.utils, set_sigterm_handler=lambda _handler: None):
        yield


@contextlib.contextmanager
def patient_start(seconds: float) -> Iterator[None]:
    """Ray as it is started in the block waits this long for its own node to come up, instead of half a minute.

    Replaces `ray._private.services.get_node`, which `ray._private.node.Node` asks until it knows the node or 30 s are
    over, and sets the variable by which the wait for GCS is set. Without it a busy login node cannot start Ray.
    """
    services: Any = ray._private.services
    before, end = services.get_node, time.monotonic() + seconds

    def get_node(*arguments: Any, **options: Any) -> Any:
        while True:
            try:
                return before(*arguments, **options)
            except RuntimeError:  # not known yet
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    wait = {} if _GCS_WAIT in os.environ else {_GCS_WAIT: str(int(seconds))}
    with _replaced(services, get_node=get_node), variables(wait):
        yield


@contextlib.contextmanager
def node_found_within(seconds: int) -> Iterator[None]:
    """Ray as it joins a cluster in the block looks this long for a node of it on this machine, instead of a minute.

    Replaces `ray._private.services.get_node_to_connect_for_driver` where it has a time to give up after, which the
    lowest Ray that is allowed has not. Without it a head whose node has died, and a machine that is no node of the
    cluster, are refused after a minute.
    """
    services: Any = ray._private.services
    find = services.get_node_to_connect_for_driver
    if "timeout_seconds" in inspect.signature(find).parameters:
        find = functools.partial(find, timeout_seconds=seconds)
    with _replaced(services, get_node_to_connect_for_driver=find):
        yield


@contextlib.contextmanager
def dashboard_unawaited(niceness: int = 0) -> Iterator[None]:
    """Ray as it is started in the block does not wait for its dashboard, which gives way to trials by so much.

    So do the processes that read logs and watch resources: on two cores each of them delays the first trial. Answers
    `ray.experimental.internal_kv._internal_kv_get` for the dashboard's address, by which
    `ray._private.services.start_api_server` learns that it is up, with an empty one, and sets the priority of what
    `ray._private.services.start_ray_process` starts. Without it a start takes seconds longer, and a dozen processes of
    the dashboard import their modules on the CPUs that the first trials need.
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
    """A node that is started in the block gives its two agents free ports, so that it waits less for them.

    One sets up environments, the other tells the dashboard what the node does. Where Ray leaves it to them to find a
    port, a node is up only when both have imported all they need and told theirs. The ports are given by wrapping
    `ray._private.services.start_raylet`. Without it the first trial begins seconds later. The agents keep the usual
    priority: a raylet ends with a failed check when its agents have not reported within some 15 s.
    """
    services: Any = ray._private.services
    start = services.start_raylet

    def started(*arguments: Any, **options: Any) -> Any:
        unset = [name for name in _AGENTS_PORTS if name in options and not options[name]]
        return start(*arguments, **options | dict(zip(unset, _free_ports(len(unset)), strict=False)))

    with _replaced(services, start_raylet=started):
        yield


def _free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on and the kernel gives to nobody by itself; none where it may."""
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
    """Workers of the cluster that is started in the block import modules as soon as they are up, and run at a priority.

    Ray starts as many workers as there are CPUs with the first driver, and gives an actor to one of them; but not
    before they have imported. To an actor that is asked for earlier it gives another worker, which imports the same
    once more beside them. So each leaves word in the folder `ready`. Sets the variable
    `ray._private.ray_constants.WORKER_PROCESS_SETUP_HOOK_ENV_VAR`, by which Ray knows what a worker does first, and
    `RAY_worker_niceness`, unless the user did. Without the first a worker imports what it needs only once it has a
    trial; without the second it runs at 15, where a dozen processes of the dashboard at 19 take most of two cores from
    two of them.
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
    """Tune's actors in the block ask for no environment of their own, so that workers that Ray started ahead fit.

    For a cluster of one's own, whose workers have the driver's variables already. Replaces
    `ray.tune.execution.class_cache._ActorClassCache.get`, which asks for some of those variables again. Without it the
    workers that were started ahead stay idle, and others are started and import the same once more.
    """
    from ray.tune.execution import class_cache  # with Tune, which who only looks at a cluster does not need

    def get(self: Any, trainable_cls: Any) -> Any:
        if trainable_cls not in self._cache:
            self._cache[trainable_cls] = ray.remote(trainable_cls)
        return self._cache[trainable_cls]

    with _replaced(class_cache._ActorClassCache, get=get):
        yield


@contextlib.contextmanager
def loggers_uncounted() -> Iterator[None]:
    """Tune in the block does not count which of the known loggers it was given.

    That is a part of Ray's telemetry, which is off; but to count them, `ray.air._internal.usage.tag_callbacks` imports
    MLflow, Weights & Biases and Comet where they are installed. Without it that takes up to seven seconds.
    """
    from ray.air._internal import usage

    with _replaced(usage, tag_callbacks=lambda _callbacks: False):
        yield


def dashboard_address() -> str | None:
    """The `host:port` of the dashboard of the cluster that is connected; None as long as it is not up.

    Uses the key `ray._private.ray_constants.DASHBOARD_ADDRESS`, which a dashboard sets when it answers, and tells Ray,
    which was started without waiting for it, under the key that `ray.init` would have set.
    """
    constants: Any = ray._private.ray_constants
    found = internal_kv._internal_kv_get(constants.DASHBOARD_ADDRESS, namespace=constants.KV_NAMESPACE_DASHBOARD)
    if not found:
        return None
    internal_kv._internal_kv_put(b"webui:url", found, overwrite=True, namespace=constants.KV_NAMESPACE_DASHBOARD)
    return str(found.decode())


def address_of_this_machine() -> str | None:
    """The `host:port` that `auto` stands for here; None where no cluster is known.

    Uses `ray._private.services.get_ray_address_from_environment`. Without it `--address auto` could not tell a cluster
    that listens on loopback from one that listens on the network.
    """
    services: Any = ray._private.services
    with contextlib.suppress(Exception):  # several kinds, for several ways of finding nothing
        found = services.get_ray_address_from_environment("auto", None)
        return None if found is None else str(found)
    return None


def put_value(key: str, value: str, *, namespace: str) -> None:
    """Leave a text in the cluster's key-value store (`ray.experimental.internal_kv`)."""
    internal_kv._internal_kv_put(key, value, overwrite=True, namespace=namespace)


def values_of(prefix: str, *, namespace: str) -> dict[str, str]:
    """The texts in the cluster's key-value store whose key begins with `prefix`."""
    keys = internal_kv._internal_kv_list(prefix, namespace=namespace)
    found = {key: internal_kv._internal_kv_get(key, namespace=namespace) for key in keys}
    return {key.decode(): value.decode() for key, value in found.items() if value is not None}


def fail_trial(tune_controller: Any, trial: Any, error: Exception) -> None:
    """End a Tune trial as failed with an error, and its process at once, whatever it waits for.

    Uses `TuneController._process_trial_failure`, which tells scheduler and searcher, and the trial's actor. Tune's own
    way asks the process to end itself and waits ten minutes for it.
    """
    actor = trial.temporary_state.ray_actor
    tune_controller._process_trial_failure(trial, error)
    if actor is not None:
        ray.kill(actor)


def keep_actors(tune_controller: Any, resources: Any, count: int) -> None:
    """Let Tune keep so many actors of these resources that have nothing to do, for trials that come later.

    Uses `TuneController._actor_cache`; by itself Tune keeps one. Without it all workers but one are ended between the
    last trial of a search and the first of the confirmation, and others import everything once more.
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
