"""The measurements of `python -m tests.bench`, one function a row of its table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from captune.cost.measure import MatrixRate, matrix_rate, peak_bytes_of, seconds_of, synchronize, why_too_noisy
from captune.cost.stopwatch import Stopwatch
from captune.equations.alignment import alignment_loss
from captune.model.backbone import Precision
from captune.training.loop import Loop
from tests.bench.plain import encode_one_by_one
from tests.bench.timing import Timing, alternate
from tests.bench.workbench import FastStep, Workbench, in_precision
from tests.bench.worker import concurrent_seconds, concurrent_steps

_STEPS_PER_EPOCH = 50
_IN_A_ROW = 50
# A share of a GPU is asked for as 1, 1/2, 1/4 of it.
_TRIALS_ON_A_CARD, _SHARED_STEPS = (1, 2, 4), 200


@dataclass(frozen=True)
class StepRow:
    """A step of K classes in one precision, beside the plain step.

    Attributes:
        num_classes: K.
        precision: of the fast step; the plain one is fp32.
        plain, fast: seconds.
        plain_peak, fast_peak: most memory held, bytes.
        plain_loss, fast_loss: of the same batch.
        gradient_error: |g − g_plain| / |g_plain| over all learned parameters together.
        gradient_cosine: between the two.
        labels_kept: share of the pool's pseudolabels that are those of the fp32 step; random weights hardly tell
            classes apart, so that rounding turns many over, and with them the gradients.
        flops: operations of the fast step, recomputed ones included.
        rate: the matrix rate in that precision, measured after the steps.
        too_noisy: why the ratio is not to be trusted; None where it is.
        images: that go through the image tower in a step.
        tokens: text and image tokens that go through a tower in a step, each counted once.
        views_share: of the fast step's seconds; on a GPU, where they are made beside the steps, what they add to them.
        device: where it ran.
    """

    num_classes: int
    precision: Precision
    plain: Timing
    fast: Timing
    plain_peak: int
    fast_peak: int
    plain_loss: float
    fast_loss: float
    gradient_error: float
    gradient_cosine: float
    labels_kept: float
    flops: int
    rate: MatrixRate
    too_noisy: str | None
    images: int
    tokens: int
    views_share: float
    device: torch.device

    @property
    def ratio(self) -> float:
        """Plain over fast, by the seconds the device worked."""
        return self.plain.busy(self.device) / self.fast.busy(self.device)

    @property
    def matrix_share(self) -> float:
        """The step's operations a second as a share of the machine's matrix rate."""
        return self.flops / self.fast.busy(self.device) / self.rate.flops

    def as_json(self) -> dict[str, Any]:
        """As plain values, ratios included."""
        return {
            "classes": self.num_classes,
            "precision": self.precision,
            "plain_seconds": self.plain.as_json(),
            "fast_seconds": self.fast.as_json(),
            "ratio": self.ratio,
            "wall_ratio": self.plain.best / self.fast.best,
            "plain_peak_bytes": self.plain_peak,
            "fast_peak_bytes": self.fast_peak,
            "plain_loss": self.plain_loss,
            "fast_loss": self.fast_loss,
            "gradient_relative_error": self.gradient_error,
            "gradient_cosine": self.gradient_cosine,
            "labels_kept": self.labels_kept,
            "flops": self.flops,
            "matrix_rate": self.rate.as_json(),
            "matrix_share": self.matrix_share,
            "too_noisy": self.too_noisy,
            "images_per_second": self.images / self.fast.busy(self.device),
            "tokens_per_second": self.tokens / self.fast.busy(self.device),
            "views_share": self.views_share,
        }


def measure_steps(
    bench: Workbench, precisions: Sequence[Precision], rates: dict[str, MatrixRate], *, repeats: int
) -> list[StepRow]:
    """Plain and fast steps in turn on the same weights and batches; one row a precision."""
    device = bench.context.device
    reference = bench.fast("fp32")
    plain = bench.plain(reference)
    fast: dict[Precision, FastStep] = {}
    losses, gradients, peaks, flops = {}, {}, {}, {}
    for precision in dict.fromkeys(("fp32", *precisions)):
        step = reference if precision == "fp32" else bench.fast(precision)
        with FlopCounterMode(display=False) as counter:
            step.eagerly()  # allocators and kernels warm up, too
        flops[precision] = int(counter.get_total_flops())
        if precision in precisions:
            fast[precision] = step
            losses[precision], gradients[precision], peaks[precision] = _observed(step, step, device)
    plain_loss, plain_gradient, plain_peak = _observed(plain, reference, device)
    shares: dict[Precision, list[float]] = {precision: [] for precision in fast}

    def with_share(precision: Precision) -> None:
        bench.views.seconds = 0.0
        seconds = seconds_of(fast[precision], device)
        shares[precision].append(bench.views.seconds / seconds)

    if device.type == "cuda":
        # Steps follow each other without the host waiting, as in an epoch; one alone would be mostly its launch.
        timings = alternate([plain, *(partial(step, _IN_A_ROW) for step in fast.values())], repeats, device)
        timings = [timings[0], *(timing.over(_IN_A_ROW) for timing in timings[1:])]
        shares = {precision: _added_by_views(step, device) for precision, step in fast.items()}
    else:
        timings = alternate([plain, *(partial(with_share, precision) for precision in fast)], repeats, device)
    images, tokens = _sizes(bench, reference)
    after = matrix_rates(tuple(fast), device, seconds=0.5)
    rows = []
    for (precision, step_timing), gradient in zip(zip(fast, timings[1:], strict=True), gradients.values(), strict=True):
        rows.append(
            StepRow(
                num_classes=len(bench.context.task.class_names),
                precision=precision,
                plain=timings[0],
                fast=step_timing,
                plain_peak=plain_peak,
                fast_peak=peaks[precision],
                plain_loss=plain_loss,
                fast_loss=losses[precision],
                gradient_error=float((gradient - plain_gradient).norm() / plain_gradient.norm()),
                gradient_cosine=float(torch.nn.functional.cosine_similarity(gradient, plain_gradient, dim=0)),
                labels_kept=float((fast[precision].seen["labels"] == reference.seen["labels"]).float().mean()),
                flops=flops[precision],
                rate=after[precision],
                too_noisy=why_too_noisy(rates[precision], after[precision]),
                images=images,
                tokens=tokens,
                views_share=median(shares[precision]),
                device=device,
            )
        )
    return rows


def _added_by_views(step: FastStep, device: torch.device) -> list[float]:
    """1 - (steps on a batch that is there) / (steps that make theirs), in turn."""
    given = step.cap.batch(0)

    def ready() -> None:
        step.given = given
        step(_IN_A_ROW)

    def made() -> None:
        step.given = None
        step(_IN_A_ROW)

    without, with_views = alternate([ready, made], 5, device)
    step.given = None
    pairs = zip(without.seconds, with_views.seconds, strict=True)
    return [max(0.0, 1 - fast / slow) for fast, slow in pairs]


def _observed(step: Callable[[], Tensor], owner: FastStep, device: torch.device) -> tuple[float, Tensor, int]:
    """Loss, all gradients in one vector, and peak memory of a step."""
    losses: list[float] = []
    peak = peak_bytes_of(lambda: losses.append(float(step())), device)
    classifier = owner.cap.classifier
    gradient = torch.cat([
        (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten()
        for parameter in classifier.parameters()
    ])  # fmt: skip
    return losses[0], gradient.double(), peak


def _sizes(bench: Workbench, step: FastStep) -> tuple[int, int]:
    backbone, config = bench.context.backbone, step.cap.config
    assert backbone is not None and backbone.text_tower is not None  # for the type checker
    tokens_KL = backbone.tokenize(list(bench.context.task.class_names))
    visual = backbone.model.visual
    image_tokens = visual.positional_embedding.shape[0] + config.num_context
    images = 3 * config.batch_size
    # Every class prompt as the towers see it: cut at its end, the template's words included.
    text_tokens = int(backbone.text_tower.pooled_positions(tokens_KL).max()) + 6
    return images, images * image_tokens + len(tokens_KL) * text_tokens


@dataclass(frozen=True)
class EncodingRow:
    """Encoding a pool without gradients.

    Attributes:
        precision: of the batched way; image by image is fp32.
        plain_rate, fast_rate: images a second that the device worked.
        flops_per_image: of the forward pass.
        rate: the matrix rate in that precision.
        cosine: the smallest between the features of the two ways.
    """

    precision: str
    plain_rate: float
    fast_rate: float
    flops_per_image: int
    rate: MatrixRate
    cosine: float

    @property
    def matrix_share(self) -> float:
        """Operations a second as a share of the machine's matrix rate."""
        return self.fast_rate * self.flops_per_image / self.rate.flops

    def as_json(self) -> dict[str, Any]:
        """As plain values, ratios included."""
        return {
            "precision": self.precision,
            "plain_images_per_second": self.plain_rate,
            "fast_images_per_second": self.fast_rate,
            "ratio": self.fast_rate / self.plain_rate,
            "flops_per_image": self.flops_per_image,
            "matrix_rate": self.rate.as_json(),
            "matrix_share": self.matrix_share,
            "smallest_cosine": self.cosine,
        }


def measure_encoding(
    bench: Workbench, precisions: Sequence[Precision], rates: dict[str, MatrixRate], *, repeats: int, batch: int = 64
) -> list[EncodingRow]:
    """The pool in batches against image by image."""
    backbone, device = bench.context.backbone, bench.context.device
    assert backbone is not None  # for the type checker
    pixels = bench.views.weak(bench.context.task.pool[:batch])
    few = pixels[: 8 if device.type == "cpu" else len(pixels)]
    towers = {precision: in_precision(backbone, precision) for precision in precisions}
    flops = {}
    for precision, tower in towers.items():
        with FlopCounterMode(display=False) as counter:
            tower.encode_images(few)
        flops[precision] = int(counter.get_total_flops()) // len(few)
    plain_features = encode_one_by_one(backbone.model, few)
    works: list[Callable[[], object]] = [partial(encode_one_by_one, backbone.model, few)]
    works += [partial(tower.encode_images, pixels) for tower in towers.values()]
    timings = alternate(works, repeats, device)
    return [
        EncodingRow(
            precision=precision,
            plain_rate=len(few) / timings[0].busy(device),
            fast_rate=len(pixels) / timing.busy(device),
            flops_per_image=flops[precision],
            rate=rates[precision],
            cosine=float((tower.encode_images(few) * plain_features).sum(-1).min()),
        )
        for (precision, tower), timing in zip(towers.items(), timings[1:], strict=True)
    ]


@dataclass(frozen=True)
class EpochRow:
    """What an epoch of 50 steps costs beside its steps, in seconds.

    Attributes:
        num_classes: K.
        margin: text features, class similarity, margin and batches at the epoch's beginning.
        boards: counts and renewed boards at its end.
        alignment: the alignment loss of all steps, forward and backward.
        steps: the steps themselves.
    """

    num_classes: int
    margin: float
    boards: float
    alignment: float
    steps: float

    @property
    def share(self) -> float:
        """Margin, boards and alignment as a share of the epoch."""
        extra = self.margin + self.boards + self.alignment
        return extra / (extra + self.steps)

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        parts = {"margin_seconds": self.margin, "boards_seconds": self.boards, "alignment_seconds": self.alignment}
        return {"classes": self.num_classes, **parts, "steps_seconds": self.steps, "share": self.share}


def measure_epoch(bench: Workbench, step: StepRow) -> EpochRow:
    """Margin, boards and alignment of an epoch in the step's precision."""
    device = bench.context.device
    # A first epoch: the text features have to be made anew, as they do after every epoch. Kernels are compiled before.
    bench.algorithm(step.precision, steps_per_epoch=_STEPS_PER_EPOCH).start_epoch(0)
    cap = bench.algorithm(step.precision, steps_per_epoch=_STEPS_PER_EPOCH)
    margin = seconds_of(lambda: cap.start_epoch(0), device)
    boards = _boards_seconds(bench)
    text_KD = bench.context.text_features_KD.clone().requires_grad_()
    prototypes_KD = bench.context.text_features_KD.flip(0)

    def align() -> None:
        alignment_loss(text_KD, prototypes_KD, temperature=0.1).backward()  # type: ignore[no-untyped-call]

    align()
    if device.type == "cuda":
        align = _recorded(align)  # as it is in a step there
    alignment = _STEPS_PER_EPOCH * min(seconds_of(align, device) for _ in range(5))
    return EpochRow(step.num_classes, margin, boards, alignment, _STEPS_PER_EPOCH * step.fast.best)


def _recorded(work: Callable[[], None]) -> Callable[[], None]:
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        work()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def _boards_seconds(bench: Workbench) -> float:
    """`end_epoch` with renewed boards after a whole epoch; frozen features give it the same work at no tower's cost."""
    loop = bench.loop(steps_per_epoch=_STEPS_PER_EPOCH, epochs=3, grow_every=1)
    watch = Stopwatch(loop.algorithm, bench.context.device)
    watched = Loop(watch, loop.config, loop.num_epochs)
    watched.run_epoch()
    watched.run_epoch()
    return watch.end[-1]


def measure_concurrency(*, epochs: int) -> dict[str, Any]:
    """Throughput of two simultaneous one-thread trials on digits against one.

    `throughput` is by the clock. `throughput_cpu` is by CPU seconds: what two get out of two cores that nobody else
    uses; where other processes run, only this one tells something.
    """
    alone, together = concurrent_seconds(1, epochs=epochs)[0], concurrent_seconds(2, epochs=epochs)
    return {
        "one_seconds": alone.wall,
        "two_seconds": max(worker.wall for worker in together),
        "one_cpu_seconds": alone.cpu,
        "two_cpu_seconds": max(worker.cpu for worker in together),
        "throughput": 2 * alone.wall / max(worker.wall for worker in together),
        "throughput_cpu": 2 * alone.cpu / max(worker.cpu for worker in together),
    }


def measure_sharing(**settings: Any) -> list[dict[str, Any]]:
    """Training steps of several processes on one GPU: what all of them get done together, as many as fit.

    Args:
        settings: as of `concurrent_steps`, without `steps`.
    """
    rows = []
    for num_trials in _TRIALS_ON_A_CARD:
        try:
            worked = concurrent_steps(num_trials, **settings, steps=_SHARED_STEPS)
        except OSError:  # so many do not fit
            break
        seconds = max(worker.wall for worker in worked)
        images = 3 * settings["batch_size"] * _SHARED_STEPS * num_trials
        rows.append({"trials": num_trials, "precision": settings["precision"], "classes": settings["classes"],
                     "seconds": seconds, "images_per_second": images / seconds})  # fmt: skip
    return rows


def matrix_rates(precisions: Sequence[Precision], device: torch.device, *, seconds: float) -> dict[str, MatrixRate]:
    """The machine's matrix rate in each precision: a CPU's at a step's own sizes, a GPU's at a size that fills it."""
    shape = (8192, 8192, 8192) if device.type == "cuda" else (1600, 768, 3072)
    rates = {precision: matrix_rate(precision, device, shape=shape, seconds=seconds) for precision in precisions}
    synchronize(device)
    return {str(precision): rate for precision, rate in rates.items()}
