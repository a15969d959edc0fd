"""Decision rules on cached predictions: what each would have advised, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from captune.decisions.evidence import Evidence, Knowledge, Validation, validation_accuracy
from captune.decisions.neighbours import neighbour_consistency
from captune.decisions.scores import blend_weights
from captune.records import BALANCED, REFERENCES, ZERO_SHOT
from captune.seeding import torch_generator
from tests.tools.exam.cache import Facts, Predicted, read_candidates, read_facts, worlds_in
from tests.tools.exam.worlds import World

_HALVINGS = 100
LEAST_TEST_IMAGES = 50
"""A world with fewer is no case: an image more or less would be a miss."""
# Features of the same photographs by different backbones are one dataset when datasets are left out.
SAME_IMAGES = {"caltech_tiny": "caltech", "caltech101_59": "caltech"}
Weights = dict[str, float]
Rule = Callable[[Evidence], Weights]


@dataclass(frozen=True)
class Case:
    """A world with all that a rule and its judge need.

    Attributes:
        world: its name.
        evidence: what the rule sees.
        test: candidate → probabilities on the test images.
        facts: the world itself.
    """

    world: World
    evidence: Evidence
    test: dict[str, np.ndarray]
    facts: Facts

    @property
    def family(self) -> str:
        """The dataset that is left out together with this world."""
        return SAME_IMAGES.get(self.world.dataset, self.world.dataset)

    def accuracy(self, weights: Weights) -> float:
        """Accuracy on the test images in percent; in trzsl the harmonic mean over seen and unseen classes."""
        return 100 * validation_accuracy(self._predicted(weights), self._labels_M, self._unseen_K)

    @cached_property
    def _known_M(self) -> np.ndarray:
        """Test images of asked-for classes."""
        return self.facts.test_labels_M >= 0

    @cached_property
    def _labels_M(self) -> torch.Tensor:
        """The labels of these images."""
        return torch.from_numpy(self.facts.test_labels_M[self._known_M].astype(np.int64))

    def _predicted(self, weights: Weights) -> torch.Tensor:
        probs_MK = sum(share * self.test[name] for name, share in weights.items())
        return torch.from_numpy(np.argmax(probs_MK, 1)[self._known_M].astype(np.int64))

    @cached_property
    def _halves(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of 100 random halvings of the test images, both ways round: the accuracies on one half of the candidate that
        is best on the other (H,), and the images of that half (H, M).
        """
        count = len(self._labels_M)
        generator = torch_generator(0, "halves", self.world.key)
        first_HM = torch.stack([torch.randperm(count, generator=generator) for _ in range(_HALVINGS)])
        first_HM = first_HM < count // 2
        named_CH, judged_CH = [], []
        for name in self.test:
            predicted_M = self._predicted({name: 1.0})
            halves = [self._accuracies(predicted_M, within_HM) for within_HM in (first_HM, ~first_HM)]
            named_CH.append(torch.cat(halves))
            judged_CH.append(torch.cat(halves[::-1]))
        named, judged = torch.stack(named_CH), torch.stack(judged_CH)
        # In trzsl a half may lack seen or unseen images.
        whole_H = ~(named.isnan() | judged.isnan()).any(0)
        best_CH = (named == named.max(0).values).double()  # of candidates that are best alike, the mean
        best_H = (best_CH * judged).sum(0) / best_CH.sum(0)
        return best_H[whole_H], torch.cat([~first_HM, first_HM])[whole_H]

    def _accuracies(self, predicted_M: torch.Tensor, within_HM: torch.Tensor) -> torch.Tensor:
        """The accuracy on each of H sets of images, in percent; in trzsl the harmonic mean."""
        right_M, unseen_M = (predicted_M == self._labels_M).double(), self._unseen_K[self._labels_M]

        def share(among_HM: torch.Tensor) -> torch.Tensor:
            return (among_HM.double() @ right_M) / among_HM.sum(1)  # nan without images

        if not self._unseen_K.any():
            return 100 * share(within_HM)
        seen_H, unseen_H = share(within_HM & ~unseen_M), share(within_HM & unseen_M)
        return 200 * seen_H * unseen_H / (seen_H + unseen_H).clamp(min=1e-9)

    def regret_halved(self, weights: Weights) -> float:
        """The regret in points to the candidate that the labels of one half of the test images call best, on the other.

        The best of a dozen candidates on a sample owes a part of its lead to that sample: against it even the truly
        best one regrets something. A lead that is found on one half and measured on the other has no such part.
        """
        best_H, images_HM = self._halves
        return float((best_H - self._accuracies(self._predicted(weights), images_HM)).mean())

    @cached_property
    def _unseen_K(self) -> torch.Tensor:
        seen_K = torch.from_numpy(self.facts.seen_K)
        return ~seen_K if seen_K.any() else torch.zeros(self.evidence.num_classes, dtype=torch.bool)

    @cached_property
    def single_gains(self) -> dict[str, float]:
        """The gain of every candidate alone."""
        return {name: self.gain({name: 1.0}) for name in self.test}

    def gain(self, weights: Weights) -> float:
        """Accuracy over zero-shot's in points."""
        return self.accuracy(weights) - self.accuracy({ZERO_SHOT: 1.0})


def cases(cache: Path, *, without: Iterable[str] = (), need: Iterable[str] = (), knowing: bool = False) -> list[Case]:
    """The worlds of a cache that are large enough to judge by.

    Args:
        cache: the folder.
        without: candidates that are left out.
        need: candidates that a world must have.
        knowing: leave out worlds whose zero-shot is at chance.
    """
    found = []
    for world in worlds_in(cache):
        facts, both = read_facts(cache, world), read_candidates(cache, world)
        both = {name: probs for name, probs in both.items() if name not in set(without)}
        if not {ZERO_SHOT, BALANCED, *need} <= set(both) or (facts.test_labels_M >= 0).sum() < LEAST_TEST_IMAGES:
            continue
        labelled = len(facts.validation_labels_V) > 0
        evidence = Evidence(
            {name: torch.from_numpy(probs.pool) for name, probs in both.items()},
            torch.from_numpy(facts.neighbours_Nk.astype(np.int64)),
            None if labelled else _knowledge(facts),
            validation=_validation(facts, both) if labelled else None,
        )
        case = Case(world, evidence, {name: probs.test for name, probs in both.items()}, facts)
        if not knowing or not at_chance(case):
            found.append(case)
    return found


def at_chance(case: Case) -> bool:
    """Whether zero-shot is at chance on the test images: nobody could advise anything but another backbone."""
    num_classes = case.evidence.num_classes
    return case.accuracy({ZERO_SHOT: 1.0}) < 100 * max(1 / num_classes + 0.02, min(0.5, 2.5 / num_classes))


def _validation(facts: Facts, predicted: dict[str, Predicted]) -> Validation:
    probs = {name: torch.from_numpy(probs.validation) for name, probs in predicted.items()}
    labels_V = torch.from_numpy(facts.validation_labels_V.astype(np.int64))
    return Validation(probs, labels_V, torch.from_numpy(facts.pseudo_unseen_K))


def _knowledge(facts: Facts) -> Knowledge:
    *measured, num_classes = facts.knowledge.tolist()
    return Knowledge(*measured, int(num_classes))


def judge(rule: Rule, table: Iterable[Case]) -> pd.DataFrame:
    """One row a case: what was advised, its gain over zero-shot, the best single method's, the regret to that."""
    rows = []
    for case in table:
        weights = rule(case.evidence)
        gains = case.single_gains
        best = max(gains, key=lambda name: gains[name])
        gain = case.gain(weights)
        rows.append(
            {
                **vars(case.world),
                "family": case.family,
                "zero_shot": case.accuracy({ZERO_SHOT: 1.0}),
                "advised": " + ".join(f"{name} {share:.2f}" for name, share in weights.items()),
                "gain": gain,
                "best": best,
                "best_gain": gains[best],
                "regret": gains[best] - gain,
                "regret_halved": case.regret_halved(weights),
            }
        )
    return pd.DataFrame(rows)


def summary(judged: pd.DataFrame) -> dict[str, float]:
    """What a rule is worth: datasets weigh the same. The halved regret where the table has it."""
    by_family = judged.groupby("family")
    halved = {} if "regret_halved" not in judged else {
        "regret_halved": by_family.regret_halved.mean().mean(),
        "halved_above_3": int((judged.regret_halved > 3).sum()),
    }  # fmt: skip
    return {
        "cases": len(judged),
        "gain": by_family.gain.mean().mean(),
        "worst": judged.gain.min(),
        "below": int((judged.gain < -0.5).sum()),
        "regret": by_family.regret.mean().mean(),
        "worst_regret": judged.regret.max(),
        "regret_above_3": int((judged.regret > 3).sum()),
        **halved,
    }


def always(*names: str) -> Rule:
    """The mean of some candidates, those that a world has."""

    def rule(evidence: Evidence) -> Weights:
        there = [name for name in names if name in evidence.probs] or [ZERO_SHOT]
        return {name: 1 / len(there) for name in there}

    return rule


def highest_score(evidence: Evidence) -> Weights:
    """The single candidate with the highest label-free score."""
    scores = smooth_scores(evidence)
    return {max(scores, key=lambda name: scores[name]): 1.0}


def highest_criterion(*names: str) -> Rule:
    """The single candidate, of `names` or of all, that the criterion of its paradigm scores highest: pseudo-unseen in
    trzsl, in ssl val-smooth, half the accuracy on the validation images and half agree-smooth.
    """

    def rule(evidence: Evidence) -> Weights:
        labelled, smooth = evidence.validation, smooth_scores(evidence)
        assert labelled is not None, "a world with labels"
        scores = {name: labelled.accuracy(labelled.probs[name]) for name in names or evidence.probs}
        if not labelled.unseen_K.any():
            scores = {name: (score + smooth[name]) / 2 for name, score in scores.items()}
        return {max(scores, key=lambda name: scores[name]): 1.0}

    return rule


def smooth_blend(evidence: Evidence) -> Weights:
    """The blend by agree-smooth, as the advice was before its scores were learned: 0.01 is a factor of e."""
    return blend_weights({name: score / 0.01 for name, score in smooth_scores(evidence).items()})


def smooth_scores(evidence: Evidence) -> dict[str, float]:
    """The criterion agree-smooth on all images: two thirds agreement with the nearest, one third with balanced."""
    balanced_N = evidence.probs[BALANCED].argmax(-1)
    scores = {}
    for name, probs_NK in evidence.probs.items():
        predicted_N = probs_NK.argmax(-1)
        near = neighbour_consistency(predicted_N, evidence.neighbours_Nk, evidence.num_classes)
        scores[name] = (2 * near + float((predicted_N == balanced_N).float().mean())) / 3
    return scores


def gated(members: tuple[str, ...], lead: float = 0.05) -> Rule:
    """The issue's rule: the mean of `members`, unless zero-shot or balanced leads its score by `lead`."""

    def rule(evidence: Evidence) -> Weights:
        there = [name for name in members if name in evidence.probs]
        mean_NK = torch.stack([evidence.probs[name] for name in there]).mean(0)
        scores = smooth_scores(replace(evidence, probs={**evidence.probs, "mean": mean_NK}))
        frozen = max((ZERO_SHOT, BALANCED), key=lambda name: scores[name])
        if scores[frozen] >= scores["mean"] + lead:
            return {frozen: 1.0}
        return {name: 1 / len(there) for name in there}

    return rule


def orders(table: list[Case]) -> dict[str, list[str]]:
    """Dataset → candidates in the order that covers the other datasets best.

    The references of every study come first, for they are there anyway; then greedily the candidate that raises the
    mean over datasets of the best gain so far most.
    """
    names = sorted(set.intersection(*(set(case.test) for case in table)))
    gains_CN = np.array([[case.single_gains[name] for name in names] for case in table])
    families = np.array([case.family for case in table])
    found = {}
    for left_out in np.unique(families).tolist():
        order = [names.index(name) for name in REFERENCES if name in names]
        while len(order) < len(names):
            worth = {}
            for at in set(range(len(names))) - set(order):
                best_C = gains_CN[:, [*order, at]].max(1)
                means = [best_C[families == name].mean() for name in np.unique(families) if name != left_out]
                worth[at] = float(np.mean(means))
            order.append(max(sorted(worth), key=lambda at: worth[at]))
        found[left_out] = [names[at] for at in order]
    return found


def portfolio(table: list[Case], scored: list[dict[str, float]]) -> pd.DataFrame:
    """What the first k candidates of an order are worth on the dataset that it was chosen without.

    Args:
        table: the cases.
        scored: label-free scores of each, learned without its dataset.

    For each k: the best of them by the labels, and the one with the highest label-free score.
    """
    rows = []
    for left_out, order in orders(table).items():
        own = [at for at, case in enumerate(table) if case.family == left_out]
        gains_CN = np.array([[table[at].single_gains[name] for name in order] for at in own])
        scores_CN = np.array([[scored[at][name] for name in order] for at in own])
        for size in range(sum(name in REFERENCES for name in order), len(order) + 1):
            picked_C = scores_CN[:, :size].argmax(1)
            rows.append(
                {
                    "left_out": left_out,
                    "size": size,
                    "added": order[size - 1],
                    "best": gains_CN[:, :size].max(1).mean(),
                    "picked": gains_CN[np.arange(len(own)), picked_C].mean(),
                }
            )
    return pd.DataFrame(rows).groupby("size").agg(
        added=("added", lambda column: column.mode().iloc[0]), best=("best", "mean"), picked=("picked", "mean")
    ).reset_index()  # fmt: skip
