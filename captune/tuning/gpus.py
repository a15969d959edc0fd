"""Whether torch can use the GPUs that Ray counts, and if not, why.

Ray believes the number it is given (`--num-gpus`, a pod's limits). Whether torch can compute on the GPUs depends on its
build, the driver and the card. A separate process tries, so that no GPU memory stays reserved afterwards.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from captune.errors import StudyError

# The oldest Linux driver for each CUDA major version (NVIDIA, "CUDA Compatibility", minor version compatibility).
OLDEST_DRIVER = {11: (450, 80), 12: (525, 60), 13: (580, 65)}
# The first CUDA context takes a while on a busy machine; a driver that hangs never answers.
_PROBE_SECONDS = 180.0


@dataclass(frozen=True)
class GpuProof:
    """What torch can do on a machine.

    Attributes:
        torch: its version.
        cuda: the CUDA (or ROCm) version torch was built for; None for a build without.
        driver: version of NVIDIA's driver; None if there is none.
        devices: each GPU on which torch computed a product, in words.
        trouble: why GPUs cannot be used; None if all can.
        next_step: what to do about the trouble.
    """

    torch: str = ""
    cuda: str | None = None
    driver: str | None = None
    devices: tuple[str, ...] = ()
    trouble: str | None = None
    next_step: str | None = None


def prove_gpus(expected: int = 0, environment: Mapping[str, str] | None = None) -> GpuProof:
    """Check in a separate process what torch can do on this machine's GPUs.

    Args:
        expected: how many there should be.
        environment: of that process; None: the environment of this one.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "captune.tuning.gpus"], env=environment, capture_output=True, text=True,
            timeout=_PROBE_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return GpuProof(
            driver=_driver(), trouble=f"torch did not answer from the GPU within {_PROBE_SECONDS:.0f} s",
            next_step="Look there with nvidia-smi: a GPU that hangs needs a reset or a reboot.",
        )  # fmt: skip
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return GpuProof(
            driver=_driver(), trouble=f"torch cannot be imported: {reason}", next_step="Reinstall torch there."
        )
    found = json.loads(lines[-1])
    return judge(
        torch=found["torch"], cuda=found["cuda"], hip=found["hip"], driver=_driver(), devices=found["devices"],
        error=found["error"], expected=expected,
    )  # fmt: skip


def judge(
    *,
    torch: str,
    cuda: str | None,
    hip: str | None,
    driver: str | None,
    devices: list[str],
    error: str | None,
    expected: int,
) -> GpuProof:
    """Judge what was found: why `expected` GPUs cannot be used and what to do about it, or no trouble if they can."""
    trouble, next_step = None, None
    needed = OLDEST_DRIVER.get(int(cuda.split(".")[0])) if cuda else None
    none_declared = "start Ray there with --num-gpus=0"
    if cuda is None and hip is None:
        trouble = f"torch {torch} is a build without CUDA"
        next_step = f"Install a CUDA build of torch there, or {none_declared}."
    elif cuda is not None and driver is None and not devices:
        trouble = f"no NVIDIA driver answers (torch {torch}, CUDA {cuda})"
        next_step = f"Install NVIDIA's driver ({_at_least(needed)}), or {none_declared}."
    elif needed is not None and driver is not None and not devices and _version(driver) < needed:
        trouble = f"NVIDIA's driver {driver} is too old for torch {torch}, which is built for CUDA {cuda}"
        next_step = f"Install driver {_at_least(needed)} there, or a torch built for an older CUDA."
    elif error is not None:
        trouble = f"torch {torch} (CUDA {cuda or hip}, driver {driver}) cannot compute on a GPU: {error}"
        next_step = f"Install a torch that is built for this card, or {none_declared}."
    elif len(devices) < expected:
        trouble = f"torch sees {len(devices)} of the {expected} GPUs that Ray counts (driver {driver}, CUDA {cuda})"
        next_step = "Start Ray there with the number that CUDA_VISIBLE_DEVICES and nvidia-smi show (--num-gpus)."
    return GpuProof(torch, cuda or hip, driver, tuple(devices), trouble, next_step)


def machine_has_gpus() -> bool:
    """Whether this machine may have a GPU, judged by its drivers, so that PyTorch need not be imported."""
    return _driver() is not None or Path("/dev/kfd").exists()


def require_gpu() -> None:
    """Check that torch finds the GPU that this process was given.

    Raises:
        StudyError: it does not.
    """
    import torch

    if torch.cuda.is_available():
        return
    proof = judge(
        torch=torch.__version__, cuda=torch.version.cuda, hip=torch.version.hip, driver=_driver(), devices=[],
        error=None, expected=1,
    )  # fmt: skip
    raise StudyError(
        "a trial that asked for a GPU must find it", got=proof.trouble,
        next_step=f"{proof.next_step} To train on the CPU there, say --allow-cpu.",
    )  # fmt: skip


def _at_least(version: tuple[int, int] | None) -> str:
    return "the newest" if version is None else f"{version[0]}.{version[1]} or newer"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def _driver() -> str | None:
    """The version of NVIDIA's driver, from the kernel or from nvidia-smi (containers may hide the former)."""
    told = Path("/proc/driver/nvidia/version")
    if told.exists() and (found := re.search(r"Module.*?\s(\d+\.\d+[.\d]*)\s", told.read_text())):
        return found[1]
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return None
    asked = [smi, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"^\d+\.\d+[.\d]*$", answer, flags=re.MULTILINE)
    return found[0] if found else None


def _look() -> dict[str, object]:
    """What torch sees; a GPU is listed only if it has computed a product of two matrices correctly."""
    import torch

    devices, error = [], None
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            try:
                ones = torch.ones(64, 64, device=f"cuda:{index}")
                if float((ones @ ones)[0, 0]) != 64.0:
                    error = f"a product on {facts.name} came out wrong"
                    continue
            except RuntimeError as raised:
                error = f"{facts.name}: {str(raised).splitlines()[0]}"
                continue
            size = f"{facts.total_memory / 1e9:.0f} GB"
            devices.append(f"{facts.name}, capability {facts.major}.{facts.minor}, {size}")
    return {
        "torch": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip, "devices": devices,
        "error": error,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(_look()))
