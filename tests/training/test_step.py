"""Staged steps: what a GPU may record, what a recorded step must leave as it was."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from captune.algorithms import method_named
from captune.algorithms.cap import Cap
from captune.algorithms.common import at_once
from captune.config import TaskConfig
from captune.training.context import open_context
from captune.training.step import Batch, Branch, GraphStep, batches_of

CPU = torch.device("cpu")
# What makes a host wait for a device, or hands it data from the host in the middle of a step.
_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "item", "equal", "is_nonzero"}


class NothingWaits(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in _WAITS, f"{name} inside a step"
        if name in ("index", "index_put", "index_put_"):
            rows = [index for index in args[1] if index is not None]
            assert all(index.dtype != torch.bool for index in rows), f"{name} by a mask inside a step"
        return func(*args, **(kwargs or {}))


def build(method: str, paradigm: str, **values: object) -> Any:
    context = open_context(TaskConfig.parse({"dataset": "digits", "paradigm": paradigm}), "score", "cpu")
    spec = method_named(method)
    config = spec.config_class.parse({"batch_size": 8, "steps_per_epoch": 3, "epochs": 2, **values})
    return spec.build(context, config, 0)


@pytest.mark.parametrize(
    ("method", "paradigm", "values"),
    [
        ("cap", "ul", {}),
        ("cap", "ssl", {"alignment_weight": 0.5, "reweighting_strength": 0.5, "confidence_threshold": 0.4}),
        ("cap", "trzsl", {"shared_adapter": True, "confidence_threshold": 0.4}),
        ("fpl", "ssl", {}),
        ("fpl", "ul", {"prompts": "text"}),
    ],
)
@pytest.mark.parametrize("skips", [True, False])
def test_images_part_by_part_have_the_gradients_of_all_at_once(
    method: str, paradigm: str, values: dict[str, object], skips: bool
) -> None:
    found = []
    for size in (None, 3):  # no part of three ends where labelled images, main samples or strong views do
        algorithm = build(method, paradigm, tuning="prompts", micro_batch=size, **values)
        algorithm.skips_unconfident = skips
        algorithm.start_epoch(0)
        loss, seen = algorithm.loss(algorithm.batch(0))
        loss.backward()
        gradients = {name: one.grad for name, one in algorithm.classifier.named_parameters()}
        found.append((loss.detach(), seen, gradients))
    (whole, seen, want), (parts, also_seen, got) = found
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
    for name, tensor in seen.items():
        assert torch.equal(tensor, also_seen[name])
    assert {name for name, one in want.items() if one is not None} == {n for n, one in got.items() if one is not None}
    for name, gradient in want.items():
        if gradient is not None:
            error = (got[name] - gradient).norm() / gradient.norm().clamp(min=1e-12)
            assert error < 1e-5, name


def test_a_part_lets_go_of_its_activations_before_the_next_is_encoded() -> None:
    kept: dict[int | None, int] = {}
    for size in (None, 4):
        algorithm = build("cap", "ul", tuning="prompts", micro_batch=size)
        algorithm.skips_unconfident = False
        algorithm.start_epoch(0)
        held, kept[size] = dict[int, int](), 0

        def pack(tensor: Tensor, size: int | None = size, held: dict[int, int] = held) -> Saved:
            saved = Saved(tensor, held)
            kept[size] = max(kept[size], sum(held.values()))
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
            algorithm.loss(algorithm.batch(0))
    assert kept[4] < 0.6 * kept[None], "of 16 images"


class Saved:
    """A tensor that is kept for the backward pass, noted with its numbers as long as it is."""

    def __init__(self, tensor: Tensor, held: dict[int, int]) -> None:
        self.tensor, self._held = tensor, held
        held[id(self)] = tensor.numel()

    def __del__(self) -> None:
        self._held.pop(id(self))


def test_a_cpu_takes_as_many_images_at_once_as_their_activations_allow() -> None:
    tiny = build("cap", "ul", tuning="prompts")
    assert at_once(tiny.classifier, tiny.config) > 1000, "all of the embedded CLIP's at once"
    tower = SimpleNamespace(num_values=12 * 50 * 768, device=CPU)  # ViT-B/32
    classifier: Any = SimpleNamespace(prompts=True, backbone=SimpleNamespace(image_tower=tower))
    assert at_once(classifier, tiny.config) == 17
    tower.num_values *= 100
    assert at_once(classifier, tiny.config) == 4, "fewer would make small products"
    tower.device = torch.device("cuda")
    assert at_once(classifier, tiny.config) is None
    assert at_once(classifier, tiny.config.with_values({"micro_batch": 5})) == 5


@pytest.mark.parametrize("tuning", ["prompts", "features"])
@pytest.mark.parametrize(
    ("method", "paradigm", "values"),
    [
        ("cap", "ul", {}),
        ("cap", "ssl", {"alignment_weight": 0.5, "reweighting_strength": 0.5, "confusion": "matrix"}),
        ("cap", "trzsl", {"shared_adapter": True}),
        ("fpl", "ssl", {}),
        ("cpl", "ul", {"num_iterations": 1}),
    ],
)
def test_no_step_waits_for_the_device(method: str, paradigm: str, values: dict[str, object], tuning: str) -> None:
    algorithm = build(method, paradigm, tuning=tuning, **values)
    algorithm.skips_unconfident = False  # as on a GPU
    algorithm.start_epoch(0)
    batch = algorithm.batch(0)
    with NothingWaits():
        loss, seen = algorithm.loss(batch)
        loss.backward()
    algorithm.observe(seen)
    assert torch.isfinite(loss)


def test_a_wait_is_noticed() -> None:
    waits: list[Callable[[], object]] = [
        lambda: float(torch.ones(1)),
        lambda: torch.ones(3)[torch.ones(3) > 0],
        lambda: torch.tensor([1.0, 2.0]),
    ]
    for wait in waits:
        with pytest.raises(AssertionError, match="inside a step"), NothingWaits():
            wait()


def test_steps_of_an_epoch_have_one_shape() -> None:
    algorithm = build("cap", "ssl", tuning="prompts")
    algorithm.start_epoch(0)
    shapes = [{name: tensor.shape for name, tensor in batch.items()} for batch in batches_of(algorithm, 3, CPU)]
    assert shapes[0] == shapes[1] == shapes[2]
    assert {"weak", "strong", "trusted", "draws", "margin"} <= set(shapes[0])


def test_leaving_no_image_out_changes_neither_loss_nor_gradient() -> None:
    found = []
    for chooses in (True, False):
        algorithm: Cap = build("cap", "ul", tuning="prompts", confidence_threshold=0.5)
        algorithm.skips_unconfident = chooses
        algorithm.start_epoch(0)
        loss, _ = algorithm.loss(algorithm.batch(0))
        loss.backward()
        gradients = [p.grad.flatten() for p in algorithm.classifier.parameters() if p.grad is not None]
        found.append((loss.detach(), torch.cat(gradients)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_what_a_step_moves_can_be_put_back() -> None:
    algorithm: Cap = build("cap", "ul", tuning="features", alignment_weight=0.5)
    algorithm.start_epoch(0)
    moving = algorithm.moving_state()
    before = [tensor.clone() for tensor in moving]
    first, _ = algorithm.loss(algorithm.batch(0))
    assert not torch.equal(moving[0], before[0])
    for tensor, value in zip(moving, before, strict=True):
        tensor.copy_(value)
    again, _ = algorithm.loss(algorithm.batch(0))
    assert torch.equal(first, again)


def test_a_branch_changes_nothing_on_a_cpu() -> None:
    branch = Branch(CPU)
    with branch.run():
        value = torch.ones(2) + 1
    branch.join(value)
    assert value.tolist() == [2.0, 2.0]


def test_a_person_can_have_plain_kernels() -> None:
    task = {"dataset": "digits", "paradigm": "ul"}
    assert open_context(TaskConfig.parse(task), "score", "cpu").fast_steps
    assert not open_context(TaskConfig.parse({**task, "kernels": "plain"}), "score", "cpu").fast_steps


class FakeStream:
    made = 0

    def __init__(self, *args: object, **kwargs: object) -> None:
        FakeStream.made += 1

    def wait_stream(self, other: object) -> None:
        pass

    def record_event(self) -> object:
        return self

    def synchronize(self) -> None:
        pass


class BrokenRecording:
    """Streams as torch keeps them, and a recording that breaks off as on a GPU: ending it raises as well."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        FakeStream.made = 0
        self.outside = self.current = FakeStream()
        self.recording, self.attempts = False, 0
        for name, value in {
            "Stream": FakeStream, "CUDAGraph": object, "stream": self.on, "set_stream": self.set, "graph": self.record,
            "current_stream": lambda device=None: self.current,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)

    def set(self, stream: FakeStream) -> None:
        self.current = stream

    @contextmanager
    def on(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    @contextmanager
    def record(self, graph: object, *, stream: FakeStream, capture_error_mode: str) -> Iterator[None]:
        self.current, self.recording = stream, True
        self.attempts += 1
        try:
            yield
        finally:
            self.recording = False
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


class Unrecordable:
    """y = 2w, which a recording cannot hold."""

    def __init__(self, broken: BrokenRecording, why: str) -> None:
        self.weight = nn.Parameter(torch.ones(()))
        self.broken, self.why = broken, why

    def batch(self, step: int) -> Batch:
        return {}

    def loss(self, batch: Batch) -> tuple[Tensor, Batch]:
        if self.broken.recording:
            raise RuntimeError(self.why)
        return 2 * self.weight, {}

    def moving_state(self) -> list[Tensor]:
        return []


def test_steps_that_cannot_be_recorded_go_on_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = BrokenRecording(monkeypatch)
    algorithm = Unrecordable(broken, "operation not permitted when stream is capturing")
    step = GraphStep(algorithm, [algorithm.weight])
    losses = [float(step({})[0]) for _ in range(3)]
    assert losses == [2.0, 2.0, 2.0] and algorithm.weight.grad == 2
    assert broken.current is broken.outside, "torch leaves the recording's stream current"
    assert broken.attempts == 1


def test_memory_that_runs_out_in_a_recording_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = BrokenRecording(monkeypatch)
    algorithm = Unrecordable(broken, "CUDA out of memory. Tried to allocate 2.00 GiB.")
    with pytest.raises(RuntimeError, match="out of memory"):
        GraphStep(algorithm, [algorithm.weight])({})
    assert broken.current is broken.outside


def test_batches_of_all_epochs_are_made_on_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = BrokenRecording(monkeypatch)
    algorithm = Unrecordable(broken, "")
    for _ in range(3):
        assert list(batches_of(algorithm, 5, torch.device("cuda:7"))) == [{}] * 5
    assert FakeStream.made == 2, "the current one and that of the batches"
    assert broken.current is broken.outside


def test_a_learner_that_nobody_holds_is_gone_at_once() -> None:
    gc.disable()
    try:
        algorithm = build("fpl", "ssl", tuning="features")
        algorithm.start_epoch(0)
        held = weakref.ref(algorithm)
        del algorithm
        assert held() is None
    finally:
        gc.enable()
