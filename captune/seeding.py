"""One root seed, many independent named generators.

A generator is a pure function of the root seed and its name, so nothing has to be stored to resume: the generator of
epoch 7 is the same whether epochs 0-6 ran in this process or in one that was killed.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(root_seed: int, *names: object) -> int:
    """A 63-bit seed from the root seed and any number of names (stable across processes and versions)."""
    text = "/".join([str(root_seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(root_seed: int, *names: object) -> torch.Generator:
    """A CPU torch generator for one named purpose."""
    import torch  # imported here: the command line derives seeds and must not need torch

    return torch.Generator().manual_seed(derive_seed(root_seed, *names))


def numpy_generator(root_seed: int, *names: object) -> np.random.Generator:
    """A NumPy generator for one named purpose."""
    return np.random.default_rng(derive_seed(root_seed, *names))
