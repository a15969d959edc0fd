"""python -m tests.tools.exam fill | judge: predictions into a cache, then decision rules on them."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
FEATURES = Path("../shared/data/features")


@app.callback()
def main() -> None:
    """The exam of captune's advice: fill a cache of predictions, then judge decision rules on it."""


@app.command()
def fill(
    cache: Annotated[Path, typer.Option(help="Folder of cached predictions; what is there is kept.")],
    features: Annotated[Path, typer.Option(help="Folder of feature files.")] = FEATURES,
    datasets: Annotated[str, typer.Option(help="Stems of feature files, a,b; default all.")] = "",
    kinds: Annotated[str, typer.Option(help="Kinds of worlds, a,b; default all.")] = "",
    seeds: Annotated[int, typer.Option(help="Draws of every world.")] = 1,
    labelled: Annotated[bool, typer.Option("--labelled", help="The worlds with labelled images (ssl, trzsl).")] = False,
    budget: Annotated[str, typer.Option(help="Also methods that train: none, quick, full.")] = "none",
    candidates: Annotated[str, typer.Option(help="Only these candidates, a,b@quick.")] = "",
    processes: Annotated[int, typer.Option(help="Worlds at once.")] = 1,
    minutes: Annotated[float, typer.Option(help="Nothing new is begun after this.")] = 1e6,
) -> None:
    """Predict every world with every candidate, where the cache lacks it."""
    os.environ["OMP_NUM_THREADS"] = "1"
    from tests.tools.exam.candidates import Candidate, trained, training_free
    from tests.tools.exam.worlds import table_of_worlds

    sizes = {}
    for file in sorted(features.glob("*.npz")):
        if not datasets or file.stem in datasets.split(","):
            with np.load(file) as archive:
                sizes[file.stem] = len(archive["text_features"])
    worlds = table_of_worlds(sizes, seeds=seeds, kinds=tuple(kinds.split(",")) if kinds else (), labelled=labelled)
    wanted = training_free() + (trained(budget) if budget != "none" else ())
    if candidates:
        wanted = tuple(Candidate.of_key(key) for key in candidates.split(","))
    until = time.time() + 60 * minutes
    jobs = [(cache, features, world, wanted, until) for world in worlds]
    print(f"{len(worlds)} worlds, {len(wanted)} candidates", flush=True)
    if processes == 1:
        written = sum(map(_fill_one, jobs))
    else:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            written = sum(pool.imap_unordered(_fill_one, jobs, chunksize=1))
    print(f"{written} files written")


@app.command()
def judge(
    cache: Annotated[Path, typer.Option(help="Folder of cached predictions.")],
    out: Annotated[Path, typer.Option(help="Folder of the tables and the figure.")] = Path("analysis/measurements"),
    without: Annotated[str, typer.Option(help="Candidates that are left out, a,b.")] = "",
    learned: Annotated[Path | None, typer.Option(help="Also write what was learned to this module.")] = None,
) -> None:
    """Judge every rule, the advice by leaving whole datasets out; write advice_exam.csv, advice_cases.csv and a figure.

    With --learned captune/decisions/learned.py the gain model is fitted on all of them and written there.
    """
    from tests.tools.exam.report import report

    report(cache, out, without=tuple(name for name in without.split(",") if name), learned=learned)


@app.command()
def presence(
    cache: Annotated[Path, typer.Option(help="Folder of cached predictions.")],
    features: Annotated[Path, typer.Option(help="Folder of feature files, whose stems are the datasets.")] = FEATURES,
    out: Annotated[Path, typer.Option(help="Folder of the table.")] = Path("analysis/measurements"),
) -> None:
    """Which names are absent: fit and judge the model, leaving whole datasets out; print its constants."""
    from tests.tools.exam.presence import judge_presence

    judge_presence(cache, out, [file.stem for file in sorted(features.glob("*.npz"))])


def _fill_one(job: tuple) -> int:  # type: ignore[type-arg]
    import torch

    from tests.tools.exam.cache import fill as fill_cache

    torch.set_num_threads(1)
    cache, features, world, wanted, until = job
    return fill_cache(cache, features, [world], wanted, until)


if __name__ == "__main__":
    app()
