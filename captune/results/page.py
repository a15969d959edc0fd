"""The content of report.html for one study: the values for its template, templates/study.html, which holds the HTML.

Every number on the page is a cell of a CSV (fractions are shown in percent, with one decimal), because the page is made
from the tables alone. rendering.py fills the template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from captune.config import PARADIGMS
from captune.decisions.criteria import ORACLE
from captune.records import is_against_zero_shot
from captune.results import views
from captune.results.best_configs import COLUMNS
from captune.results.formats import duration, fixed, in_words, is_known, percent, plain, points, sentence, short_name
from captune.results.galleries import confusion_grids, galleries
from captune.results.rendering import render, shown_figures
from captune.results.tables import ORACLE_STAMP, setting_columns

Tables = Mapping[str, pd.DataFrame]
_CAPTIONS = {
    "study": "Each trial's selection score, and what was confirmed over fresh seeds; what is advised is marked.",
    "robustness": "Worst seed, worst class and, where it was run, other pools.",
    "importance": "Which settings mattered, and how the score goes with them (the forest's view of these trials).",
    "curves": "What a shorter search would have found.",
    "comparisons": "Paired differences; blue: the first is better, red: the second, green: equal, grey: undecided.",
    "shares": "How often each class is predicted in the pool, by zero-shot and by what is advised.",
    "reliability": "How often a prediction is right, by how sure the model is; on the dashed line it is as sure as it "
    "should be.",
}
_MOST_PAIRS = 12
_PAUSE_SECONDS = 60.0


def render_study(
    tables: Tables, figures: Mapping[str, Path], files: Sequence[str], jpegs: Sequence[Sequence[str]] = ()
) -> str:
    """The page of one study.

    Args:
        tables: by file name, as they were written.
        figures: SVG files by name, to be put into the page.
        files: names of the files beside the page that it links to.
        jpegs: base64, one or two for each row of pictures.csv.
    """
    study, best = views.rows_of(tables["studies.csv"])[0], views.rows_of(tables["best_configs.csv"])[0]
    parts: dict[str, Any] = {
        "title": study["study"],
        "subtitle": f"{study['method']} on {study['dataset']}, {_paradigm(study['paradigm'])}",
        "stamp": ORACLE_STAMP if study["select_by"] == ORACLE else "",
        "best": {name: value if is_known(value) else "" for name, value in best.items()},
        "candidates": _candidates(tables),
        "compared": _compared(tables, best),
        "reason": sentence(best["reason"]) if is_known(best["reason"]) else "",
        "steps": _notes(tables, "next step"),
        "facts": _facts(study),
        "settings": _settings(best),
        "settings_of": in_words(best["configuration"]),
        "galleries": galleries(tables.get("pictures.csv"), jpegs),
        "classes": _classes(tables),
        "pairs": _pairs(tables),
        "confusion": confusion_grids(tables.get("confusion.csv")),
        "trials": _best_trials(tables),
        "front": _front(tables),
        "no_importance": _no_importance(tables),
        "criteria": _criteria(tables),
        "notes": _notes(tables, "note"),
        "figures": shown_figures(figures, _CAPTIONS),
        "files": files,
    }
    return render("study.html", contents=_contents(parts), **parts)


def _contents(parts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The ids and titles of the sections that the page has."""
    drawn = parts["figures"]
    has = {
        ("why", "Why"): True,
        ("next", "What to try next"): parts["steps"],
        ("adapted", "What was adapted"): True,
        ("images", "Images"): parts["galleries"],
        ("classes", "Classes"): parts["classes"].rows or parts["confusion"] or {"shares", "reliability"} & drawn.keys(),
        ("search", "The search"): True,
        ("criteria", "Choosing without labels"): parts["criteria"].rows,
        ("limits", "What to keep in mind"): parts["notes"],
        ("files", "Files"): True,
    }
    return [entry for entry, there in has.items() if there]


def _paradigm(key: Any) -> str:
    said = PARADIGMS.get(str(key))
    return f"{key} ({said})" if said else str(key)


def _notes(tables: Tables, kind: str) -> list[str]:
    return [sentence(row["text"]) for row in views.rows_of(tables.get("notes.csv")) if row["kind"] == kind]


def _candidates(tables: Tables) -> views.Table:
    """The candidates: the score that decided, and the test metric, which was measured afterwards."""
    rows = views.rows_of(tables.get("robustness.csv"))
    by_choice = any(is_known(row["choice_score"]) for row in rows)
    decided = "choice_score" if by_choice else "score_mean"
    rows.sort(key=lambda row: -float(row[decided]) if is_known(row[decided]) else 0.0)
    columns = [views.text("candidate", "configuration", short_name)]
    if any(_of_another_method(row) for row in rows):
        columns.append(
            views.Column(
                "method", lambda row: views.Cell(str(row["candidate_method"]) if _of_another_method(row) else "")
            )
        )
    note = "The marked row is what is advised. "
    if by_choice:
        columns.append(views.number("score", "choice_score", fixed))
        if sum(is_known(row["share"]) for row in rows) > 1:
            columns.append(views.number("share %", "share", percent))
        note += "The score is taken on all unlabelled images and reads no label: it made the choice. "
        if is_against_zero_shot({row["configuration"]: row["choice_score"] for row in rows}):
            note += "Zero-shot has 0; a candidate with one more weighs 2.7 times as much in the ensemble. "
    else:
        columns.append(views.number("selection score %", "score_mean", percent))
        note += "The choice is made by the selection score, which reads no test label. "
        if any(is_known(row["score_low"]) for row in rows):
            columns.append(views.interval("its interval", "score_low", "score_high"))
    if any(is_known(row["mean"]) for row in rows):
        columns += [views.number("test %", "mean", percent)]
        columns += [views.interval("interval over seeds", "t_low", "t_high")]
        columns += [views.number("worst class %", "worst_class_recall", percent)]
        note += "The test was measured after the choice."
    return views.table(rows, [*columns, views.number("seeds", "num_seeds")], note)


def _of_another_method(row: views.Row) -> bool:
    """Whether a candidate is a configuration of a study over several methods, and so has a method of its own."""
    return is_known(row["config_id"]) and row["candidate_method"] != row["method"]


def _compared(tables: Tables, best: views.Row) -> views.Table:
    rows = views.rows_of(tables.get("comparisons.csv"))
    if len(rows) > _MOST_PAIRS:
        rows = [row for row in rows if best["advised_candidate"] in (row["first"], row["second"])]
    return views.table(rows, COMPARED, "Differences are paired by seed.")


def _pair(row: views.Row) -> views.Cell:
    return views.Cell(f"{short_name(row['first'])} − {short_name(row['second'])}")


COMPARED = (
    views.Column("pair", _pair),
    views.number("points", "difference", points),
    views.interval("95 % interval", "low", "high", points),
    views.text("verdict", "verdict"),
)


def _facts(study: views.Row) -> list[tuple[str, str]]:
    """What was adapted, with what, on what and when, as names and values."""
    shown: list[tuple[str, Any]] = [
        ("dataset", study["dataset"]),
        ("paradigm", _paradigm(study["paradigm"])),
        ("classes", study["num_classes"]),
        ("images in the pool", study["num_pool"]),
        ("test images", study["num_test"]),
        ("backbone", study["backbone"]),
        ("weights", study["weights"]),
        ("method", study["method"]),
        ("what is learned", study["tuning"]),
        ("prompt", study["template"]),
        ("selected by", study["select_by"]),
        ("search trials", study["num_trials"]),
        ("of which complete", study["num_complete"]),
        ("stopped early", study["num_stopped_early"]),
        ("failed", study["num_failed"]),
        ("unfinished", study["num_unfinished"]),
        ("confirmed configurations", study["num_confirmed"]),
        ("seed", study["seed"]),
        ("begun", study["begun"]),
        ("from begin to end", duration(study["wall_seconds"])),
        ("of which it ran", duration(study["spent_seconds"]) if _paused(study) else None),
        ("GPU hours", study["gpu_hours"]),
        ("the search ended early", study["ended_early"]),
        ("computing time of all trials", duration(study["compute_seconds"])),
        ("machine", study["machine"]),
        ("command", study["command"]),
        ("versions", study["versions"]),
        ("revision", study["git"]),
    ]
    return [(name, plain(value)) for name, value in shown if is_known(value) and value != 0]


def _paused(study: views.Row) -> bool:
    """Whether the study was paused, between its first event and its last, long enough to mention it."""
    wall, spent = study["wall_seconds"], study["spent_seconds"]
    return is_known(wall) and is_known(spent) and float(wall) - float(spent) > _PAUSE_SECONDS


def _settings(best: views.Row) -> list[tuple[str, str]]:
    names = setting_columns(COLUMNS, [best])
    return [(name, plain(best[name])) for name in names if is_known(best[name])]


def _classes(tables: Tables) -> views.Table:
    rows = views.rows_of(tables.get("classes.csv"))
    measured = any(is_known(row["recall_change"]) for row in rows)
    order = "recall_change" if measured else "share_change"
    rows = [row for row in rows if is_known(row[order])]
    rows = [row for row in rows if float(row[order]) != 0] or rows
    rows.sort(key=lambda row: -abs(float(row[order])))
    columns = [views.text("class", "class")]
    if measured:
        columns += [
            views.number("recall before %", "recall_before", percent),
            views.number("after %", "recall_after", percent),
            views.number("change", "recall_change", points),
        ]
    if any(is_known(row.get("share_before")) for row in rows):
        columns += [
            views.number("share of pool before %", "share_before", percent),
            views.number("after %", "share_after", percent),
        ]
    if any(is_known(row["mismatched"]) for row in rows):
        columns.append(views.text("name misses its images", "mismatched"))
    count = 10
    note = "The classes that changed most; all of them are in classes.csv." if len(rows) > count else ""
    return views.table(rows[:count], columns, note)


def _pairs(tables: Tables) -> views.Table:
    counted = tables.get("confusion.csv")
    if counted is not None:  # the study counted all pairs
        counted = counted[counted["class"] != counted["predicted_as"]]
    rows = views.rows_of(tables.get("pairs.csv") if counted is None else counted)
    rows.sort(key=lambda row: -max(float(row[name]) for name in ("before", "after") if is_known(row[name])))
    columns = [
        views.text("class", "class"),
        views.text("taken for", "predicted_as"),
        views.number("images before", "before"),
        views.number("after", "after"),
        views.number("change", "change"),
    ]
    note = "Test images, mean over seeds."
    if counted is None:
        note += " A dash: not among that side's ten most frequent mistakes."
    return views.table(rows[:10], columns, note)


def _best_trials(tables: Tables) -> views.Table:
    rows = [row for row in views.rows_of(tables["trials.csv"]) if row["phase"] == "search" and is_known(row["score"])]
    rows.sort(key=lambda row: -float(row["score"]))
    columns = [
        views.text("trial", "key"),
        views.text("state", "state", lambda state: plain(state).lower()),
        views.number("selection score %", "score", percent),
        views.number("test %", "metric", percent),
    ]
    return views.table(rows[:10], columns, "The best trials of the search by selection score; all are in trials.csv.")


def _front(tables: Tables) -> views.Table:
    """The Pareto front of selection score and balance, if more than one trial is on it."""
    rows = [row for row in views.rows_of(tables["trials.csv"]) if row["on_pareto_front"] is True]
    rows.sort(key=lambda row: -float(row["score"]))
    columns = [
        views.text("trial", "key"),
        views.number("selection score %", "score", percent),
        views.number("balance %", "balance", percent),
        views.number("test %", "metric", percent),
    ]
    note = "The Pareto front: no trial has a better selection score without losing pseudolabel balance."
    return views.table(rows if len(rows) > 1 else [], columns, note)


def _no_importance(tables: Tables) -> str:
    rows = [row for row in views.rows_of(tables.get("importance.csv")) if row["kind"] == "main"]
    notes = [str(row["note"]) for row in rows if row["enough"] is not True and is_known(row["note"])]
    return f"Which settings mattered is not drawn: {notes[0]}." if notes else ""


def _criteria(tables: Tables) -> views.Table:
    note = (
        "Rank correlation of each criterion with the test metric over all trials, the trial it would pick, and how "
        "far that is below the best trial by test."
    )
    return views.table(views.rows_of(tables.get("selection.csv")), CRITERIA, note)


CRITERIA = (
    views.text("criterion", "criterion"),
    views.number("Spearman", "spearman", fixed),
    views.number("its pick, test %", "pick_metric", percent),
    views.number("below the best (points)", "pick_regret", percent),
)
