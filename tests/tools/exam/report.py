"""The exam's outcome: what each rule is worth, every case, the figure, and the learned module."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pandas as pd

from captune.decisions.learning import GainModel, ScoreModel
from captune.records import PROBE, REFERENCES
from tests.tools.exam.judge import (
    Case,
    always,
    cases,
    gated,
    highest_criterion,
    highest_score,
    judge,
    portfolio,
    smooth_blend,
    summary,
)  # fmt: skip
from tests.tools.exam.learning import Learned, coverage, labelled_fit, learn
from tests.tools.exam.worlds import LABELLED

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
    "highest agree-smooth": highest_score,
    "blend by agree-smooth": smooth_blend,
}
_BEFORE = ("zero_shot", "balanced", "anchored")
_REFERENCES = (*_BEFORE, "text_mixture")
STUDIES = {
    "… among three references and cap": (*_BEFORE, "cap@quick"),
    "… among four references": _REFERENCES,
    "… among four references and cap": (*_REFERENCES, "cap@quick"),
    "… among four references and transclip": (*_REFERENCES, "transclip"),
    "… among four references, transclip, cap": (*_REFERENCES, "transclip", "cap@quick"),
    "… among what --method auto tries": (*_REFERENCES, "transclip", "grip@quick", "cap_mixture@quick", "cap@quick"),
}
"""What the advice may choose from in a study, regret still to the best of all."""
LABELLED_RULES = {
    "always zero-shot": always("zero_shot"),
    "always cap": always("cap@quick"),
    "always transclip": always("transclip"),
    "always anchored": always("anchored"),
    "always probe (the labels alone)": always("probe"),
    "mean of all": lambda evidence: always(*evidence.probs)(evidence),
    "highest criterion of zero_shot, balanced, cap": highest_criterion("zero_shot", "balanced", "cap@quick"),
    "highest criterion of all": highest_criterion(),
}
LABELLED_STUDIES = {
    "… among the references and cap: `captune run`": (*REFERENCES, "cap@quick"),
    "… the same without the probe": (*(name for name in REFERENCES if name != PROBE), "cap@quick"),
}
_HEADER = '''"""What the advice has learned from development data, and which data that was.

Written by `python -m tests.tools.exam judge --learned`; analysis/measurements/advice_exam.md says how well it holds on
datasets that were left out.
"""

from __future__ import annotations

from captune.decisions.learning import GainModel, ScoreModel
'''


def report(cache: Path, out: Path, *, without: tuple[str, ...], learned: Path | None) -> None:
    """Judge, print, write.

    Args:
        cache: cached predictions.
        out: where the tables and the figure go.
        without: candidates that are left out.
        learned: the module to write, if any.
    """
    every = cases(cache, without=without, need=("transclip", "anchored", "cap_mixture@quick"), knowing=True)
    table = [case for case in every if case.world.paradigm not in LABELLED]
    labelled = [case for case in every if case.world.paradigm in LABELLED]
    few = learn(labelled, labelled_fit(table))
    _report_labelled(labelled, few, out)
    judged = {name: judge(rule, table) for name, rule in RULES.items()}
    taught = learn(table)
    blends, advised = iter(taught.advice), iter(taught.advice)
    judged["blend by learned scores"] = judge(lambda _: next(blends).blend, table)
    judged["the advice"] = judge(lambda _: next(advised).weights, table)
    for words, names in STUDIES.items():
        among = iter([taught.among(case, names).weights for case in table])
        judged[words] = judge(lambda _, among=among: next(among), table)  # type: ignore[misc]
    rows = pd.DataFrame([{"rule": name, **summary(frame)} for name, frame in judged.items()])
    print(rows.round(2).to_string(index=False))
    print({name: round(value, 3) for name, value in coverage(taught).items()})
    out.mkdir(parents=True, exist_ok=True)
    rows.round(3).to_csv(out / "advice_exam.csv", index=False)
    whole = _every_case(judged["the advice"], taught)
    whole.to_csv(out / "advice_cases.csv", index=False)
    _frontier(whole).round(3).to_csv(out / "advice_frontier.csv", index=False)
    found = portfolio(table, [said.scores for said in taught.advice])
    found.round(3).to_csv(out / "advice_portfolio.csv", index=False)
    print(found.round(2).to_string(index=False))
    by_kind = pd.DataFrame({name: frame.groupby("kind").gain.mean() for name, frame in judged.items()})
    print(by_kind.round(1).to_string())
    _figure(
        {name: judged[name] for name in ("mean of five", "blend by agree-smooth", "the advice")},
        out / "advice_exam.png",
    )
    if learned is not None:
        models = _scores_literal(few.scoring), _gains_literal("", taught.model), _gains_literal("LABELLED_", few.model)
        learned.write_text(_HEADER + "\n" + "".join(models), encoding="utf-8")


def _report_labelled(table: list[Case], taught: Learned, out: Path) -> None:
    """The same where images are labelled: advice_labelled.csv, advice_labelled_cases.csv."""
    judged = {name: judge(rule, table) for name, rule in LABELLED_RULES.items()}
    advised = iter(taught.advice)
    judged["the advice"] = judge(lambda _: next(advised).weights, table)
    for words, names in LABELLED_STUDIES.items():
        among = iter([taught.among(case, names).weights for case in table])
        judged[words] = judge(lambda _, among=among: next(among), table)  # type: ignore[misc]
    rows = pd.DataFrame(
        [
            {"paradigm": paradigm, "rule": name, **summary(frame[frame.paradigm == paradigm])}
            for paradigm in LABELLED
            for name, frame in judged.items()
        ]
    )
    print(rows.round(2).to_string(index=False))
    print({name: round(value, 3) for name, value in coverage(taught).items()})
    out.mkdir(parents=True, exist_ok=True)
    rows.round(3).to_csv(out / "advice_labelled.csv", index=False)
    _every_case(judged["the advice"], taught).to_csv(out / "advice_labelled_cases.csv", index=False)


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


def _frontier(every: pd.DataFrame) -> pd.DataFrame:
    """Gain against risk: the advice, were it followed only where the chance of being worse is said to be smaller."""
    rows = []
    for most in (0.3, 0.2, 0.15, 0.1, 0.05, 0.03):
        followed = every.risk <= most
        gain = every.gain.where(followed, 0.0)
        bounded = every.drop(columns="regret_halved").assign(gain=gain, regret=every.best_gain - gain)
        rows.append({"most_risk": most, "followed": int((followed & (every.gain != 0)).sum()), **summary(bounded)})
    return pd.DataFrame(rows)


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


def _scores_literal(scoring: ScoreModel) -> str:
    coefficients = "".join(f'        "{name}": {value},\n' for name, value in scoring.coefficients.items())
    return (
        f"SCORE_MODEL = ScoreModel(\n    coefficients={{\n{coefficients}    }},\n"
        f"    images_a_class={scoring.images_a_class},\n    validation_images={scoring.validation_images},\n)\n"
    )


def _gains_literal(prefix: str, model: GainModel) -> str:
    coefficients = "".join(f'        "{name}": {value},\n' for name, value in model.coefficients.items())
    errors = "".join(f"        {value},\n" for value in model.errors)
    seen = "".join(f'        "{name}",\n' for name in model.seen)
    return (
        f"{prefix}GAIN_MODEL = GainModel(\n    coefficients={{\n{coefficients}    }},\n"
        f"    error_base={model.error_base},\n    error_slope={model.error_slope},\n    errors=(\n{errors}    ),\n"
        f"    seen=(\n{seen}    ),\n    worlds={model.worlds},\n)\n"
    )
