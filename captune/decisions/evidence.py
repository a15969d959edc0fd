"""What a decision may know of a pool: predictions, which images are alike, what random texts would say.

The only labels among it are those of the validation images, in tasks that have them (ssl, trzsl).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from captune.decisions.neighbours import neighbour_consistency
from captune.metrics import harmonic_mean
from captune.records import BALANCED, ZERO_SHOT

NUM_NEIGHBOURS = 10
_CROWDED, _NO_LEAD, _UNSURE = 0.8, 0.1, 0.5
"""When a backbone is said not to know the classes (`Knowledge.known`)."""


@dataclass(frozen=True)
class Validation:
    """Images whose labels a choice may see and on which nothing was trained, with what candidates predict of them.

    Attributes:
        probs: candidate → probabilities (V, K).
        labels_V: their labels.
        unseen_K: classes that stand for the unseen ones of trzsl; none in ssl.
    """

    probs: Mapping[str, Tensor]
    labels_V: Tensor
    unseen_K: Tensor

    def accuracy(self, probs_VK: Tensor) -> float:
        """Share of them that is predicted as labelled; with unseen classes as `validation_accuracy` says."""
        return validation_accuracy(probs_VK.argmax(-1), self.labels_V, self.unseen_K)


def validation_accuracy(predicted_V: Tensor, labels_V: Tensor, unseen_K: Tensor) -> float:
    """Accuracy, or with unseen classes the harmonic mean of the accuracies on seen and on unseen ones.

    NaN where one of the two, or all, has no image.
    """
    correct_V, unseen_V = predicted_V == labels_V, unseen_K[labels_V]
    if not unseen_K.any():
        return float(correct_V.double().mean())
    if unseen_V.all() or not unseen_V.any():
        return float("nan")
    return harmonic_mean(float(correct_V[~unseen_V].double().mean()), float(correct_V[unseen_V].double().mean()))


@dataclass(frozen=True)
class Evidence:
    """What a decision may know: predictions on unlabelled images, and which images are alike.

    Attributes:
        probs: candidate → probabilities (N, K) of all unlabelled images; "zero_shot" and "balanced" among them.
        neighbours_Nk: every image's nearest others by cosine of the frozen features, nearest first.
        knowledge: what random texts would do on the same images, where that was measured.
        families: candidate → its method; candidates of one method share its weight and its vote. One that is not named
            is a family of its own.
        validation: what the same candidates predict of the validation images, where the task has them.
    """

    probs: Mapping[str, Tensor]
    neighbours_Nk: Tensor
    knowledge: Knowledge | None = None
    families: Mapping[str, str] = field(default_factory=dict)
    validation: Validation | None = None

    def __post_init__(self) -> None:
        missing = {ZERO_SHOT, BALANCED} - set(self.probs)
        shapes = {tuple(probs.shape) for probs in self.probs.values()}
        if missing or len(shapes) != 1 or len(self.neighbours_Nk) != len(self.probs[ZERO_SHOT]):
            raise ValueError(
                f"probs must hold {ZERO_SHOT} and {BALANCED}, all of one shape (N, K) with N rows of neighbours, but "
                f"got {sorted(self.probs)} of shapes {sorted(shapes)} with {len(self.neighbours_Nk)} rows"
            )

    @property
    def num_classes(self) -> int:
        """K."""
        return self.probs[ZERO_SHOT].shape[1]


@dataclass(frozen=True)
class Knowledge:
    """How zero-shot's predictions compare with those of random texts on the same images (`measure_knowledge`).

    Attributes:
        consistency: agreement of zero-shot's predictions with those of the nearest images, chance-corrected.
        random_consistency: the same of random texts, mean of several draws.
        num_classes: how many classes zero-shot effectively predicts (exponential of the entropy of their shares).
        random_num_classes: the same of random texts.
        of_classes: K.
    """

    consistency: float
    random_consistency: float
    num_classes: float
    random_num_classes: float
    of_classes: int

    @property
    def evidence(self) -> str:
        """The numbers in words."""
        return (
            f"zero-shot's predictions agree with their nearest images as little ({self.consistency:.2f}) and crowd "
            f"into as few classes ({self.num_classes:.0f} of {self.of_classes}) as those of random texts "
            f"({self.random_consistency:.2f}, {self.random_num_classes:.0f})"
        )

    def known(self, confidence: float) -> bool:
        """Whether the texts say more about the images than random texts would.

        False only if three things hold together: zero-shot's mean `confidence` is low; its predictions agree with those
        of the nearest images hardly more than the predictions of random texts do; and they crowd into few classes, as
        those of random texts do. Each of them alone also happens to a good model: with few images per class the nearest
        images are often of other classes, and a pool of few classes is predicted as few.
        """
        spread = max(self.of_classes - self.random_num_classes, 1e-9)
        crowded = (self.of_classes - self.num_classes) / spread > _CROWDED
        return not (crowded and confidence < _UNSURE and self.consistency - self.random_consistency < _NO_LEAD)


def effective_classes(probs_NK: Tensor) -> float:
    """How many classes a pool's mean prediction is spread over: exp(entropy), between 1 and K."""
    shares_K = probs_NK.double().mean(0)
    return float(torch.special.entr(shares_K / shares_K.sum()).sum().exp())


def measure_knowledge(
    image_features_ND: Tensor,
    text_features_KD: Tensor,
    neighbours_Nk: Tensor,
    generator: torch.Generator,
    *,
    num_draws: int = 10,
) -> Knowledge:
    """Compare zero-shot's predictions with those of the same texts turned at random about their mean.

    Turning keeps the texts' distances from one another, so only what they have to do with the images is lost.

    Args:
        image_features_ND: normalised features of the unlabelled images.
        text_features_KD: normalised text features.
        neighbours_Nk: nearest images.
        generator: draws the turns.
        num_draws: number of turns to average over.
    """
    num_classes, width = text_features_KD.shape
    mean_D = text_features_KD.mean(0)

    def measured(text_KD: Tensor) -> tuple[float, float]:
        predicted_N = (image_features_ND @ torch.nn.functional.normalize(text_KD, dim=-1).T).argmax(-1)
        one_hot_NK = torch.nn.functional.one_hot(predicted_N, num_classes)
        return neighbour_consistency(predicted_N, neighbours_Nk, num_classes), effective_classes(one_hot_NK)

    turned = []
    for _ in range(num_draws):
        turn_DD, _ = torch.linalg.qr(torch.randn(width, width, generator=generator).to(text_features_KD))
        turned.append(measured(mean_D + (text_features_KD - mean_D) @ turn_DD))
    consistency, classes = measured(text_features_KD)
    random_consistency, random_classes = (sum(column) / num_draws for column in zip(*turned, strict=True))
    return Knowledge(consistency, random_consistency, classes, random_classes, num_classes)
