"""A trial that runs out of memory goes on in micro-batches, once, or fails with advice."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from captune.algorithms import ALGORITHMS, default_config
from captune.config import TaskConfig, TrialConfig
from captune.errors import TrainingFailed
from captune.records.layout import RESUME
from captune.training import trial as trial_module
from captune.training.checkpoint import load_checkpoint
from captune.training.context import Context
from captune.training.loop import Algorithm
from captune.training.memory import free_memory, is_out_of_memory
from captune.training.trial import TrainingTrial
from tests.slow import in_one_test

# Steps by autograd: those written by hand (test_packs.py) never call `loss`, where `Cramped` runs out.
TASK = TaskConfig.parse({"dataset": "digits", "paradigm": "ul", "kernels": "plain"})
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of 79 GiB"


def config(**values: Any) -> TrialConfig:
    return default_config("cap", TASK).with_values(
        {"epochs": 3, "steps_per_epoch": 2, "warmup_epochs": 0, "tuning": "features", "batch_size": 32, **values}
    )


class Cramped:
    """CAP on a device that is too small for its first attempts: `fail` names the steps at which memory runs out."""

    name, config_class = "cap", ALGORITHMS["cap"].config_class

    def __init__(self, fail: list[int], message: str = FULL) -> None:
        self.fail, self.message = fail, message
        self.steps, self.micro_batches = 0, []
        self.activations: list[weakref.ref[Tensor]] = []

    def num_epochs(self, config: TrialConfig) -> int:
        return ALGORITHMS["cap"].num_epochs(config)

    def build(self, context: Context, config: TrialConfig, seed: int) -> Algorithm:
        assert not any(held() is not None for held in self.activations), "the failed step must be let go of first"
        self.micro_batches.append(config.micro_batch)
        algorithm = ALGORITHMS["cap"].build(context, config, seed)
        whole = algorithm.loss

        def loss(step: int) -> Tensor:
            self.steps += 1
            activation = torch.zeros(3)
            self.activations.append(weakref.ref(activation))
            if self.steps in self.fail:
                raise RuntimeError(self.message)
            return whole(step)

        algorithm.loss = loss  # type: ignore[method-assign]
        return algorithm


def open_trial(directory: Path, spec: Any, trial: TrialConfig) -> TrainingTrial:
    return TrainingTrial.open(TASK, trial, algorithm=spec, seed=0, directory=directory)


def train(run: TrainingTrial) -> list[dict[str, Any]]:
    return [run.run_epoch() for _ in range(run.num_epochs - run.epoch)]


def test_a_trial_that_runs_out_of_memory_goes_on_from_its_last_epoch_with_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_module, "SAVE_SECONDS", 0.0)
    whole = train(open_trial(tmp_path / "whole", ALGORITHMS["cap"], config()))
    cramped = Cramped(fail=[4])
    run = open_trial(tmp_path / "cramped", cramped, config())
    rows = train(run)
    assert cramped.micro_batches == [None, 8]
    assert cramped.steps == 8, "of six steps the two of epoch 2 are made again, those of epoch 1 are not"
    assert [row.get("micro_batch") for row in rows] == [None, 8, 8]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in whole], rel=1e-5)
    assert run.finish()["score"] == pytest.approx(whole[-1]["score"], abs=0.05)


def test_memory_that_runs_out_before_the_first_checkpoint_begins_the_trial_again(tmp_path: Path) -> None:
    cramped = Cramped(fail=[1])
    rows = train(open_trial(tmp_path, cramped, config(micro_batch=16)))
    assert cramped.micro_batches == [16, 4]
    assert [row["epoch"] for row in rows] == [1, 2, 3]


def test_a_trial_that_does_not_fit_in_micro_batches_either_fails_with_advice(tmp_path: Path) -> None:
    cramped = Cramped(fail=[3, 4])
    run = open_trial(tmp_path, cramped, config())
    run.run_epoch()
    with pytest.raises(TrainingFailed) as caught:
        run.run_epoch()
    message = str(caught.value)
    assert "must fit into" in message and "Tried to allocate 2.00 GiB." in message and "total capacity" not in message
    assert "Lower --batch-size" in message and "--precision bf16" in message
    assert cramped.micro_batches == [None, 8], "once"


@in_one_test(
    ("message", "memory"),
    [
        (FULL, True),
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes", True),
        ("CUDA error: an illegal memory access was encountered", False),
        ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", False),
    ],
)
def test_running_out_of_memory_is_told_from_other_errors(message: str, memory: bool) -> None:
    assert is_out_of_memory(RuntimeError(message)) == memory


def test_another_error_is_not_tried_again(tmp_path: Path) -> None:
    cramped = Cramped(fail=[1], message="CUDA error: an illegal memory access was encountered")
    run = open_trial(tmp_path, cramped, config())
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run.run_epoch()
    assert cramped.micro_batches == [None]


# The real thing: prompts of the embedded model in batches of 512 images, on a GPU that is allowed only so much.

LARGE = {"tuning": "prompts", "batch_size": 512, "epochs": 3}


@pytest.fixture
def cap_memory() -> Iterator[Any]:
    """Lets this process have so many bytes of its GPU from now on; without a limit again afterwards."""
    total = torch.cuda.get_device_properties(0).total_memory

    def limit(num_bytes: int) -> None:
        free_memory()
        torch.cuda.set_per_process_memory_fraction(num_bytes / total)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)
    free_memory()


def peak_bytes(run: TrainingTrial) -> int:
    """Most memory that the process takes from its GPU, beside what it holds, while it trains an epoch."""
    free_memory()
    before = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    run.run_epoch()
    return torch.cuda.max_memory_reserved() - before


def learned(directory: Path) -> Tensor:
    """All learned parameters of a trial's last checkpoint, one after another."""
    tensors, _ = load_checkpoint(directory / RESUME)
    return torch.cat([value.flatten() for name, value in sorted(tensors.items()) if name.startswith("learned.")])


@pytest.mark.gpu
@pytest.mark.timeout(300)
def test_on_a_gpu_that_is_too_small_a_trial_goes_on_in_micro_batches(tmp_path: Path, cap_memory: Any) -> None:
    at_once = peak_bytes(open_trial(tmp_path / "whole", ALGORITHMS["cap"], config(**LARGE)))
    small = open_trial(tmp_path / "small", ALGORITHMS["cap"], config(**LARGE, micro_batch=128))
    in_parts = peak_bytes(small)
    print(f"peak: {at_once / 2**20:.0f} MiB at once, {in_parts / 2**20:.0f} MiB in micro-batches")
    assert in_parts < 0.85 * at_once
    train(small)
    del small

    free_memory()

    # Steps are recorded in the first epoch, with all the memory they will ever need, so there it runs out.
    cap_memory(torch.cuda.memory_reserved() + (at_once + in_parts) // 2)
    run = open_trial(tmp_path / "run", ALGORITHMS["cap"], config(**LARGE))
    rows = train(run)
    assert [row.get("micro_batch") for row in rows] == [128, 128, 128]
    assert 0 < run.finish()["score"] <= 1
    wanted, got = learned(tmp_path / "small"), learned(tmp_path / "run")
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.timeout(300)
def test_on_a_gpu_that_is_far_too_small_a_trial_fails_with_advice_and_frees_it(tmp_path: Path, cap_memory: Any) -> None:
    run = open_trial(tmp_path, ALGORITHMS["cap"], config(**LARGE))
    free_memory()
    held = torch.cuda.memory_allocated()
    cap_memory(torch.cuda.memory_reserved() + 2**21)
    with pytest.raises(TrainingFailed, match=r"must fit into the GPU's memory, but got .*out of memory"):
        run.run_epoch()
    gc.collect()
    assert torch.cuda.memory_allocated() <= held + 2**20  # libraries keep their workspaces
