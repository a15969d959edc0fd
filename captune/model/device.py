"""The device that a user names."""

from __future__ import annotations

import torch

from captune.errors import UsageError, nearest


def resolve_device(name: str | torch.device) -> torch.device:
    """'auto' is the first GPU where there is one, else the CPU.

    Raises:
        UsageError: no such device, or none of that number that PyTorch can use.
    """
    name = str(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        meant = "cuda" if kind.lower() in ("gpu", "nvidia") else nearest(kind, ("auto", "cpu", "cuda"))
        raise UsageError(
            "--device must be auto, cpu, cuda or cuda:N", got=f"'{name}'",
            next_step=None if meant is None else f"Did you mean '{meant}'?",
        )  # fmt: skip
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UsageError(
            "--device must be a GPU that PyTorch can use",
            got=f"'{name}', and PyTorch {torch.__version__} sees {torch.cuda.device_count() or 'none'}",
            next_step="Take --device auto or cpu; `captune doctor` says why a GPU is not seen.",
        )
    return torch.device(name)
