"""Run functions on the nodes of a cluster; check before the first trial that each sees directories and GPUs."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from captune.errors import StudyError
from captune.tuning.gpus import GpuProof, prove_gpus
from captune.tuning.machine import BROKEN, Finding, examine

T = TypeVar("T")
# A busy node takes a minute to start a process, and checking a GPU that hangs takes minutes (`captune.tuning.gpus`).
_ANSWER_SECONDS = 300.0


def check_nodes(directories: Sequence[Path], *, here: bool = False) -> None:
    """Check on every node, before the first trial, that the directories of the studies can be seen and written.

    Args:
        directories: of the studies.
        here: whether this machine is the only node. This process then checks it, which saves starting another.

    Raises:
        StudyError: some nodes cannot; the message names them and the reasons.
    """
    token = secrets.token_hex(8)
    names = [str(directory) for directory in directories]
    try:
        for directory in directories:
            (directory / f".visible.{token}").write_text(token)
        answers = {"this machine": _probe_node(names, token)} if here else on_each_node(_probe_node, names, token)
    finally:
        for directory in directories:
            for path in directory.glob(f".visible.{token}*"):
                path.unlink(missing_ok=True)
    problems = [f"{name}: {problem}" for name, problem in answers.items() if problem is not None]
    if problems:
        raise StudyError(
            "every node must see the directories of the studies",
            got="\n  " + "\n  ".join(problems),
            next_step="Put them on storage that all nodes share (--out), or leave a node out.",
        )


def node_name(node: dict[str, Any]) -> str:
    """Host, address and the beginning of Ray's name for a node."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"


def on_each_node(
    ask: Callable[..., Any], *arguments: Any, among: Callable[[dict[str, Any]], bool] = lambda _node: True
) -> dict[str, Any]:
    """A function's result on every live node, by the node's name; "does not answer …" for a node that gives none.

    If the function hangs on a node, for example on a dead mount, the node is given up after five minutes.

    Args:
        ask: the function. It runs in one of Ray's processes on the node and reserves no CPU and no GPU.
        arguments: its arguments.
        among: whether to ask a node, given its entry in `ray.nodes()`.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and among(node)]  # type: ignore[no-untyped-call]
    task = ray.remote(num_cpus=0, max_retries=1)(ask)
    pending = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            *arguments
        ): node
        for node in nodes
    }
    answers = {}
    ready, hanging = ray.wait(list(pending), num_returns=len(pending), timeout=_ANSWER_SECONDS)
    for reference in hanging:
        ray.cancel(reference, force=True)
        answers[node_name(pending[reference])] = (
            f"does not answer within {_ANSWER_SECONDS:.0f} s, as where a mount hangs"
        )
    for reference in ready:
        name = node_name(pending[reference])
        try:
            answers[name] = ray.get(reference)
        except RayError as error:
            answers[name] = f"does not answer: {str(error).strip().splitlines()[0]}"
    return answers


@dataclass(frozen=True)
class Answer(Generic[T]):
    """The future result of a function that runs in one of Ray's processes."""

    _reference: Any

    def ready(self) -> bool:
        """Whether it has ended."""
        return bool(ray.wait([self._reference], timeout=0)[0])

    def get(self) -> T:
        """Wait for its result; an exception that it raised is raised here.

        Raises:
            StudyError: its process died.
        """
        try:
            result: T = ray.get(self._reference)
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            raise StudyError("a process beside the trials must end", got=str(error).strip().splitlines()[0]) from None
        return result


def start_here(work: Callable[..., T], *arguments: Any) -> Answer[T]:
    """Run a function in one of Ray's processes on this machine; it reserves no CPU and no GPU."""
    here = ray.get_runtime_context().get_node_id()
    where = NodeAffinitySchedulingStrategy(here, soft=True)
    return Answer(ray.remote(num_cpus=0, max_retries=1)(work).options(scheduling_strategy=where).remote(*arguments))


def check_gpus(*, allow_cpu: bool = False) -> bool:
    """Check on every node with GPUs that torch can compute on them, before the first trial.

    Args:
        allow_cpu: train on the CPU where a GPU cannot be used.

    Returns:
        Whether any GPU can be used.

    Raises:
        StudyError: a GPU that Ray counts cannot be used; the message names the node, the reason and what to do.
    """
    answers = on_each_node(gpus_of_this_node, among=lambda node: node["Resources"].get("GPU", 0) > 0)
    proofs = {
        name: answer if isinstance(answer, GpuProof) else GpuProof(trouble=answer) for name, answer in answers.items()
    }
    bad = {name: proof for name, proof in proofs.items() if proof.trouble is not None}
    if bad and not allow_cpu:
        remedies = dict.fromkeys(proof.next_step for proof in bad.values() if proof.next_step)
        raise StudyError(
            "torch must see every GPU that Ray counts",
            got="\n  " + "\n  ".join(f"{name}: {proof.trouble}" for name, proof in bad.items()),
            next_step="\n".join([*remedies, "To train on the CPU where a GPU cannot be used, say --allow-cpu."]),
        )
    return len(bad) < len(proofs)


def examine_nodes(directories: Sequence[str] = ()) -> dict[str, list[Finding]]:
    """What every live node offers a study, by the node's name.

    Args:
        directories: each must exist and be writable on every node.
    """
    answers = on_each_node(_examine_this_node, list(directories))
    return {
        name: answer if isinstance(answer, list) else [Finding("node", str(answer), BROKEN)]
        for name, answer in answers.items()
    }


def _examine_this_node(directories: list[str]) -> list[Finding]:
    proof, expected = gpus_of_this_node(), _gpus_declared()
    return examine(directories, expected_gpus=expected, gpus=proof)


def show_gpus_of_this_node() -> None:
    """Let this process, which asked Ray for no GPU, use those of its node; to be called before torch looks for GPUs."""
    _show_gpus(os.environ)


def gpus_of_this_node() -> GpuProof:
    """What torch sees of the GPUs that this process's Ray node was started with."""
    # Ray hides the GPUs from a task that asks for none; the node's own process, which started this one, sees them.
    environment = dict(os.environ)
    _show_gpus(environment)
    return prove_gpus(_gpus_declared(), environment)


def _show_gpus(environment: MutableMapping[str, str]) -> None:
    """Make those GPUs visible in `environment` with which the node of this process was started."""
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0"):
            name, _, value = entry.decode(errors="replace").partition("=")
            if name == "CUDA_VISIBLE_DEVICES":
                environment[name] = value


def _gpus_declared() -> int:
    here = ray.get_runtime_context().get_node_id()
    nodes = {node["NodeID"]: node for node in ray.nodes()}  # type: ignore[no-untyped-call]
    return int(nodes[here]["Resources"].get("GPU", 0))


def _probe_node(directories: list[str], token: str) -> str | None:
    """Why this node cannot write to the directories, in words; None if it can."""
    for directory in directories:
        mark = Path(directory) / f".visible.{token}"
        try:
            if not mark.exists() or mark.read_text() != token:
                return f"does not see {directory}"
            mark.with_name(f"{mark.name}.{os.getpid()}").write_text(token)
        except OSError as error:
            return f"cannot write to {directory}: {error.strerror}"
    return None
