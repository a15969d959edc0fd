"""What the methods share: the classifier on the frozen backbone, its inputs, and predictions in batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from captune.config import TrialConfig
from captune.data.catalog import load_dataset
from captune.data.original_crops import OriginalCrops
from captune.data.paradigms import IntArray
from captune.data.views import FeatureViews, Feed, ImageViews
from captune.errors import ModelError
from captune.model.class_prompts import learned_template
from captune.model.classifier import Classifier, build_classifier
from captune.training.context import Context
from captune.training.loop import batches

Views = ImageViews | FeatureViews | OriginalCrops
_PREDICT_BATCH = 128


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


def ragged_feed(rows_S: list[IntArray], make: Callable[[IntArray], Feed]) -> Feed:
    """`make` of the rows of every step, which may differ in number."""
    if len({len(rows) for rows in rows_S}) == 1:
        return make(np.stack(rows_S))
    return lambda step: make(rows_S[step][None])(0)


def epoch_batches(count: int, config: TrialConfig, generator: torch.Generator) -> IntArray:
    """Positions into `count` items for every step of an epoch, (steps, batch); (steps, 0) without items."""
    if count == 0:
        return np.zeros((config.steps_per_epoch, 0), dtype=np.int64)
    return batches(
        np.arange(count), batch_size=config.batch_size, num_steps=config.steps_per_epoch, generator=generator
    )


def encode_in_chunks(classifier: Classifier, inputs_B: Tensor, size: int | None) -> Tensor:
    """Features (B, D) with the activations of `size` images at a time (None: all at once); same mathematics.

    The backward pass encodes each chunk again.
    """
    if size is None or len(inputs_B) <= size:
        return classifier.encode_images(inputs_B)
    chunks = [
        # There is no randomness to repeat, and reading the generator's state would break the recording of a CUDA graph.
        checkpoint(
            classifier.encode_images, inputs_B[start : start + size], use_reentrant=False, preserve_rng_state=False
        )
        for start in range(0, len(inputs_B), size)
    ]
    return torch.cat(chunks)


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
