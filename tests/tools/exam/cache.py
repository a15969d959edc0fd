"""Predictions of candidates on worlds, once and for all: a folder a world, a small file a candidate.

A world's folder holds `world.npz` (what a rule may see: neighbours, zero-shot logits; and apart from it the true labels
for the judge) and `<candidate>.npz` (probabilities on the pool and on the test images, fp16).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from captune.data.paradigms import build_task
from captune.decisions.evidence import measure_knowledge
from captune.errors import CaptuneError
from captune.seeding import torch_generator
from captune.training.context import Context, open_context
from tests.tools.exam.candidates import Candidate, failure, predictions
from tests.tools.exam.worlds import World

# Smaller probabilities are noise of the format, and zeros compress.
_SMALLEST = 5e-4
NUM_NEIGHBOURS = 10


@dataclass(frozen=True)
class Facts:
    """A world without its candidates.

    Attributes:
        logits_NK: zero-shot logits of all unlabelled images, rising.
        neighbours_Nk: nearest others among them, by cosine, nearest first.
        similarity_Nk: their cosines.
        holdout_N: which of them were held out of training.
        knowledge: the fields of `captune.decisions.evidence.Knowledge`, in order.
        pool_labels_N, test_labels_M: the truth, for the judge alone (-1: unknown).
        test_in_pool_M: row of each test image among the unlabelled ones, -1 where it is none of them.
        validation_labels_V: labels that a rule may see, of the validation images (ssl, trzsl; else none).
        seen_K, pseudo_unseen_K: of trzsl: classes that are seen, and those of them that validation takes for unseen.
    """

    logits_NK: np.ndarray
    neighbours_Nk: np.ndarray
    similarity_Nk: np.ndarray
    holdout_N: np.ndarray
    knowledge: np.ndarray
    pool_labels_N: np.ndarray
    test_labels_M: np.ndarray
    test_in_pool_M: np.ndarray
    validation_labels_V: np.ndarray = field(default_factory=lambda: np.empty(0, np.int16))
    seen_K: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    pseudo_unseen_K: np.ndarray = field(default_factory=lambda: np.empty(0, bool))


def role_of(world: World) -> str:
    """The role of what a rule sees: part of the pool is held out, as of a study's trials; of tft, whose pool is what is
    reported on, the whole pool is seen.
    """
    return "report" if world.paradigm == "tft" else "score"


def fill(cache: Path, features: Path, worlds: Iterable[World], candidates: Iterable[Candidate], until: float) -> int:
    """Add what is missing to the cache, world by world; returns how many files were written.

    Args:
        cache: the folder.
        features: where the feature files lie.
        worlds: in this order.
        candidates: in this order.
        until: wall-clock time (`time.time()`) after which nothing new is begun.
    """
    written = 0
    candidates = tuple(candidates)
    for world in worlds:
        folder = cache / world.key
        missing = [c for c in candidates if not any((folder / f"{c.key}.{kind}").exists() for kind in ("npz", "none"))]
        if not (folder / "world.npz").exists() or missing:
            if time.time() > until:
                break
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory() as scratch:
                written += _fill_world(folder, world, features, Path(scratch), missing, until)
    return written


def _fill_world(
    folder: Path, world: World, features: Path, scratch: Path, missing: list[Candidate], until: float
) -> int:
    try:
        config = world.open(features, scratch)
        context = open_context(config, role_of(world), "cpu")  # type: ignore[arg-type]
        # In trzsl what is reported has learned from labels of classes that validation takes for unseen.
        reporting = open_context(config, "report", "cpu") if world.paradigm == "trzsl" else context  # type: ignore[arg-type]
    except CaptuneError as error:
        print(f"{world.key}: {error}")
        return 0
    task = context.task
    unlabelled = np.sort(np.concatenate([task.pool, task.holdout]))
    if not (folder / "world.npz").exists():
        _save(folder / "world.npz", vars(_facts(world, context, unlabelled)))
    written = 0
    for candidate in missing:
        if time.time() > until:
            break
        if (folder / f"{candidate.key}.npz").exists():
            continue
        try:
            both = zip(predictions(candidate, context), predictions(candidate, reporting), strict=True)
            trained = both if reporting is not context else ((one, one) for one in predictions(candidate, context))
            for (key, predict), (_, reported) in trained:
                seen = {"pool": predict(unlabelled), "test": reported(task.test)}
                if len(task.validation):
                    seen["validation"] = predict(task.validation.indices_N)
                _save(folder / f"{key}.npz", {name: _compact(probs) for name, probs in seen.items()})
                written += 1
        except CaptuneError as error:
            (folder / f"{candidate.key}.none").write_text(failure(error), encoding="utf-8")
    open_context.cache_clear()
    return written


def _compact(probs_NK: torch.Tensor) -> np.ndarray:
    probs = probs_NK.float().numpy()
    return np.where(probs < _SMALLEST, 0, probs).astype(np.float16)


def _facts(world: World, context: Context, unlabelled: np.ndarray) -> Facts:
    task = context.task
    _, sealed = build_task(task.config, role=role_of(world))  # type: ignore[arg-type]
    truth = sealed.reveal()
    labels = dict(zip(task.pool.tolist(), truth["pool"], strict=True))
    labels |= dict(zip(task.holdout.tolist(), truth["holdout"], strict=True))
    features_ND = context.image_features_MD[torch.as_tensor(unlabelled)]
    similarity_NN = features_ND @ features_ND.T
    similarity_NN.fill_diagonal_(float("-inf"))
    nearest = similarity_NN.topk(min(NUM_NEIGHBOURS, len(unlabelled) - 1), dim=-1)
    knowledge = measure_knowledge(
        features_ND, context.text_features_KD, nearest.indices, torch_generator(world.seed, "knowledge")
    )
    row_of = {int(image): row for row, image in enumerate(unlabelled)}
    return Facts(
        logits_NK=context.zero_shot_logits(unlabelled).numpy().astype(np.float16),
        neighbours_Nk=nearest.indices.numpy().astype(np.int16),
        similarity_Nk=nearest.values.numpy().astype(np.float16),
        holdout_N=np.isin(unlabelled, task.holdout),
        knowledge=np.array([getattr(knowledge, one.name) for one in fields(knowledge)]),
        pool_labels_N=np.array([labels[int(image)] for image in unlabelled], np.int16),
        test_labels_M=truth["test"].astype(np.int16),
        test_in_pool_M=np.array([row_of.get(int(image), -1) for image in task.test], np.int32),
        validation_labels_V=task.validation.labels_N.astype(np.int16),
        seen_K=np.array(task.seen_K),
        pseudo_unseen_K=np.array(task.pseudo_unseen_K),
    )


def _save(file: Path, arrays: dict[str, np.ndarray]) -> None:
    part = file.with_name(f".{file.stem}.{os.getpid()}.part.npz")
    np.savez_compressed(part, **arrays)
    part.replace(file)


def read_facts(cache: Path, world: World) -> Facts:
    """What the cache knows of a world itself."""
    with np.load(cache / world.key / "world.npz") as archive:
        return Facts(**{name: archive[name] for name in archive.files})


class Predicted(NamedTuple):
    """A candidate's probabilities on the unlabelled, the test and the validation images of a world, float32."""

    pool: np.ndarray
    test: np.ndarray
    validation: np.ndarray


def read_candidates(cache: Path, world: World, keys: Iterable[str] | None = None) -> dict[str, Predicted]:
    """What candidates predict; all there are, or those of `keys`."""
    found = {}
    for file in sorted((cache / world.key).glob("[!.]*.npz")):
        if file.stem != "world" and (keys is None or file.stem in keys):
            with np.load(file) as archive:
                pool_NK = archive["pool"].astype(np.float32)
                # Worlds without validation images are in the cache without this table.
                validation_VK = archive["validation"].astype(np.float32) if "validation" in archive else pool_NK[:0]
                found[file.stem] = Predicted(pool_NK, archive["test"].astype(np.float32), validation_VK)
    return found


def worlds_in(cache: Path) -> list[World]:
    """The worlds a cache holds."""
    return sorted(World.of_key(file.parent.name) for file in cache.glob("*/world.npz"))
