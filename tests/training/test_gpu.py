"""What only a GPU can show: recorded steps are the eager ones, views and kernels there are those of a CPU."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from captune.algorithms.cap import Cap
from captune.data.views import ImageViews
from captune.model.backbone import Backbone
from captune.model.blocks import LeanOptions
from captune.training.loop import Loop
from captune.training.step import GraphStep
from tests.bench.workbench import FastStep, Workbench, in_precision, open_backbone

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
GPU = torch.device("cuda")


@pytest.fixture(scope="module")
def vit() -> Backbone:
    return open_backbone("ViT-B-32", "random", "cuda")


@pytest.fixture(scope="module")
def bench(vit: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    yield Workbench(tmp_path_factory.mktemp("bench"), vit, 10, batch_size=8, num_images=64)


def trained(bench: Workbench, precision: str, *, recorded: bool, epochs: int, **values: object) -> tuple[Loop, Cap]:
    settings = {"steps_per_epoch": 4, "epochs": 4, "learning_rate": 0.002, "grow_every": 1, **values}
    cap = bench.algorithm(precision, **settings)  # type: ignore[arg-type]
    loop = Loop(cap, cap.config, cap.config.epochs, recorded=recorded)
    for _ in range(epochs):
        loop.run_epoch()
    return loop, cap


def state_of(loop: Loop) -> dict[str, Tensor]:
    return {name: tensor.double().cpu() for name, tensor in loop.state().items()}


@pytest.mark.parametrize("values", [{}, {"alignment_weight": 0.3, "confusion": "matrix"}, {"micro_batch": 6}])
def test_recorded_steps_train_what_eager_ones_do(bench: Workbench, values: dict[str, object]) -> None:
    recorded, _ = trained(bench, "fp32", recorded=True, epochs=3, **values)
    assert isinstance(recorded._step, GraphStep) and recorded._step._graph is not None
    eager, _ = trained(bench, "fp32", recorded=False, epochs=3, **values)
    want = state_of(eager)
    for name, tensor in state_of(recorded).items():
        torch.testing.assert_close(
            tensor, want[name], rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_an_interrupted_run_goes_on_to_the_same_bits(bench: Workbench) -> None:
    whole, _ = trained(bench, "bf16", recorded=True, epochs=4)
    half, _ = trained(bench, "bf16", recorded=True, epochs=2)
    kept = {name: tensor.detach().clone().cpu() for name, tensor in half.state().items()}
    again, _ = trained(bench, "bf16", recorded=True, epochs=0)
    again.load_state(kept)
    again.run_epoch()
    again.run_epoch()
    want = state_of(whole)
    assert all(torch.equal(tensor, want[name]) for name, tensor in state_of(again).items())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_fused_kernels_have_the_gradient_of_the_operations_they_stand_for(
    bench: Workbench, vit: Backbone, precision: str
) -> None:
    found = []
    for fused in (True, False):
        backbone = Backbone(
            vit.model, name="ViT-B-32", precision=precision, device=GPU,  # type: ignore[arg-type]
            tokenizer=lambda: vit.tokenize, options=LeanOptions(fused=fused),
        )  # fmt: skip
        cap = bench.algorithm(precision)  # type: ignore[arg-type]
        cap.classifier.backbone = backbone
        cap.start_epoch(0)
        loss, _ = cap.loss(cap.batch(0))
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in cap.classifier.parameters() if p.grad is not None])
        found.append((float(loss.detach()), gradient.double()))
    assert found[0][0] == pytest.approx(found[1][0], rel=2e-3)
    assert float(torch.nn.functional.cosine_similarity(found[0][1], found[1][1], dim=0)) > 0.998


def test_views_on_the_device_are_those_of_the_host(bench: Workbench, vit: Backbone) -> None:
    store = bench.views._store
    host = ImageViews(store, vit.preprocessing, "cpu")
    indices = np.arange(12)
    arguments = {"flip_probability": 0.5, "crop_scale_min": 0.08}
    weak, strong = host.weak(indices), host.strong(indices, torch.Generator().manual_seed(1), **arguments)
    for resident in (True, False):
        views = ImageViews(store, vit.preprocessing, GPU, resident=resident)
        torch.testing.assert_close(views.weak(indices).cpu(), weak, rtol=0, atol=1e-5)
        crops = views.strong(indices, torch.Generator().manual_seed(1), **arguments)
        torch.testing.assert_close(crops.cpu(), strong, rtol=0, atol=2e-3)
    rough = ImageViews(store, vit.preprocessing, GPU, torch.bfloat16)
    # Half a grey level beside bf16's own rounding.
    crops = rough.strong(indices, torch.Generator().manual_seed(1), **arguments).float().cpu()
    torch.testing.assert_close(crops, strong, rtol=2**-7, atol=0.5 / 255 / 0.26)


def test_no_host_waits_inside_an_epoch(bench: Workbench) -> None:
    step: FastStep = bench.fast("bf16")
    step(2)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_same_weights_serve_every_precision(vit: Backbone) -> None:
    pixels = torch.randn(4, 3, 224, 224, device=GPU)
    exact = vit.encode_images(pixels)
    for precision in ("bf16", "fp16"):
        rough = in_precision(vit, precision).encode_images(pixels)  # type: ignore[arg-type]
        assert float((exact * rough).sum(-1).min()) > 0.995
