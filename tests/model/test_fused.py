"""The fused kernel against the operations it stands for, run by Triton's interpreter where there is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def test_fused_kernel_is_add_overwrite_and_norm() -> None:
    pytest.importorskip("triton", reason="Triton does not come with torch on this platform")
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "tests.model.fused_agrees"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.stdout.strip() == "agree", done.stderr[-2000:]
