"""What importing captune's models leaves out, and that whoever needs it gets it."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import sys
import torch
from captune.model.backbone import load_backbone
from captune.training.optim import Sgd

weight = torch.nn.Parameter(torch.ones(1))
optimizer = Sgd([weight], learning_rate=0.1, weight_decay=0.0)
weight.sum().backward()
optimizer.step()
load_backbone("tiny", None)
assert "timm" not in sys.modules and "torch._dynamo" not in sys.modules, "left out"

backbone = load_backbone("convnext_base", "random")
assert type(backbone.model.visual).__name__ == "TimmModel" and "timm" in sys.modules, "timm comes when it is asked for"

doubled = torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(1))
assert doubled.item() == 2 and "torch._dynamo" in sys.modules, "the compiler comes when it is asked for"
"""


@pytest.mark.slow
def test_timm_and_the_compiler_stay_out_until_they_are_needed() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
