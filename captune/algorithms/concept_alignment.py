"""Concept alignment before training: mismatched classes get main samples by description (CAP, Algorithm 1)."""

from __future__ import annotations

import logging
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from captune.config import TaskConfig
from captune.equations.alignment import choose_description, choose_descriptions_together, nearest_images
from captune.equations.mismatch import MismatchReport, detect_mismatch
from captune.equations.pseudolabels import Leaderboard
from captune.errors import ConfigError
from captune.model.class_descriptions import class_key, load_descriptions, match_descriptions
from captune.seeding import derive_seed
from captune.training.context import Context

LOG = logging.getLogger(__name__)
# The classes the authors list, for reproduction.
PUBLISHED_MISMATCHED: dict[str, tuple[str, ...]] = {
    "resisc45": ("chaparral", "terrace"),
    "dtd": ("lacelike", "gauzy", "veined", "pitted"),
    "flowers102": (
        "sweet william", "sweet pea", "globe flower", "love in the mist", "great masterwort", "buttercup",
        "bishop of llandaff",
    ),
    "cub200": (
        "blue winged warbler", "sayornis", "scott oriole", "wilson warbler", "orange crowned warbler",
    ),
    "fgvc_aircraft": ("767-400", "757-200"),
    "eurosat": (),
}  # fmt: skip


def align_concepts(context: Context, which: str, threshold: int | None, k: int, choice: str = "nearest") -> Leaderboard:
    """Boards of the mismatched classes that have descriptions: the k pool images nearest to the chosen description.

    Args:
        which: "detect" (Algorithm 1), "published" (the authors' list) or "none".
        threshold: t of the detection, None for ceil(K/10).
        k: main samples a class.
        choice: "nearest" (the description nearest to the cluster the class's name was left with) or "together"
            (`choose_descriptions_together`: descriptions decide on the clusters too).

    Returns:
        {class: [(image index, cosine to the description)]}; empty for a dataset without descriptions.
    """
    if which == "none" or context.backbone is None:
        return {}
    task = context.task
    descriptions = class_descriptions(context)
    if not descriptions:
        return {}
    if which == "published":
        listed = {class_key(name) for name in PUBLISHED_MISMATCHED.get(task.dataset, ())}
        mismatched = [label for label, name in enumerate(task.class_names) if class_key(name) in listed]
    else:
        mismatched = mismatch_report(context, threshold).mismatched
    features = {
        label: context.backbone.encode_texts(descriptions[label])
        for label in mismatched
        if label in descriptions and task.pseudolabelled_K[label]
    }
    # With one description per class, as in the authors' lists, there is nothing to choose and clusters are not needed.
    several = any(len(features_nD) > 1 for features_nD in features.values())
    centres = mismatch_report(context, threshold).centres if several else {}
    chosen = _chosen_descriptions(context, centres, features, choice)
    boards: Leaderboard = {}
    pool_ND = _pool_features(context)
    for label, features_nD in features.items():
        chosen_D = features_nD[chosen[label]]
        rows = nearest_images(pool_ND, chosen_D, k)
        boards[label] = [(int(task.pool[row]), float(pool_ND[row] @ chosen_D)) for row in rows]
    return boards


def _chosen_descriptions(
    context: Context, found: dict[int, Tensor], features: dict[int, Tensor], choice: str
) -> dict[int, int]:
    """Label → index of its description, by the centres of the clusters that were found."""
    centres = {label: centre_D.to(context.device) for label, centre_D in found.items()}
    if choice == "together" and len(features) <= len(centres):
        return {label: pair[0] for label, pair in choose_descriptions_together(features, centres).items()}
    # A class of the authors' list that detection matched has no cluster left: its name's own feature stands in.
    return {
        label: choose_description(features_nD, centres.get(label, context.text_features_KD[label]))
        for label, features_nD in features.items()
    }


def class_descriptions(context: Context) -> dict[int, list[str]]:
    """Label → descriptions of the classes that have any (the user's file, else ours).

    Raises:
        ConfigError: a sentence of the user's file is longer than the text tower's context, which would cut its end off.
    """
    task = context.task
    if "descriptions" not in context.remembered:
        source = task.config.descriptions or task.dataset
        matched, _ = match_descriptions(
            load_descriptions(source),
            task.class_names,
            where=source,
            extra_ok=task.config.descriptions is None or task.config.open_set_fraction > 0,
        )
        _check_length(context, matched)
        context.remembered["descriptions"] = matched
    found: dict[int, list[str]] = context.remembered["descriptions"]
    return found


def _check_length(context: Context, descriptions: dict[int, list[str]]) -> None:
    """Check descriptions by tokens, not words, because the tower reads only so many tokens."""
    if context.backbone is None:
        return
    named = [(label, sentence) for label, sentences in descriptions.items() for sentence in sentences]
    cut = context.backbone.cut_texts([sentence for _, sentence in named])
    if not cut:
        return
    length = context.backbone.tokenize([""]).shape[1]
    label, sentence = named[cut[0]]
    got = f"{len(cut)} longer, the first of '{context.task.class_names[label]}': {sentence!r}"
    if context.task.config.descriptions is None:
        LOG.info("descriptions are cut to the %d tokens that %s reads: %s", length, context.backbone.name, got)
        return
    raise ConfigError(
        f"every description must fit the {length} tokens that {context.backbone.name} reads",
        got=got,
        where=context.task.config.descriptions,
        next_step="Shorten it: what is past the last token would be cut off.",
    )


def mismatch_report(context: Context, threshold: int | None = None) -> MismatchReport:
    """Algorithm 1 on the pool; the same for every configuration, so it is computed once per process.

    Class indices are the task's own, also where only some classes may be pseudolabelled (TRZSL).
    """
    return _mismatch_report(_Key(context), threshold)


class _Key:
    """A context, hashable by its cell."""

    def __init__(self, context: Context) -> None:
        self.context = context
        # The pool's images are part of the key: the pool differs between the roles of one cell, even at the same size.
        task = context.task
        self.identity: tuple[TaskConfig, bytes, bytes] = (
            task.config,
            task.pool.tobytes(),
            task.pseudolabelled_K.tobytes(),
        )

    def __hash__(self) -> int:
        return hash(self.identity)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.identity == other.identity


@lru_cache(maxsize=8)
def _mismatch_report(key: _Key, threshold: int | None) -> MismatchReport:
    context = key.context
    labels = np.flatnonzero(context.task.pseudolabelled_K)
    report = detect_mismatch(
        _pool_features(context),
        context.text_features_KD[torch.as_tensor(labels, device=context.device)],
        logit_scale=context.logit_scale,
        threshold=threshold,
        seed=derive_seed(context.task.config.split_seed, "mismatch") % 2**31,
    )
    if len(labels) == context.task.num_classes:
        return report

    def named(columns: list[int]) -> list[int]:
        return [int(labels[column]) for column in columns]

    return MismatchReport(
        removal_order=named(report.removal_order),
        chosen_cluster=report.chosen_cluster,
        num_removed=report.num_removed,
        assigned={int(labels[column]): images for column, images in report.assigned.items()},
        candidates=named(report.candidates),
        mismatched=named(report.mismatched),
        zero_shot_counts=report.zero_shot_counts,
        centres={int(labels[column]): centre for column, centre in report.centres.items()},
        cluster_similarity={int(labels[column]): value for column, value in report.cluster_similarity.items()},
        threshold=report.threshold,
    )


def _pool_features(context: Context) -> Tensor:
    return context.image_features_MD[torch.tensor(context.task.pool, device=context.device)]
