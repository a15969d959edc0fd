"""What every script here does: studies in, one question's table out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from captune.errors import CaptuneError
from captune.records import StudyRecord
from captune.results.load import load_studies
from captune.results.tables import csv_text, write_csv


def main(question: str, make_table: Callable[[Sequence[StudyRecord]], pd.DataFrame]) -> None:
    """Read directories of studies from the command line and write one CSV; exits with the error's own code."""
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("studies", nargs="+", type=Path, help="directories of studies, or folders that hold them")
    parser.add_argument("--out", type=Path, help="CSV to write; without it the table goes to standard output")
    arguments = parser.parse_args()
    try:
        studies = load_studies(arguments.studies)
        table = make_table(studies)
        for study in studies:
            for note in study.notes:
                print(f"{study.name}: {note}", file=sys.stderr)
        if table.empty:
            print("the records do not support this table yet: it has no rows", file=sys.stderr)
        if arguments.out is None:
            print(csv_text(table, studies), end="")
        else:
            write_csv(table, arguments.out, studies)
            print(f"wrote {arguments.out}: {len(table)} rows of {len(studies)} studies", file=sys.stderr)
    except CaptuneError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        print(f"{arguments.out}: {error.strerror}", file=sys.stderr)
        raise SystemExit(1) from None
