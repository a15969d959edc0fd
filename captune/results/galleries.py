"""The pictures of a study's page: which images changed their class, and which are confused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import pandas as pd

from captune.results import views
from captune.results.formats import is_known, percent

MOST_GRID_CLASSES = 12
"""Most classes that a page's confusion matrix shows; if there are more, those that are confused most."""


@dataclass(frozen=True)
class Image:
    """One picture: its address (data:), and the text for screen readers."""

    src: str
    alt: str


@dataclass(frozen=True)
class Shown:
    """One or two pictures and their caption."""

    images: tuple[Image, ...]
    text: str


@dataclass(frozen=True)
class Group:
    """Pictures of one class or pair."""

    title: str
    pictures: tuple[Shown, ...]


@dataclass(frozen=True)
class Gallery:
    """A section of pictures."""

    title: str
    note: str
    groups: tuple[Group, ...]


_SECTIONS: dict[str, tuple[str, str]] = {
    "changed": (
        "Classes that changed most",
        "Unlabelled images of the pool whose class changed: zero-shot's → the adapted model's, with the adapted "
        "model's probability. Whether the change is right is for you to see: nothing here has a label.",
    ),
    "mismatched": (
        "Classes whose names miss their images",
        "The pool images that stand for the class at the start of CAP. Do they show what the name says?",
    ),
    "confused": (
        "Classes that are confused most",
        "Test images that the adapted model is surest of and takes for another class: true class → prediction.",
    ),
    "duplicates": (
        "Near duplicates",
        "Test images that nearly equal another image: what is measured on them is partly learned by heart.",
    ),
}


def galleries(pictures: pd.DataFrame | None, jpegs: Sequence[Sequence[str]]) -> list[Gallery]:
    """The sections of a page's pictures.

    Args:
        pictures: pictures.csv of one study; None if nothing may be shown.
        jpegs: base64, one or two for each row of `pictures`.
    """
    rows = list(zip(views.rows_of(pictures), jpegs, strict=True)) if pictures is not None else []
    found = []
    for section, (title, note) in _SECTIONS.items():
        own = [(row, data) for row, data in rows if row["section"] == section]
        if own:
            found.append(Gallery(title, note, tuple(_groups(own, _HEADINGS[section], _TEXTS[section]))))
    return found


def _groups(
    rows: Sequence[tuple[views.Row, Sequence[str]]],
    heading: Callable[[views.Row], str],
    text: Callable[[views.Row], str],
) -> list[Group]:
    by_heading: dict[str, list[Shown]] = {}
    for row, data in rows:
        names = [name for name in (row["image"], row["second_image"]) if is_known(name)]
        images = [
            Image(f"data:image/jpeg;base64,{one}", f"image {PurePath(str(name)).name}")
            for one, name in zip(data, names, strict=False)
        ]
        by_heading.setdefault(heading(row), []).append(Shown(tuple(images), text(row)))
    return [Group(title, tuple(shown)) for title, shown in by_heading.items()]


def _of_pair(row: views.Row) -> str:
    return f"{row['class']} → {row['after']}"


def _change(row: views.Row) -> str:
    return f"{row['before']} → {row['after']}, {percent(row['probability'])} %"


def _sureness(row: views.Row) -> str:
    return f"{percent(row['probability'])} %"


_HEADINGS: dict[str, Callable[[views.Row], str]] = {
    "changed": lambda row: f"{row['class']}, {row['order']}",
    "mismatched": lambda row: str(row["class"]),
    "confused": _of_pair,
    "duplicates": lambda row: "",
}
_TEXTS: dict[str, Callable[[views.Row], str]] = {
    "changed": _change,
    "mismatched": lambda row: "",
    "confused": _sureness,
    "duplicates": lambda row: f"cosine {100 * float(row['probability']):.1f} %",
}


def confusion_grids(confusion: pd.DataFrame | None) -> list[views.Grid]:
    """The confusion matrix before and after adaptation.

    It has only the classes that are confused most, in an order that puts confused classes side by side.
    """
    if confusion is None or not len(confusion):
        return []
    both = confusion.assign(images=confusion["before"] + confusion["after"])
    counts = both.pivot_table(index="class", columns="predicted_as", values="images", aggfunc="sum", fill_value=0.0)
    names = list(dict.fromkeys([*confusion["class"], *confusion["predicted_as"]]))
    wrong = counts.reindex(index=names, columns=names, fill_value=0.0)
    together = wrong.to_numpy() + wrong.to_numpy().T
    for place in range(len(names)):
        together[place, place] = 0.0
    kept = [names[place] for place in _neighbours_first(together, MOST_GRID_CLASSES)]
    cut = len(kept) < len(names)
    grids = []
    for column, title in (("before", "zero-shot"), ("after", str(confusion["candidate"].iloc[0]))):
        table = confusion.pivot_table(index="class", columns="predicted_as", values=column, aggfunc="sum")
        totals = table.sum(axis=1)
        table = table.reindex(index=kept, columns=kept)
        rows = [
            views.GridRow(
                name, tuple(_cell(table.loc[name, other], totals.get(name, 0), name == other) for other in kept)
            )
            for name in kept
        ]
        note = f"Test images of the row's class that {title} takes for the column's"
        note += f"; the {len(kept)} classes that are confused most, all are in confusion.csv." if cut else "."
        grids.append(views.Grid(title, tuple(kept), tuple(rows), note))
    return grids


def _neighbours_first(together_KK: Any, count: int) -> list[int]:
    """The indices of `count` classes, from the number of images (K, K) that each two classes are confused on.

    The order begins with the most confused pair; each next class is the one confused most with the last three.
    """
    num_classes = len(together_KK)
    if not together_KK.any():
        return list(range(num_classes))[:count]
    order = [int(place) for place in divmod(int(together_KK.argmax()), num_classes)]
    while len(order) < min(count, num_classes):
        left = [place for place in range(num_classes) if place not in order]
        order.append(max(left, key=lambda place: (together_KK[order[-3:], place].sum(), -place)))
    return order


def _cell(images: Any, total: float, own: bool) -> views.GridCell:
    if not is_known(images) or float(images) == 0:
        return views.GridCell("·", own=own)
    depth = round(70 * float(images) / float(total)) if total else 0
    return views.GridCell(f"{float(images):.4g}", depth, "blue" if own else "red", own=own)
