"""The page of several studies: gains and transfers are grids, each study is a link away, a sentence stands once."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from synthetic import whole_study

from captune.results import report
from captune.results.formats import points
from captune.results.report import report_studies, report_study


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, few_trees: None) -> Path:
    """Two datasets in two paradigms, of which one study has its own page."""
    root = tmp_path_factory.mktemp("matrix")
    studies = [
        whole_study(root / "runs" / f"{dataset} {paradigm}", seed=seed, dataset=dataset, paradigm=paradigm)
        for seed, (dataset, paradigm) in enumerate(
            (dataset, paradigm) for dataset in ("digits", "eurosat") for paradigm in ("ul", "tft")
        )
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_figures", lambda runs, tables: {})  # only grids, links and words are looked at
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
        assert f"{advice} in {count}" in first
    gains = best["advised_gain"].dropna()
    assert f"In {len(gains)} of them something other than zero-shot is advised" in page
    assert f"better than zero-shot in {(gains > 0).sum()} and worse in {(gains < 0).sum()}" in page
    assert f"{points(gains.mean())} points on average, {points(gains.min())} in the worst" in page


@pytest.mark.usefixtures("no_figures")
def test_datasets_given_by_a_path_go_by_the_name_of_their_file(tmp_path: Path) -> None:
    """Of 18 studies transfers are a grid a paradigm; a name that two datasets share stays whole.

    Four trials are too few for a forest: whether a transfer is known does not change the grid.
    """
    datasets = [f"features:/data/set{number}.npz" for number in range(7)] + ["features:/a/x.npz", "folder:/b/x"]
    for number, dataset in enumerate(datasets):
        for paradigm in ("tft", "ul"):
            place = tmp_path / "runs" / f"{number} {paradigm}"
            whole_study(place, trials=4, seed=number, dataset=dataset, paradigm=paradigm)
    report_studies([tmp_path / "runs"], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    names = {*(f"set{number}" for number in range(7)), "features:/a/x.npz", "folder:/b/x"}
    grid = cells(section(page, "gains"))
    assert {name for name, _ in grid} == names
    assert list(dict.fromkeys(paradigm for _, paradigm in grid)) == ["ul", "tft"]
    first, second = re.findall(r"<details.*?</details>", section(page, "transfer"), re.DOTALL)
    assert "<summary>cap, ul</summary>" in first and "<summary>cap, tft</summary>" in second
    for part in (first, second):
        assert {column for _, column in cells(part)} == names
        assert {row for row, _ in cells(part)} == names | {"best on average"}


def test_a_sentence_about_several_studies_stands_once(together: Path) -> None:
    notes = pd.read_csv(together / "notes.csv")
    page = section((together / "report.html").read_text(encoding="utf-8"), "limits")
    assert page.count("<p>") == notes["text"].nunique() < len(notes)
