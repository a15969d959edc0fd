"""A cell's context over a sample of its images: steps cost as much as in the real one, but no store has to be built."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from captune.config import TaskConfig
from captune.cost.measure import seconds_of
from captune.data.catalog import default_backbone, load_dataset
from captune.data.dataset import Dataset, IntArray, Split, empty_split
from captune.data.image_store import ImageStore
from captune.data.paradigms import build_task
from captune.data.views import Feed, ImageViews
from captune.model.backbone import load_backbone
from captune.model.blocks import LeanOptions
from captune.model.class_prompts import class_prompts
from captune.model.device import resolve_device
from captune.records import Role
from captune.seeding import torch_generator
from captune.training.context import Context, open_context

SAMPLE = 64


@contextmanager
def sampled_context(config: TaskConfig, device: str) -> Iterator[tuple[Context, float]]:
    """A context that costs what the real one does, and the seconds that building the real one takes on a fresh node."""
    dataset = load_dataset(config)
    if not dataset.paths:
        # Precomputed features and the embedded digits open quickly, so the real context is used.
        yield open_context(config, Role.SCORE, device), 0.0
        return
    task, _ = build_task(config, role=Role.SCORE)
    name, pretrained = default_backbone(config)
    plain = config.kernels == "plain"
    backbone = load_backbone(
        name, pretrained, precision=config.precision, device=str(resolve_device(device)),
        options=LeanOptions(fused=False) if plain else None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="captune-") as folder:
        started = time.perf_counter()
        first = _first_images(dataset)
        store = ImageStore.open_or_build(first, backbone.preprocessing, Path(folder), keep=config.store)
        decode = (time.perf_counter() - started) / len(store)
        resident = False if plain else None
        views = _SampledViews(store, backbone.preprocessing, backbone.device, backbone.view_dtype, resident=resident)
        pixels = views.weak(np.arange(len(store)))
        backbone.encode_images(pixels)
        encode = seconds_of(lambda: backbone.encode_images(pixels), backbone.device) / len(store)
        made_up_MD = torch.randn(dataset.num_images, backbone.embed_dim, generator=torch_generator(0, "features"))
        context = Context(
            task=task,
            backbone=backbone,
            image_views=views,
            image_features_MD=torch.nn.functional.normalize(made_up_MD, dim=-1).to(backbone.device),
            text_features_KD=backbone.encode_texts(class_prompts(task.class_names, task.template, config.prompt_form)),
            logit_scale=backbone.logit_scale,
            device=backbone.device,
            fast_steps=not plain,
        )
        yield context, dataset.num_images * (decode + encode)


def _first_images(dataset: Dataset) -> Dataset:
    paths = dataset.paths[:SAMPLE]
    sample = Split(paths, dataset.labels_M[: len(paths)])
    return replace(dataset, train=sample, val=empty_split(), test=empty_split())


class _SampledViews(ImageViews):
    """Views of a sample in place of all images: an index beyond the sample wraps around."""

    def feed(self, indices_SB: IntArray) -> Feed:
        return super().feed(indices_SB % len(self))

    def draw(
        self,
        indices_SB: IntArray,
        generator: torch.Generator,
        *,
        flip_probability: float,
        crop_scale_min: float,
        feature_dropout: float = 0.0,
    ) -> Tensor:
        return super().draw(
            indices_SB % len(self),
            generator,
            flip_probability=flip_probability,
            crop_scale_min=crop_scale_min,
            feature_dropout=feature_dropout,
        )

    def feed_crops(self, indices_SB: IntArray, draws_SB5: Tensor) -> Feed:
        return super().feed_crops(indices_SB % len(self), draws_SB5)
