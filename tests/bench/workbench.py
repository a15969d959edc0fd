"""What is measured on: made-up photographs in a real image store, and the real algorithm on them, fast and plain."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from captune.algorithms.cap import Cap
from captune.algorithms.configs import CapConfig
from captune.config import TaskConfig
from captune.cost.photographs import class_names, write_photographs
from captune.data.catalog import load_dataset
from captune.data.image_store import ImageStore
from captune.data.paradigms import IntArray, build_task
from captune.data.views import Feed, ImageViews
from captune.errors import UsageError
from captune.model.backbone import Backbone, Precision, load_backbone
from captune.model.class_prompts import class_prompts
from captune.records import Role
from captune.seeding import torch_generator
from captune.training.context import Context
from captune.training.loop import Loop
from captune.training.optim import Sgd
from captune.training.step import Batch, EagerStep, GraphStep, batches_of, step_of
from tests.bench.plain import PlainBatch, PlainModel

if TYPE_CHECKING:
    from collections.abc import Iterator

_SEED = 0


class RepeatedViews(ImageViews):
    """Views whose strong crops are the same at every call, with a clock.

    Attributes:
        seconds: spent in making views since it was last set to 0.
    """

    seconds = 0.0

    def feed(self, indices_SB: IntArray) -> Feed:
        """As `ImageViews.feed`, timed."""
        return self._timed(super().feed(indices_SB))

    def weak_of(self, fed: Tensor) -> Tensor:
        """As `ImageViews.weak_of`, timed."""
        with self._clock():
            return super().weak_of(fed)

    def draw(
        self,
        indices_SB: IntArray,
        generator: torch.Generator,
        *,
        flip_probability: float,
        crop_scale_min: float,
        feature_dropout: float = 0.0,
    ) -> Tensor:
        """As `ImageViews.draw`, but from one seed at every call, all steps as the first; `generator` is not used."""
        first_1B5 = super().draw(
            indices_SB[:1],
            torch_generator(_SEED, "strong"),
            flip_probability=flip_probability,
            crop_scale_min=crop_scale_min,
        )
        return first_1B5.repeat(len(indices_SB), 1, 1)

    def feed_crops(self, indices_SB: IntArray, draws_SB5: Tensor) -> Feed:
        """As `ImageViews.feed_crops`, timed."""
        return self._timed(super().feed_crops(indices_SB, draws_SB5))

    def strong_of(self, fed: Tensor, draws_B5: Tensor) -> Tensor:
        """As `ImageViews.strong_of`, timed."""
        with self._clock():
            return super().strong_of(fed, draws_B5)

    def _timed(self, feed: Feed) -> Feed:
        def timed(step: int) -> Tensor:
            with self._clock():
                return feed(step)

        return timed

    @contextmanager
    def _clock(self) -> Iterator[None]:
        # On a GPU this is the time to issue the work; what runs there later is the step's.
        started = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - started


class FastStep:
    """Steps of CAP as the loop runs them, all on one batch: the learning rate is 0, so the parameters stay as they are.

    Args:
        cap: the algorithm, in an epoch.
        optimizer: as the loop makes it.

    Attributes:
        seen: pseudolabels and confidences of the last step.
        given: a batch to take instead of making one; None makes one anew for every step.
    """

    def __init__(self, cap: Cap, optimizer: Sgd) -> None:
        self.cap, self.optimizer = cap, optimizer
        self._parameters = list(cap.classifier.parameters())
        self._step = step_of(self, self._parameters, recorded=True)
        self.seen: Batch = {}
        self.given: Batch | None = None

    def __call__(self, num_steps: int = 1) -> Tensor:
        """Views, losses, gradients, optimiser; the last step's loss."""
        return self._run(self._step, num_steps)

    def eagerly(self) -> Tensor:
        """One step that is not recorded, so that its operations can be counted."""
        return self._run(EagerStep(self, self._parameters), 1)

    def _run(self, take: EagerStep | GraphStep, num_steps: int) -> Tensor:
        loss = torch.zeros(())
        for batch in batches_of(self, num_steps, self.cap.context.device):
            loss, self.seen = take(batch)
            self.optimizer.step()
        return loss

    def batch(self, step: int) -> Batch:
        """The same batch whatever the step."""
        return self.cap.batch(0) if self.given is None else self.given

    def loss(self, batch: Batch) -> tuple[Tensor, Batch]:
        """As the algorithm's."""
        return self.cap.loss(batch)

    def moving_state(self) -> list[Tensor]:
        """As the algorithm's."""
        return self.cap.moving_state()


@dataclass
class PlainStep:
    """The same step the plain way, its views given to it.

    Attributes:
        model: towers and losses.
        batch: the very views that the fast step makes.
        margin_KK, threshold: as in the fast step.
        optimizer: likewise.
    """

    model: PlainModel
    batch: PlainBatch
    margin_KK: Tensor
    threshold: float
    optimizer: Sgd

    def __call__(self) -> Tensor:
        """Losses, gradients, optimiser; the loss."""
        loss = self.model.loss(self.batch, self.margin_KK, threshold=self.threshold)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()


class Workbench:
    """A cell of made-up photographs with K classes.

    Args:
        folder: where photographs and store lie.
        backbone: in fp32.
        num_classes: K.
        batch_size: images per stream.
        num_images: training images (the pool), at least a batch and one a class.

    Attributes:
        context: the cell; image features of the pool are made up unless `encode_pool` is called.
    """

    def __init__(
        self, folder: Path, backbone: Backbone, num_classes: int, *, batch_size: int = 32, num_images: int = 96
    ) -> None:
        names = class_names(num_classes)
        photographs = folder / f"photographs{num_classes}"
        if not photographs.exists():
            write_photographs(photographs, names, max(num_images, batch_size))
        config = TaskConfig.parse({"dataset": f"folder:{photographs}", "paradigm": "ul", "cache_dir": folder / "store"})
        task, _ = build_task(config, role=Role.REPORT)
        store = ImageStore.open_or_build(load_dataset(config), backbone.preprocessing, folder / "store")
        self._view_parts = store, backbone.preprocessing, backbone.device
        self.views = RepeatedViews(*self._view_parts)
        generator = torch_generator(_SEED, "features")
        features_MD = torch.randn(len(store), backbone.embed_dim, generator=generator).to(backbone.device)
        text_KD = backbone.encode_texts(class_prompts(task.class_names, task.template))
        self.context = Context(
            task=task,
            backbone=backbone,
            image_views=self.views,
            image_features_MD=torch.nn.functional.normalize(features_MD, dim=-1),
            text_features_KD=text_KD,
            logit_scale=backbone.logit_scale,
            device=backbone.device,
        )
        self.batch_size = batch_size

    def config(self, **values: object) -> CapConfig:
        """CAP at the paper's settings and 50 × 50 steps; every pseudolabel counts, so that the pool always trains."""
        return CapConfig.parse(
            {"batch_size": self.batch_size, "mismatched": "none", "confidence_threshold": 0.0, **values},
            where="benchmark",
        )

    def algorithm(self, precision: Precision = "fp32", **values: object) -> Cap:
        """CAP before its first epoch, on the same frozen weights in a precision."""
        backbone = in_precision(self._backbone, precision)
        views = self.views
        if backbone.view_dtype != views.dtype:
            views = RepeatedViews(*self._view_parts, backbone.view_dtype)
        context = replace(self.context, backbone=backbone, image_views=views)
        return Cap(context, self.config(**values), seed=_SEED)

    def fast(self, precision: Precision = "fp32", **values: object) -> FastStep:
        """The fast step."""
        cap = self.algorithm(precision, **values)
        cap.start_epoch(0)
        # There are no counts before the first epoch, hence no margin; a step in mid-training has one.
        cap.margin_KK = _margin(len(cap.margin_KK)).to(self.context.device)
        return FastStep(cap, _sgd(cap, cap.config))

    def plain(self, fast: FastStep) -> PlainStep:
        """The plain step on the parameters, the batch and the margin of a fast one."""
        cap = fast.cap
        assert cap.classifier is not None  # for the type checker
        model = PlainModel(self._backbone, cap.classifier, self.context.task.template)
        main_B2 = cap.main_M2[cap.main_S[0]]
        pool_B, config = cap.pool_SB[0], cap.config
        batch = PlainBatch(
            weak_B3SS=self.views.weak(pool_B),
            strong_B3SS=self.views.strong(
                pool_B,
                torch_generator(_SEED, "unused"),
                flip_probability=config.flip_probability,
                crop_scale_min=config.crop_scale_min,
            ),
            main_B3SS=self.views.weak(main_B2[:, 0]),
            main_labels_B=torch.as_tensor(main_B2[:, 1], device=self.context.device),
        )
        return PlainStep(model, batch, cap.margin_KK, config.confidence_threshold, _sgd(cap, config))

    def loop(self, **values: object) -> Loop:
        """A loop over frozen features in this cell: its epochs' margins and boards cost what a prompted one's do."""
        config = self.config(tuning="features", **values)
        return Loop(Cap(self.context, config, seed=_SEED), config, config.epochs)

    @property
    def _backbone(self) -> Backbone:
        assert self.context.backbone is not None  # for the type checker
        return self.context.backbone


@lru_cache(maxsize=4)
def in_precision(backbone: Backbone, precision: Precision) -> Backbone:
    """The same frozen weights in another precision, open_clip's model shared."""
    if precision == backbone.precision:
        return backbone
    return Backbone(
        backbone.model,
        name=backbone.name,
        pretrained=backbone.pretrained,
        precision=precision,
        device=backbone.device,
        tokenizer=lambda: backbone.tokenize,
    )


def open_backbone(name: str, pretrained: str | None, device: str) -> Backbone:
    """The backbone to measure, in fp32.

    Raises:
        UsageError: prompts cannot enter it, so there is no step to measure.
    """
    backbone = load_backbone(name, pretrained, device=device)
    if not backbone.supports_prompts:
        raise UsageError("--backbone must be one that prompts can enter", got=backbone.prompt_refusal)
    return backbone


def _sgd(cap: Cap, config: CapConfig) -> Sgd:
    assert cap.classifier is not None  # for the type checker
    return Sgd(
        cap.classifier.parameters(), learning_rate=0.0, weight_decay=config.weight_decay, momentum=config.momentum
    )


def _margin(num_classes: int) -> Tensor:
    return 0.5 * torch.rand(num_classes, num_classes, generator=torch_generator(_SEED, "margin"))
