"""transfer.csv: how good one cell's best configuration is on other cells, and which single one is best on average."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from captune.records import Phase, StudyRecord, Trial
from captune.results.best import recorded_choice
from captune.results.comparisons import cell_of
from captune.results.surrogate import Surrogate, fit_surrogate
from captune.space import Parameter

BEST_ON_AVERAGE = "best on average"
_COLUMNS = (
    "method", "source", "source_study", "configuration", "target", "target_study", "measure", "how", "value", "best",
    "regret",
)  # fmt: skip


def transfer_table(studies: Iterable[StudyRecord]) -> pd.DataFrame:
    """Each study's best configuration on every study of the same method, and the single one that is best on average.

    `how` is "trial" if the target tried the very same settings, "surrogate" if a forest on the target's trials predicts
    them, empty if neither can. Values are test metrics if every study of the method has read its test labels, else
    selection scores. `regret` is the target's best minus the value, at least 0; best is its best trial or, for a
    predicted value, the forest's highest prediction for its trials. The best on average has the lowest mean regret over
    targets, of all trials of all studies.
    """
    groups: dict[str, list[StudyRecord]] = {}
    for study in studies:
        groups.setdefault(study.method, []).append(study)
    rows = [row for group in groups.values() if len(group) > 1 for row in _group_rows(group)]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


_Value = tuple[float | None, float | None, str | None]


class _Target:
    """What one study says about settings: its trial's value if it tried them, else its forest's prediction."""

    def __init__(self, study: StudyRecord, measure: str) -> None:
        self.study = study
        self.surrogate: Surrogate | None = fit_surrogate(study, target=measure)
        self.known: dict[str, float] = {}
        for trial in study.of_phase(Phase.SEARCH):
            value = trial.metric if measure == "metric" else trial.score
            if trial.scored and value is not None:
                self.known[_settings(trial.params)] = value
        best_of_forest = self._predicted([t.params for t in study.of_phase(Phase.SEARCH) if t.scored])
        self.best_trial = max(self.known.values(), default=None)
        self.best_forest = max(best_of_forest, default=None)

    def _predicted(self, settings: Sequence[dict[str, Any]]) -> list[float]:
        if self.surrogate is None or not settings:
            return []
        units_NP = np.stack([self.surrogate.encode_params(params) for params in settings])
        return [float(value) for value in self.surrogate.predict(units_NP)]

    def values(self, settings: Sequence[dict[str, Any]]) -> list[_Value]:
        """For each settings: its value here, the best to compare it with, and how the value is known."""
        inside = [self.surrogate is not None and _inside(self.surrogate.parameters, params) for params in settings]
        predicted = iter(self._predicted([params for params, known in zip(settings, inside, strict=True) if known]))
        found: list[_Value] = []
        for params, known in zip(settings, inside, strict=True):
            guess = next(predicted) if known else None
            exact = self.known.get(_settings(params))
            if exact is not None:
                found.append((exact, self.best_trial, "trial"))
            else:
                # Forests shrink to the mean: compare with the forest's own best, not with a single lucky trial.
                found.append((guess, self.best_forest, "surrogate") if known else (None, None, None))
        return found


def _settings(params: dict[str, Any]) -> str:
    return json.dumps(params, sort_keys=True, default=str)


def _inside(parameters: Sequence[Parameter], params: dict[str, Any]) -> bool:
    return all(parameter.name in params for parameter in parameters)


def _group_rows(group: Sequence[StudyRecord]) -> list[dict[str, Any]]:
    measure = "metric" if all(study.sealed_opened for study in group) else "score"
    targets = [_Target(study, measure) for study in group]
    rows = []
    for study in group:
        choice = recorded_choice(study)
        trial = next((t for t in study.of_phase(Phase.SEARCH) if t.number == choice.config_id), None)
        if trial is not None:
            rows += [_row(study.method, cell_of(study), study.name, trial, target, measure) for target in targets]
    best = _best_on_average(group, targets)
    if best is not None:
        study, trial = best
        rows += [_row(study.method, BEST_ON_AVERAGE, study.name, trial, target, measure) for target in targets]
    return rows


def _row(method: str, source: str, source_study: str, trial: Trial, target: _Target, measure: str) -> dict[str, Any]:
    ((value, best, how),) = target.values([trial.params])
    return {
        "method": method,
        "source": source,
        "source_study": source_study,
        "configuration": trial.key,
        "target": cell_of(target.study),
        "target_study": target.study.name,
        "measure": measure,
        "how": how,
        "value": value,
        "best": best,
        "regret": None if value is None or best is None else max(0.0, best - value),
    }


def _best_on_average(group: Sequence[StudyRecord], targets: Sequence[_Target]) -> tuple[StudyRecord, Trial] | None:
    tried = [(study, trial) for study in group for trial in study.of_phase(Phase.SEARCH) if trial.scored]
    settings = [trial.params for _, trial in tried]
    regrets_TC = np.array(
        [
            [
                np.nan if value is None or best is None else max(0.0, best - value)
                for value, best, _ in target.values(settings)
            ]
            for target in targets
        ]
    )
    means_C = regrets_TC.mean(axis=0) if len(tried) else np.array([])
    # Settings that one of the targets cannot judge have a mean of NaN and are left out.
    return tried[int(np.nanargmin(means_C))] if np.isfinite(means_C).any() else None
