"""transfer.csv: does one cell's best configuration serve another cell, and which single one is best everywhere?"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from captune.records import Phase, StudyRecord, Trial
from captune.results.best import recorded_choice
from captune.results.comparisons import cell_of
from captune.results.domains import Domain
from captune.results.surrogate import Surrogate, fit_surrogate

BEST_ON_AVERAGE = "best on average"
_COLUMNS = (
    "method", "source", "source_run", "configuration", "target", "target_run", "measure", "how", "value", "best",
    "regret", "params",
)  # fmt: skip


def transfer_table(runs: Iterable[StudyRecord]) -> pd.DataFrame:
    """Each run's best configuration on every run of the same method, and the single configuration that is best on
    average.

    `how` is "run" where the target ran the very same settings, "surrogate" where a forest on the target's trials
    predicts them. Values are sealed metrics once every run has opened its seal, else selection scores; `regret` is
    the target's best (of its trials and of the forest at its own best) minus the value. The best on average has the
    lowest mean regret over targets among all trials of all runs.
    """
    groups: dict[str, list[StudyRecord]] = {}
    for run in runs:
        groups.setdefault(run.method, []).append(run)
    rows = [row for group in groups.values() if len(group) > 1 for row in _group_rows(group)]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


_Value = tuple[float | None, float | None, str | None]


class _Target:
    """What one run says about settings: exactly where it ran them, by its forest elsewhere."""

    def __init__(self, run: StudyRecord, measure: str) -> None:
        self.run = run
        self.surrogate: Surrogate | None = fit_surrogate(run, target=measure)
        self.known: dict[str, float] = {}
        for trial in run.of_phase(Phase.SEARCH):
            value = trial.metric if measure == "metric" else trial.score
            if trial.finished and value is not None:
                self.known[_settings(trial.params)] = value
        best_of_forest = self._predicted([t.params for t in run.of_phase(Phase.SEARCH) if t.finished])
        self.best_run = max(self.known.values(), default=None)
        self.best_forest = max(best_of_forest, default=None)

    def _predicted(self, settings: Sequence[dict[str, Any]]) -> list[float]:
        if self.surrogate is None or not settings:
            return []
        units_NP = np.stack([self.surrogate.encode_params(params) for params in settings])
        return [float(value) for value in self.surrogate.predict(units_NP)]

    def values(self, settings: Sequence[dict[str, Any]]) -> list[_Value]:
        """For each settings: its value here, the best to compare it with, and how it is known."""
        inside = [self.surrogate is not None and _inside(self.surrogate.domains, params) for params in settings]
        predicted = iter(self._predicted([params for params, known in zip(settings, inside, strict=True) if known]))
        found: list[_Value] = []
        for params, known in zip(settings, inside, strict=True):
            guess = next(predicted) if known else None
            exact = self.known.get(_settings(params))
            if exact is not None:
                found.append((exact, self.best_run, "run"))
            else:
                # A forest flattens: its prediction is compared with its own best, not with a single lucky run.
                found.append((guess, self.best_forest, "surrogate") if known else (None, None, None))
        return found


def _settings(params: dict[str, Any]) -> str:
    return json.dumps(params, sort_keys=True, default=str)


def _inside(domains: Sequence[Domain], params: dict[str, Any]) -> bool:
    return all(domain.name in params for domain in domains)


def _group_rows(group: Sequence[StudyRecord]) -> list[dict[str, Any]]:
    measure = "metric" if all(run.sealed_opened for run in group) else "score"
    targets = [_Target(run, measure) for run in group]
    rows = []
    for run in group:
        choice = recorded_choice(run)
        trial = next((t for t in run.of_phase(Phase.SEARCH) if t.number == choice.config_id), None)
        if trial is not None:
            rows += [_row(run.method, cell_of(run), run.name, trial, target, measure) for target in targets]
    best = _best_on_average(group, targets)
    if best is not None:
        run, trial = best
        rows += [_row(run.method, BEST_ON_AVERAGE, run.name, trial, target, measure) for target in targets]
    return rows


def _row(method: str, source: str, source_run: str, trial: Trial, target: _Target, measure: str) -> dict[str, Any]:
    ((value, best, how),) = target.values([trial.params])
    return {
        "method": method,
        "source": source,
        "source_run": source_run,
        "configuration": trial.key,
        "target": cell_of(target.run),
        "target_run": target.run.name,
        "measure": measure,
        "how": how,
        "value": value,
        "best": best,
        "regret": None if value is None or best is None else max(0.0, best - value),
        "params": _settings(trial.params),
    }


def _best_on_average(group: Sequence[StudyRecord], targets: Sequence[_Target]) -> tuple[StudyRecord, Trial] | None:
    tried = [(run, trial) for run in group for trial in run.of_phase(Phase.SEARCH) if trial.finished]
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
    # Settings that one target cannot judge are no candidates: their mean is NaN.
    return tried[int(np.nanargmin(means_C))] if np.isfinite(means_C).any() else None
