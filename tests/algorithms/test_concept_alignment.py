"""Mismatched classes are found once a process and pool, never taken over from another pool."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from captune.algorithms.concept_alignment import _chosen_descriptions, class_descriptions, mismatch_report
from captune.config import TaskConfig
from captune.errors import ConfigError
from captune.model.backbone import load_backbone
from captune.seeding import torch_generator
from captune.training.context import Context


def context(pool: list[int], pseudolabelled: list[bool]) -> Context:
    images_MD = torch.nn.functional.normalize(torch.randn(40, 8, generator=torch_generator(0, "images")), dim=-1)
    task = SimpleNamespace(
        config=TaskConfig(dataset="stand-in", paradigm="ul"),
        pool=np.array(pool),
        pseudolabelled_K=np.array(pseudolabelled),
        num_classes=len(pseudolabelled),
    )
    texts_KD = torch.eye(8)[: len(pseudolabelled)]
    facts: Any = {"image_features_MD": images_MD, "text_features_KD": texts_KD}
    return cast("Context", SimpleNamespace(task=task, device=torch.device("cpu"), logit_scale=100.0, **facts))


def test_a_report_is_made_once_for_one_pool() -> None:
    pool, every = list(range(20)), [True] * 4
    assert mismatch_report(context(pool, every)) is mismatch_report(context(pool, every))


@pytest.mark.parametrize(
    ("pool", "pseudolabelled"),
    [(list(range(20, 40)), [True] * 4), (list(range(20)), [True, True, False, True])],
)
def test_another_pool_of_the_same_size_gets_a_report_of_its_own(pool: list[int], pseudolabelled: list[bool]) -> None:
    """Score and report runs of a cell share its settings and may share the size of their pools."""
    first = mismatch_report(context(list(range(20)), [True] * 4))
    assert mismatch_report(context(pool, pseudolabelled)) is not first


def test_descriptions_chosen_together_decide_on_the_clusters_too() -> None:
    """Two classes were left with each other's cluster: the paper's rule then takes the description that is wrong."""
    axis = torch.eye(8)
    centres = {0: axis[5], 1: axis[4]}
    # Class 0's pictures lie at axis 4, class 1's at axis 5; each has one description that tells and one that misleads.
    features = {0: torch.stack([axis[4], 0.6 * axis[5] + 0.8 * axis[7]]), 1: torch.stack([0.6 * axis[4], axis[5]])}
    features[1][0] += 0.8 * axis[7]
    stand_in = context(list(range(20)), [True] * 4)
    assert _chosen_descriptions(stand_in, centres, features, "nearest") == {0: 1, 1: 0}
    assert _chosen_descriptions(stand_in, centres, features, "together") == {0: 0, 1: 1}


def test_more_mismatched_classes_than_clusters_are_described_one_by_one() -> None:
    axis = torch.eye(8)
    centres = {0: axis[5]}
    features = {0: axis[4:6], 1: axis[[1, 6]]}
    stand_in = context(list(range(20)), [True] * 4)
    assert _chosen_descriptions(stand_in, centres, features, "together") == {0: 1, 1: 0}


def described(folder: Path, sentence: str) -> Context:
    file = folder / "mine.yaml"
    file.write_text(f"oak: [{sentence!r}]\n")
    task = SimpleNamespace(
        config=TaskConfig(dataset="digits", paradigm="ul", descriptions=file), dataset="digits", class_names=("oak",)
    )
    backbone = load_backbone("ViT-B-32", "random")
    return cast("Context", SimpleNamespace(task=task, backbone=backbone, remembered={}))


def test_a_long_sentence_of_few_tokens_passes_and_one_past_the_context_is_refused(tmp_path: Path) -> None:
    # Start and end take two of CLIP's 77 places; "leaf" is one token: 75 words fit, 76 do not.
    fits = " ".join(["leaf"] * 75)
    assert class_descriptions(described(tmp_path, fits)) == {0: [fits]}
    with pytest.raises(
        ConfigError, match=r"fit the 77 tokens that ViT-B-32 reads, but got 1 longer, the first of 'oak'"
    ):
        class_descriptions(described(tmp_path, fits + " leaf"))
