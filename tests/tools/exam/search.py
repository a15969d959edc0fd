"""What a search adds to the candidates of a study, and how far its ranking flatters what it chooses.

    python -m tests.tools.exam.search fill --cache CACHE --features FOLDER --out FOLDER --kinds plain,shots-1
    python -m tests.tools.exam.search judge --cache CACHE --searched FOLDER --out analysis/measurements

`fill` trains the default configuration of CAP and others drawn from its search space, each with a seed of the search
and one of the confirmation, on worlds that the exam's cache has; `judge` lets a study choose from them.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer

from captune.algorithms import ALGORITHMS
from captune.config import StudyConfig
from captune.decisions import advice
from captune.decisions.evidence import Evidence, Validation
from captune.records import REFERENCES
from captune.seeding import numpy_generator
from captune.studies.planning import Plan, plan_study
from captune.training.context import Context, open_context
from captune.training.loop import Loop, train_together
from captune.training.scoring import selection_scores
from tests.tools.exam.cache import _compact, _save, role_of, worlds_in
from tests.tools.exam.candidates import BUDGETS, Predict
from tests.tools.exam.judge import Case, cases, orders, summary
from tests.tools.exam.learning import Learned, labelled_fit, learn
from tests.tools.exam.worlds import LABELLED, World

CRITERION = {"ul": "agree-smooth", "tft": "agree-smooth", "ssl": "val-smooth", "trzsl": "pseudo-unseen"}
CONFIRMED = 3
DEFAULT, SEARCH, CONFIRMATION = 0, 0, 1
_PACK = 8
# Trials of the portfolio, one of each method's default, against the twelve of a search.
_TRIALS = 5
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def fill(
    cache: Annotated[Path, typer.Option(help="Folder of cached predictions, whose worlds are searched.")],
    out: Annotated[Path, typer.Option(help="Folder of the searched predictions; what is there is kept.")],
    features: Annotated[Path, typer.Option(help="Folder of feature files.")] = Path("../shared/data/features"),
    kinds: Annotated[str, typer.Option(help="Kinds of worlds, a,b.")] = "plain",
    paradigms: Annotated[str, typer.Option(help="Paradigms, a,b.")] = "ssl,trzsl,ul,tft",
    configurations: Annotated[int, typer.Option(help="Number of configurations, the default one included.")] = 12,
    minutes: Annotated[float, typer.Option(help="Nothing new is begun after this.")] = 1e6,
) -> None:
    """Train a search on worlds of the cache."""
    torch.set_num_threads(1)
    until = time.time() + 60 * minutes
    worlds = [world for world in worlds_in(cache) if world.kind in kinds.split(",")]
    for world in sorted(worlds, key=lambda world: (kinds.split(",").index(world.kind), world)):
        if world.paradigm in paradigms.split(",") and not (out / f"{world.key}.npz").exists() and time.time() < until:
            out.mkdir(parents=True, exist_ok=True)
            began = time.process_time()
            with tempfile.TemporaryDirectory() as scratch:
                _save(out / f"{world.key}.npz", _searched(world, features, Path(scratch), configurations))
            open_context.cache_clear()
            print(world.key, round(time.process_time() - began, 1), flush=True)


def _searched(world: World, features: Path, scratch: Path, configurations: int) -> dict[str, np.ndarray]:
    """Predictions of every configuration with both seeds, and the scores that the search ranks them by."""
    task = world.open(features, scratch)
    plan = plan_study(StudyConfig(task=task, method="cap", fixed=BUDGETS["quick"]), scratch / "study")
    context = open_context(task, role_of(world), "cpu")  # type: ignore[arg-type]
    reporting = open_context(task, "report", "cpu") if world.paradigm == "trzsl" else context  # type: ignore[arg-type]
    unlabelled = np.sort(np.concatenate([context.task.pool, context.task.holdout]))
    generator = numpy_generator(world.seed, "search", world.key)
    drawn = [plan.space.at(generator.random(len(plan.space.parameters)).tolist()) for _ in range(1, configurations)]
    values = [plan.info.starting_values(plan.space), *drawn]
    predict = _trained(plan, context, values)
    reported = predict if reporting is context else _trained(plan, reporting, values)
    scored = open_context(task, "score", "cpu")  # type: ignore[arg-type]
    found: dict[str, np.ndarray] = {}
    for number, seed in predict:
        own = {
            "pool": predict[number, seed](unlabelled),
            "test": reported[number, seed](context.task.test),
            "validation": predict[number, seed](context.task.validation.indices_N),
        }
        found |= {f"{name}-{number}-{seed}": _compact(probs) for name, probs in own.items()}
        if seed == SEARCH:
            scores = selection_scores(scored, predict[number, seed](scored.task.holdout), own["validation"])
            found[f"score-{number}"] = np.array(scores[CRITERION[world.paradigm]])
    return found


def _trained(plan: Plan, context: Context, values: list[dict[str, object]]) -> dict[tuple[int, int], Predict]:
    """Configuration and seed → what it predicts; they are trained in packs, as in a study."""
    loops = {}
    for number, own in enumerate(values):
        config = plan.info.base.with_values({**plan.space.fixed, **own})
        for seed in (SEARCH, CONFIRMATION):
            loops[number, seed] = Loop(ALGORITHMS["cap"].build(context, config, seed), config, config.epochs)
    every = list(loops.values())
    for start in range(0, len(every), _PACK):
        group = every[start : start + _PACK]
        for _ in range(group[0].config.epochs):
            failed = [one for one in train_together(group) if isinstance(one, Exception)]
            if failed:
                raise failed[0]
    return {key: loop.algorithm.predict for key, loop in loops.items()}


@dataclass(frozen=True)
class Searched:
    """A world with its search.

    Attributes:
        case: the world; its candidates are the references and `c0`, `c1`, … as they were confirmed.
        scores_C: what the search ranked the configurations by.
        flattery_2C: accuracy on the validation images less that on the test images, in points, of both seeds.
    """

    case: Case
    scores_C: np.ndarray
    flattery_2C: np.ndarray

    @property
    def ranked(self) -> list[int]:
        """Configurations, the best score first."""
        return sorted(range(len(self.scores_C)), key=lambda number: (-self.scores_C[number], number))

    def among(self, learned: Learned, numbers: list[int], *, weighing: Case | None = None) -> float:
        """The gain of what is advised among the references and these configurations of CAP."""
        case = weighing or self.case
        names = [*(name for name in REFERENCES if name in case.test), *(f"c{number}" for number in numbers)]
        scoring, model = learned.unseen[case.family]
        evidence, labelled = case.evidence, case.evidence.validation
        kept = replace(
            evidence,
            probs={name: evidence.probs[name] for name in names},
            families={name: "cap" for name in names if name not in REFERENCES},
            validation=labelled and replace(labelled, probs={name: labelled.probs[name] for name in names}),
        )
        return self.case.gain(advice.advise(kept, model, scoring).weights)


def searched_case(case: Case, file: Path) -> Searched:
    """A world of the exam with what `fill` left of it."""
    with np.load(file) as archive:
        count = sum(name.startswith("score-") for name in archive.files)
        scores_C = np.array([float(archive[f"score-{number}"]) for number in range(count)])
        probs = {
            name: [[archive[f"{name}-{n}-{seed}"].astype(np.float32) for n in range(count)] for seed in (0, 1)]
            for name in ("pool", "test", "validation")
        }
    evidence, labelled = case.evidence, case.evidence.validation
    names = [f"c{number}" for number in range(count)]

    def joined(known: dict[str, torch.Tensor], own: list[np.ndarray]) -> dict[str, torch.Tensor]:
        return {**known, **{name: torch.from_numpy(table) for name, table in zip(names, own, strict=True)}}

    flattery_2C = np.full((2, count), np.nan)
    for seed in (SEARCH, CONFIRMATION):
        for number in range(count):
            tested = replace(case, test={"it": probs["test"][seed][number]})
            if labelled is not None:
                seen = 100 * labelled.accuracy(torch.from_numpy(probs["validation"][seed][number]))
                flattery_2C[seed, number] = seen - tested.accuracy({"it": 1.0})
    confirmed = {name: tables[CONFIRMATION] for name, tables in probs.items()}
    both = Evidence(
        joined(dict(evidence.probs), confirmed["pool"]),
        evidence.neighbours_Nk,
        evidence.knowledge,
        validation=labelled
        and Validation(joined(dict(labelled.probs), confirmed["validation"]), labelled.labels_V, labelled.unseen_K),
    )
    test = {**case.test, **dict(zip(names, confirmed["test"], strict=True))}
    return Searched(Case(case.world, both, test, case.facts), scores_C, flattery_2C)


@app.command()
def judge(
    cache: Annotated[Path, typer.Option(help="Folder of cached predictions.")],
    searched: Annotated[Path, typer.Option(help="Folder that `fill` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder of the table.")] = Path("analysis/measurements"),
    without: Annotated[str, typer.Option(help="Candidates that are left out, a,b.")] = "",
) -> None:
    """Write advice_search.csv, a row per world, and print what it comes to."""
    left_out = tuple(name for name in without.split(",") if name)
    every = cases(cache, without=left_out, need=("transclip", "anchored", "cap_mixture@quick"), knowing=True)
    pools = [case for case in every if case.world.paradigm not in LABELLED]
    few = [case for case in every if case.world.paradigm in LABELLED]
    learned = {False: learn(pools), True: learn(few, labelled_fit(pools))}
    covering = {False: orders(pools), True: orders(few)}
    rows = []
    for case in every:
        file, labelled = searched / f"{case.world.key}.npz", case.world.paradigm in LABELLED
        if file.exists():
            names = [name for name in covering[labelled][case.family] if name not in REFERENCES][:_TRIALS]
            rows.append(row_of(searched_case(case, file), learned[labelled], names))
    table = pd.DataFrame(rows)
    out.mkdir(parents=True, exist_ok=True)
    table.round(3).to_csv(out / "advice_search.csv", index=False)
    for paradigms, own in table.groupby(table.paradigm.isin(LABELLED)):
        print("ssl and trzsl" if paradigms else "ul and tft", len(own))
        print(own.groupby("family").mean(numeric_only=True).mean().round(2).to_string())
    for name in [column for column in table if column.startswith("advice_")]:
        for labelled, own in table.groupby(table.paradigm.isin(LABELLED)):
            judged = own.assign(gain=own[name], regret=own.best_of_all - own[name])
            print(labelled, name, {key: round(value, 2) for key, value in summary(judged).items()})


def row_of(world: Searched, learned: Learned, methods: list[str]) -> dict[str, object]:
    """What a search came to on a world, and what the defaults of these methods; gains over zero-shot in points."""
    case, ranked, count = world.case, world.ranked, len(world.scores_C)
    gains = case.single_gains
    own_C = np.array([gains[f"c{number}"] for number in range(count)])
    references = max(gains[name] for name in REFERENCES if name in gains)
    confirmed = sorted({*ranked[:CONFIRMED], DEFAULT})
    top = ranked[0]
    labelled = case.evidence.validation
    return {
        **vars(case.world),
        "family": case.family,
        "validation_images": 0 if labelled is None else len(labelled.labels_V),
        "default": own_C[DEFAULT],
        "chosen": own_C[top],
        "best_searched": own_C.max(),
        "mean_searched": own_C[1:].mean(),
        # How much more than the default configuration's the chosen one's validation accuracy flatters it.
        "flattery": world.flattery_2C[SEARCH, top] - world.flattery_2C[SEARCH, DEFAULT],
        "flattery_confirmed": world.flattery_2C[CONFIRMATION, top] - world.flattery_2C[CONFIRMATION, DEFAULT],
        "best_of_references": references,
        "best_before": max([0.0, gains["balanced"], gains["anchored"], *own_C]),
        "best_of_portfolio": max(references, *(gains[name] for name in methods)),
        "best_of_all": max(references, own_C.max()),
        "advice_references": world.among(learned, []),
        "advice_default": world.among(learned, [DEFAULT]),
        "advice_searched": world.among(learned, confirmed),
        "advice_searched_honest": world.among(learned, confirmed, weighing=_as_the_default(case)),
    }


def _as_the_default(case: Case) -> Case:
    """The case, were every configuration to score on the validation images as the default one does."""
    labelled = case.evidence.validation
    if labelled is None:
        return case
    probs = {name: labelled.probs["c0"] if name.startswith("c") and name[1:].isdigit() else table
             for name, table in labelled.probs.items()}  # fmt: skip
    return replace(case, evidence=replace(case.evidence, validation=replace(labelled, probs=probs)))


if __name__ == "__main__":
    app()
