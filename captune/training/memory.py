"""Memory: how much a process used, how much there is, and what to do when an accelerator's runs out."""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from captune.errors import TrainingFailed

# The allocator's own error, the driver's, the libraries' and the CPU's share no class. An "illegal memory access" is
# a different error.
_SIGNS = ("out of memory", "_ALLOC_FAILED", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch could not get the memory it asked for."""
    return any(sign in str(error) for sign in _SIGNS)


@contextmanager
def out_of_memory_explained() -> Iterator[None]:
    """Turn torch's out-of-memory errors into advice.

    Raises:
        TrainingFailed: memory ran out in the block.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingFailed(
            "a trial must fit into the GPU's memory" if torch.cuda.is_available() else "a trial must fit into memory",
            got=str(error).splitlines()[0],
            next_step="Lower --batch-size, raise --gpus-per-trial, or use --precision bf16 or --tuning features.",
        ) from None


def free_memory() -> None:
    """Free unused memory, also for other processes on the same accelerator."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def resident_peak_bytes() -> int:
    """Most memory this process had since its start or the last `reset_peaks`; 0 where the kernel does not say."""
    found = re.search(r"VmHWM:\s+(\d+) kB", _read("/proc/self/status"))
    return 1024 * int(found[1]) if found else 0


def reset_peaks() -> None:
    """Reset the peak counters, on the GPU as well, since one process trains trial after trial."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _read(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text()
    return ""
