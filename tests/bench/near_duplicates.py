"""Time and memory of looking for near duplicates among many images' features.

    python -m tests.bench.near_duplicates --images 100000

Features are real ones (../shared/data/features, ViT-B/32) with noise; a few test rows are copies of training rows.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

import numpy as np

from captune.data.duplicates import nearest_across
from tests.tools.photos import SHARED_DATA

_COPIES = 25


def _status(name: str) -> float:
    found = re.search(rf"{name}:\s*(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


def main() -> None:
    """Print what was found, CPU seconds and the peak beyond the features themselves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--test-share", type=float, default=0.3)
    arguments = parser.parse_args()
    with np.load(SHARED_DATA / "features" / "caltech101_59.npz") as file:
        real_ND = np.asarray(next(value for name, value in file.items() if value.ndim == 2 and len(value) > 500))
    real_ND = real_ND.astype(np.float32)
    real_ND /= np.linalg.norm(real_ND, axis=1, keepdims=True)
    generator = np.random.default_rng(0)
    features_MD = np.empty((arguments.images, real_ND.shape[1]), np.float32)
    for start in range(0, arguments.images, 1000):
        part_ND = real_ND[generator.integers(0, len(real_ND), len(features_MD[start : start + 1000]))]
        part_ND = part_ND + generator.normal(0, 0.02, part_ND.shape).astype(np.float32)
        features_MD[start : start + 1000] = part_ND / np.linalg.norm(part_ND, axis=1, keepdims=True)
    num_test = int(arguments.test_share * arguments.images)
    pool_ND, test_TD = features_MD[num_test:], features_MD[:num_test]
    copies = generator.choice(len(pool_ND), _COPIES, replace=False)
    test_TD[:_COPIES] = pool_ND[copies]
    before, started = _status("VmRSS"), time.process_time()
    count, pairs = nearest_across(pool_ND, test_TD)
    seconds = time.process_time() - started
    exact = sum(int(copies[test]) == row for row, test, _ in pairs)
    print(f"{arguments.images:,} x {features_MD.shape[1]} features, {features_MD.nbytes / 2**20:.0f} MB")
    print(f"{count} of {num_test:,} test rows at 0.99 or above; {_COPIES} were put there")
    print(f"of the {len(pairs)} closest pairs {exact} are those")
    print(f"{seconds:.0f} CPU s, peak {_status('VmHWM') - before:.0f} MB beyond what was there")


if __name__ == "__main__":
    main()
