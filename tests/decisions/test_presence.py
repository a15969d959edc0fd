"""Names that the pool seems to hold no image of."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from captune.algorithms.absent_names import absent_names
from captune.config import TaskConfig
from captune.data.catalog import load_dataset
from captune.decisions.evidence import Evidence, Knowledge
from captune.decisions.presence import FACTS, Absent, absent_classes, absent_in, absent_sentence, presence_facts
from captune.training.context import open_context
from tests.tools.exam.worlds import World

REAL = Path(__file__).parents[3] / "shared" / "data" / "features"
TABLE = Path(__file__).parents[2] / "analysis" / "measurements" / "absent_names.csv"


def pool(present: int, of_classes: int, confidence: float = 0.99, per_class: int = 20) -> tuple[Tensor, Tensor]:
    """Sure predictions of the first classes, and neighbours of the same class."""
    labels_N = torch.arange(present).repeat_interleave(per_class)
    rest = (1 - confidence) / (of_classes - 1)
    probs_NK = torch.full((len(labels_N), of_classes), rest)
    probs_NK[torch.arange(len(labels_N)), labels_N] = confidence
    start_N = labels_N * per_class
    neighbours_Nk = start_N[:, None] + torch.arange(5)
    return probs_NK, neighbours_Nk


def test_facts_by_hand() -> None:
    """Two images, classes 0 and 1 of three; every prediction is its neighbour's but one."""
    zero_shot = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.7998, 0.0002]])
    mixture = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]])
    facts = presence_facts(zero_shot, mixture, torch.tensor([[1], [1]]))
    assert facts.shape == (3, len(FACTS))
    # Class 2 has 0.0002, which is a tail; the mixture spreads over two of three classes.
    expected = [math.log(1.101), math.log(0.9008), math.log(0.001)]
    torch.testing.assert_close(facts[:, 0], torch.tensor(expected, dtype=torch.double), atol=1e-6, rtol=0)
    torch.testing.assert_close(facts[0, 2:], torch.tensor([math.log(2 / 3), 0.5, 1.0], dtype=torch.double))


def test_classes_without_an_image_are_named_and_no_other() -> None:
    probs_NK, neighbours_Nk = pool(4, 40)
    found = absent_classes(probs_NK, probs_NK, neighbours_Nk)
    assert {absent.label for absent in found} <= set(range(4, 40)) and len(found) > 30
    assert all(absent.probability >= 0.9 for absent in found)


def test_a_study_names_them_from_its_candidates_but_not_where_the_backbone_knows_nothing() -> None:
    probs_NK, neighbours_Nk = pool(4, 40)
    knows, nothing = Knowledge(0.9, 0.1, 4.0, 3.0, 40), Knowledge(0.31, 0.25, 3.0, 3.2, 40)
    probs = dict.fromkeys(("zero_shot", "balanced", "anchored"), probs_NK)
    assert absent_in(Evidence(probs, neighbours_Nk, knows)) == absent_classes(probs_NK, probs_NK, neighbours_Nk)
    unsure_NK, _ = pool(4, 40, confidence=0.3)
    unsure = dict.fromkeys(("zero_shot", "balanced", "anchored"), unsure_NK)
    assert absent_in(Evidence(unsure, neighbours_Nk, nothing)) == absent_in(Evidence(probs, neighbours_Nk)) == []


def test_nothing_is_named_where_every_class_has_images() -> None:
    probs_NK, neighbours_Nk = pool(40, 40)
    assert absent_classes(probs_NK, probs_NK, neighbours_Nk) == []


def test_permuting_the_classes_permutes_what_is_named() -> None:
    probs_NK, neighbours_Nk = pool(3, 30)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    plain = {absent.label for absent in absent_classes(probs_NK, probs_NK, neighbours_Nk)}
    moved = {absent.label for absent in absent_classes(probs_NK[:, order], probs_NK[:, order], neighbours_Nk)}
    assert {int(order[label]) for label in moved} == plain


def test_the_sentence_names_a_few_and_counts_the_rest() -> None:
    names = [f"class {number}" for number in range(20)]
    assert absent_sentence([], names) is None
    found = [Absent(label, 0.95, 0.02) for label in range(10)]
    said = absent_sentence(found, names)
    assert said is not None and said.startswith("10 of the 20 asked-for names seem absent: class 0, ")
    assert "class 7 and 2 more (zero-shot expects less than one image of them together" in said
    assert "1 of the 20 asked-for names seems absent: class 3 (zero-shot expects about 2 images of it" in str(
        absent_sentence([Absent(3, 0.9, 2.2)], names)
    )


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="with N > 0 and N rows of neighbours"):
        presence_facts(torch.rand(3, 4), torch.rand(3, 4), torch.zeros(2, 1, dtype=torch.long))


def test_the_digits_have_all_their_classes() -> None:
    context = open_context(TaskConfig.parse({"dataset": "digits", "paradigm": "tft"}), "report", "cpu")
    assert absent_names(context) == []


@pytest.mark.skipif(not REAL.exists(), reason=f"no feature files at {REAL}")
def test_four_of_59_real_classes_are_told_from_all_of_them(tmp_path: Path) -> None:
    """Caltech features: a pool of four classes, all 59 asked for."""
    task = World("caltech101_59", "tft", "present-4", 0).open(REAL, tmp_path)
    context = open_context(task, "report", "cpu")
    present = set(load_dataset(task).labels_M[context.task.test].tolist())
    found = absent_names(context)
    assert len(present) == 4 and len(found) >= 40 and not {absent.label for absent in found} & present


def test_the_table_says_what_the_page_says() -> None:
    """Judged on datasets the model was not fitted on: wrong names only where the backbone was spoiled, but for two."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] != "coarse"]
    called, rightly = (sum(int(row[name]) for row in rows) for name in ("called_absent", "rightly"))
    assert (called, called - rightly) == (584, 2)
