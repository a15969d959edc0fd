"""What every node of a cluster must see and have before the first trial: directories, data, weights, GPUs."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from captune.config import TaskConfig
from captune.errors import CaptuneError, StudyError
from captune.tuning.gpus import GpuProof, prove_gpus
from captune.tuning.machine import BROKEN, Finding, examine

T = TypeVar("T")


def check_nodes(
    studies: Sequence[tuple[Path, TaskConfig]], *, custom: bool = False, prepare: bool = True, here: bool = False
) -> None:
    """See from every node that studies can be written there, and build what its trials share, before the first trial.

    Args:
        studies: each study's directory and cell.
        custom: trials are stand-ins that need no data.
        prepare: build image store and feature bank, once per node.
        here: there is no node but this machine, without a GPU; it is checked in this process, which saves a start.

    Raises:
        StudyError: names the nodes that cannot see the studies' directories, the data or the weights, and why.
    """
    token = secrets.token_hex(8)
    tasks = [(str(directory), task.model_dump(mode="json")) for directory, task in studies]
    ask = _problems_here if here else _problems
    try:
        for directory, _ in studies:
            (directory / f".visible.{token}").write_text(token)
        problems = ask(tasks, token, prepare and not custom)
    finally:
        for directory, _ in studies:
            for path in directory.glob(f".visible.{token}*"):
                path.unlink(missing_ok=True)
    if problems:
        raise StudyError(
            "every node must see the directories of the studies, the data and the weights",
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
    answers = on_each_node(_probe_node, tasks, token, prepare)
    return [f"{name}: {problem}" for name, problem in answers.items() if problem is not None]


def on_each_node(
    ask: Callable[..., Any], *arguments: Any, among: Callable[[dict[str, Any]], bool] = lambda _node: True
) -> dict[str, Any]:
    """What a function says on every node that lives, by the node's name; "does not answer: ..." where it cannot.

    Args:
        ask: runs in a process of Ray's on the node, beside trials: it takes no CPU and no GPU from them.
        arguments: its arguments.
        among: which nodes, by what `ray.nodes()` tells of them.
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
    for reference, node in pending.items():
        name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"
        try:
            answers[name] = ray.get(reference)
        except RayError as error:
            answers[name] = f"does not answer: {str(error).strip().splitlines()[0]}"
    return answers


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What a function that runs in a process of Ray's will have said."""

    _reference: Any

    def ready(self) -> bool:
        """Whether it has ended."""
        return bool(ray.wait([self._reference], timeout=0)[0])

    def get(self) -> T:
        """Its result, waited for; what it raised is raised here.

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
    """Run a function in a process of Ray's on this machine, beside trials: it takes no CPU and no GPU from them."""
    here = ray.get_runtime_context().get_node_id()
    where = NodeAffinitySchedulingStrategy(here, soft=True)
    return Answer(ray.remote(num_cpus=0, max_retries=1)(work).options(scheduling_strategy=where).remote(*arguments))


def check_gpus(*, allow_cpu: bool = False) -> bool:
    """Let every node that gives a GPU prove that torch computes on it, before the first trial.

    Args:
        allow_cpu: train on the CPU where a GPU cannot be used.

    Returns:
        Whether any GPU can be used.

    Raises:
        StudyError: a GPU that Ray counts cannot be used; names the node, why, and how to mend it.
    """
    answers = on_each_node(gpus_of_this_node, among=lambda node: node["Resources"].get("GPU", 0) > 0)
    proofs = {
        name: answer if isinstance(answer, GpuProof) else GpuProof(trouble=answer) for name, answer in answers.items()
    }
    bad = {name: proof for name, proof in proofs.items() if proof.trouble is not None}
    if bad and not allow_cpu:
        mends = dict.fromkeys(proof.mend for proof in bad.values() if proof.mend)
        raise StudyError(
            "torch must see every GPU that Ray counts",
            got="\n  " + "\n  ".join(f"{name}: {proof.trouble}" for name, proof in bad.items()),
            next_step="\n".join([*mends, "To train on the CPU where a GPU cannot be used, say --allow-cpu."]),
        )
    return len(bad) < len(proofs)


def examine_nodes(directories: Sequence[str] = ()) -> dict[str, list[Finding]]:
    """What every node that lives brings to a study, by its name.

    Args:
        directories: each must be there and writable on every node.
    """
    answers = on_each_node(_examine_this_node, list(directories))
    return {
        name: answer if isinstance(answer, list) else [Finding("node", str(answer), BROKEN)]
        for name, answer in answers.items()
    }


def _examine_this_node(directories: list[str]) -> list[Finding]:
    proof, expected = gpus_of_this_node(), _gpus_declared()
    return examine(directories, expected_gpus=expected, gpus=proof)


def gpus_of_this_node() -> GpuProof:
    """What torch sees of the GPUs that the node of this process (one of Ray's) was started with."""
    # Ray hides the GPUs from a task that asks for none; the node's own process, which started this one, sees them.
    environment = dict(os.environ)
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0"):
            name, _, value = entry.decode(errors="replace").partition("=")
            if name == "CUDA_VISIBLE_DEVICES":
                environment[name] = value
    return prove_gpus(_gpus_declared(), environment)


def _gpus_declared() -> int:
    here = ray.get_runtime_context().get_node_id()
    nodes = {node["NodeID"]: node for node in ray.nodes()}  # type: ignore[no-untyped-call]
    return int(nodes[here]["Resources"].get("GPU", 0))


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
