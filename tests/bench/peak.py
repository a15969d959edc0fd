"""Peak memory of a process that only trains: `python -m tests.bench.peak 100 bf16`.

Prints megabytes (`VmHWM`) before the first step of a UL trial with so many classes, after each of some steps, and CPU
seconds of the last step. Nothing else has run in the process, so what libraries and weights take is part of it once.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from pathlib import Path

import torch

from captune.model.backbone import load_backbone
from tests.bench.workbench import Workbench


def peak_megabytes() -> float:
    """Of this process so far."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("classes", type=int)
    parser.add_argument("precision", choices=("fp32", "bf16"))
    parser.add_argument("--backbone", default="ViT-B-32")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="captune-peak-") as folder:
        backbone = load_backbone(asked.backbone, "random", precision=asked.precision, device="cpu")
        bench = Workbench(Path(folder), backbone, asked.classes, batch_size=asked.batch_size)
        step = bench.fast(asked.precision)
        told, seconds = [peak_megabytes()], 0.0
        for _ in range(asked.steps):
            began = time.process_time()
            step()
            seconds = time.process_time() - began
            told.append(peak_megabytes())
    print(" ".join(f"{megabytes:.0f}" for megabytes in told), f"{seconds:.2f}")


if __name__ == "__main__":
    main()
