"""What holds for all tests: the process is captune's own, and the files that take longest come first.

`pytest` hands whole files to its workers (`--dist=loadfile`), in the order in which they were collected. A long file
that came last would leave one worker alone with it.
"""

from __future__ import annotations

import gc
import os
from functools import cache

import pytest

from captune import own_process

# Collecting imports everything and throws hardly anything away; until it ends, looking for garbage is in vain.
gc.disable()

# As in the command line and in workers: PyTorch's compiler and timm stay out until a test needs them.
own_process.declare()

# A terminal of one size and kind, for what is printed depends on it; and no proxy between a test and its own server.
for _name in ("FORCE_COLOR", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(_name, None)
os.environ.update(COLUMNS="80", LINES="25", TERM="xterm")
for _name in ("no_proxy", "NO_PROXY"):
    os.environ[_name] = ",".join(filter(None, [os.environ.get(_name), "127.0.0.1", "localhost"]))

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when PyTorch is loaded: the workers share the CPUs

# By CPU seconds, or by seconds waited for Ray; order alone depends on this. Two files that start Ray are kept apart.
_LONG_FIRST = (
    "tuning/test_engine.py", "results/test_report.py", "studies/test_closing.py", "algorithms/test_methods.py",
    "training/test_packs.py", "studies/test_kills.py", "studies/test_advised.py", "training/test_trial.py",
    "results/test_matrix_page.py", "tuning/test_cell.py", "cli/test_light_core.py",
    "cost/test_estimate.py", "data/test_views.py", "data/test_dataset_contract.py", "tuning/test_screen.py",
    "studies/test_light_start.py", "test_architecture.py", "tuning/test_open_study.py",
    "model/test_towers.py", "tuning/test_packs.py", "tools/test_tiny.py", "cli/test_doctor.py", "tuning/test_gpus.py",
    "model/test_weight_files.py", "algorithms/test_cap_mixture.py", "launch/test_slurm.py",
)  # fmt: skip


@cache
def _interpret_kernels_without_a_gpu() -> None:
    """Triton looks at this when it is first imported, so it is set before the first test module is."""
    import torch  # not above: the process that only hands out files to workers needs none

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"


@cache
def _draw_alike_on_every_machine() -> None:
    """Examples that hypothesis generates follow from the test alone, and may take as long as a busy machine needs.

    `--hypothesis-profile default` draws others each time, within Hypothesis' own limits on time.
    """
    from hypothesis import HealthCheck, settings

    slow = [HealthCheck.too_slow]
    settings.register_profile("captune", deadline=None, derandomize=True, suppress_health_check=slow)
    settings.load_profile("captune")


def pytest_collectstart(collector: pytest.Collector) -> None:
    _interpret_kernels_without_a_gpu()
    if not collector.config.getoption("--hypothesis-profile", None):
        _draw_alike_on_every_machine()


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end: half a million objects that the garbage collector would look at every time."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of long files first; within a file the order stays."""
    places = {f"tests/{name}": place for place, name in enumerate(_LONG_FIRST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))
