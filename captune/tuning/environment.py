"""The environment variables with which captune configures Ray. They are set while it uses Ray, never by an import."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

RAY_VARIABLES = {
    "RAY_AUTH_MODE": "token",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "100000",
    "TUNE_RESULT_BUFFER_LENGTH": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "3600",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray's C++ handler for SIGTERM would replace captune's and abort.
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
    # Ray Serve gives its HTTP process five seconds; importing it takes longer on a busy machine.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "180",
}
# Variables that each worker reads for itself, even on a cluster that captune did not start.
_WORKERS = ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",)


@contextlib.contextmanager
def ray_environment() -> Iterator[None]:
    """Set those of `RAY_VARIABLES` that the user has not set, while the block runs."""
    with variables({name: value for name, value in RAY_VARIABLES.items() if name not in os.environ}):
        yield


@contextlib.contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables while the block runs, for the processes that are started in it."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def worker_variables() -> dict[str, str]:
    """The environment variables that Ray must give to the processes of trials."""
    return {name: os.environ.get(name, RAY_VARIABLES[name]) for name in _WORKERS}
