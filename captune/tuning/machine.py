"""What a machine offers a study: processors, memory, GPUs, disks, Ray, the token; examined on that machine."""

from __future__ import annotations

import os
import platform
import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from captune.tuning.allotment import Node
from captune.tuning.gpus import GpuProof, prove_gpus

FINE, NOTE, BROKEN = "ok", "note", "broken"
# What one trial of a small backbone needs, its process included; with less, even one trial at a time may fail.
_LEAST_MEMORY, _LEAST_DISK = 2_000_000_000, 2_000_000_000
# What a Ray head listens on unless told otherwise (docs.ray.io, "Configuring Ray: ports").
RAY_PORTS = {6379: "GCS", 8265: "dashboard", 10001: "client server"}


@dataclass(frozen=True)
class Finding:
    """One thing that was checked: its name, what was found, whether a study can run with it, what to do if not."""

    name: str
    found: str
    state: str = FINE
    next_step: str = ""


def examine(
    directories: Sequence[str] = (), *, expected_gpus: int = 0, gpus: GpuProof | None = None, ports: bool = False
) -> list[Finding]:
    """Examine this machine.

    Args:
        directories: each must exist and be writable.
        expected_gpus: how many GPUs Ray counts here.
        gpus: what torch sees, if that is known already.
        ports: also check whether Ray's usual ports are free.
    """
    proof = prove_gpus(expected_gpus) if gpus is None else gpus
    return [
        Finding(
            "Python", f"{platform.python_version()}, {platform.system()} {platform.release()} {platform.machine()}"
        ),
        _processors(),
        _memory(),
        _torch(proof),
        *_gpus(proof, expected_gpus),
        _ray(),
        _token(),
        *(_directory(path) for path in directories),
        _disk("temporary files", "/tmp" if Path("/tmp").is_dir() else "."),
        _disk("image store and features", _cache_root()),
        *(_ports() if ports else ()),
    ]


def this_node(gpus: GpuProof) -> Node:
    """This machine as a node of the private cluster that a study starts here."""
    return Node(os.cpu_count() or 1, len(gpus.devices), _memory_bytes()[1])


def _processors() -> Finding:
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    all_of_them = os.cpu_count() or 1
    flags = _cpu_flags()
    amx = "AMX (bf16 runs on it)" if "amx_bf16" in flags else "no AMX"
    wide = next((name for name in ("avx512f", "avx2") if name in flags), "no AVX2")
    share = "" if allowed == all_of_them else f" of the machine's {all_of_them}"
    return Finding("CPUs", f"{allowed}{share}, {wide}, {amx}")


def _cpu_flags() -> set[str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return set()
    line = next((line for line in path.read_text().splitlines() if line.startswith(("flags", "Features"))), "")
    return set(line.partition(":")[2].split())


def _memory() -> Finding:
    total, free = _memory_bytes()
    if not total:
        return Finding("memory", "unknown on this system", NOTE)
    found = f"{free / 1e9:.1f} GB free of {total / 1e9:.1f} GB"
    if free < _LEAST_MEMORY:
        return Finding("memory", found, BROKEN, f"A trial needs {_LEAST_MEMORY / 1e9:.0f} GB: end what takes it.")
    return Finding("memory", found)


def _memory_bytes() -> tuple[int, int]:
    """Total and free memory in bytes, or a container's limit if that is less; (0, 0) if unknown."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return 0, 0
    rows = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    total, free = (1024 * int(rows[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.exists() and used.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
        free = min(free, max(0, total - int(used.read_text())))
    return total, free


def _torch(proof: GpuProof) -> Finding:
    if not proof.torch:
        return Finding("torch", proof.trouble or "not found", BROKEN, proof.next_step or "Install torch.")
    return Finding(
        "torch", f"{proof.torch}, " + (f"built for CUDA {proof.cuda}" if proof.cuda else "built without CUDA")
    )


def _gpus(proof: GpuProof, expected: int) -> Iterator[Finding]:
    driver = f", driver {proof.driver}" if proof.driver else ""
    for device in proof.devices:
        yield Finding("GPU", device + driver)
    if not proof.torch:
        return
    if expected and proof.trouble is not None:
        yield Finding("GPU", f"Ray counts {expected}: {proof.trouble}", BROKEN, proof.next_step or "")
    elif proof.driver is not None and proof.trouble is not None:
        yield Finding("GPU", proof.trouble, BROKEN, proof.next_step or "")
    elif not proof.devices:
        yield Finding("GPU", "none; trials train on the CPU", NOTE)


def _ray() -> Finding:
    versions = []
    for name in ("captune", "ray", "optuna"):
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            versions.append(f"{name} without a version")
    return Finding("Ray", ", ".join(versions))


def _token() -> Finding:
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return Finding(
            "token", "authentication is off", NOTE, "Set RAY_AUTH_MODE=token: who reaches Ray runs commands."
        )
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Finding("token", "given by RAY_AUTH_TOKEN")
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if not path.exists():
        return Finding("token", f"none at {path} yet; a study makes it", NOTE)
    try:
        mode = path.stat().st_mode & 0o777
        path.read_text()
    except OSError as error:
        return Finding("token", f"{path}: {error.strerror}", BROKEN, f"Make {path} yours: chmod 600.")
    if mode & 0o077:
        return Finding("token", f"{path} can be read by others (mode {mode:o})", NOTE, f"chmod 600 {path}")
    return Finding("token", f"{path}, mode {mode:o}")


def _directory(text: str) -> Finding:
    path = Path(text)
    next_step = "Mount it at this path on every node, writable for the user that runs Ray."
    if not path.is_dir():
        return Finding("directory", f"{path} is not there", BROKEN, next_step)
    probe = path / f".doctor.{socket.gethostname()}.{os.getpid()}"
    try:
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        return Finding("directory", f"{path} cannot be written: {error.strerror}", BROKEN, next_step)
    return _disk(f"directory {path}", str(path))


def _cache_root() -> str:
    root = Path(os.environ.get("CAPTUNE_CACHE") or "~/.cache").expanduser()
    return str(next(path for path in (root, *root.parents) if path.exists()))


def _disk(name: str, path: str) -> Finding:
    free = shutil.disk_usage(path).free
    found = f"{free / 1e9:.1f} GB free in {path}"
    if free < _LEAST_DISK:
        return Finding(name, found, BROKEN, f"Free {_LEAST_DISK / 1e9:.0f} GB there.")
    return Finding(name, found)


def _ports() -> Iterator[Finding]:
    taken = []
    for port, what in RAY_PORTS.items():
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                taken.append(f"{port} ({what})")
    if taken:
        yield Finding(
            "ports", f"in use: {', '.join(taken)}", NOTE,
            "A study of its own Ray takes others; a Ray started by hand needs others named (launch/local.sh does).",
        )  # fmt: skip
    else:
        yield Finding("ports", f"{', '.join(map(str, RAY_PORTS))} are free")
