"""The loggers that `--logger` names; this checks them without importing Ray."""

from __future__ import annotations

import importlib.util

from captune.errors import UsageError, did_you_mean

LOGGERS = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb", "none": None}
"""Logger → the package it needs."""


def check_loggers(text: str) -> tuple[str, ...]:
    """The loggers that `--logger` names.

    Raises:
        UsageError: a logger is unknown, or its package is not installed.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names:
        if name not in LOGGERS:
            raise UsageError("--logger must name loggers", got=f"'{name}'", next_step=did_you_mean(name, LOGGERS))
        package = LOGGERS[name]
        if package is not None and importlib.util.find_spec(package) is None:
            raise UsageError(
                f"--logger {name} must find the package '{package}'",
                got="none installed",
                next_step=f"Run `pip install {package}`, or leave it out.",
            )
    return names
