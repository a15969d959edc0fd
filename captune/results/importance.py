"""importance.csv and marginals.csv: which settings mattered, how, and which pairs of them interact.

PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023) and fANOVA (Hutter et al., ICML 2014) come from
`optuna.importance`. Optuna has no marginal curves or pairwise interactions; these come from the forest of `surrogate`.
Importing Optuna takes a second, so it is imported only for a study that has enough trials.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from captune.records import Phase, StudyRecord
from captune.results.searched import searched_parameters
from captune.results.surrogate import MINIMUM_TRIALS, Surrogate, fit_surrogate
from captune.results.tables import parameter_value
from captune.space import Parameter

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

Floats = NDArray[np.float64]
TRIALS_A_SETTING = 5
"""With fewer finished trials per setting, importances are no evidence: they are in the table, but not drawn."""
FANOVA_TRIALS = 256
"""fANOVA reads at most this many evenly spaced trials: Optuna's version takes time that grows as N²."""
_GRID = 7
_BACKGROUND = 64
_MARGINAL_POINTS = 15
_IMPORTANCE_COLUMNS = (
    "study",
    "kind",
    "method",
    "parameter",
    "second_parameter",
    "importance",
    "rank",
    "num_trials",
    "enough",
    "note",
)
_MARGINAL_COLUMNS = ("study", "parameter", "log", "value", "choice", "mean", "low", "high", "num_trials")


def importance_table(studies: Iterable[StudyRecord]) -> pd.DataFrame:
    """Rows of kind main (one per method and setting) and interaction (one per pair of settings).

    Main importances of a method add to 1 (Optuna normalises them). An interaction is the share of the forest's variance
    that two settings explain together but neither explains alone. A study has no rows if all its scores are equal or
    if it has fewer than five trials: finished ones for main, finished or stopped ones for interaction.
    """
    rows = []
    for study in studies:
        rows += _main_rows(study)
        surrogate = fit_surrogate(study)
        rows += _interaction_rows(study, surrogate) if surrogate is not None and _scores_differ(study) else []
    return pd.DataFrame(rows, columns=list(_IMPORTANCE_COLUMNS))


def marginals_table(studies: Iterable[StudyRecord]) -> pd.DataFrame:
    """The forest's mean score at values of one setting, averaged over uniform draws of the other settings.

    `low` and `high` are the 10 % and 90 % quantiles over trees.
    """
    rows = []
    for study in studies:
        surrogate = fit_surrogate(study)
        if surrogate is not None and _scores_differ(study):
            background_NP = _background(surrogate)
            for column, parameter in enumerate(surrogate.parameters):
                rows += [{"study": study.name, **row} for row in _marginal(surrogate, background_NP, column, parameter)]
    return pd.DataFrame(rows, columns=list(_MARGINAL_COLUMNS))


def optuna_study(study: StudyRecord, *, most: int | None = None) -> optuna.Study:
    """The finished search trials as an in-memory Optuna study (direction: maximize), with settings and ranges.

    With `most`, at most that many of them, evenly spaced in their order.

    A value outside the recorded range (the paper's may be) widens that range. Optuna gives no importance to a setting
    that one of the trials lacks.
    """
    import optuna
    from optuna.trial import TrialState, create_trial

    parameters = searched_parameters(study)
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # no message for a study that only holds the trials
    in_optuna = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    optuna.logging.set_verbosity(verbosity)
    kept = [trial for trial in study.of_phase(Phase.SEARCH) if trial.scored]
    if most is not None and len(kept) > most:
        kept = [kept[place] for place in np.linspace(0, len(kept) - 1, most).round().astype(int)]
    values = {p.name: [parameter_value(trial, p.name) for trial in kept] for p in parameters}
    distributions = {p.name: _distribution(p, values[p.name]) for p in parameters}
    frozen: list[optuna.trial.FrozenTrial] = []
    for index, trial in enumerate(kept):
        params = {name: values[name][index] for name in distributions if values[name][index] is not None}
        params = {name: _plain(value) for name, value in params.items()}
        own = {name: distributions[name] for name in params}
        frozen.append(create_trial(params=params, distributions=own, value=trial.score, state=TrialState.COMPLETE))
    in_optuna.add_trials(frozen)
    return in_optuna


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, (list, dict)) else value


def _distribution(parameter: Parameter, values: list[Any]) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if parameter.choices:
        seen = [_plain(value) for value in values if value is not None]
        return CategoricalDistribution(list(dict.fromkeys([*(_plain(choice) for choice in parameter.choices), *seen])))
    numbers = [float(value) for value in values if isinstance(value, (int, float))]
    low, high = min([parameter.low, *numbers]), max([parameter.high, *numbers])
    log = parameter.log and low > 0
    if parameter.kind == "int" and all(number.is_integer() for number in numbers):
        return IntDistribution(int(low), int(high), log=log and low >= 1)
    return FloatDistribution(low, high, log=log)


def _scores_differ(study: StudyRecord) -> bool:
    return len({trial.score for trial in study.of_phase(Phase.SEARCH) if trial.scored}) > 1


def _main_rows(study: StudyRecord) -> list[dict[str, Any]]:
    num_trials = sum(trial.scored for trial in study.of_phase(Phase.SEARCH))
    if num_trials < MINIMUM_TRIALS or not _scores_differ(study):
        return []
    num_settings = len(searched_parameters(study))
    few = num_trials < TRIALS_A_SETTING * max(1, num_settings)
    note = f"{num_trials} trials for {num_settings} settings are too few: each setting needs {TRIALS_A_SETTING}"
    rows = []
    for method in ("PED-ANOVA", "fANOVA"):
        most = FANOVA_TRIALS if method == "fANOVA" else None
        importances = _importances(optuna_study(study, most=most), method)
        used = num_trials if most is None else min(most, num_trials)
        used_words = f"{used} of {num_trials} trials, evenly spaced"
        ordered = sorted(importances.items(), key=lambda item: (-item[1], item[0]))
        for rank, (name, value) in enumerate(ordered, start=1):
            rows.append(
                {
                    "study": study.name,
                    "kind": "main",
                    "method": method,
                    "parameter": name,
                    "importance": value,
                    "rank": rank,
                    "num_trials": used,
                    "enough": not few,
                    "note": note if few else (used_words if used < num_trials else None),
                }
            )
    return rows


def _importances(study: optuna.Study, method: str) -> dict[str, float]:
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna marks PED-ANOVA experimental on every call
        try:
            evaluator = PedAnovaImportanceEvaluator() if method == "PED-ANOVA" else FanovaImportanceEvaluator(seed=0)
            importances = get_param_importances(study, evaluator=evaluator)
        except (ValueError, RuntimeError):
            return {}  # too few distinct trials for this measure; the other one may still work
    return {name: float(value) for name, value in importances.items() if np.isfinite(value)}


def _background(surrogate: Surrogate) -> Floats:
    """Unit coordinates (64, P) to average over: uniform draws, so that values the sampler favoured weigh no more."""
    return np.random.default_rng(0).random((_BACKGROUND, len(surrogate.parameters)))


def _grid(parameter: Parameter, points: int) -> Floats:
    values = parameter.choices or parameter.values(points)
    return np.array([parameter.unit(value) for value in values]) if values else np.linspace(0, 1, points)


def _marginal(surrogate: Surrogate, background_NP: Floats, column: int, parameter: Parameter) -> list[dict[str, Any]]:
    units = _grid(parameter, _MARGINAL_POINTS)
    moved = np.repeat(background_NP[None], len(units), axis=0)
    moved[:, :, column] = units[:, None]
    trees = surrogate.predict_trees(moved.reshape(-1, background_NP.shape[1]))
    means_TU = trees.reshape(len(trees), len(units), -1).mean(axis=2)
    low_U, high_U = np.quantile(means_TU, [0.1, 0.9], axis=0)
    return [
        {
            "parameter": parameter.name,
            "log": parameter.log,
            ("choice" if parameter.choices else "value"): parameter.at(float(unit)),
            "mean": float(means_TU[:, index].mean()),
            "low": float(low_U[index]),
            "high": float(high_U[index]),
            "num_trials": surrogate.num_trials,
        }
        for index, unit in enumerate(units)
    ]


def _interaction_rows(study: StudyRecord, surrogate: Surrogate) -> list[dict[str, Any]]:
    background_NP = _background(surrogate)
    variance = float(np.var(surrogate.predict(np.random.default_rng(1).random((1024, len(surrogate.parameters))))))
    if variance == 0 or len(surrogate.parameters) < 2:
        return []
    rows: list[dict[str, Any]] = []
    for first, second in itertools.combinations(range(len(surrogate.parameters)), 2):
        share = pair_variance(surrogate, background_NP, first, second) / variance
        rows.append(
            {
                "study": study.name,
                "kind": "interaction",
                "method": "forest",
                "parameter": surrogate.parameters[first].name,
                "second_parameter": surrogate.parameters[second].name,
                "importance": min(1.0, share),
                "num_trials": surrogate.num_trials,
            }
        )
    rows.sort(key=lambda row: -float(row["importance"]))
    return [{**row, "rank": rank} for rank, row in enumerate(rows, start=1)]


def pair_variance(surrogate: Surrogate, background_NP: Floats, first: int, second: int) -> float:
    """The second-order term of functional ANOVA: the variance that two settings explain together but not alone.

    On a grid of marginal means f_ij it is the mean square of f_ij − f_i. − f_.j + f_.. .
    """
    grid_a = _grid(surrogate.parameters[first], _GRID)
    grid_b = _grid(surrogate.parameters[second], _GRID)
    places = np.array(list(itertools.product(grid_a, grid_b)))
    moved = np.repeat(background_NP[None], len(places), axis=0)
    moved[:, :, first], moved[:, :, second] = places[:, :1], places[:, 1:]
    means = surrogate.predict(moved.reshape(-1, background_NP.shape[1])).reshape(len(places), -1).mean(axis=1)
    joint = means.reshape(len(grid_a), len(grid_b))
    residual = joint - joint.mean(axis=1, keepdims=True) - joint.mean(axis=0, keepdims=True) + joint.mean()
    return float(np.mean(residual**2))
