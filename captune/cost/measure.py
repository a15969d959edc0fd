"""Measure time, peak memory and the speed of matrix products; describe the machine."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# Rates on an idle machine differ by a few per cent. If other processes took a quarter of it, conclusions would change.
NOISY = 0.15
_PACKAGES = ("captune", "torch", "open_clip_torch", "numpy")


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one call; waits before and after it until the device's queue is empty."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


def clocks_of(work: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Wall-clock seconds of one call, and CPU seconds in all threads of this process."""
    cpu = time.process_time()
    wall = seconds_of(work, device)
    return wall, time.process_time() - cpu


def synchronize(device: torch.device) -> None:
    """Wait until a device's queue is empty; does nothing on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes_of(work: Callable[[], object], device: torch.device) -> int:
    """Peak memory in bytes during one call: the process's resident memory on a CPU, the allocator's on a GPU.

    The CPU number includes what the process held before the call (weights, libraries), but not freed memory, which is
    returned to the system first. Where the kernel cannot reset its high-water mark, it is the peak since the process
    began.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        work()
        synchronize(device)
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        _CLEAR.write_text("5")
    work()
    if _STATUS.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())):
        return 1024 * int(found[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@dataclass(frozen=True)
class MatrixRate:
    """Floating-point operations per second that matrix products of this size reach here.

    Attributes:
        precision: of the factors.
        shape: (rows, inner, columns) of the product.
        flops: operations per second, a multiplication and an addition counting as two.
        taken: share of this process's CPU time that other processes took meanwhile; 0 on a GPU.
    """

    precision: str
    shape: tuple[int, int, int]
    flops: float
    taken: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def matrix_rate(
    precision: str, device: torch.device, *, shape: tuple[int, int, int] = (1600, 768, 3072), seconds: float = 1.0
) -> MatrixRate:
    """Measure the best rate of a linear layer's product; the default is ViT-B/32's first MLP layer at 32 images.

    Args:
        precision: fp32, bf16 or fp16. fp32 on a GPU is measured as torch is set there (TF32 or not).
        device: where to measure.
        shape: rows, inner, columns.
        seconds: how long to try; a product that takes longer is measured once.
    """
    rows, inner, columns = shape
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    left, weight = (
        torch.randn(rows, inner, device=device).to(dtype),
        torch.randn(columns, inner, device=device).to(dtype),
    )

    def product() -> None:
        for _ in range(calls):
            torch.nn.functional.linear(left, weight)

    clocks: list[tuple[float, float]] = []

    def busy() -> float:
        wall, cpu = clocks_of(product, device)
        clocks.append((wall, cpu / torch.get_num_threads() if device.type == "cpu" else wall))
        return clocks[-1][1]

    calls = 1
    best = busy()
    # On a CPU without bf16 instructions the first product may take longer than `seconds`; no other is then measured.
    if best < seconds:
        best = min(best, busy(), busy())
        # Several products are timed together: one on a GPU takes less time than the clock and the queue add.
        calls = max(1, int(0.02 / max(best, 1e-7)))
        best = min(busy() for _ in range(max(3, int(seconds / max(0.02, best)))))
    wall, cpu = (sum(column) for column in zip(*clocks, strict=True))
    taken = max(0.0, 1.0 - cpu / wall) if wall else 0.0
    return MatrixRate(precision, shape, 2.0 * rows * inner * columns * calls / best, taken)


def why_too_noisy(before: MatrixRate, after: MatrixRate) -> str | None:
    """Why a measurement between two matrix rates cannot be trusted, in words; None if it can.

    Other processes that take CPUs lengthen wall-clock time. They lengthen CPU time too, by using the same caches and
    memory.
    """
    change = abs(after.flops - before.flops) / max(after.flops, before.flops)
    taken = max(before.taken, after.taken)
    if taken > NOISY:
        return f"others took {100 * taken:.0f} % of the CPUs"
    if change > NOISY:
        return f"matrix products were {100 * change:.0f} % slower at one end than at the other"
    return None


def machine(device: torch.device) -> dict[str, Any]:
    """The hardware of this machine, as plain values."""
    described: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_features": _cpu_features(),
        # The load at this moment, this process included.
        "load_average": os.getloadavg()[0],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "device": str(device),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described |= {"gpu": properties.name, "gpu_memory_bytes": properties.total_memory}
    return described


def versions() -> dict[str, str]:
    """Versions of Python and of the measured packages, by name."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        return found[1].strip()
    return platform.processor() or "unknown"


def _cpu_features() -> list[str]:
    """The vector and matrix units that decide the speed of bf16."""
    info = Path("/proc/cpuinfo")
    flags = re.search(r"flags\s*:\s*(.+)", info.read_text()) if info.exists() else None
    known = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")
    return [name for name in known if flags and name in flags[1].split()]
