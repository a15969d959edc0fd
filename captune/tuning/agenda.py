"""What a study does next: references, a screen, the search, confirmation over fresh seeds, stress tests.

A function of what the study knows, so a resumed study needs no memory of its plans; only the sampler's proposals are
asked for once, and written down before they are used.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from captune.config import StudyConfig
from captune.records import CONFIRM, REFERENCE, RUNNING, SCREEN, SEARCH, STRESS
from captune.tuning.confirm import RACE_AFTER, best_mean, candidates, losers
from captune.tuning.runs import Role

if TYPE_CHECKING:
    from captune.tuning.cell import Cell
    from captune.tuning.search import Search

STRESSES: dict[str, dict[str, Any]] = {
    "imbalance10": {"pool_imbalance": 10.0},
    "imbalance50": {"pool_imbalance": 50.0},
    "pool25": {"pool_fraction": 0.25},
    "pool50": {"pool_fraction": 0.5},
    "openset20": {"open_set_fraction": 0.2},
    "noise20": {"shot_noise": 0.2},
}
_STRESS_SEEDS = 3
WARM_STARTS = 3
# Of so many screened configurations the best is promoted.
PROMOTE_ONE_OF = 8


class Agenda:
    """The plan of one study.

    Args:
        cell: the study.
        warm_starts: points of its space to try after the paper's configuration.
    """

    def __init__(self, cell: Cell, warm_starts: list[dict[str, Any]]) -> None:
        self._cell = cell
        self.warm_starts = warm_starts
        self._chosen: tuple[int, dict[int, str]] | None = None

    def has_more(self) -> bool:
        """Whether anything is still to be planned, now or once running runs have ended."""
        cell = self._cell
        return len(cell.search) < cell.num_trials or self._reference() is not None or self._after_search() is not None

    def next(self) -> dict[str, Any] | None:
        """The fields of the next `planned` event; None while there is nothing to plan."""
        cell = self._cell
        reference = self._reference()
        if reference is not None:
            return reference
        if cell.screening is not None and len(cell.screening.runs) < cell.num_screened:
            return self._screen(cell.screening)
        if len(cell.search) < cell.num_trials:
            return self._search(len(cell.search)) if self._warm_starts_known() else None
        return self._after_search()

    def _warm_starts_known(self) -> bool:
        """Whether the search may begin: what an earlier cell found is waited for, and written down once it is there."""
        cell, earlier = self._cell, self._cell.after
        if earlier is not None and not cell.started_from_earlier:
            if not (earlier.search_done or earlier.finished):
                return False
            cell.record("warm_starts", configs=earlier.best_configs(WARM_STARTS))
        return True

    def _reference(self) -> dict[str, Any] | None:
        for key, method, config in self._cell.info.references:
            if key not in self._cell.runs:
                return self._planned(
                    key, REFERENCE, method=method, origin="reference", config=config.model_dump(mode="json"),
                    role="report" if key.endswith("-report") else "score",
                )  # fmt: skip
        return None

    def _after_search(self) -> dict[str, Any] | None:
        return (self._confirm() or self._stress()) if self._cell.search_done else None

    def _screen(self, screening: Search) -> dict[str, Any]:
        number, base = len(screening.runs), self._cell.info.screen_base
        if base is None:
            raise ValueError("a study that screens must know the configuration of its screening trials")
        paper = {p.name: getattr(base, p.name) for p in screening.space.parameters}
        values = screening.suggest(number) if number else paper
        fixed = screening.space.fixed if number else {}
        config = base.with_values(fixed | values, where=screening.space.source)
        return self._planned(
            f"s{number:04d}", SCREEN, number=number, origin="sampler" if number else "paper", params=values,
            config=config.model_dump(mode="json"),
        )  # fmt: skip

    def _search(self, number: int) -> dict[str, Any] | None:
        cell, base = self._cell, self._cell.info.base
        paper = {p.name: getattr(base, p.name) for p in cell.space.parameters}
        warm_starts = self.warm_starts
        origin, values, promoted_from = "sampler", {}, None
        if number == 0:
            origin, values = "paper", paper
        elif number <= len(warm_starts):
            origin, values = "warm_start", paper | warm_starts[number - 1]
        elif cell.screening is not None and not cell.screening.done(0):
            return None
        elif (promoted := self._promoted(number - 1 - len(warm_starts))) is not None:
            origin, values, promoted_from = "screen", promoted[1], promoted[0]
        else:
            values = cell.suggest(number)
        fixed = {} if number == 0 else cell.space.fixed
        config = base.with_values(fixed | values, where=cell.space.source)
        return self._planned(
            f"t{number:04d}", SEARCH, number=number, config_id=number, origin=origin, params=values,
            config=config.model_dump(mode="json"), promoted_from=promoted_from,
        )  # fmt: skip

    def _promoted(self, rank: int) -> tuple[str, dict[str, Any]] | None:
        """The screened configuration of this rank, by key, at its place in the search's own space; None past the last.

        The paper's is left out: the search begins with it anyway.
        """
        screening = self._cell.screening
        if screening is None:
            return None
        places: dict[tuple[float, ...], str] = {}
        for run in screening.ranked():
            if run.origin != "paper":
                places.setdefault(tuple(screening.space.unit(run.params)), run.key)
        chosen = list(places.items())[: math.ceil(len(screening.runs) / PROMOTE_ONE_OF)]
        if rank >= len(chosen):
            return None
        place, key = chosen[rank]
        return key, self._cell.space.at(place)

    def _confirm(self) -> dict[str, Any] | None:
        chosen = self._candidates()
        alive = set(chosen)
        for index in range(self._cell.study.confirm_seeds):
            if index == RACE_AFTER:
                if any(self._cell.runs[self._confirm_key(c, s)].state == RUNNING for c in chosen for s in range(index)):
                    return None
                seeds = list(range(index))
                table = {c: {s: self._cell.runs[self._confirm_key(c, s)].score for s in seeds} for c in chosen}
                alive -= losers(table, seeds=seeds)
            for config_id, why in chosen.items():
                if config_id not in alive:
                    continue
                for role in self._confirm_roles():
                    key = self._confirm_key(config_id, index, role)
                    if key not in self._cell.runs:
                        return self._planned_again(key, CONFIRM, config_id, index, role, why)
        return None

    def _candidates(self) -> dict[int, str]:
        # Fixed once the search has ended; asked at every turn of the loop.
        if self._chosen is None or self._chosen[0] != len(self._cell.search):
            top = self._cell.study.confirm_top if self._cell.space.parameters else min(1, self._cell.study.confirm_top)
            self._chosen = (len(self._cell.search), candidates(self._cell.scored(), top))
        return self._chosen[1]

    def _confirm_roles(self) -> tuple[Role, ...]:
        return ("score", "report") if self._cell.info.both_roles else ("score",)

    def _confirm_key(self, config_id: int, index: int, role: Role = "score") -> str:
        return f"c{config_id}-s{self._fresh_seed(index)}" + ("-report" if role == "report" else "")

    def _fresh_seed(self, index: int) -> int:
        # The same seeds for every configuration, so that comparisons are paired; the search used the study's own.
        return self._cell.study.seed + 1 + index

    def _stress(self) -> dict[str, Any] | None:
        if not self._cell.study.stress:
            return None
        confirmed: dict[int, dict[int, float | None]] = {}
        for run in self._cell.runs.values():
            if run.phase == CONFIRM and run.role == "score" and run.config_id is not None:
                if run.state == RUNNING:
                    return None
                confirmed.setdefault(run.config_id, {})[run.seed] = run.score
        choice = best_mean(confirmed)
        if choice is None:
            return None
        role: Role = "report" if self._cell.info.both_roles else "score"
        for index in range(min(_STRESS_SEEDS, self._cell.study.confirm_seeds)):
            for name, overrides in STRESSES.items():
                if "shot_noise" in overrides and not _owns_labels(self._cell.study):
                    continue
                key = f"x{choice}-{name}-s{self._fresh_seed(index)}"
                if key not in self._cell.runs:
                    return self._planned_again(key, STRESS, choice, index, role, "top") | {"task_overrides": overrides}
        return None

    def _planned_again(
        self, key: str, phase: str, config_id: int, seed_index: int, role: Role, why: str
    ) -> dict[str, Any]:
        trial = self._cell.search[config_id]
        return self._planned(
            key, phase, config_id=config_id, origin="plateau" if why == "plateau" else trial.origin,
            params=trial.params, config=trial.config, seed=self._fresh_seed(seed_index), role=role,
        )  # fmt: skip

    def _planned(self, key: str, phase: str, **fields: Any) -> dict[str, Any]:
        defaults: dict[str, Any] = {
            "number": None, "config_id": None, "params": {}, "seed": self._cell.study.seed, "role": "score",
            "method": self._cell.study.method, "task_overrides": {}, "promoted_from": None,
        }  # fmt: skip
        return defaults | {"key": key, "phase": phase} | fields


def _owns_labels(study: StudyConfig) -> bool:
    """Whether the paradigm has labelled images that could be labelled wrongly."""
    return study.task.paradigm == "trzsl" or study.task.num_shots > 0
