"""report.html: one page of the tables and figures, in one file, without scripts or requests.

Every number on it is a cell of a CSV (fractions shown as percent with one decimal): the page is made from the tables
alone.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from captune.decisions.criteria import ORACLE

Row = Mapping[str, Any]
Cell = Callable[[Row], str]
NOTHING = "–"
_CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
_CAPTIONS = {
    "study": "The search, and what was confirmed over fresh seeds.",
    "robustness": "Worst seed, worst class and, where it was measured, other pools.",
    "importance": "Which settings mattered, and how the score goes with them (the forest's view of these trials).",
    "curves": "What a shorter search would have found.",
    "comparisons": "Paired differences; blue: the first is better, red: the second, green: equal, grey: undecided.",
}
_ADVICE = {
    "adapt": "Adapt: the best configuration beats zero-shot by more than the noise.",
    "keep zero-shot": "Keep zero-shot: no configuration was shown to be better.",
    "use balanced zero-shot": "Use balanced zero-shot: nothing trained was shown to be better.",
    "adaptation changed nothing": "Keep zero-shot: the best configuration predicts the same.",
    "use the ensemble": "Use the ensemble of the confirmed configurations.",
}


def render_page(tables: Mapping[str, pd.DataFrame], figures: Mapping[str, Path]) -> str:
    """The page of one study, or of several side by side.

    Args:
        tables: by file name, as they were written.
        figures: SVG files by name, put into the page.
    """
    studies = _rows(tables["studies.csv"])
    title = str(studies[0]["study"]) if len(studies) == 1 else "captune report"
    parts = [f"<h1>{escape(title)}</h1>"]
    parts += _one_study(tables, figures) if len(studies) == 1 else _many_studies(tables, figures)
    files = "".join(f"<li>{escape(name)}</li>" for name in tables)
    parts.append(f"<h2>Files</h2><p>Every number above is in one of these, beside this page:</p><ul>{files}</ul>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_CSS}</style></head><body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def _rows(table: pd.DataFrame | None) -> list[dict[str, Any]]:
    return (
        [] if table is None else [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
    )


def is_known(value: Any) -> bool:
    """Whether a table cell holds something."""
    return value is not None and not (isinstance(value, float) and value != value) and value is not pd.NA


def percent(value: Any) -> str:
    """A fraction as percent with one decimal, a dash for nothing."""
    return f"{100 * float(value):.1f}" if is_known(value) else NOTHING


def points(value: Any) -> str:
    """A difference of fractions in points with its sign."""
    return f"{100 * float(value):+.1f}" if is_known(value) else NOTHING


def plain(value: Any) -> str:
    """A number without needless digits, or text."""
    if not is_known(value):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return f"{value:.4g}" if float(value) != round(float(value)) else str(round(float(value)))
    return str(value)


def _interval(row: Row, low: str, high: str, show: Callable[[Any], str] = percent) -> str:
    if not is_known(row.get(low)) or not is_known(row.get(high)):
        return NOTHING
    return f"{show(row[low])} to {show(row[high])}"


def _table(rows: Sequence[Row], columns: Mapping[str, Cell], caption: str = "") -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell(row))}</td>" for cell in columns.values()) + "</tr>" for row in rows
    )
    note = f"<p class=note>{escape(caption)}</p>" if caption else ""
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{note}"


def _column(name: str, show: Callable[[Any], str] = plain) -> Cell:
    return lambda row: show(row.get(name))


def _figure(figures: Mapping[str, Path], name: str) -> str:
    if name not in figures:
        return ""
    data = base64.b64encode(figures[name].read_bytes()).decode()
    caption = escape(_CAPTIONS[name])
    image = f'<img alt="{caption}" src="data:image/svg+xml;base64,{data}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _list(text: Any) -> str:
    items = [item for item in str(text).split("; ") if item] if is_known(text) else []
    return f"<ul>{''.join(f'<li>{_prose(item)}</li>' for item in items)}</ul>" if items else ""


def _prose(text: str) -> str:
    """Escaped text with `code` set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _name(value: Any) -> str:
    """A configuration's or reference's name as it is said."""
    return plain(value).replace("zero_shot", "zero-shot")


def _section(title: str, *parts: str) -> list[str]:
    body = "".join(parts)
    return [f"<section><h2>{escape(title)}</h2>{body}</section>"] if body else []


def _one_study(tables: Mapping[str, pd.DataFrame], figures: Mapping[str, Path]) -> list[str]:
    study, best = _rows(tables["studies.csv"])[0], _rows(tables["best_configs.csv"])[0]
    stamp = (
        "<p class=stamp>Selected by sealed labels (oracle): research only.</p>" if study["select_by"] == ORACLE else ""
    )
    parts = [stamp, f"<p class=advice>{escape(_ADVICE.get(str(best['advice']), str(best['advice'])))}</p>"]
    parts += _section("What was chosen, and why", f"<p>{escape(plain(best['reason']))}.</p>", _settings(best))
    parts += _section("How sure", *_how_sure(best, study))
    parts += _section("What to try next", _list(study["next_steps"]))
    parts += _section("What cannot be said", _list(study["notes"]))
    parts += _section("What was done", _what_was_done(study), _figure(figures, "study"))
    parts += _section("Confirmed configurations", _configurations(tables), _figure(figures, "robustness"))
    parts += _section("Compared", _comparisons(tables, best), _figure(figures, "comparisons"))
    parts += _section("What mattered", _figure(figures, "importance"))
    parts += _section("Would fewer trials have done?", _figure(figures, "curves"))
    parts += _section("Choosing without labels", _selection(tables))
    parts += _section("Classes, before and after", _concepts(tables))
    parts += _section("Score against balance", _front(tables))
    parts += _section("Best trials of the search", _best_trials(tables))
    return parts


def _settings(best: Row) -> str:
    if not is_known(best["params"]):
        return ""
    params = json.loads(str(best["params"]))
    rows = [{"setting": name, "value": value} for name, value in params.items()]
    return _table(
        rows,
        {"setting": _column("setting"), "value": _column("value")},
        f"Configuration {plain(best['configuration'])}; the whole of it is in best_config.yaml.",
    )


def _how_sure(best: Row, study: Row) -> list[str]:
    metric = str(best["metric_name"]).replace("_", " ")
    if is_known(study.get("measurable")) and not study["measurable"]:
        return [
            f"<p>No labels: {escape(metric)} is not measured. predictions.csv says what each image was taken for.</p>"
        ]
    if not is_known(best["test_mean"]):
        return [f"<p>No sealed {escape(metric)} exists for it yet; what is known is the selection score above.</p>"]
    facts = [
        {"what": f"{metric} of the best configuration", "value": percent(best["test_mean"])},
        {"what": "its interval over seeds", "value": _interval(best, "test_low", "test_high")},
        {"what": "seeds", "value": plain(best["num_seeds"])},
        {"what": "zero-shot", "value": percent(best["zero_shot"])},
        {"what": "balanced zero-shot", "value": percent(best["balanced"])},
        {"what": "ensemble of the confirmed", "value": percent(best["ensemble"])},
        {"what": "the configuration it began with", "value": percent(best["default"])},
        {"what": "gain over zero-shot (points)", "value": points(best["gain_over_zero_shot"])},
        {"what": "its interval", "value": _interval(best, "gain_low", "gain_high", points)},
        {"what": "lost by not looking at the test (points)", "value": percent(best["oracle_gap"])},
    ]
    table = _table(facts, {"on the sealed test": _column("what"), "%": _column("value")})
    flags = (
        f"<p>Flags: {escape(str(best['flags']).replace(' ', ', '))}.</p>"
        if is_known(best["flags"]) and best["flags"]
        else ""
    )
    return [table, flags]


def _what_was_done(study: Row) -> str:
    names = {
        "dataset": "dataset", "paradigm": "paradigm", "method": "method", "selected by": "select_by",
        "trials": "num_trials", "complete": "num_complete", "stopped early": "num_stopped_early",
        "failed": "num_failed", "unfinished": "num_unfinished", "confirmed configurations": "num_confirmed",
        "classes": "num_classes", "pool images": "num_pool", "test images": "num_test", "seed": "seed",
        "captune": "captune",
    }  # fmt: skip
    rows = [{"what": label, "value": study[column]} for label, column in names.items() if is_known(study[column])]
    return _table(rows, {"": _column("what"), " ": _column("value")})


def _configurations(tables: Mapping[str, pd.DataFrame]) -> str:
    rows = _rows(tables.get("robustness.csv"))
    sealed = any(is_known(row["mean"]) for row in rows)
    columns: dict[str, Cell] = {"": lambda row: f"{_name(row['configuration'])}{' ✓' if row['chosen'] is True else ''}"}
    if sealed:
        columns |= {
            "mean %": _column("mean", percent),
            "interval": lambda row: _interval(row, "t_low", "t_high"),
            "worst class": _column("worst_class_recall", percent),
        }
    else:
        columns |= {
            "score %": _column("score_mean", percent),
            "interval": lambda row: _interval(row, "score_low", "score_high"),
        }
    columns["seeds"] = _column("num_seeds")
    return _table(rows, columns, "✓ is the best by selection score.")


def _comparisons(tables: Mapping[str, pd.DataFrame], best: Row) -> str:
    rows = _rows(tables.get("comparisons.csv"))
    own = [row for row in rows if best["configuration"] in (row["first"], row["second"])] if len(rows) > 12 else rows
    return _table(own, _COMPARED)


_COMPARED: dict[str, Cell] = {
    "pair": lambda row: f"{_name(row['first'])} − {_name(row['second'])}",
    "points": _column("difference", points),
    "interval": lambda row: _interval(row, "low", "high", points),
    "verdict": _column("verdict"),
}


def _selection(tables: Mapping[str, pd.DataFrame]) -> str:
    columns: dict[str, Cell] = {
        "criterion": _column("criterion"),
        "Spearman": lambda row: f"{float(row['spearman']):.2f}" if is_known(row["spearman"]) else NOTHING,
        "its pick %": _column("pick_metric", percent),
        "regret": _column("regret", percent),
    }
    note = "Rank correlation with the sealed metric over all trials, the trial it would pick, and its cost in points."
    return _table(_rows(tables.get("selection.csv")), columns, note)


def _concepts(tables: Mapping[str, pd.DataFrame]) -> str:
    rows = [row for row in _rows(tables.get("concepts.csv")) if row["kind"] == "class" and is_known(row["change"])]
    rows.sort(key=lambda row: -abs(float(row["change"])))
    columns = {
        "class": _column("class"),
        "recall before %": _column("before", percent),
        "after %": _column("after", percent),
        "change": _column("change", points),
    }
    return _table(rows[:10], columns, "The classes that changed most; all of them are in concepts.csv.")


def _best_trials(tables: Mapping[str, pd.DataFrame]) -> str:
    rows = [row for row in _rows(tables["trials.csv"]) if row["phase"] == "search" and is_known(row["score"])]
    rows.sort(key=lambda row: -float(row["score"]))
    columns = {
        "trial": _column("key"),
        "state": lambda row: str(row["state"]).lower(),
        "score %": _column("score", percent),
        "metric %": _column("metric", percent),
    }
    return _table(rows[:10], columns)


def _front(tables: Mapping[str, pd.DataFrame]) -> str:
    """The trials that no other beats in selection score and balance at once, where there are several."""
    rows = [row for row in _rows(tables["trials.csv"]) if row["on_pareto_front"] is True]
    rows.sort(key=lambda row: -float(row["score"]))
    columns = {
        "trial": _column("key"),
        "score %": _column("score", percent),
        "balance %": _column("balance", percent),
        "metric %": _column("metric", percent),
    }
    note = "The Pareto front: no trial has a better selection score without losing pseudolabel balance."
    return _table(rows, columns, note) if len(rows) > 1 else ""


def _many_studies(tables: Mapping[str, pd.DataFrame], figures: Mapping[str, Path]) -> list[str]:
    best, studies = _rows(tables["best_configs.csv"]), _rows(tables["studies.csv"])
    stamped = [row for row in studies if row["select_by"] == ORACLE]
    parts = [
        f"<p class=stamp>{escape(str(row['study']))}: selected by sealed labels (oracle), research only.</p>"
        for row in stamped
    ]
    chosen: dict[str, Cell] = {
        "study": _column("study"),
        "advice": _column("advice"),
        "best %": _column("test_mean", percent),
        "zero-shot %": _column("zero_shot", percent),
        "gain": lambda row: points(row["gain_over_zero_shot"]),
        "interval": lambda row: _interval(row, "gain_low", "gain_high", points),
    }
    parts += _section(
        "What was chosen",
        _table(best, chosen, "Means over seeds on the sealed test; the reasons are in best_configs.csv."),
    )
    ranks = {
        "method": _column("method", _name),
        "mean rank": _column("mean_rank"),
        "mean %": _column("mean_metric", percent),
    }
    parts += _section(
        "Methods", _table(_rows(tables.get("ranks.csv")), ranks), _methods(tables), _figure(figures, "comparisons")
    )
    mean = [row for row in _rows(tables.get("selection.csv")) if str(row["study"]) == "mean of studies"]
    selection = {**tables, "selection.csv": pd.DataFrame(mean)} if mean else {}
    parts += _section("Choosing without labels", _selection(selection) if mean else "")
    transfer: dict[str, Cell] = {
        "best of": _column("source"),
        "used on": _column("target"),
        "%": _column("value", percent),
        "regret": _column("regret", percent),
    }
    moved = _rows(tables.get("transfer.csv"))
    if len({row["method"] for row in moved}) > 1:
        transfer = {"method": _column("method"), **transfer}
    parts += _section("Transfer", _table(moved, transfer))
    parts += _section("Would fewer trials have done?", _figure(figures, "curves"))
    steps = [row for row in studies if is_known(row["next_steps"])]
    parts += _section(
        "What to try next", *(f"<h3>{escape(str(row['study']))}</h3>{_list(row['next_steps'])}" for row in steps)
    )
    notes = [row for row in studies if is_known(row["notes"])]
    parts += _section(
        "What cannot be said", *(f"<h3>{escape(str(row['study']))}</h3>{_list(row['notes'])}" for row in notes)
    )
    return parts


def _methods(tables: Mapping[str, pd.DataFrame]) -> str:
    rows = [row for row in _rows(tables.get("comparisons.csv")) if row["scope"] == "methods"]
    pooled = [row for row in rows if row["cell"] == "all cells"]
    return _table(pooled or rows, {"cell": _column("cell"), **_COMPARED})
