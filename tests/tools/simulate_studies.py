"""Studies with a known truth: what confirming buys over taking the luckiest trial, and how often intervals cover.

`python -m tests.tools.simulate_studies` writes simulated_studies.csv, .png and .svg to analysis/measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from captune.decisions import statistics
from captune.decisions.by_criterion import LEVEL
from captune.results.plots import BLACK, BLUE, GREY, ORANGE, STYLE, new_figure, save_figure
from captune.results.tables import write_csv

Floats = NDArray[np.float64]
MEASUREMENTS = Path(__file__).parents[2] / "analysis" / "measurements"
ZERO_SHOT = 0.70
NOISES = (0.0, 0.01, 0.02, 0.03, 0.05)
SEEDS = (2, 3, 5, 10, 20)
TRIALS, TOP, CONFIRM_SEEDS = 12, 3, 3
GAINS = (-0.04, -0.02, 0.0, 0.02, 0.04, 0.06, 0.08, 0.10)
STRATEGIES = ("luckiest of the search", "luckiest at the same cost", "confirmed")


def draw_configurations(generator: np.random.Generator, num_studies: int, num_trials: int) -> tuple[Floats, Floats]:
    """True qualities and stabilities of random configurations, both (studies, trials).

    Qualities spread as measured on real features: from far below zero-shot to a few points above, most of them below;
    the best possible is 0.80. Stability multiplies the seed noise: log-normal around 1, some configurations are
    erratic.
    """
    loss = 0.25 * generator.beta(1.2, 2.0, size=(num_studies, num_trials))
    return 0.80 - loss, np.exp(generator.normal(0, 0.5, size=(num_studies, num_trials)))


def simulate_strategies(
    noise: float, generator: np.random.Generator, *, num_studies: int = 4000, bias: float = 0.01
) -> pd.DataFrame:
    """True quality of what each strategy picks, over many studies; one row a strategy.

    A run's score is the configuration's quality, plus what the criterion gets wrong about it whatever the seed (sd
    `bias`), plus seed noise (sd `noise` × its stability). Strategies: the best single score of the 12 search trials;
    the best of as many trials as search and confirmation cost together; the best mean over 3 fresh seeds among the
    top 3 and the paper's configuration (trial 0).
    """
    cost = TRIALS + (TOP + 1) * CONFIRM_SEEDS
    quality_ST, stability_ST = draw_configurations(generator, num_studies, cost)
    bias_ST = bias * generator.normal(size=quality_ST.shape)
    sd_ST = noise * stability_ST
    score_ST = quality_ST + bias_ST + sd_ST * generator.normal(size=quality_ST.shape)
    studies = np.arange(num_studies)
    lucky = score_ST[:, :TRIALS].argmax(axis=1)
    costly = score_ST.argmax(axis=1)
    kept_SK = np.argsort(-score_ST[:, :TRIALS], axis=1)[:, :TOP]
    kept_SK = np.concatenate([kept_SK, np.zeros((num_studies, 1), dtype=int)], axis=1)
    fresh_SKR = generator.normal(size=(*kept_SK.shape, CONFIRM_SEEDS))
    mean_SK = (quality_ST + bias_ST)[studies[:, None], kept_SK] + sd_ST[studies[:, None], kept_SK] * fresh_SKR.mean(-1)
    winner = mean_SK.argmax(axis=1)
    confirmed = kept_SK[studies, winner]
    best_S = quality_ST[:, :TRIALS].max(axis=1)
    believed = (score_ST[studies, lucky], score_ST[studies, costly], mean_SK[studies, winner])
    rows = []
    for name, pick, belief_S in zip(STRATEGIES, (lucky, costly, confirmed), believed, strict=True):
        true_S = quality_ST[studies, pick]
        runs = TRIALS if name == STRATEGIES[0] else cost
        rows.append(
            {
                "question": "choice", "noise": noise, "strategy": name, "num_runs": runs,
                "mean_quality": float(true_S.mean()), "regret": float((best_S - true_S).mean()),
                "optimism": float((belief_S - true_S).mean()),
                "below_zero_shot": float((true_S < ZERO_SHOT).mean()), "sd_quality": float(true_S.std()),
                "spread_when_run_again": float((sd_ST[studies, pick]).mean()),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def simulate_coverage(
    num_seeds: int, generator: np.random.Generator, *, num_studies: int = 1000, level: float = statistics.LEVEL
) -> pd.DataFrame:
    """How often Student's and the bootstrap's interval hold the true mean of normal values; one row an interval."""
    held = {"Student": 0, "bootstrap": 0}
    for values in generator.normal(size=(num_studies, num_seeds)):
        student = statistics.t_interval(values.tolist(), level)
        boot = statistics.stratified_bootstrap([values.tolist()], generator, level=level, num_resamples=500)
        for name, interval in (("Student", student), ("bootstrap", boot)):
            held[name] += interval is not None and interval.low <= 0 <= interval.high
    rows = [
        {"question": "coverage", "strategy": name, "num_runs": num_seeds, "coverage": count / num_studies}
        for name, count in held.items()
    ]
    return pd.DataFrame(rows)


def simulate_advice(
    gain: float,
    num_seeds: int,
    generator: np.random.Generator,
    *,
    noise: float = 0.012,
    image_error: float = 0.045,
    num_configs: int = TOP + 1,
    num_studies: int = 4000,
) -> pd.DataFrame:
    """How often the rule says "adapt" when the true gain in what it judges is `gain`, of every configuration.

    The best mean over seeds is judged, so that its luck counts as error. Seed noise differs between configurations
    (stability as in `draw_configurations`) while the rule pools it; all share the scored images, whose luck no seed
    averages away.
    Defaults are the embedded digits' under tft: seed sd 1.2 points, a standard error of 4.5 over images.
    """
    luck_S11 = image_error * generator.normal(size=(num_studies, 1, 1))
    sd_SC1 = noise * np.exp(generator.normal(0, 0.5, size=(num_studies, num_configs, 1)))
    gains_SCR = gain + luck_S11 + sd_SC1 * generator.normal(size=(num_studies, num_configs, num_seeds))
    pooled_S = np.sqrt(gains_SCR.var(axis=2, ddof=1).mean(axis=1))
    quantile = statistics.student_quantile(LEVEL, num_configs * (num_seeds - 1))
    images = statistics.normal_quantile(LEVEL) * image_error
    adapt_S = gains_SCR.mean(axis=2).max(axis=1) > np.hypot(quantile * pooled_S / np.sqrt(num_seeds), images)
    return pd.DataFrame([{"question": "advice", "num_runs": num_seeds, "gain": gain, "adapt": float(adapt_S.mean())}])


def simulated_studies(
    *, seed: int = 0, num_studies: int = 4000, noises: Sequence[float] = NOISES, seeds: Sequence[int] = SEEDS
) -> pd.DataFrame:
    """All three questions over their ranges, in one table."""
    generator = np.random.default_rng(seed)
    parts = [simulate_strategies(noise, generator, num_studies=num_studies) for noise in noises]
    parts += [simulate_coverage(count, generator, num_studies=max(100, num_studies // 4)) for count in seeds]
    parts += [simulate_advice(gain, count, generator, num_studies=num_studies) for count in (3, 5) for gain in GAINS]
    return pd.concat(parts, ignore_index=True)


def main(directory: Path | None = None) -> list[Path]:
    """Write the table and its figure."""
    directory = directory or MEASUREMENTS
    table = simulated_studies()
    figure = simulation_figure(table)
    return [
        write_csv(table, directory / "simulated_studies.csv"),
        *save_figure(figure, directory / "simulated_studies"),
    ]


def simulation_figure(table: pd.DataFrame) -> Figure:
    """Regret and optimism of the ways to choose by seed noise, coverage of the intervals by seeds, power of the
    advice.
    """
    choice, coverage = table[table["question"] == "choice"], table[table["question"] == "coverage"]
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(9.8, 4)
        for axis, column, label in (
            (axes[0], "regret", "points lost to the best trial"),
            (axes[1], "optimism", "points believed too much"),
        ):
            for colour, (name, rows) in zip((ORANGE, GREY, BLUE), choice.groupby("strategy", sort=False), strict=False):
                axis.plot(100 * rows["noise"], 100 * rows[column], "o-", color=colour, label=str(name), markersize=4.5)
            axis.set_ylabel(label)
            axis.axhline(0, color=BLACK, linewidth=0.8)
        axes[0].set_title("Known truth: what each way of choosing loses")
        axes[0].legend(loc="upper left")
        axes[1].set_title("… and how much it flatters itself")
        axes[1].set_xlabel("seed noise of a run (sd, points)")
        for colour, (name, rows) in zip((BLUE, ORANGE), coverage.groupby("strategy", sort=False), strict=False):
            axes[2].plot(rows["num_runs"], 100 * rows["coverage"], "o-", color=colour, label=str(name), markersize=4.5)
        axes[2].axhline(95, color=BLACK, linewidth=0.8, dashes=(4, 2))
        axes[2].set_xlabel("seeds")
        axes[2].set_ylabel("holds the truth (%)")
        axes[2].set_title("Coverage of the 95 % intervals of a mean")
        axes[2].xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[2].legend(loc="lower right")
        advice = table[table["question"] == "advice"]
        for colour, (count, rows) in zip((ORANGE, BLUE, GREY), advice.groupby("num_runs"), strict=False):
            axes[3].plot(
                100 * rows["gain"], 100 * rows["adapt"], "o-", color=colour, label=f"{count} seeds", markersize=4.5
            )
        axes[3].set_xlabel("true gain in the selection score (points)")
        axes[3].set_ylabel('advice is "adapt" (%)')
        axes[3].set_title("The rule of the final choice")
        axes[3].legend(loc="lower right")
    return figure


if __name__ == "__main__":
    main()
