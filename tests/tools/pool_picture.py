"""The README's picture: images of a pool, what zero-shot says of them, what the study's advice says.

    python -m tests.tools.pool_picture runs/digits-ul-cap analysis/pool.svg

Shown is, for each class, the image that the advised model is surest of among those whose class changed (`pictures.csv`
of the study): chosen by a rule, not by whether the change is right. One SVG that follows the reader's light or dark
mode, with letters large enough for a telephone.
"""

from __future__ import annotations

import argparse
import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from captune.config import TaskConfig
from captune.data.catalog import load_dataset
from captune.data.thumbnails import thumbnail
from captune.results.best_configs import best_configs_table
from captune.results.formats import percent
from captune.results.load import load_study

COLUMNS, WIDTH, SIDE, CELL, TOP = 4, 720, 124, 214, 118
STYLE = """
text { font-family: system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; fill: #1f2328; text-anchor: middle; }
.head { font-size: 26px; }
.before { font-size: 25px; fill: #656d76; text-decoration: line-through; }
.after { font-size: 29px; font-weight: 700; fill: #116329; }
.ground { fill: #ffffff; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .before { fill: #9198a1; }
  .after { fill: #56d364; }
  .ground { fill: #0d1117; }
}
"""


def surest_changes(pictures: pd.DataFrame) -> pd.DataFrame:
    """Of each class that the advised model gives, its surest image that zero-shot called another; surest first."""
    changed = pictures[pictures.section == "changed"].sort_values("probability", ascending=False)
    return changed.drop_duplicates("after")


def drawn(rows: list[dict[str, Any]], jpegs: Mapping[int, bytes], before: float, after: float, where: str) -> str:
    """The picture as SVG; accuracies are fractions."""
    height = TOP + CELL * -(-len(rows) // COLUMNS)
    said = ", ".join(f"{row['before']} → {row['after']}" for row in rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="title">',
        f'<title id="title">Unlabelled images, what zero-shot says and what captune advises: {escape(said)}</title>',
        f"<style>{STYLE}</style>",
        f'<rect class="ground" width="{WIDTH}" height="{height}" rx="12"/>',
        f'<text class="head" x="{WIDTH / 2}" y="40">No labels. Zero-shot says '
        '<tspan class="before">this</tspan>, captune <tspan class="after">this</tspan>.</text>',
        f'<text class="head" x="{WIDTH / 2}" y="82">Right on {escape(where)}: <tspan class="before" '
        f'style="text-decoration: none">{percent(before)} %</tspan> → <tspan class="after">{percent(after)} %</tspan>'
        "</text>",
    ]
    step = WIDTH / COLUMNS
    for place, row in enumerate(rows):
        middle, top = step * (place % COLUMNS + 0.5), TOP + CELL * (place // COLUMNS)
        data = base64.b64encode(jpegs[row["image"]]).decode()
        parts += [
            f'<image x="{middle - SIDE / 2}" y="{top}" width="{SIDE}" height="{SIDE}" '
            f'href="data:image/jpeg;base64,{data}"/>',
            f'<text class="before" x="{middle}" y="{top + SIDE + 29}">{escape(row["before"])}</text>',
            f'<text class="after" x="{middle}" y="{top + SIDE + 62}">{escape(row["after"])}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    study = load_study(asked.study)
    [measured] = best_configs_table([study]).to_dict("records")
    rows = surest_changes(pd.read_csv(asked.study / "pictures.csv")).to_dict("records")
    dataset = load_dataset(TaskConfig.parse(study.task))
    jpegs = {row["image"]: data for row in rows if (data := thumbnail(dataset, row["image"])) is not None}
    num_test = study.opened.num_test
    asked.out.write_text(
        drawn(rows, jpegs, measured["zero_shot"], measured["advised_test"], f"{num_test} test images"), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
