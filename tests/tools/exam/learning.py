"""What the advice learns of development data, and what it says of each dataset without having seen it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from captune.decisions import advice
from captune.decisions.advice import Advice
from captune.decisions.learning import GainModel, ScoreModel
from captune.decisions.scores import Scorer, blend_weights
from tests.tools.exam.judge import Case

SHRINKAGE = 0.1
"""Ridge on the score's coefficients, in units of each fact's spread, against points of expected gain."""
SHARPNESS = 2.0
"""The ensemble is this much sharper than the choice that the score is learned by."""
ERROR_BASE, ERROR_SLOPE, RIDGE = 1.0, 0.2, 0.05
WIDENED = 1.3
"""Factor on the errors: those of a dataset left out of many say too little of the next dataset."""
LABELLED_MULTIPLES = (5.0, 10.0, 20.0, 40.0)
_MOST_GAIN, _MOST_LOSS = 60.0, -30.0


@dataclass(frozen=True)
class Learned:
    """What all data teach, and what is said of each case by models that never saw its dataset.

    Attributes:
        scoring: learned on all cases.
        model: learned on all cases, its errors those on left-out datasets.
        unseen: dataset → both, learned without it.
        advice: the advice for each case, without its dataset.
        gains: what the ensemble that was considered truly gains in each case.
    """

    scoring: ScoreModel
    model: GainModel
    unseen: dict[str, tuple[ScoreModel, GainModel]]
    advice: list[Advice]
    gains: list[float]

    def among(self, case: Case, names: Collection[str]) -> Advice:
        """The advice where only some candidates are there, without the case's dataset."""
        scoring, model = self.unseen[case.family]
        evidence = case.evidence
        probs = {name: probs_NK for name, probs_NK in evidence.probs.items() if name in names}
        return advice.advise(replace(evidence, probs=probs), model, scoring)


@dataclass
class _Table:
    """The cases with what every fit needs of them."""

    cases: list[Case]
    facts: list[dict[str, dict[str, float]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.most = max(len(case.evidence.neighbours_Nk) / case.evidence.num_classes for case in self.cases)
        whole = ScoreModel({}, self.most)
        self.facts = [Scorer(case.evidence, whole).candidate_facts for case in self.cases]
        self.families = np.array([case.family for case in self.cases])

    def without(self, *names: str) -> list[int]:
        """Places of the cases of all other datasets."""
        return np.flatnonzero(~np.isin(self.families, names)).tolist()


Fit = Callable[[_Table, list[int]], ScoreModel]


def fit_scores(table: _Table, places: list[int]) -> ScoreModel:
    """The score that gains most: maximise Σ_cases Σ_candidates softmax(score) · gain, datasets weighing the same."""
    names = [name for name in next(iter(table.facts[0].values())) if name != "validation"]
    chosen = [table.cases[place] for place in places]
    facts = [
        torch.tensor([[own[fact] for fact in names] for own in table.facts[place].values()], dtype=torch.float64)
        for place in places
    ]
    facts = [facts_CF - facts_CF.mean(0) for facts_CF in facts]
    spread_F = torch.cat(facts).std(0)
    gains = [
        torch.tensor([case.single_gains[name] for name in case.evidence.probs]).clamp(_MOST_LOSS, _MOST_GAIN)
        for case in chosen
    ]
    most = max(map(len, gains))
    facts_WCF, gains_WC = (
        torch.zeros(len(chosen), most, len(names), dtype=torch.float64),
        torch.zeros(len(chosen), most),
    )
    for place, (facts_CF, gains_C) in enumerate(zip(facts, gains, strict=True)):
        facts_WCF[place, : len(facts_CF)], gains_WC[place, : len(gains_C)] = facts_CF / spread_F, gains_C
    there_WC = torch.arange(most) < torch.tensor([len(gains_C) for gains_C in gains])[:, None]
    weight_W = torch.tensor(_dataset_weights(table.families[places]))
    beta_F = torch.zeros(len(names), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([beta_F], max_iter=300, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        share_WC = (facts_WCF @ beta_F).masked_fill(~there_WC, float("-inf")).softmax(1)
        expected = (weight_W * (share_WC * gains_WC).sum(1)).sum()
        value = SHRINKAGE * beta_F.square().sum() - expected
        value.backward()
        return value

    optimizer.step(loss)
    learned_F = SHARPNESS * beta_F.detach() / spread_F
    rounded = {name: round(float(value), 3) for name, value in zip(names, learned_F, strict=True)}
    return ScoreModel(rounded, round(table.most, 1))


def labelled_fit(pools: list[Case]) -> Fit:
    """How the score is learned where labels for selection are seen.

    Its facts of the pool are weighed as worlds without labels teach, of the same datasets; the accuracy on the labels
    by that of some multiples whose ensemble gains most, datasets weighing the same.
    """
    unlabelled = _Table(pools)
    by_pool: dict[frozenset[str], ScoreModel] = {}

    def fit(table: _Table, places: list[int]) -> ScoreModel:
        left_out = frozenset(table.families) - frozenset(table.families[places])
        if left_out not in by_pool:
            by_pool[left_out] = fit_scores(unlabelled, unlabelled.without(*left_out))
        learned = by_pool[left_out]
        weight_W, worth = _dataset_weights(table.families[places]), {}
        for multiple in LABELLED_MULTIPLES:
            model = replace(learned, coefficients=learned.coefficients | {"validation": multiple})
            gains = []
            for place in places:
                case = table.cases[place]
                weights = blend_weights(Scorer(case.evidence, model).candidates(), case.evidence.families)
                gains.append(case.gain(weights))
            worth[multiple] = (float(weight_W @ gains), model)
        return max(worth.values(), key=lambda one: one[0])[1]

    return fit


def _dataset_weights(families: np.ndarray) -> np.ndarray:
    """Weights of cases that sum to 1, and to the same for each dataset."""
    counts = {name: int((families == name).sum()) for name in np.unique(families)}
    return np.array([1 / counts[name] for name in families]) / len(counts)


@dataclass(frozen=True)
class _Blend:
    """The ensemble that a score makes of a case: its facts, what it can gain at most, what it gains."""

    facts: dict[str, float]
    most: float
    gain: float


def _blend_of(case: Case, scoring: ScoreModel) -> _Blend:
    evidence = case.evidence
    weights = blend_weights(Scorer(evidence, scoring).candidates(), evidence.families)
    both = [advice.blend(evidence.probs, weights)]
    if evidence.validation is not None:
        both.append(advice.blend(evidence.validation.probs, weights))
    return _Blend(advice.gain_facts(evidence, *both), 100 * advice.largest_gain(evidence, *both), case.gain(weights))


def learn(cases: list[Case], fit: Fit = fit_scores) -> Learned:
    """Learn the score by `fit`, then the gain of the ensemble that it makes; leave whole datasets out.

    A case is judged by models that never saw its dataset; and the gains and errors that they learned from are those of
    ensembles by scores that had seen neither that dataset nor the learned case's own.
    """
    table = _Table(cases)
    families = np.unique(table.families).tolist()
    blends: dict[tuple[str, ...], list[_Blend]] = {}

    def blends_without(left_out: str | None, own: str) -> list[_Blend]:
        """Those of the dataset `own`, by scores that saw neither."""
        key = tuple(sorted({own, left_out or own}))
        if (*key, own) not in blends:
            scoring = fit(table, table.without(*key))
            for name in key:
                blends[(*key, name)] = [_blend_of(case, scoring) for case in cases if case.family == name]
        return blends[(*key, own)]

    unseen = {}
    for left_out in families:
        others = {own: blends_without(left_out, own) for own in families if own != left_out}
        unseen[left_out] = (fit(table, table.without(left_out)), fit_gains(others, cases))
    said = []
    for case in cases:
        scoring, model = unseen[case.family]
        said.append(advice.advise(case.evidence, model, scoring))
    gains = [case.gain(one.blend) for case, one in zip(cases, said, strict=True)]
    whole = fit_gains({own: blends_without(None, own) for own in families}, cases)
    return Learned(fit(table, list(range(len(cases)))), whole, unseen, said, gains)


def fit_gains(blends: Mapping[str, list[_Blend]], cases: list[Case]) -> GainModel:
    """A ridge regression of the ensembles' gains, with the errors that leaving one of the datasets out makes."""
    families = np.array([name for name, own in blends.items() for _ in own])
    every = [blend for own in blends.values() for blend in own]
    # Without labels for selection that fact is zero throughout.
    names = [name for name in every[0].facts if any(blend.facts[name] for blend in every)]
    facts_NF = np.array([[blend.facts[name] for name in names] for blend in every])
    most_N, gain_N = np.array([blend.most for blend in every]), np.array([blend.gain for blend in every])
    scale_N = ERROR_BASE + ERROR_SLOPE * most_N

    def fitted(chosen: np.ndarray) -> np.ndarray:
        weight_N = _dataset_weights(families[chosen]) / scale_N[chosen] ** 2
        weight_N /= weight_N.mean()
        rows_NF = facts_NF[chosen]
        gram_FF = rows_NF.T @ (weight_N[:, None] * rows_NF) / len(rows_NF)
        ridge_FF = RIDGE * np.diag(np.diag(gram_FF))
        solved: np.ndarray = np.linalg.solve(gram_FF + ridge_FF, rows_NF.T @ (weight_N * gain_N[chosen]) / len(rows_NF))
        return solved

    errors = np.zeros(len(every))
    for name in blends:
        rows = families == name
        said_N = np.clip(facts_NF[rows] @ fitted(~rows), -most_N[rows], most_N[rows])
        errors[rows] = (gain_N[rows] - said_N) / scale_N[rows]
    quantiles = WIDENED * np.quantile(errors, np.linspace(0.01, 0.99, 99))
    return GainModel(
        {name: round(float(value), 4) for name, value in zip(names, fitted(np.ones(len(every), bool)), strict=True)},
        ERROR_BASE, ERROR_SLOPE, tuple(round(float(value), 3) for value in quantiles),
        tuple(sorted({case.world.dataset for case in cases if case.family in blends})),
        len(every),
    )  # fmt: skip


def coverage(learned: Learned) -> dict[str, float]:
    """How often the 80 % interval of the considered ensemble held its true gain, and whether the risk was as said."""
    inside, risk, worse = [], [], []
    for gain, said in zip(learned.gains, learned.advice, strict=True):
        seen = said.considered
        if seen is None or seen.low == seen.high:
            continue
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
