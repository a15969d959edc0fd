"""The page of several studies: gains and transfers are grids, each study is a link away, a sentence stands once."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from synthetic import whole_study

from captune.results.formats import points
from captune.results.report import report_studies, report_study


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets in two paradigms, of which one study has its own page."""
    root = tmp_path_factory.mktemp("matrix")
    studies = [
        whole_study(root / "runs" / f"{dataset} {paradigm}", seed=seed, dataset=dataset, paradigm=paradigm)
        for seed, (dataset, paradigm) in enumerate(
            (dataset, paradigm) for dataset in ("digits", "eurosat") for paradigm in ("ul", "tft")
        )
    ]
    report_study(studies[0])
    report_studies([root / "runs"], root / "out")
    return root / "out"


def section(page: str, name: str) -> str:
    return re.split(r"</section>", page.split(f'<section id="{name}">')[1])[0]


def cells(grid: str) -> dict[tuple[str, str], str]:
    """(row, column) → text of a grid's cells."""
    head, body = grid.split("</thead>", 1)
    columns = [re.sub(r"<.*?>", "", name) for name in re.findall(r"<th scope=\"col\">(.*?)</th>", head)][1:]
    found = {}
    for row in re.findall(r"<tr>(.*?)</tr>", body.split("</tbody>")[0], re.DOTALL):
        name = re.sub(r"<.*?>", "", re.findall(r"<th scope=\"row\">(.*?)</th>", row)[0])
        texts = [re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)]
        found |= {(name, column): text for column, text in zip(columns, texts, strict=True)}
    return found


def test_gains_are_a_grid_of_datasets_and_paradigms(together: Path) -> None:
    grid = cells(section((together / "report.html").read_text(encoding="utf-8"), "gains"))
    best = pd.read_csv(together / "best_configs.csv")
    assert set(grid) == {(dataset, paradigm) for dataset in ("digits", "eurosat") for paradigm in ("ul", "tft")}
    for _, row in best.iterrows():
        expected = "0" if row["advised_candidate"] == "zero_shot" else points(row["advised_gain"])
        assert grid[row["dataset"], row["paradigm"]] == expected


def test_a_study_with_a_page_is_a_link_away_and_no_other(together: Path) -> None:
    page = (together / "report.html").read_text(encoding="utf-8")
    addresses = set(re.findall(r'href="([^"#]*report\.html)"', page))
    assert addresses == {"../runs/digits%20ul/report.html"}
    assert (together / next(iter(addresses)).replace("%20", " ")).is_file()


def test_transfers_are_a_matrix_of_every_source_and_target(together: Path) -> None:
    grid = cells(section((together / "report.html").read_text(encoding="utf-8"), "transfer"))
    moved = pd.read_csv(together / "transfer.csv")
    assert set(grid) == set(zip(moved["source"], moved["target"], strict=True)) and len(grid) == 5 * 4
    for _, row in moved.iterrows():
        assert grid[row["source"], row["target"]] == f"{100 * row['regret']:.1f}"


def test_the_answer_counts_the_advice_and_what_became_of_it(together: Path) -> None:
    page = (together / "report.html").read_text(encoding="utf-8")
    best = pd.read_csv(together / "best_configs.csv")
    (first,) = re.findall(r'<p class="first">(.*?)</p>', page)
    for advice, count in best["advice"].value_counts().items():
        assert f"{advice}: {count} of 4" in first
    above = (best["advised_gain"] > 0).sum()
    assert f"above zero-shot on the test in {above} of {best['advised_gain'].notna().sum()} studies" in page


def test_a_sentence_about_several_studies_stands_once(together: Path) -> None:
    notes = pd.read_csv(together / "notes.csv")
    page = section((together / "report.html").read_text(encoding="utf-8"), "limits")
    assert page.count("<p>") == notes["text"].nunique() < len(notes)
