"""Figures of the predictions: the share of the pool that each class gets, and accuracy by confidence."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd

from captune.results.formats import short_name
from captune.results.plots import BLUE, GREY, ORANGE, STYLE, Figure, new_figure, plain_text

MOST_CLASSES = 20


def shares_figure(classes: pd.DataFrame) -> Figure | None:
    """Share of the pool that is predicted as each class, by zero-shot and by the candidate (one study).

    With more than 20 classes, only the 20 whose share changed most.
    """
    rows = classes[classes["share_change"].notna()]
    if not len(rows):
        return None
    rows = rows.reindex(rows["share_change"].abs().sort_values(ascending=False, kind="stable").index)[:MOST_CLASSES]
    rows = rows.sort_values("share_after", kind="stable")
    places = np.arange(len(rows))
    with mpl.rc_context(STYLE):
        figure, (axis,) = new_figure(1.1 + 0.26 * len(rows))
        for place, before, after in zip(places, rows["share_before"], rows["share_after"], strict=True):
            axis.plot([100 * before, 100 * after], [place, place], color=GREY, linewidth=1.6, zorder=1)
        axis.plot(100 * rows["share_before"], places, "o", color=ORANGE, label="zero-shot")
        name = plain_text(short_name(rows["candidate"].iloc[0]))
        axis.plot(100 * rows["share_after"], places, "o", color=BLUE, label=name)
        axis.axvline(100 / len(classes), color=GREY, linewidth=1, dashes=(2, 2), label="equal shares")
        axis.set_yticks(places, [plain_text(name) for name in rows["class"]])
        axis.set_ylim(-0.7, len(rows) - 0.3)
        axis.set_xlim(left=0)
        axis.set_title("How often each class is predicted in the pool", pad=20)
        axis.set_xlabel("share of the pool (%)")
        axis.grid(False, axis="y")
        axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3, borderaxespad=0.1, handletextpad=0.2)
    return figure


def reliability_figure(reliability: pd.DataFrame) -> Figure | None:
    """Accuracy by confidence, of zero-shot and of the candidate (one study); larger dots stand for more images."""
    if not len(reliability):
        return None
    with mpl.rc_context(STYLE):
        figure, (axis,) = new_figure(3.4)
        axis.plot([0, 100], [0, 100], color=GREY, linewidth=1, dashes=(3, 2))
        for colour, (name, rows) in zip((ORANGE, BLUE), reliability.groupby("of", sort=False), strict=False):
            sizes = 12 + 140 * rows["images"] / reliability["images"].max()
            axis.plot(100 * rows["confidence"], 100 * rows["accuracy"], color=colour, linewidth=1.2, zorder=2)
            axis.scatter(
                100 * rows["confidence"], 100 * rows["accuracy"], s=sizes, color=colour, zorder=3,
                label=plain_text(short_name(name)),
            )  # fmt: skip
        axis.set_xlim(0, 102)
        axis.set_ylim(0, 102)
        axis.set_title("How often a sure prediction is right")
        axis.set_xlabel("confidence (%)")
        axis.set_ylabel("accuracy (%)")
        axis.legend(loc="upper left")
    return figure
