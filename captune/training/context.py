"""Everything frozen that trials of one cell share in a process: task, backbone, views, zero-shot features."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captune.config import TaskConfig
from captune.data.catalog import cache_directory, default_backbone, load_dataset
from captune.data.feature_bank import FeatureBank
from captune.data.image_store import ImageStore
from captune.data.paradigms import IntArray, SealedLabels, Task, build_task, without_images
from captune.data.tree import name_some
from captune.data.views import FeatureViews, ImageViews
from captune.errors import DataError
from captune.model.backbone import Backbone, load_backbone
from captune.model.blocks import LeanOptions
from captune.model.class_prompts import class_prompts, prompts_that_fit
from captune.model.device import resolve_device
from captune.plain_text import counted
from captune.records import Role

_ENCODE_BATCH = 128


@dataclass(frozen=True)
class Context:
    """What a trial trains on, without a single sealed label.

    Attributes:
        task: who is labelled, pooled, validated and tested (indices; no sealed label).
        backbone: the frozen CLIP, or None for a dataset of precomputed features.
        image_views: views of the pixels, or None likewise.
        image_features_MD: the frozen CLIP's normalised features of every image, on the device.
        text_features_KD: the frozen CLIP's normalised class-prompt features, on the device.
        logit_scale: s = exp(logit_scale) of the loaded CLIP.
        device: where training runs.
        fast_steps: whether steps may be recorded as CUDA graphs or taken in packs (off with `kernels: plain`).
        notes: what a person should know about the weights and the class names, in sentences.
        unreadable: file → reason of the images that are left out of the task.
    """

    task: Task
    backbone: Backbone | None
    image_views: ImageViews | None
    image_features_MD: Tensor
    text_features_KD: Tensor
    logit_scale: float
    device: torch.device
    fast_steps: bool = True
    notes: tuple[str, ...] = ()
    unreadable: dict[str, str] = field(default_factory=dict)

    @cached_property
    def remembered(self) -> dict[Hashable, Any]:
        """What trials compute of the frozen side alone, by name: the next trial of this process finds it here."""
        return {}

    @property
    def packs(self) -> bool:
        """Whether steps on frozen features are taken for several trials at once (`captune.training.packs`)."""
        return self.fast_steps

    @property
    def feature_views(self) -> FeatureViews:
        """Views of the frozen features, for frozen-feature tuning."""
        return FeatureViews(self.image_features_MD, self.device)

    @property
    def pool_features_PD(self) -> Tensor:
        """Frozen features of the pool's images, normalised: (P, D)."""
        return self.image_features_MD[torch.tensor(self.task.pool, device=self.device)]

    @property
    def labelled_features_LD(self) -> Tensor:
        """Frozen features of the labelled images, normalised: (L, D); L is 0 where nothing is labelled."""
        return self.image_features_MD[torch.tensor(self.task.labelled.indices_N, device=self.device)]

    @property
    def labels_L(self) -> Tensor:
        """Classes of the labelled images, int64 (L,), on the device."""
        return torch.tensor(self.task.labelled.labels_N, device=self.device)

    def zero_shot_logits(self, indices: IntArray) -> Tensor:
        """Zero-shot logits (N, K) of some images: s · v·t of the frozen CLIP."""
        rows = torch.tensor(indices, device=self.device)
        return self.logit_scale * self.image_features_MD[rows] @ self.text_features_KD.T

    @cached_property
    def pseudolabelled_K(self) -> Tensor:
        """Which classes may be pseudolabelled, bool (K,), on the device."""
        return torch.tensor(self.task.pseudolabelled_K, device=self.device)

    def pool_logits(self, logits_NK: Tensor) -> Tensor:
        """Logits with the classes that may not be pseudolabelled at -inf (TRZSL: the seen ones)."""
        return logits_NK.masked_fill(~self.pseudolabelled_K, float("-inf"))


@lru_cache(maxsize=8)
def open_context(config: TaskConfig, role: Role, device: str = "auto") -> Context:
    """Open (building once per node what is missing) the frozen side of a cell. Its test labels are not kept."""
    return _open(config, role, device, progress=None)[0]


def prepare_node(config: TaskConfig, *, progress: Callable[[int, int], None] | None = None) -> None:
    """Build the image store and the feature bank of this node, so that its trials only map them.

    `progress` is called with (images done, images in all) while images are decoded, and again while they are encoded.
    """
    _open(config, Role.REPORT, "auto", progress=progress)


def _open(
    config: TaskConfig, role: Role, device_name: str, *, progress: Callable[[int, int], None] | None
) -> tuple[Context, SealedLabels]:
    device = resolve_device(device_name)
    plain = config.kernels == "plain"
    options = LeanOptions(fused=False) if plain else None
    task, sealed = build_task(config, role=role)
    dataset = load_dataset(config)
    notes: list[str] = []
    unreadable: dict[str, str] = {}
    if dataset.image_features_MD is not None:
        backbone, views = None, None
        image_features_MD = torch.as_tensor(np.asarray(dataset.image_features_MD, dtype=np.float32), device=device)
        image_features_MD = torch.nn.functional.normalize(image_features_MD, dim=-1)
        if dataset.text_features_KD is not None:
            text_features_KD = torch.as_tensor(np.asarray(dataset.text_features_KD, dtype=np.float32), device=device)
            text_features_KD = torch.nn.functional.normalize(text_features_KD, dim=-1)
        else:
            backbone = _backbone(config, device, options)
            text_features_KD = _text_features(backbone, task, config, notes)
        if text_features_KD.shape[1] != image_features_MD.shape[1]:
            raise DataError(
                "text and image features must have the same width",
                got=f"{text_features_KD.shape[1]} and {image_features_MD.shape[1]}",
                where=config.dataset,
                next_step="Put `text_features` into the file, or name the `--backbone` the image features came from.",
            )
        logit_scale = dataset.logit_scale or 100.0
    else:
        backbone = _backbone(config, device, options)
        text_features_KD = _text_features(backbone, task, config, notes)
        cache = cache_directory(config)
        store = ImageStore.open_or_build(dataset, backbone.preprocessing, cache, keep=config.store, progress=progress)
        resident = False if plain else None
        if store.unreadable:
            task = without_images(task, np.array(list(store.unreadable), np.int64))
            unreadable = {dataset.paths[index]: reason for index, reason in store.unreadable.items()}
        views = ImageViews(store, backbone.preprocessing, device, backbone.view_dtype, resident=resident)
        image_features_MD = torch.as_tensor(_bank(store, views, backbone, cache, progress), device=device)
        logit_scale = backbone.logit_scale
    context = Context(
        task, backbone, views, image_features_MD, text_features_KD.float(), logit_scale, device,
        fast_steps=not plain, notes=(*notes, *_unreadable_note(unreadable)), unreadable=unreadable,
    )  # fmt: skip
    return context, sealed


def _backbone(config: TaskConfig, device: torch.device, options: LeanOptions | None) -> Backbone:
    name, pretrained = default_backbone(config)
    return load_backbone(
        name,
        pretrained,
        precision=config.precision,
        device=str(device),
        options=options,
        interpolate_positions=config.interpolate_positions,
    )


def _text_features(backbone: Backbone, task: Task, config: TaskConfig, notes: list[str]) -> Tensor:
    """Class-prompt features (K, D) of the frozen tower; notes on weights and prompts are added to `notes`."""
    prompts = class_prompts(task.class_names, task.template, config.prompt_form)
    notes += [*backbone.notes, *prompts_that_fit(backbone, task.class_names, prompts)]
    return backbone.with_directions(backbone.encode_texts(prompts), "texts")


def _unreadable_note(unreadable: dict[str, str]) -> list[str]:
    """How many images were left out because they cannot be read, and three of them; nothing where none was."""
    named = [f"{path} ({reason})" for path, reason in unreadable.items()]
    return [f"{counted(len(named), 'unreadable image')} left out: {name_some(named)}"] if named else []


def _bank(
    store: ImageStore,
    views: ImageViews,
    backbone: Backbone,
    cache: Path,
    progress: Callable[[int, int], None] | None,
) -> np.ndarray:
    def encode(indices: IntArray) -> np.ndarray:
        return backbone.with_directions(backbone.encode_images(views.weak(indices)), "images").cpu().numpy()

    key = f"{store.key}-{backbone.fingerprint}-{backbone.precision}"
    return FeatureBank.open_or_build(
        key, len(store), backbone.embed_dim, encode, cache, batch_size=_ENCODE_BATCH, progress=progress
    )
