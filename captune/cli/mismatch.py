"""captune mismatch: the class names that CLIP does not connect with their images, and the numbers that show it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from captune.cli import options
from captune.cli.console import plain_console, say
from captune.config import TaskConfig
from captune.data.catalog import check_dataset_name
from captune.data.tree import name_some
from captune.records import Role

if TYPE_CHECKING:
    from captune.training.context import Context

_HEADINGS = {
    "class": "class",
    "verdict": "verdict",
    "taken_as": "matched as",
    "zero_shot_count": "zero-shot predictions",
    "seems_absent": "seems absent",
    "images_taken": "images matched",
    "cluster_similarity": "cosine to cluster",
    "description": "description",
}


@options.with_options(
    "task",
    without=(
        "cache_dir",
        "precision",
        "kernels",
        "pool_imbalance",
        "pool_fraction",
        "open_set_fraction",
        "shot_noise",
    ),
    defaults={"paradigm": "ul"},
)
def mismatch(
    given: options.Given,
    threshold: Annotated[
        int | None, typer.Option(min=0, help="Number of candidates kept; default: a tenth of the classes.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the table as CSV.", metavar="FILE")] = None,
) -> None:
    """Find class names that CLIP does not connect with their images.

    Example: captune mismatch --dataset digits
    """
    options.required(given.task, "dataset")
    check_dataset_name(given.task["dataset"])
    task = TaskConfig.parse(given.task, where=options.COMMAND_LINE)
    if out is not None:
        options.check_writable(out)
    console = plain_console()
    with console.status("Loading PyTorch"):
        from captune.algorithms.absent_names import absent_names
        from captune.algorithms.concept_alignment import class_descriptions
        from captune.decisions.presence import absent_sentence
        from captune.training.context import open_context
        from captune.training.notes import cell_notes
    notes = cell_notes(task)
    options.say_notes(console, notes)
    with console.status("Encoding the images of the pool"):
        context = open_context(task, Role.REPORT)
    options.say_notes(console, [note for note in context.notes if note not in notes])
    with console.status("Matching names with clusters of the pool"):
        absent = absent_names(context)
        rows = _rows(context, threshold, {one.label for one in absent})
    _print(console, context, rows)
    say(console, _sentence(rows))
    if (said := absent_sentence(absent, context.task.class_names)) is not None:
        say(console, f"{said}.")
    described = class_descriptions(context)
    without = [name for label, name in enumerate(context.task.class_names) if label not in described]
    if without:
        say(
            console,
            f"Without descriptions, so left alone if flagged: {len(without)} of {context.task.num_classes} classes "
            f"({name_some(without)}).",
        )
    if out is not None:
        with out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def _rows(context: Context, threshold: int | None, absent: set[int]) -> list[dict[str, Any]]:
    from captune.algorithms.concept_alignment import class_descriptions, mismatch_report
    from captune.equations.alignment import choose_description

    report = mismatch_report(context, threshold)
    descriptions = class_descriptions(context)
    taken = {label: order for order, label in enumerate(report.removal_order, start=1)}
    pseudolabelled = [label for label, may in enumerate(context.task.pseudolabelled_K) if may]
    rows = []
    for column, label in enumerate(pseudolabelled):
        verdict = "mismatched" if label in report.mismatched else "candidate" if label in report.candidates else ""
        chosen = ""
        if verdict and label in descriptions and context.backbone is not None:
            features_nD = context.backbone.encode_texts(descriptions[label])
            centre_D = report.centres[label].to(features_nD.device)
            chosen = descriptions[label][choose_description(features_nD, centre_D)]
        rows.append(
            {
                "class": context.task.class_names[label],
                "verdict": verdict,
                "taken_as": taken.get(label, ""),
                "zero_shot_count": report.zero_shot_counts[column],
                "seems_absent": "yes" if label in absent else "",
                "images_taken": len(report.assigned[label]),
                "cluster_similarity": f"{report.cluster_similarity[label]:.4f}" if verdict else "",
                "description": chosen or ("none: left alone" if verdict == "mismatched" else ""),
            }
        )
    return rows


def _sentence(rows: list[dict[str, Any]]) -> str:
    """A sentence that sums up the table and says what to do."""
    missing = [str(row["class"]) for row in rows if row["verdict"] == "mismatched"]
    if not missing:
        never = [str(row["class"]) for row in rows if row["zero_shot_count"] == 0]
        if not never:
            return (
                f"No class name stands out: zero-shot predicts each of the {len(rows)} for some image. Nothing to do."
            )
        return (
            f"No class name is flagged, but zero-shot predicts {name_some(never, 10)} for no image. If the pool holds "
            "such images, try a better name by --class-names."
        )
    undescribed = [str(row["class"]) for row in rows if row["description"] == "none: left alone"]
    verb = "is" if len(missing) == 1 else "are"
    said = (
        f"{len(missing)} of {len(rows)} names {verb} hardly connected with any images: {name_some(missing, 10)}. "
        f"The other {len(rows) - len(missing)} find theirs. "
    )
    if undescribed:
        return said + (
            f"Say what these look like ({name_some(undescribed, 10)}): better names by --class-names, or sentences in "
            "a file given by --descriptions. CAP then starts from images that fit them."
        )
    return said + "Each has descriptions, from which CAP takes its first images; better names may still help more."


def _print(console: Console, context: Context, rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"Concept mismatch, {context.task.dataset}: {len(context.task.pool)} pool images")
    # A column without any value would only take width from the others.
    shown = [name for name in rows[0] if any(row[name] != "" for row in rows)]
    for name in shown:
        table.add_column(
            _HEADINGS[name], justify="left" if name in ("class", "verdict", "description") else "right", overflow="fold"
        )
    # Classes that stand out come first, the rest in the order in which they were matched.
    for row in sorted(
        rows, key=lambda row: (row["verdict"] != "mismatched", row["verdict"] == "", row["taken_as"] or 0)
    ):
        style = {"mismatched": "bold red", "candidate": "yellow"}.get(str(row["verdict"]))
        table.add_row(*(str(row[name]) for name in shown), style=style)
    console.print(table)
    console.print(
        "Names are matched with clusters of the pool, the clearest first. candidate: no cluster was left that clearly "
        "matches it; mismatched: zero-shot also predicts it least. CAP chooses the first images of a mismatched class "
        "by the description shown. seems absent: the pool seems to hold no image of it, so no description can help.",
        highlight=False,
    )
