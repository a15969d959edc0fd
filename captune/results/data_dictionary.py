"""columns.csv and datapackage.json: what every column of the tables beside them means.

datapackage.json follows the Frictionless Data Package standard (Table Schema). It states the types and the missing
value of the CSVs, so that any tool that knows the standard reads them with the right types.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pandas as pd

from captune.algorithms import ALGORITHMS
from captune.config import TrialConfig
from captune.decisions.criteria import CRITERIA
from captune.plain_yaml import parse_yaml
from captune.records.enums import EPOCH_VALUES

_SOURCE = Path(__file__).parent / "columns.yaml"
_WITH_SETTINGS = ("trials.csv", "best_configs.csv")


@dataclass(frozen=True)
class Meaning:
    """What a column holds: its type (Frictionless Table Schema), the unit of its numbers, a description."""

    type: str
    unit: str
    description: str


def columns_table(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per column of the given tables, in their order; see `meaning_of`."""
    rows = []
    for name, table in tables.items():
        for column in table.columns:
            meaning = meaning_of(name, str(column), table[column])
            rows.append({"table": name, "column": column, "type": meaning.type, "unit": meaning.unit or None,
                         "description": meaning.description})  # fmt: skip
    return pd.DataFrame(rows, columns=list(_known()["columns.csv"]))


def datapackage(title: str, columns: pd.DataFrame) -> str:
    """The text of datapackage.json for a folder of tables.

    Args:
        title: the package's title.
        columns: what `columns_table` returned for all CSVs in the folder.
    """
    resources = []
    for name, rows in columns.groupby("table", sort=False):
        fields = [_field({str(key): value for key, value in row.items()}) for row in rows.to_dict("records")]
        resources.append(
            {
                "name": str(name).removesuffix(".csv"),
                "path": name,
                "profile": "tabular-data-resource",
                "format": "csv",
                "mediatype": "text/csv",
                "encoding": "utf-8",
                "schema": {"fields": fields, "missingValues": [""]},
            }
        )
    package_name = re.sub(r"[^a-z0-9._-]+", "-", title.lower()).strip("-") or "captune"
    package = {"profile": "tabular-data-package", "name": package_name, "title": title, "resources": resources}
    return json.dumps(package, indent=1, ensure_ascii=False) + "\n"


def _field(row: Mapping[str, object]) -> dict[str, object]:
    field = {"name": row["column"], "type": row["type"], "description": row["description"]}
    if isinstance(row["unit"], str):
        field["unit"] = row["unit"]
    if row["type"] == "boolean":
        field |= {"trueValues": ["yes"], "falseValues": ["no"]}
    return field


def meaning_of(table: str, column: str, values: Iterable[object] = ()) -> Meaning:
    """What a column of a table means.

    A column that columns.yaml does not list is described by rule: searched settings (trials.csv, best_configs.csv),
    whose type is that of their values; selection criteria and what a method reports of an epoch (epochs.csv); and
    sensitivities (robustness.csv).

    Raises:
        KeyError: the column is none of these.
    """
    known = _known()
    listed = known.get(table, {}).get(column) or known["common"].get(column)
    if listed is not None:
        return listed
    if table in _WITH_SETTINGS:
        return _setting(column.removeprefix("config."), values)
    if table == "epochs.csv":
        return _of_an_epoch(column)
    if column.startswith("sensitivity_"):
        setting = column.removeprefix("sensitivity_")
        return Meaning(
            "number",
            "fraction",
            f"how far the forest's predicted score falls when {setting} moves a fifth of its range (a choice: to any "
            "other)",
        )
    raise KeyError(f"{table}: no description of the column {column}")


def _setting(name: str, values: Iterable[object]) -> Meaning:
    said = "; ".join(_descriptions(name))
    said = f": {said}" if said else ""
    present = [value for value in values if value is not None and value == value]
    numbers = bool(present) and all(isinstance(value, (int, float)) for value in present)
    flags = bool(present) and all(isinstance(value, bool) for value in present)
    kind = "boolean" if flags else "number" if numbers else "string"
    return Meaning(kind, "", f"searched setting{said}")


def _descriptions(name: str) -> list[str]:
    """The setting's description: the common one if all methods share it, else each method's own."""
    if name in TrialConfig.model_fields:
        return [TrialConfig.model_fields[name].description or ""]
    methods: dict[str, list[str]] = {}
    for method in ALGORITHMS.values():
        field = method.config_class.model_fields.get(name)
        if field is not None and field.description:
            methods.setdefault(field.description, []).append(method.name)
    if len(methods) == 1:
        return list(methods)
    return [f"{description} ({', '.join(names)})" for description, names in methods.items()]


def _of_an_epoch(name: str) -> Meaning:
    if name in EPOCH_VALUES:
        return Meaning("number", "", EPOCH_VALUES[name])
    said = f"criterion: {CRITERIA[name].help}" if name in CRITERIA else "reported by the method"
    return Meaning("number", "", said)


@lru_cache(maxsize=1)
def _known() -> dict[str, dict[str, Meaning]]:
    tables = parse_yaml(_SOURCE.read_text(encoding="utf-8"), where=_SOURCE, what="columns")
    return {table: {name: Meaning(*said) for name, said in columns.items()} for table, columns in tables.items()}
