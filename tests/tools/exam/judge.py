"""Decision rules on cached predictions: what each would have advised, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from captune.decisions import advice
from captune.decisions.advice import BALANCED, ZERO_SHOT, Advice, Evidence, Knowledge
from captune.decisions.learned import GainModel
from tests.tools.exam.cache import Facts, read_candidates, read_facts, worlds_in
from tests.tools.exam.worlds import World

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
        """Accuracy on the test images in percent."""
        probs_MK = sum(share * self.test[name] for name, share in weights.items())
        known_M = self.facts.test_labels_M >= 0
        return 100 * float(np.mean(np.argmax(probs_MK, 1)[known_M] == self.facts.test_labels_M[known_M]))

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
        evidence = Evidence(
            {name: torch.from_numpy(pool) for name, (pool, _) in both.items()},
            torch.from_numpy(facts.neighbours_Nk.astype(np.int64)),
            _knowledge(facts),
        )
        case = Case(world, evidence, {name: test for name, (_, test) in both.items()}, facts)
        if not knowing or not at_chance(case):
            found.append(case)
    return found


def at_chance(case: Case) -> bool:
    """Whether zero-shot is at chance on the test images: nobody could advise anything but another backbone."""
    num_classes = case.evidence.num_classes
    return case.accuracy({ZERO_SHOT: 1.0}) < 100 * max(1 / num_classes + 0.02, min(0.5, 2.5 / num_classes))


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
            }
        )
    return pd.DataFrame(rows)


def summary(judged: pd.DataFrame) -> dict[str, float]:
    """What a rule is worth: datasets weigh the same."""
    by_family = judged.groupby("family")
    return {
        "cases": len(judged),
        "gain": by_family.gain.mean().mean(),
        "worst": judged.gain.min(),
        "below": int((judged.gain < -0.5).sum()),
        "regret": by_family.regret.mean().mean(),
        "worst_regret": judged.regret.max(),
        "regret_above_3": int((judged.regret > 3).sum()),
    }


def always(*names: str) -> Rule:
    """The mean of some candidates, those that a world has."""

    def rule(evidence: Evidence) -> Weights:
        there = [name for name in names if name in evidence.probs] or [ZERO_SHOT]
        return {name: 1 / len(there) for name in there}

    return rule


def highest_score(evidence: Evidence) -> Weights:
    """The single candidate with the highest label-free score."""
    scores = advice.smooth_scores(evidence)
    return {max(scores, key=lambda name: scores[name]): 1.0}


def scored_blend(evidence: Evidence) -> Weights:
    """The blend by scores, whatever is expected of it."""
    return advice.blend_weights(advice.smooth_scores(evidence))


def gated(members: tuple[str, ...], lead: float = 0.05) -> Rule:
    """The issue's rule: the mean of `members`, unless zero-shot or balanced leads its score by `lead`."""

    def rule(evidence: Evidence) -> Weights:
        there = [name for name in members if name in evidence.probs]
        mean_NK = torch.stack([evidence.probs[name] for name in there]).mean(0)
        scores = advice.smooth_scores(replace(evidence, probs={**evidence.probs, "mean": mean_NK}))
        frozen = max((ZERO_SHOT, BALANCED), key=lambda name: scores[name])
        if scores[frozen] >= scores["mean"] + lead:
            return {frozen: 1.0}
        return {name: 1 / len(there) for name in there}

    return rule


# What the gain over zero-shot is learned from.


@dataclass(frozen=True)
class Learned:
    """The gain model and what it says of each case by a model that never saw the case's dataset.

    Attributes:
        model: fitted on all cases, its errors those on left-out datasets.
        advice: the advice for each case, by the model without its dataset.
    """

    model: GainModel
    advice: list[Advice]


ERROR_BASE, ERROR_SLOPE, RIDGE = 1.0, 0.2, 0.05
WIDENED = 1.3
"""Factor on the errors: those of a dataset left out of many say too little of the next dataset."""


def learn(table: list[Case]) -> Learned:
    """Fit the gain of the scored blend; leave whole datasets out for the errors, and again for the advice."""
    facts, differ, gains, families = [], [], [], np.array([case.family for case in table])
    for case in table:
        probs_NK = advice.blend(case.evidence.probs, scored_blend(case.evidence))
        facts.append(advice.gain_facts(case.evidence, probs_NK))
        zero_N = case.evidence.probs[ZERO_SHOT].argmax(-1)
        differ.append(100 * float((probs_NK.argmax(-1) != zero_N).float().mean()))
        gains.append(case.gain(scored_blend(case.evidence)))
    names = list(facts[0])
    facts_NF, most_N, gain_N = np.array([[f[n] for n in names] for f in facts]), np.array(differ), np.array(gains)
    scale_N = ERROR_BASE + ERROR_SLOPE * most_N

    def fitted(chosen: np.ndarray) -> np.ndarray:
        counts = {name: int((families[chosen] == name).sum()) for name in set(families[chosen].tolist())}
        weight_N = np.array([1 / counts[name] for name in families[chosen]]) / scale_N[chosen] ** 2
        weight_N /= weight_N.mean()
        rows_NF = facts_NF[chosen]
        gram_FF = rows_NF.T @ (weight_N[:, None] * rows_NF) / len(rows_NF)
        ridge_FF = RIDGE * np.diag(np.diag(gram_FF))
        solved: np.ndarray = np.linalg.solve(gram_FF + ridge_FF, rows_NF.T @ (weight_N * gain_N[chosen]) / len(rows_NF))
        return solved

    def model_of(chosen: np.ndarray) -> GainModel:
        """Fitted on the chosen cases, with the errors that leaving one of their datasets out makes."""
        errors = np.zeros(int(chosen.sum()))
        own = families[chosen]
        for name in np.unique(own):
            coefficients_F = fitted(chosen & (families != name))
            rows = np.flatnonzero(chosen)[own == name]
            said_N = np.clip(facts_NF[rows] @ coefficients_F, -most_N[rows], most_N[rows])
            errors[own == name] = (gain_N[rows] - said_N) / scale_N[rows]
        quantiles = WIDENED * np.quantile(errors, np.linspace(0.01, 0.99, 99))
        return GainModel(
            {name: round(float(value), 4) for name, value in zip(names, fitted(chosen), strict=True)},
            ERROR_BASE, ERROR_SLOPE, tuple(round(float(value), 3) for value in quantiles),
            tuple(sorted({case.world.dataset for case, at in zip(table, chosen, strict=True) if at})),
            int(chosen.sum()),
        )  # fmt: skip

    models = {name: model_of(families != name) for name in np.unique(families)}
    advised = [advice.advise(case.evidence, models[case.family]) for case in table]
    return Learned(model_of(np.ones(len(table), bool)), advised)


def coverage(learned: Learned, table: list[Case]) -> dict[str, float]:
    """How often the 80 % interval of the considered blend held its true gain, and whether the risk was as said."""
    inside, risk, worse = [], [], []
    for case, said in zip(table, learned.advice, strict=True):
        seen = said.considered
        if seen is None or seen.low == seen.high:
            continue
        gain = case.gain(scored_blend(case.evidence))
        inside.append(seen.low - 1e-9 <= gain <= seen.high + 1e-9)
        risk.append(seen.risk)
        worse.append(gain < 0)
    return {
        "cases": len(inside),
        "inside_80": float(np.mean(inside)),
        "mean_risk": float(np.mean(risk)),
        "worse": float(np.mean(worse)),
        "brier": float(np.mean((np.array(risk) - np.array(worse)) ** 2)),
    }


def portfolio(table: list[Case]) -> pd.DataFrame:
    """Candidates in the order that covers the tasks best, chosen without the dataset they are judged on.

    Greedily the candidate that raises the mean over datasets of the best gain so far most. For k members of the
    portfolio: the best of them by the labels, and the one with the highest label-free score, on the left-out datasets.
    """
    names = sorted(set.intersection(*(set(case.test) for case in table)))
    gains_CN = np.array([[case.single_gains[name] for name in names] for case in table])
    scored = [advice.smooth_scores(case.evidence) for case in table]
    scores_CN = np.array([[scores[name] for name in names] for scores in scored])
    families = np.array([case.family for case in table])
    rows = []
    for left_out in np.unique(families):
        order: list[int] = []
        while len(order) < len(names):
            worth = {}
            for at in set(range(len(names))) - set(order):
                best_C = gains_CN[:, [*order, at]].max(1)
                means = [best_C[families == name].mean() for name in np.unique(families) if name != left_out]
                worth[at] = float(np.mean(means))
            order.append(max(sorted(worth), key=lambda at: worth[at]))
        own = families == left_out
        for size in range(1, len(order) + 1):
            tried = order[:size]
            picked_C = scores_CN[own][:, tried].argmax(1)
            rows.append(
                {
                    "left_out": left_out,
                    "size": size,
                    "added": names[order[size - 1]],
                    "best": gains_CN[own][:, tried].max(1).mean(),
                    "picked": gains_CN[own][:, tried][np.arange(own.sum()), picked_C].mean(),
                }
            )
    return pd.DataFrame(rows).groupby("size").agg(
        added=("added", lambda column: column.mode().iloc[0]), best=("best", "mean"), picked=("picked", "mean")
    ).reset_index()  # fmt: skip
