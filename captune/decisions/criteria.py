"""The selection criteria: what each measures, on which images, and what may be compared by it.

CONTRIBUTING.md says how to add one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from captune.errors import UsageError, did_you_mean

VAL, VAL_SMOOTH, PSEUDO_UNSEEN = "val", "val-smooth", "pseudo-unseen"
AGREE_ZERO_SHOT, AGREE_BALANCED, AGREE_SMOOTH = "agree-zero-shot", "agree-balanced", "agree-smooth"
NEIGHBOURS, ENSV, ORACLE = "neighbours", "ensv", "oracle"
ITSELF = "itself"


@dataclass(frozen=True)
class Criterion:
    """One selection criterion; higher is better.

    Attributes:
        help: what it measures.
        images: on which images. "held-out" is the part of the pool that trials in the score role do not train on
            (trzsl holds out none: there it is the validation images, without their labels); "both" is held-out and
            validation images.
        labels: whether it is made of labels alone; `val-smooth`, half of which needs none, is False.
        paradigms: where it can be used; empty means everywhere.
        against_zero_shot: the criterion by which a gain over zero-shot is judged. It differs from the criterion itself
            where that favours zero-shot: `agree-smooth` contains the agreement with balanced zero-shot, which shares
            zero-shot's logits. None: zero-shot scores 1 whatever it is worth, so nothing can be compared with it.
        against_balanced: the same for balanced zero-shot.
        diagnostic: rewards sharp predictions and picks disasters on real features; never a default.
    """

    help: str
    images: Literal["held-out", "validation", "both", "test"] = "held-out"
    labels: bool = False
    paradigms: tuple[str, ...] = ()
    against_zero_shot: str | None = ITSELF
    against_balanced: str | None = ITSELF
    diagnostic: bool = False


CRITERIA: dict[str, Criterion] = {
    VAL: Criterion("accuracy on the labelled validation images", "validation", labels=True, paradigms=("ssl",)),
    VAL_SMOOTH: Criterion(
        "half val, half agree-smooth: few labelled images, steadied by many without labels",
        "both",
        paradigms=("ssl",),
        against_balanced=VAL,
    ),
    PSEUDO_UNSEEN: Criterion(
        "harmonic mean of accuracy on seen classes and on seen classes held out as unseen",
        "validation",
        labels=True,
        paradigms=("trzsl",),
    ),
    AGREE_BALANCED: Criterion(
        "agreement with half-Sinkhorn zero-shot on held-out pool images", against_balanced=None
    ),
    AGREE_ZERO_SHOT: Criterion("agreement with zero-shot on held-out pool images", against_zero_shot=None),
    NEIGHBOURS: Criterion(
        "chance-corrected agreement of held-out images with their nearest neighbours in the frozen features"
    ),
    AGREE_SMOOTH: Criterion(
        "two thirds neighbours, one third agree-balanced: smooth on the features and near the reference",
        against_zero_shot=NEIGHBOURS,
        against_balanced=NEIGHBOURS,
    ),
    ENSV: Criterion("agreement with the vote of all candidates so far (EnsV, NeurIPS 2024 D&B)"),
    "stability": Criterion("agreement of weak- and strong-view predictions on held-out pool images"),
    "ami": Criterion("adjusted mutual information with k-means on the frozen features (arXiv 2208.07360)"),
    "infomax": Criterion("diagnostic: H(mean p) - mean H(p)", diagnostic=True),
    "entropy": Criterion("diagnostic: -mean H(p)", diagnostic=True),
    "bnm": Criterion("diagnostic: nuclear norm of P over N", diagnostic=True),
    "corr-c": Criterion("diagnostic: tr(P'P) / |P'P|_F", diagnostic=True),
    "snd": Criterion("diagnostic: soft neighbourhood density (arXiv 2108.10860)", diagnostic=True),
    ORACLE: Criterion("research only: the sealed report metric; stamps every output", "test", labels=True),
}  # fmt: skip
DEFAULTS = {"ul": AGREE_SMOOTH, "tft": AGREE_SMOOTH, "ssl": VAL_SMOOTH, "trzsl": PSEUDO_UNSEEN}
"""The criterion of each paradigm unless another is asked for."""
LABEL_FREE_FALLBACKS = (AGREE_SMOOTH, AGREE_BALANCED)
"""Criteria without labels that decide where the study's own cannot: the first one that was recorded."""


def criterion_named(name: str) -> Criterion:
    """A row of the table; a name that this captune does not know (in a newer study) is taken for a plain criterion."""
    return CRITERIA.get(name, Criterion(name))


def resolve_criterion(name: str, paradigm: str) -> str:
    """The criterion a study selects by.

    Raises:
        UsageError: unknown, or one that needs labels the paradigm does not have.
    """
    if name == "auto":
        return DEFAULTS[paradigm]
    if name not in CRITERIA:
        raise UsageError(
            "--select-by must name a criterion", got=f"'{name}'", next_step=did_you_mean(name, ["auto", *CRITERIA])
        )
    paradigms = CRITERIA[name].paradigms
    if paradigms and paradigm not in paradigms:
        raise UsageError(
            f"--select-by {name} must be used where the paradigm has such labels ({', '.join(paradigms)})",
            got=f"--paradigm {paradigm}",
            next_step=f"The default here is {DEFAULTS[paradigm]}.",
        )
    return name


def part_against_zero_shot(name: str) -> str | None:
    """The criterion by which a gain over zero-shot is judged when a study selects by `name`; None: it cannot be."""
    part = criterion_named(name).against_zero_shot
    return name if part == ITSELF else part


def part_against_balanced(name: str) -> str | None:
    """The criterion by which balanced zero-shot is compared when a study selects by `name`; None: it cannot be."""
    part = criterion_named(name).against_balanced
    return name if part == ITSELF else part
