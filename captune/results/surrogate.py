"""A random forest from settings to selection score: it predicts how settings would do that were not tried.

Hutter et al., "An Efficient Approach for Assessing Hyperparameter Importance" (ICML 2014) use forests the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captune.records import Phase, State, StudyRecord, Trial
from captune.results.searched import place, searched_parameters
from captune.space import Parameter

MINIMUM_TRIALS = 5
NUM_TREES = 100
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Surrogate:
    """A fitted forest over unit coordinates of P settings and the fidelity, which is 1 for every prediction."""

    parameters: list[Parameter]
    forest: Any
    num_trials: int

    def encode(self, trial: Trial) -> Floats:
        """Unit coordinates (P,) of a trial's settings."""
        return self.encode_params({**trial.config, **trial.params})

    def encode_params(self, params: dict[str, Any]) -> Floats:
        """Unit coordinates (P,) of settings by name; 0.5 for a missing one."""
        return np.array([place(parameter, params.get(parameter.name)) for parameter in self.parameters])

    def predict_trees(self, units_NP: Floats) -> Floats:
        """Each tree's prediction (trees, N) at full fidelity."""
        rows = np.column_stack([units_NP, np.ones(len(units_NP))]).astype(np.float32)
        # Use tree_ directly: scikit-learn would check the same rows for each tree, at four times the prediction's cost.
        return np.stack([tree.tree_.predict(rows)[:, 0] for tree in self.forest.estimators_])

    def predict(self, units_NP: Floats) -> Floats:
        """The forest's mean prediction (N,) at full fidelity."""
        return self.predict_trees(units_NP).mean(axis=0)


@lru_cache(maxsize=32)
def fit_surrogate(study: StudyRecord, *, target: str = "score") -> Surrogate | None:
    """A forest on the finished and stopped search trials; None with fewer than five of them or without settings.

    Args:
        target: "score", or "metric" (only once the test labels were read).
    """
    parameters = searched_parameters(study)
    rows, values = [], []
    for trial in study.of_phase(Phase.SEARCH):
        value = trial.score if target == "score" else (trial.metric if study.sealed_opened else None)
        if value is None or not (trial.scored or trial.state == State.PRUNED):
            continue
        settings = {**trial.config, **trial.params}
        fidelity = 1.0 if trial.fidelity is None else trial.fidelity
        rows.append([*(place(parameter, settings.get(parameter.name)) for parameter in parameters), fidelity])
        values.append(value)
    if len(rows) < MINIMUM_TRIALS or not parameters:
        return None
    from sklearn.ensemble import RandomForestRegressor  # takes a second to import, and most calls return above

    forest = RandomForestRegressor(
        n_estimators=NUM_TREES, min_samples_leaf=2, max_features=0.7, random_state=0, n_jobs=1
    )
    forest.fit(np.array(rows), np.array(values))
    return Surrogate(parameters, forest, len(rows))
