"""What the methods share: the classifier on the frozen backbone, its inputs, and predictions in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from captune.config import TrialConfig
from captune.data.catalog import load_dataset
from captune.data.original_crops import OriginalCrops
from captune.data.paradigms import IntArray
from captune.data.views import FeatureViews, Feed, ImageViews
from captune.errors import ModelError
from captune.model.class_prompts import learned_template
from captune.model.classifier import Classifier, build_classifier
from captune.seeding import torch_generator
from captune.training.context import Context
from captune.training.loop import batches

Views = ImageViews | FeatureViews | OriginalCrops
_PREDICT_BATCH = 128
# Numbers in the residual streams of all blocks; some 24 bytes are kept of each. 16 images of ViT-B/32.
_VALUES_AT_ONCE, _LEAST_AT_ONCE = 8_000_000, 4


def adapted_classifier(
    context: Context, config: TrialConfig, seed: int, *, random_adapters: bool = False
) -> Classifier:
    """A fresh classifier to train: prompts on the towers, or residuals on frozen features.

    Raises:
        ModelError: prompts are asked for where there is no tower they can enter.
    """
    task = context.task
    if config.tuning == "prompts" and context.backbone is None:
        raise ModelError(
            "tuning must be 'features' for a dataset of precomputed features",
            got="'prompts'",
            where=task.dataset,
            next_step="Add --tuning features.",
        )
    frozen = config.tuning == "features"
    return build_classifier(
        context.backbone,
        task.class_names,
        learned_template(task.template, task.config.prompt_form),
        config,
        seed=seed,
        zero_adapters=not random_adapters,
        text_features_KD=context.text_features_KD if frozen else None,
        logit_scale=context.logit_scale if frozen else None,
    ).to(context.device)


def inputs(context: Context, config: TrialConfig, *, originals: bool = False) -> Views:
    """What the classifier sees of an image: pixels (strong views of the originals where asked for), or the frozen
    feature.
    """
    if config.tuning == "features" or context.image_views is None:
        return context.feature_views
    if originals and context.backbone is not None:
        return OriginalCrops(context.image_views, load_dataset(context.task.config), context.backbone.preprocessing)
    return context.image_views


def passes(
    count: int, config: TrialConfig, first_step: int, generator_of: Callable[[int], torch.Generator], *, drop_last: bool
) -> list[IntArray]:
    """Positions into `count` items for the steps of an epoch, as shuffling loaders that run on through epochs draw
    them: pass after pass, each a permutation, the last batch of a pass smaller or (`drop_last`) left out.

    Args:
        first_step: steps that the loader has already made.
        generator_of: the generator of a pass, by its number.
    """
    size = config.batch_size
    num_batches = count // size if drop_last else -(-count // size)
    orders: dict[int, IntArray] = {}
    steps: list[IntArray] = []
    for step in range(first_step, first_step + config.steps_per_epoch):
        if num_batches == 0:
            steps.append(np.zeros(0, dtype=np.int64))
            continue
        number, place = divmod(step, num_batches)
        if number not in orders:
            orders[number] = torch.randperm(count, generator=generator_of(number)).numpy()
        steps.append(orders[number][place * size : (place + 1) * size])
    return steps


def ragged_feed(rows_S: IntArray | list[IntArray], make: Callable[[IntArray], Feed]) -> Feed:
    """`make` of the rows of every step, which may differ in number."""
    if len({len(rows) for rows in rows_S}) == 1:
        return make(np.asarray(rows_S))
    return lambda step: make(rows_S[step][None])(0)


@lru_cache(maxsize=64)
def full_batches(
    seed: int, epoch: int, counts: tuple[int, ...], batch_size: int, num_steps: int
) -> tuple[IntArray, ...]:
    """Positions into some sets of items for every step of an epoch, (steps, batch) each; (steps, 0) of an empty set.

    The sets are drawn from one after the other. A search's trials have one seed: what one drew is kept for the others,
    who must not change it.
    """
    generator = torch_generator(seed, "batches", epoch)
    return tuple(
        batches(np.arange(count), batch_size=batch_size, num_steps=num_steps, generator=generator)
        if count
        else np.zeros((num_steps, 0), dtype=np.int64)
        for count in counts
    )


@lru_cache(maxsize=8)
def feature_noise(seed: int, epoch: int, shape: tuple[int, ...], *, pinned: bool) -> Tensor:
    """The numbers in [0, 1) that `FeatureViews.draw` draws for an epoch's strong views: entries below the dropout go.

    Kept for other trials of this seed, who must not change them. Page-locked (`pinned`) they can go to a GPU while the
    host works on.
    """
    return torch.rand(shape, generator=torch_generator(seed, "views", epoch), pin_memory=pinned)


class Planned(Protocol):
    """An algorithm that has planned an epoch."""

    seed: int
    epoch: int

    @property
    def config(self) -> TrialConfig:
        """Its settings."""


def kept_entries(rows: Sequence[Planned], batch_size: int, features_MD: Tensor, dropout_P: Tensor) -> Tensor:
    """Which entries of their epochs' strong views are kept: (S, P, B, D) bool, where the features lie."""
    device, noise = features_MD.device, dict[tuple[int, int], Tensor]()
    shape = rows[0].config.steps_per_epoch, batch_size, features_MD.shape[1]
    for each in rows:
        drawn = each.seed, each.epoch
        if drawn not in noise:
            noise[drawn] = feature_noise(*drawn, shape, pinned=device.type == "cuda").to(device, non_blocking=True)
    if len(noise) == 1:
        return noise.popitem()[1][:, None] >= dropout_P[:, None, None]
    kept_SPBD = torch.empty(shape[0], len(rows), *shape[1:], dtype=torch.bool, device=device)
    for number, each in enumerate(rows):
        torch.ge(noise[each.seed, each.epoch], dropout_P[number], out=kept_SPBD[:, number])
    return kept_SPBD


Losses = Callable[[Tensor, Tensor, int], Tensor]


def at_once(classifier: Classifier, config: TrialConfig) -> int | None:
    """Images per forward and backward pass: as configured; on a CPU as many as keep some 200 MB; None: all."""
    tower = None if classifier.prompts is None or classifier.backbone is None else classifier.backbone.image_tower
    if config.micro_batch is not None or tower is None or config.prompts == "text":
        return config.micro_batch
    return max(_LEAST_AT_ONCE, _VALUES_AT_ONCE // tower.num_values) if tower.device.type == "cpu" else None


def loss_of_images(
    classifier: Classifier, inputs_B: Tensor, text_KD: Tensor, losses: Losses, size: int | None
) -> Tensor:
    """The loss of images, with the activations of `size` of them at a time (None: all); same mathematics.

    A loss adds up image by image, so a part's gradient is known before the next part is encoded: it is taken at once,
    and the part's activations are let go. Nothing is encoded twice.

    Args:
        classifier: with gradients.
        inputs_B: what it encodes.
        text_KD: class features.
        losses: given features of some images (C, D), class features, and the place of the first image, what these
            images add to the loss.
        size: images in a part.
    """
    if size is None or len(inputs_B) <= size:
        return losses(classifier.encode_images(inputs_B), text_KD, 0)
    parts = list(enumerate(torch.split(inputs_B, size)))

    def of_part(number: int, text_KD: Tensor) -> Tensor:
        place, part_C = parts[number]
        return losses(classifier.encode_images(part_C), text_KD, place * size)

    loss: Tensor = _PartByPart.apply(of_part, len(parts), text_KD, *classifier.parameters())
    return loss


class _PartByPart(torch.autograd.Function):
    """The sum of some scalars and its gradient, of which one graph at a time is in memory."""

    @staticmethod
    def forward(
        ctx: Any, of_part: Callable[[int, Tensor], Tensor], num_parts: int, text_KD: Tensor, *learned: Tensor
    ) -> Tensor:
        total = text_KD.new_zeros(())
        sums: list[Tensor | None] = [None] * (1 + len(learned))
        with torch.enable_grad():
            inputs = [text_KD.detach().requires_grad_(), *learned]
            for number in range(num_parts):
                loss = of_part(number, inputs[0])
                found = torch.autograd.grad(loss, inputs, allow_unused=True)
                sums = [b if a is None else a if b is None else a + b for a, b in zip(sums, found, strict=True)]
                total += loss.detach()
        ctx.gradients = sums
        return total

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return None, None, *(None if one is None else upstream * one for one in ctx.gradients)


@torch.no_grad()
def predict_features(
    classifier: Classifier, views: Views, indices: IntArray, *, adapter: Literal["main", "pseudo"]
) -> Tensor:
    """Normalised features (N, D) of weak views through an adapter."""
    parts = [
        classifier.adapt_images(
            classifier.encode_images(views.weak(indices[start : start + _PREDICT_BATCH])), adapter
        ).float()
        for start in range(0, len(indices), _PREDICT_BATCH)
    ]
    return torch.cat(parts) if parts else classifier.encode_texts()[:0]


@torch.no_grad()
def predict_probs(classifier: Classifier, views: Views, indices: IntArray, *, adapters: bool) -> Tensor:
    """Class probabilities (N, K) fp32 of weak views, at the classifier's own logit scale."""
    text_KD = _texts(classifier, adapters)
    rows = [
        _probs(classifier, views.weak(indices[start : start + _PREDICT_BATCH]), text_KD, adapters)
        for start in range(0, len(indices), _PREDICT_BATCH)
    ]
    return torch.cat(rows) if rows else text_KD.new_zeros(0, len(text_KD))


@torch.no_grad()
def predict_strong_probs(
    classifier: Classifier,
    views: Views,
    indices: IntArray,
    generator: torch.Generator,
    config: TrialConfig,
) -> Tensor:
    """Class probabilities (N, K) of one strong view of each image."""
    text_KD = _texts(classifier, config.inference_adapters)
    rows = []
    for start in range(0, len(indices), _PREDICT_BATCH):
        view = views.strong(
            indices[start : start + _PREDICT_BATCH],
            generator,
            flip_probability=config.flip_probability,
            crop_scale_min=config.crop_scale_min,
            feature_dropout=config.feature_dropout,
        )
        rows.append(_probs(classifier, view, text_KD, config.inference_adapters))
    return torch.cat(rows) if rows else text_KD.new_zeros(0, len(text_KD))


def _texts(classifier: Classifier, adapters: bool) -> Tensor:
    text_KD = classifier.encode_texts()
    return classifier.adapt_texts(text_KD) if adapters else text_KD


def _probs(classifier: Classifier, view_B: Tensor, text_KD: Tensor, adapters: bool) -> Tensor:
    image_BD = classifier.encode_images(view_B)
    if adapters:
        image_BD = classifier.adapt_images(image_BD, "main")
    return (classifier.logit_scale * image_BD @ text_KD.T).float().softmax(-1)
