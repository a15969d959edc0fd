"""Tables as a page shows them: columns with titles, cells as text, and the values that a column is sorted by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from captune.results.formats import NOTHING, is_known, percent, plain

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One cell: its text, what it is sorted by (None: the text), its CSS class, and the address that it links to."""

    text: str
    sort: str | None = None
    kind: str = ""
    href: str | None = None


@dataclass(frozen=True)
class Column:
    """A column of a page's table: its title, and how it makes a cell of a row."""

    title: str
    cell: Callable[[Row], Cell]
    number: bool = False


@dataclass(frozen=True)
class ShownRow:
    """A row; `advised` marks the row of the advised candidate."""

    cells: tuple[Cell, ...]
    advised: bool = False


@dataclass(frozen=True)
class Table:
    """A table as it is shown."""

    columns: tuple[Column, ...]
    rows: tuple[ShownRow, ...]
    note: str = ""


@dataclass(frozen=True)
class GridCell:
    """A cell of a grid: its text, and how deep (0 to 100) it is shaded in one of the page's colours."""

    text: str
    depth: int = 0
    shade: str = "blue"
    own: bool = False
    href: str | None = None


@dataclass(frozen=True)
class GridRow:
    """A named row of a grid."""

    name: str
    cells: tuple[GridCell, ...]
    href: str | None = None


@dataclass(frozen=True)
class Grid:
    """A table in two dimensions, such as classes by classes."""

    corner: str
    columns: tuple[str, ...]
    rows: tuple[GridRow, ...]
    note: str = ""
    title: str = ""

    @property
    def upright(self) -> bool:
        """Whether the names of the columns are too long to stand side by side."""
        return max((len(name) for name in self.columns), default=0) > 8


def rows_of(table: pd.DataFrame | None) -> list[dict[str, Any]]:
    """The rows of a table; none if the table is missing."""
    if table is None:
        return []
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def text(title: str, name: str, show: Callable[[Any], str] = plain) -> Column:
    """A column of words."""
    return Column(title, lambda row: Cell(show(row.get(name))))


def number(title: str, name: str, show: Callable[[Any], str] = plain) -> Column:
    """A column of numbers, sorted by their value."""

    def cell(row: Row) -> Cell:
        value = row.get(name)
        return Cell(show(value), _sorted_by(value), "number")

    return Column(title, cell, number=True)


def interval(title: str, low: str, high: str, show: Callable[[Any], str] = percent) -> Column:
    """A column of intervals, sorted by their lower end."""

    def cell(row: Row) -> Cell:
        return Cell(interval_text(row, low, high, show), _sorted_by(row.get(low)), "interval")

    return Column(title, cell)


def linked(column: Column, addresses: Callable[[Row], str | None]) -> Column:
    """The column with each cell linked to its address, if there is one."""
    return replace(column, cell=lambda row: replace(column.cell(row), href=addresses(row)))


def interval_text(row: Row, low: str, high: str, show: Callable[[Any], str] = percent) -> str:
    """Such as `71.2 to 73.4`; a dash if an end is not known."""
    if not is_known(row.get(low)) or not is_known(row.get(high)):
        return NOTHING
    return f"{show(row[low])} to {show(row[high])}"


def table(rows: Sequence[Row], columns: Iterable[Column], note: str = "") -> Table:
    """Rows as a table; those whose `advised` is true are marked."""
    kept = tuple(columns)
    shown = [ShownRow(tuple(column.cell(row) for column in kept), row.get("advised") is True) for row in rows]
    return Table(kept, tuple(shown), note)


def _sorted_by(value: Any) -> str:
    return f"{float(value):.8g}" if is_known(value) else ""
