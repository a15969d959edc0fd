"""captune doctor: whether studies can run here, or on every node of a cluster, and on what."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from captune.cli.console import plain_console, say
from captune.cli.options import COMMAND_LINE, Given, with_options
from captune.config import MachineConfig
from captune.errors import UsageError
from captune.plain_text import counted
from captune.tuning.allotment import Node, allot
from captune.tuning.environment import ray_environment
from captune.tuning.gpus import prove_gpus
from captune.tuning.machine import BROKEN, FINE, Finding, examine, this_node

if TYPE_CHECKING:
    from captune.tuning.cluster import Cluster

_MARKS = {FINE: "  ", BROKEN: "✗ "}


@with_options("machine", only=("address", "cpus_per_trial", "gpus_per_trial", "memory_per_trial"))
def doctor(
    given: Given,
    shared: Annotated[
        list[Path] | None,
        typer.Option("--shared", help="A directory every node must see and write, such as --out; may be repeated."),
    ] = None,
) -> None:
    """Check this machine, or every node of a cluster: PyTorch, GPUs, Ray, directories, disk, memory.

    Example: captune doctor --address auto --shared /shared/runs
    """
    console = plain_console(file=sys.stdout)
    machine = MachineConfig.parse(given.machine, where=COMMAND_LINE)
    directories = [str(path.expanduser().absolute()) for path in shared or ()]
    with console.status("Looking at PyTorch, GPUs, Ray, disks and memory"):
        # Ray takes seconds to import.
        from captune.tuning.cluster import connected, ensure_token
        from captune.tuning.nodes import examine_nodes

        if machine.address is None:
            with ray_environment():
                ensure_token()
                proof = prove_gpus()
                reports = {"this machine": examine(directories, gpus=proof, ports=True)}
            nodes: tuple[Node, ...] = (this_node(proof),)
        else:
            with connected(machine.address, threads=1) as cluster:
                reports = examine_nodes(directories)
                nodes = cluster.nodes
                reports["cluster"] = _cluster(cluster)
    for name, findings in reports.items():
        console.print(f"{name}", style="bold", highlight=False, soft_wrap=True)
        for finding in findings:
            _show(finding, console)
    broken = sum(finding.state == BROKEN for findings in reports.values() for finding in findings)
    broken += _show_study(nodes, machine, console)
    console.print(f"{counted(broken, 'thing')} to fix." if broken else "Nothing to fix.")
    if broken:
        raise typer.Exit(1)


def _show(finding: Finding, console: Console) -> None:
    mark = _MARKS.get(finding.state, "! ")
    say(console, f"{mark}{finding.name}: {finding.found}")
    if finding.next_step:
        say(console, f"    {finding.next_step}")


def _cluster(cluster: Cluster) -> list[Finding]:
    findings = [
        Finding("nodes", f"{len(cluster.nodes)}, {cluster.cpus:g} CPUs and {cluster.gpus:g} GPUs as Ray counts")
    ]
    if cluster.warning is not None:
        findings.append(Finding("token", cluster.warning, "note"))
    return findings


def _show_study(nodes: tuple[Node, ...], machine: MachineConfig, console: Console) -> int:
    """Print what a study would use; returns 1 if a trial fits nowhere, else 0."""
    memory = machine.memory_per_trial
    try:
        share = allot(
            nodes, cpus=machine.cpus_per_trial, gpus=machine.gpus_per_trial,
            memory_bytes=None if memory is None else 1e9 * memory,
        )  # fmt: skip
    except UsageError as error:
        say(console, f"✗ {error}")
        return 1
    parts = [f"{share.cpus:g} CPU", f"{share.gpus:g} GPU", f"{(share.memory_bytes or 0) / 1e9:.1f} GB"]
    each = ", ".join(part for part in parts if not part.startswith(("0 ", "0.0 ")))
    own = "" if machine.address is not None else " starts a Ray of its own and"
    console.print(
        f"A study with these options{own} trains {counted(share.concurrency, 'trial')} at once, {each} each.",
        highlight=False,
    )
    return 0
