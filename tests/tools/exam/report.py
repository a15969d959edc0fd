"""The exam's outcome: what each rule is worth, every case, the figure, and the learned module."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pandas as pd

from tests.tools.exam.judge import (
    Learned,
    always,
    cases,
    coverage,
    gated,
    highest_score,
    judge,
    learn,
    portfolio,
    scored_blend,
    summary,
)

matplotlib.use("Agg")
from matplotlib import pyplot as plt

FIVE = ("balanced", "transclip", "cap@quick", "cap_mixture@quick", "grip@quick")
RULES = {
    "always zero-shot": always("zero_shot"),
    "always balanced": always("balanced"),
    "always cap": always("cap@quick"),
    "always transclip": always("transclip"),
    "always anchored": always("anchored"),
    "mean of five": always(*FIVE),
    "five, gated by 0.05": gated(FIVE),
    "highest score": highest_score,
    "blend by scores": scored_blend,
}
_HEADER = '''"""What the advice has learned from development data, and which data that was.

Written by `python -m tests.tools.exam judge --learned`; analysis/measurements/advice_exam.md says how well it holds on
datasets that were left out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GainModel:
    """A linear model of the gain over zero-shot, and the errors it made on datasets it was not fitted on.

    Attributes:
        coefficients: fact (`captune.decisions.advice.gain_facts`, points) → points of gain a point of it.
        error_base, error_slope: scale of an error: base + slope · percent of images on which the two differ.
        errors: quantiles 1 … 99 % of the errors in units of that scale, of predictions for left-out datasets.
        seen: the feature files it was fitted on.
        worlds: how many worlds they make.
    """

    coefficients: dict[str, float]
    error_base: float
    error_slope: float
    errors: tuple[float, ...]
    seen: tuple[str, ...]
    worlds: int

'''


def report(cache: Path, out: Path, *, without: tuple[str, ...], learned: Path | None) -> None:
    """Judge, print, write.

    Args:
        cache: cached predictions.
        out: where the tables and the figure go.
        without: candidates that are left out.
        learned: the module to write, if any.
    """
    table = cases(cache, without=without, need=("transclip", "anchored", "cap_mixture@quick"), knowing=True)
    judged = {name: judge(rule, table) for name, rule in RULES.items()}
    taught = learn(table)
    advised = iter(taught.advice)
    judged["the advice"] = judge(lambda _: next(advised).weights, table)
    rows = pd.DataFrame([{"rule": name, **summary(frame)} for name, frame in judged.items()])
    print(rows.round(2).to_string(index=False))
    print({name: round(value, 3) for name, value in coverage(taught, table).items()})
    out.mkdir(parents=True, exist_ok=True)
    rows.round(3).to_csv(out / "advice_exam.csv", index=False)
    _every_case(judged["the advice"], taught).to_csv(out / "advice_cases.csv", index=False)
    found = portfolio(table)
    found.round(3).to_csv(out / "advice_portfolio.csv", index=False)
    print(found.round(2).to_string(index=False))
    by_kind = pd.DataFrame({name: frame.groupby("kind").gain.mean() for name, frame in judged.items()})
    print(by_kind.round(1).to_string())
    _figure({name: judged[name] for name in ("mean of five", "highest score", "the advice")}, out / "advice_exam.png")
    if learned is not None:
        learned.write_text(_HEADER + "\n" + _literal(taught), encoding="utf-8")


def _every_case(judged: pd.DataFrame, taught: Learned) -> pd.DataFrame:
    """A row a case: what was advised, what was expected of the blend, and what came of it."""
    expected = [advice.considered for advice in taught.advice]
    columns = {
        "expected": [None if seen is None else seen.gain for seen in expected],
        "low": [None if seen is None else seen.low for seen in expected],
        "high": [None if seen is None else seen.high for seen in expected],
        "risk": [None if seen is None else seen.risk for seen in expected],
        "knows": [advice.knows for advice in taught.advice],
    }
    return judged.assign(**columns).round(3)


def _figure(judged: dict[str, pd.DataFrame], file: Path) -> None:
    """Gain over zero-shot of every case, sorted, a line a rule, beside the best single method."""
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    first = next(iter(judged.values()))
    axes.plot(sorted(first.best_gain), color="0.75", linewidth=3, label="best single method (by the labels)")
    for name, frame in judged.items():
        axes.plot(sorted(frame.gain), label=name, linewidth=1.6)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="worlds, by gain", ylabel="points over zero-shot")
    axes.legend(frameon=False)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _literal(taught: Learned) -> str:
    model = taught.model
    coefficients = "".join(f'        "{name}": {value},\n' for name, value in model.coefficients.items())
    errors = "".join(f"        {value},\n" for value in model.errors)
    return (
        f"GAIN_MODEL = GainModel(\n    coefficients={{\n{coefficients}    }},\n"
        f"    error_base={model.error_base},\n    error_slope={model.error_slope},\n"
        f"    errors=(\n{errors}    ),\n"
        f"    seen=(\n"
        + "".join(f'        "{name}",\n' for name in model.seen)
        + f"    ),\n    worlds={model.worlds},\n)\n"
    )
