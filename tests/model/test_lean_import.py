"""What importing captune's models leaves out in captune's own processes; that whoever needs it, and others, get it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from captune import own_process

_PROGRAM = """
import sys
from captune import own_process

own_process.declare()
import torch
from captune.model.backbone import load_backbone
from captune.training.optim import Sgd

weight = torch.nn.Parameter(torch.ones(1))
optimizer = Sgd([weight], learning_rate=0.1, weight_decay=0.0)
weight.sum().backward()
optimizer.step()
load_backbone("tiny", None)
left_out = {"timm", "transformers", "torch._dynamo"} & sys.modules.keys()
assert not left_out, left_out

backbone = load_backbone("convnext_base", "random")
assert type(backbone.model.visual).__name__ == "TimmModel" and "timm" in sys.modules, "timm comes when it is asked for"

doubled = torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(1))
assert doubled.item() == 2 and "torch._dynamo" in sys.modules, "the compiler comes when it is asked for"
"""


_TEXT_TOWER = """
from captune import own_process

own_process.declare()
import torch
from captune.model import use_transformers
import open_clip

assert open_clip.hf_model.transformers is None
use_transformers()
import transformers

config = transformers.BertConfig(
    vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
)
assert open_clip.model.HFTextEncoder is not open_clip.hf_model.HFTextEncoder, "the class from before"
shape = {"pooler_type": "mean_pooler", "proj_type": "linear"}
text = open_clip.model.HFTextEncoder("bert", output_dim=4, config=config, pretrained=False, **shape)
assert text(torch.ones(2, 5, dtype=torch.long)).shape == (2, 4), "which finds transformers and its poolers"
"""


@pytest.mark.slow
def test_transformers_comes_when_a_model_asks_for_it() -> None:
    pytest.importorskip("transformers", reason="an optional package of open_clip's")
    done = subprocess.run([sys.executable, "-c", _TEXT_TOWER], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_timm_transformers_and_the_compiler_stay_out_until_they_are_needed() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


_NOTEBOOK = """
import os
import sys

before = dict(os.environ)
import captune

captune.datasets()
import captune.model
import captune.model.backbone
import captune.studies.running
import captune.tuning.cluster

changed = {name for name in before.keys() | os.environ.keys() if before.get(name) != os.environ.get(name)}
# PyTorch, scikit-learn, open_clip and Ray set some of their own.
from captune.tuning.environment import RAY_VARIABLES

ours = {name for name in changed if name in RAY_VARIABLES or name.startswith(("CAPTUNE_", "TUNE_"))}
assert not ours, ours
stand_ins = [name for name, module in sys.modules.items() if type(module).__name__ == "_StandIn"]
assert not stand_ins, stand_ins

import open_clip.timm_model
import torch._dynamo.utils
import torchvision

assert open_clip.timm_model.timm is sys.modules["timm"], "whoever imports captune has all of open_clip"
asked = sys.modules["torchvision.ops.roi_align"].is_compile_supported
assert asked is torch._dynamo.utils.is_compile_supported
"""


@pytest.mark.slow
def test_importing_captune_changes_nothing_in_a_process_that_is_not_its_own() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in own_process.VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", _NOTEBOOK], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
