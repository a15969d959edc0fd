"""Figures of the tables, as PNG and SVG, one column wide so that they can be read on a phone.

Every function takes a table as `write_csv` wrote it and draws only that; axes are in percent, files in fractions. It
returns None, not an empty picture, if the table lacks the numbers for the figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Figure
from matplotlib.ticker import MaxNLocator

from captune.records.files import replacing
from captune.records.trial import FIRST_ORIGINS
from captune.results.formats import short_name

# Okabe and Ito's palette ("Color Universal Design", 2008), which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, RED, GREY, BLACK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#8A8A8A", "#222222"
PAPER, GRID = "#ffffff", "#e4e4e4"
WIDTH = 5.0
"""Inches, about 350 points: a 360 px screen shows the type at nearly its size."""
DPI = 170
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "text.color": BLACK,
    "axes.edgecolor": BLACK,
    "axes.labelcolor": BLACK,
    "xtick.color": BLACK,
    "ytick.color": BLACK,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.hashsalt": "captune",
    # Keep text as text, so that it can be searched and follows the page's font and colours.
    "svg.fonttype": "none",
}


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem`.png and `stem`.svg; the same figure gives the same bytes."""
    written = []
    with mpl.rc_context(STYLE):
        layout = figure.get_layout_engine()
        if layout is not None:
            # Lay out once, before both files: with a layout engine, each savefig draws the figure twice.
            layout.execute(figure)
            figure.set_layout_engine(None)
        for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            path = stem.with_name(f"{stem.name}.{suffix}")
            with replacing(path) as temporary:
                figure.savefig(temporary, format=suffix, dpi=DPI, metadata=metadata)
            written.append(path)
    return written


def stamp(figure: Figure, text: str) -> None:
    """Write a warning at the top of a figure that must not be shown without it."""
    figure.suptitle(text, color="#d55e00", fontsize="small", fontweight="bold")


def new_figure(height: float, rows: int = 1, ratios: Sequence[float] | None = None) -> tuple[Figure, list[Axes]]:
    """A figure of one column, with its axes from top to bottom."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 1, squeeze=False, gridspec_kw={"height_ratios": ratios} if ratios else None)
    return figure, list(axes[:, 0])


def study_figure(trials: pd.DataFrame, robustness: pd.DataFrame) -> Figure | None:
    """The study at a glance: every trial's selection score, then the confirmed configurations' scores and test metric.

    Args:
        trials: trials.csv of one study.
        robustness: robustness.csv of the same study.
    """
    search = trials[trials["phase"] == "search"].astype({"number": float})
    if search["score"].notna().sum() == 0:
        return None
    confirmed = robustness[robustness["origin"] != "reference"]
    panels = ["search"]
    panels += ["score_mean"] if confirmed["score_mean"].notna().any() else []
    panels += ["mean"] if confirmed["mean"].notna().any() else []
    heights = [2.9] + [1.1 + 0.3 * (len(confirmed) + 1)] * (len(panels) - 1)
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(sum(heights), len(panels), heights)
        _draw_search(axes[0], trials, search)
        for axis, column in zip(axes[1:], panels[1:], strict=True):
            _draw_configurations(axis, robustness, column)
    return figure


def _draw_search(axis: Axes, trials: pd.DataFrame, search: pd.DataFrame) -> None:
    done = search[(search["state"] == "COMPLETE") & search["score"].notna()]
    stopped = search[(search["state"] == "PRUNED") & search["score"].notna()]
    failed = search[search["state"] == "FAILED"]
    axis.scatter(
        stopped["number"], 100 * stopped["score"], s=26, facecolors="none", edgecolors=GREY, label="stopped early"
    )
    axis.scatter(done["number"], 100 * done["score"], s=30, color=BLUE, label="complete", zorder=3)
    if len(done):
        best = done.sort_values("number")
        reach = [*best["number"], float(search["number"].max())]
        climb = 100 * best["score"].cummax()
        axis.step(
            reach, [*climb, climb.iloc[-1]], where="post", color=BLUE, linewidth=1.2, alpha=0.6, label="best so far"
        )
    for label, rows, colour, dashes in (
        ("zero-shot", trials[trials["key"] == "zero_shot"], RED, (4, 2)),
        ("the paper's", search[search["origin"] == "paper"], ORANGE, (1, 1.5)),
        ("the default", search[search["origin"] == "default"], ORANGE, (1, 1.5)),
    ):
        level = rows["score"].dropna()
        if len(level):
            axis.axhline(100 * float(level.iloc[0]), color=colour, linewidth=1.4, dashes=dashes, label=label, zorder=1)
    if len(failed):
        bottom = axis.get_ylim()[0]
        axis.scatter(
            failed["number"], np.full(len(failed), bottom), marker="x", s=28, color=RED, label="failed", clip_on=False
        )
        axis.set_ylim(bottom=bottom)
    axis.set_title("Search: selection score of each trial", pad=34)
    axis.set_xlabel("trial")
    axis.set_ylabel("selection score (%)")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, borderaxespad=0.1, handletextpad=0.4, columnspacing=1
    )


_PANELS = {
    "score_mean": ("Over fresh seeds: selection score", "score_low", "score_high", "mean selection score (%)"),
    "mean": ("On the sealed test", "t_low", "t_high", "mean {metric} (%), 95 % interval over seeds"),
}


def _first_words(origin: str) -> str:
    return f" ({origin})" if origin in FIRST_ORIGINS else ""


def _draw_configurations(axis: Axes, robustness: pd.DataFrame, column: str) -> None:
    title, low, high, axis_label = _PANELS[column]
    rows = robustness[(robustness["origin"] != "reference") & robustness[column].notna()].sort_values(column)
    for place, (_, row) in enumerate(rows.iterrows()):
        colour = BLUE if row["advised"] else GREY
        if pd.notna(row[low]):
            axis.plot(
                [100 * row[low], 100 * row[high]], [place, place], color=colour, linewidth=2.2, solid_capstyle="round"
            )
        axis.plot(100 * row[column], place, "o", color=colour, markersize=6.5)
    axis.set_yticks(range(len(rows)), [_candidate_label(row) for _, row in rows.iterrows()])
    axis.set_ylim(-0.7, len(rows) - 0.3)
    for name, colour, dashes in (("zero_shot", RED, (4, 2)), ("balanced", GREEN, (2, 1))):
        level = robustness.loc[robustness["configuration"] == name, column].dropna()
        # A reference that the criterion is built on scores 1 by construction; a line would say nothing.
        if len(level) and not (column == "score_mean" and float(level.iloc[0]) >= 1):
            axis.axvline(
                100 * float(level.iloc[0]),
                color=colour,
                linewidth=1.4,
                dashes=dashes,
                zorder=1,
                label=_candidate_label(robustness[robustness["configuration"] == name].iloc[0]),
            )
    labelled = bool(axis.get_legend_handles_labels()[1])
    if labelled:
        axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderaxespad=0.1, handletextpad=0.4)
    metric = str(robustness["metric_name"].iloc[0]).replace("_", " ")
    axis.set_title(title, pad=20 if labelled else None)
    axis.set_xlabel(axis_label.format(metric=metric))
    axis.grid(False, axis="y")


def _candidate_label(row: Any) -> str:
    name = f"{plain_text(short_name(row['configuration']))}{_first_words(str(row['origin']))}"
    return f"{name} – advised" if row["advised"] else name


def plain_text(name: Any) -> str:
    """A name in which matplotlib does not read a dollar sign as the start of a formula."""
    return str(name).replace("$", r"\$")


_STRESS_WORDS = {
    "imbalance": "imbalance\n{}",
    "pool": "{} % of\nthe pool",
    "present": "{} % classes\npresent",
    "open_set": "{} % classes\nnot asked for",
    "shot_noise": "{} % of\nshots wrong",
}


def robustness_figure(robustness: pd.DataFrame) -> Figure | None:
    """Accuracy of one study's configurations on harder pools (`--stress`), and the worst class of each."""
    stress = [name for name in robustness.columns if name.rsplit("_", 1)[0] in _STRESS_WORDS]
    rows = robustness[robustness["mean"].notna()]
    if not len(rows):
        return None
    stressed = rows[rows[stress].notna().any(axis=1)]
    panels = 1 + bool(len(stressed))
    heights = [0.9 + 0.34 * len(rows), 2.6][:panels]
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(sum(heights), panels, heights)
        ordered = rows.sort_values("mean")
        for place, (_, row) in enumerate(ordered.iterrows()):
            axes[0].plot(
                [100 * row["worst_class_recall"], 100 * row["mean"]], [place, place], color="#CCCCCC", linewidth=2
            )
        places = np.arange(len(ordered))
        axes[0].plot(100 * ordered["mean"], places, "o", color=BLUE, label="mean")
        axes[0].plot(100 * ordered["worst_seed"], places, "|", color=BLUE, markersize=11, label="worst seed")
        axes[0].plot(
            100 * ordered["worst_class_recall"], places, "D", color=ORANGE, markersize=5, label="worst class (recall)"
        )
        axes[0].set_yticks(places, [_candidate_label(row) for _, row in ordered.iterrows()])
        axes[0].set_ylim(-0.7, len(ordered) - 0.3)
        axes[0].set_title("Worst cases", pad=20)
        axes[0].set_xlabel("%")
        axes[0].grid(False, axis="y")
        axes[0].legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, borderaxespad=0.1, handletextpad=0.2)
        if len(stressed):
            _draw_stress(axes[1], stressed, stress)
    return figure


def _draw_stress(axis: Axes, rows: pd.DataFrame, columns: Sequence[str]) -> None:
    known = [name for name in columns if rows[name].notna().any()]
    places = np.arange(len(known))
    for offset, (colour, (_, row)) in enumerate(
        zip([BLUE, ORANGE, GREEN, GREY] * len(rows), rows.iterrows(), strict=False)
    ):
        axis.plot(
            places + 0.06 * offset,
            [100 * row[name] for name in known],
            "o",
            color=colour,
            label=plain_text(short_name(row["configuration"])),
        )
        axis.axhline(100 * row["mean"], color=colour, linewidth=1, dashes=(3, 2), alpha=0.7)
    named = [name.rsplit("_", 1) for name in known]
    axis.set_xticks(places, [_STRESS_WORDS[kind].format(value) for kind, value in named])
    axis.set_xlim(-0.5, len(known) - 0.4)
    axis.set_title("On harder pools (dashed: the plain pool)")
    axis.set_ylabel("mean metric (%)")
    axis.legend(loc="best")


def importance_figure(importance: pd.DataFrame, marginals: pd.DataFrame) -> Figure | None:
    """Which settings mattered, by two measures, and how the score depends on the four that mattered most (one study).

    None if there are too few trials to tell.
    """
    main = importance[(importance["kind"] == "main") & importance["enough"].eq(True)]
    if not len(main):
        return None
    wide = main.pivot_table(index="parameter", columns="method", values="importance", aggfunc="mean")
    wide = wide.loc[wide.mean(axis=1).sort_values().index]
    shown = [name for name in reversed(list(wide.index)) if name in set(marginals["parameter"])][:4]
    curve_rows = (len(shown) + 1) // 2
    heights = [0.9 + 0.34 * len(wide), *([2.0] * curve_rows)]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, sum(heights)), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(1 + curve_rows, 2, height_ratios=heights)
        axis = figure.add_subplot(grid[0, :])
        places = np.arange(len(wide))
        for offset, (method, colour) in enumerate(zip(wide.columns, (BLUE, ORANGE), strict=False)):
            axis.barh(places + 0.2 - 0.4 * offset, 100 * wide[method], height=0.36, color=colour, label=str(method))
        axis.set_yticks(places, list(wide.index))
        axis.set_title("Importance of each setting", pad=20)
        axis.set_xlabel("share of the score's variation (%)")
        axis.grid(False, axis="y")
        axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderaxespad=0.1)
        for index, name in enumerate(shown):
            _draw_marginal(
                figure.add_subplot(grid[1 + index // 2, index % 2]), marginals[marginals["parameter"] == name], name
            )
    return figure


def _draw_marginal(axis: Axes, curve: pd.DataFrame, name: str) -> None:
    values = curve["value"]
    if values.isna().any():
        places = np.arange(len(curve))
        spread = [100 * (curve["mean"] - curve["low"]), 100 * (curve["high"] - curve["mean"])]
        axis.errorbar(places, 100 * curve["mean"], yerr=spread, fmt="o", color=BLUE)
        axis.set_xticks(places, [str(value) for value in curve["choice"]])
        axis.set_xlim(-0.6, len(curve) - 0.4)
    else:
        axis.plot(values, 100 * curve["mean"], color=BLUE)
        axis.fill_between(values, 100 * curve["low"], 100 * curve["high"], color=BLUE, alpha=0.15, linewidth=0)
        if bool(curve["log"].iloc[0]):
            axis.set_xscale("log")
    axis.set_title(name, fontsize=9.5, fontweight="normal")
    axis.set_ylabel("score (%)", fontsize=9)
    axis.tick_params(labelsize=8.5)


def curves_figure(curves: pd.DataFrame) -> Figure | None:
    """Expected best score so far by number of trials, with its band; one line per study."""
    if not len(curves):
        return None
    panels: list[tuple[str, str, str]] = [
        ("expected_best_score", "Expected best selection score", "selection score (%)")
    ]
    if curves["expected_metric_of_pick"].notna().any():
        panels.append(("expected_metric_of_pick", "Test metric of the trial it would pick", "metric (%)"))
    by_study = list(curves.groupby("study", sort=False))
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(2.7 * len(panels), len(panels))
        for axis, (column, title, label) in zip(axes, panels, strict=True):
            for colour, (study, rows) in zip([BLUE, ORANGE, GREEN, RED, GREY] * 20, by_study, strict=False):
                low, high = 100 * rows[f"{column}_low"], 100 * rows[f"{column}_high"]
                axis.plot(rows["num_trials"], 100 * rows[column], color=colour, label=plain_text(study))
                axis.fill_between(rows["num_trials"], low, high, color=colour, alpha=0.15, linewidth=0)
                zero = rows["zero_shot_score" if column == "expected_best_score" else "zero_shot_metric"].dropna()
                if len(zero):
                    line: Any = {"label": "zero-shot", "color": RED} if len(by_study) == 1 else {"color": colour}
                    axis.axhline(100 * float(zero.iloc[0]), linewidth=1.2, dashes=(4, 2), **line)
            axis.set_title(title)
            axis.set_ylabel(label)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[-1].set_xlabel("trials")
        if curves["study"].nunique() <= 6:
            axes[0].legend(loc="lower right")
    return figure


def comparisons_figure(comparisons: pd.DataFrame) -> Figure | None:
    """The 15 largest paired differences, with their intervals and verdicts."""
    rows = comparisons[comparisons["difference"].notna()]
    if not len(rows):
        return None
    rows = rows.reindex(rows["difference"].abs().sort_values(ascending=False).index)[:15].sort_values("difference")
    colours = {"first better": BLUE, "second better": RED, "practically equal": GREEN}
    with mpl.rc_context(STYLE):
        figure, (axis,) = new_figure(1.0 + 0.32 * len(rows))
        for place, (_, row) in enumerate(rows.iterrows()):
            colour = colours.get(str(row["verdict"]), GREY)
            if pd.notna(row["low"]):
                axis.plot([100 * row["low"], 100 * row["high"]], [place, place], color=colour, linewidth=2.2)
            axis.plot(100 * row["difference"], place, "o", color=colour, markersize=6)
        axis.axvline(0, color=BLACK, linewidth=0.8)
        axis.set_yticks(range(len(rows)), [_pair_label(row) for _, row in rows.iterrows()])
        axis.set_ylim(-0.7, len(rows) - 0.3)
        # Names may take half of the width, so the label is broken into two short lines.
        axis.set_xlabel("first − second (points),\n95 % interval")
        axis.set_title("Paired differences\n(grey: undecided)")
        axis.grid(False, axis="y")
    return figure


def _pair_label(row: Any) -> str:
    return f"{plain_text(short_name(row['first']))} − {plain_text(short_name(row['second']))}"
