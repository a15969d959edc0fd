"""Running out of an accelerator's memory: told from other errors, explained, and what is free given back."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from captune.errors import TrainingFailed

# The allocator's own error, the driver's, the libraries' and the CPU's have no class in common; an "illegal memory
# access" is another matter.
_SIGNS = ("out of memory", "_ALLOC_FAILED", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch could not get the memory it asked for."""
    return any(sign in str(error) for sign in _SIGNS)


@contextmanager
def out_of_memory_explained() -> Iterator[None]:
    """Turn what torch says when memory runs out into advice.

    Raises:
        TrainingFailed: memory ran out in the block.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingFailed(
            "a run must fit into the GPU's memory" if torch.cuda.is_available() else "a run must fit into memory",
            got=str(error).splitlines()[0],
            next_step="Lower --batch-size, raise --gpus-per-trial, or use --precision bf16 or --tuning features.",
        ) from None


def free_memory() -> None:
    """Give back what nothing holds any more, to the processes that share the accelerator as well."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
