"""Robustness, comparisons, selection, transfer, classes: by hand and at the edges."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import FakeStudy, quality, whole_study

from captune.config import TaskConfig
from captune.records import StudyRecord
from captune.records.events import Mismatch
from captune.results.classes import classes_table, pairs_table
from captune.results.comparisons import ALL_CELLS, cell_of, compare, comparisons_table, ranks_table
from captune.results.curves import curves_table
from captune.results.importance import importance_table, marginals_table
from captune.results.load import load_studies, load_study
from captune.results.robustness import robustness_table
from captune.results.selection_tables import criteria_table, selection_table
from captune.results.transfer import BEST_ON_AVERAGE, transfer_table


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> list[StudyRecord]:
    """Two cells, two methods; `fpl` is worse by five points everywhere (its zero-shot is the same)."""
    root = tmp_path_factory.mktemp("matrix")
    for index, (paradigm, method) in enumerate([("ul", "cap"), ("tft", "cap"), ("ul", "fpl"), ("tft", "fpl")]):
        study = FakeStudy(root / f"digits-{paradigm}-{method}", seed=index, paradigm=paradigm, method=method)
        study.references()
        study.search(10)
        study.confirm([0, *study.best_of_search(2)], seeds=4)
        if method == "fpl":
            worse = {key: value - 0.05 for key, value in study.metric_of.items() if key[0] in "tc"}
            study.metric_of |= worse
        study.open_seal()
        study.close()
    return load_studies([root])


def row_of(table: pd.DataFrame, **where: object) -> pd.Series:
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table) == 1, f"{len(table)} rows for {where}"
    return table.iloc[0]


# robustness


def test_robustness_row_by_hand(tmp_path: Path) -> None:
    """Metrics .70 .80 .90: mean .80, sd .10, worst .70; class 3 of the simulator is .2 below: worst class .60."""
    study = FakeStudy(tmp_path)
    study.references()
    study.search(2)
    study.confirm([1])
    for seed, metric in enumerate([0.70, 0.80, 0.90], start=1):
        study.metric_of[f"c1-s{seed}"] = metric
    study.open_seal()
    row = row_of(robustness_table([load_study(study.close())]), configuration="c1")
    assert (row["mean"], row["sd"], row["worst_seed"]) == pytest.approx((0.80, 0.10, 0.70))
    assert (row["worst_class_recall"], row["worst_class_recall_worst_seed"]) == pytest.approx((0.60, 0.50))
    assert row["t_low"] == pytest.approx(0.80 - 4.3027 * 0.10 / 3**0.5, abs=1e-3)
    assert 0.70 - 1e-9 <= row["low"] <= 0.80 <= row["high"] <= 0.90 + 1e-9


def test_robustness_holds_stress_trials_of_their_configuration(study: StudyRecord) -> None:
    table = robustness_table([study])
    stressed = table[table["imbalance_10"].notna()]
    assert len(stressed) == 1
    row = stressed.iloc[0]
    metric = study.find(f"x{int(row['config_id'])}-imbalance10-s1").metric  # type: ignore[union-attr]
    assert row["imbalance_10"] == pytest.approx(metric) and row["imbalance_1"] == pytest.approx(row["mean"])
    assert pd.notna(row["pool_25"]) and pd.notna(row["pool_50"])


def test_robustness_of_an_unconfirmed_study_takes_the_best_three_and_the_papers(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.references()
    study.search(8)
    table = robustness_table([load_study(study.close())])
    names = set(table["configuration"])
    assert {"zero_shot", "balanced", "t0000"} <= names and len(names) in (5, 6)
    assert table["mean"].isna().all() and table["score_mean"].notna().sum() >= 4


def test_a_constant_configuration_has_zero_spread(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.references()
    study.search(2)
    study.confirm([1])
    study.metric_of |= {f"c1-s{seed}": 0.77 for seed in (1, 2, 3)}
    study.open_seal()
    row = row_of(robustness_table([load_study(study.close())]), configuration="c1")
    assert row["sd"] == 0 and row["low"] == row["high"] == row["t_low"] == row["t_high"] == pytest.approx(0.77)


def test_sensitivity_is_largest_for_the_setting_that_matters(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path, noise=0.001)
    study.references()
    study.search(200)
    study.confirm([max(study.configs, key=lambda number: quality(study.configs[number]))])
    row = robustness_table([load_study(study.close())]).iloc[-1]
    falls = {name: row[name] for name in row.index if name.startswith("sensitivity_")}
    assert max(falls, key=lambda name: falls[name]) in ("sensitivity_learning_rate", "sensitivity_num_main_samples")
    assert falls["sensitivity_margin_scale"] < max(falls.values()) and min(falls.values()) >= 0


# comparisons


def test_configurations_are_compared_seed_by_seed(study: StudyRecord) -> None:
    table = comparisons_table([study])
    row = row_of(table, first="c0", second="zero_shot")
    metrics = [study.find(f"c0-s{seed}").metric for seed in (1, 2, 3)]  # type: ignore[union-attr]
    assert row["difference"] == pytest.approx(np.mean(metrics) - 0.70)
    assert row["num_pairs"] == 3 and "cannot fall below 0.25" in row["note"]
    assert (table["holm_p"] >= table["wilcoxon_p"] - 1e-12).all()


def test_methods_are_compared_per_cell_and_over_all_cells(matrix: list[StudyRecord]) -> None:
    table = comparisons_table(matrix)
    pooled = row_of(table, scope="methods", cell=ALL_CELLS, first="cap", second="fpl")
    cells = table[(table["scope"] == "methods") & (table["first"] == "cap") & (table["second"] == "fpl")]
    single = cells[cells["cell"] != ALL_CELLS]
    assert set(single["cell"]) == {"digits ul", "digits tft"}
    assert pooled["difference"] == pytest.approx(single["difference"].mean())
    assert pooled["num_pairs"] == 8 and pooled["num_cells"] == 2 and pooled["verdict"] == "undecided"
    assert pd.isna(pooled["low"]) and "no interval over 2 cells" in pooled["note"]


def test_an_interval_over_cells_is_about_cells_not_about_their_seeds() -> None:
    """Seeds agree to a thousandth in every cell, cells differ by points: 0.01, 0.03, …, 0.09 have the mean 0.05."""
    cells = [({0: 0.5 + gain, 1: 0.501 + gain}, {0: 0.5, 1: 0.501}) for gain in (0.01, 0.03, 0.05, 0.07, 0.09)]
    row = compare(cells)
    assert row["difference"] == pytest.approx(0.05) and row["num_cells"] == 5
    assert 0.01 < row["low"] < 0.035 and 0.065 < row["high"] < 0.09


def test_zero_shot_is_a_method_and_ranks_share_ties(matrix: list[StudyRecord]) -> None:
    ranks = ranks_table(matrix).set_index("method")
    assert ranks.loc["cap", "mean_rank"] == 1 and ranks["num_cells"].eq(2).all()
    assert ranks["mean_rank"].sum() == pytest.approx(1 + 2 + 3 + 4)
    assert ranks_table(matrix[:1]).empty


def test_one_seed_is_undecided(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.references()
    study.search(3)
    study.confirm([0, 1], seeds=1)
    study.open_seal()
    table = comparisons_table([load_study(study.close())])
    assert (table["verdict"] == "undecided").all() and table["low"].isna().all() and table["wilcoxon_p"].isna().all()
    assert table["note"].str.contains("too few seeds").all()


def test_before_the_seal_scores_are_compared_without_balanced(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.references()
    study.search(3)
    study.confirm([0, 1])
    table = comparisons_table([load_study(study.close())])
    assert set(table["measure"]) == {"score"} and "balanced" not in {*table["first"], *table["second"]}


def test_cells_with_other_settings_are_not_compared(tmp_path: Path) -> None:
    run = load_study(whole_study(tmp_path))
    assert cell_of(run) == "digits ul"
    run.settings["task"] = TaskConfig(dataset="digits", paradigm="ul").model_dump(mode="json")
    assert cell_of(run) == "digits ul", "a study writes every setting down"
    run.settings["task"] |= {"pool_imbalance": 10.0, "data_root": "/elsewhere", "protocol": "coop"}
    assert cell_of(run) == "digits ul pool_imbalance=10.0"


# selection


def hand_study(
    tmp_path: Path, scores: Sequence[float], other: Sequence[float], metrics: Sequence[float]
) -> StudyRecord:
    study = FakeStudy(tmp_path)
    study.references()
    for number, (score, second, metric) in enumerate(zip(scores, other, metrics, strict=True)):
        key = f"t{number:04d}"
        study.plan(key, "search", number=number, config_id=number, params={"margin_scale": float(number)})
        values = {"agree-balanced": score, "entropy": second}
        study.write("finished", key=key, state="COMPLETE", score=score, scores=values, fidelity=1.0)
        study.metric_of[key] = metric
    study.open_seal()
    return load_study(study.close())


def test_selection_by_hand(tmp_path: Path) -> None:
    """agree-balanced picks trial 2 (.72) where the best is trial 1 (.75); entropy picks trial 0 (.60)."""
    run = hand_study(tmp_path, [0.1, 0.8, 0.9], [3, 2, 1], [0.60, 0.75, 0.72])
    table = selection_table([run])
    own, other = row_of(table, criterion="agree-balanced"), row_of(table, criterion="entropy")
    assert own["selected_by_it"] and not other["selected_by_it"]
    assert (own["pick"], own["oracle"]) == ("t0002", "t0001")
    assert (own["pick_regret"], own["gain_over_zero_shot"]) == pytest.approx((0.03, 0.02))
    assert own["spearman"] == pytest.approx(0.5) and other["spearman"] == pytest.approx(-0.5)
    assert other["pick_regret"] == pytest.approx(0.15) and own["random_metric"] == pytest.approx(0.69)


def test_criterion_that_cannot_tell_trials_apart_picks_any(tmp_path: Path) -> None:
    run = hand_study(tmp_path, [0.1, 0.8, 0.9], [1, 1, 1], [0.60, 0.75, 0.72])
    row = row_of(selection_table([run]), criterion="entropy")
    assert (
        pd.isna(row["pick"])
        and row["num_tied"] == 3
        and row["pick_metric"] == pytest.approx(0.69)
        and pd.isna(row["spearman"])
    )


def test_criteria_are_averaged_over_studies_best_first(matrix: list[StudyRecord]) -> None:
    table, means = selection_table(matrix), criteria_table(matrix).set_index("criterion")
    single = table[table["criterion"] == "agree-balanced"]
    assert means.loc["agree-balanced", "spearman"] == pytest.approx(single["spearman"].astype(float).mean())
    assert means.index[0] == "agree-balanced" and means.loc["infomax", "spearman"] < 0
    assert criteria_table(matrix[:1]).empty


def test_criteria_are_ranked_over_common_studies_only(tmp_path: Path) -> None:
    """entropy is missing in the third study, where every pick is bad: there no other criterion may be measured."""
    good = [hand_study(tmp_path / str(n), [0.1, 0.8, 0.9], [3, 2, 1], [0.60, 0.75, 0.72]) for n in range(2)]
    lacking = hand_study(tmp_path / "lacking", [0.1, 0.8, 0.9], [3, 2, 1], [0.2, 0.1, 0.1])
    for trial in lacking.trials:
        trial.scores.pop("entropy", None)
    means = criteria_table([*good, lacking]).set_index("criterion")
    assert means.loc["agree-balanced", "pick_metric"] == pytest.approx(0.72)
    assert means.loc["entropy", "pick_metric"] == pytest.approx(0.60) and means["num_studies"].eq(2).all()


def test_selection_needs_the_open_seal(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    study.search(4)
    assert selection_table([load_study(study.close())]).empty


# transfer


def test_transfer_knows_what_was_run_and_predicts_the_rest(matrix: list[StudyRecord]) -> None:
    table = transfer_table(matrix)
    assert set(table["how"].dropna()) <= {"trial", "surrogate"} and (table["regret"].dropna() >= 0).all()
    home = table[(table["source_study"] == table["target_study"]) & (table["source"] != BEST_ON_AVERAGE)]
    assert set(home["how"]) == {"trial"} and len(home) == 4
    best = table[table["source"] == BEST_ON_AVERAGE]
    for method, rows in best.groupby("method"):
        others = table[(table["method"] == method) & (table["source"] != BEST_ON_AVERAGE)]
        means = others.groupby(["source_study", "configuration"])["regret"].mean()
        assert rows["regret"].mean() <= means.min() + 1e-9


def test_transfer_of_one_study_is_nothing(study: StudyRecord) -> None:
    assert transfer_table([study]).empty


# classes


def test_classes_before_and_after_by_hand(study: StudyRecord) -> None:
    table = classes_table([study])
    two = row_of(table, **{"class": "two"})
    assert two["recall_before"] == pytest.approx(0.5)
    assert two["recall_change"] == pytest.approx(two["recall_after"] - 0.5)
    pair = row_of(pairs_table([study]), **{"class": "two", "predicted_as": "three"})
    assert (pair["before"], pair["after"], pair["change"]) == (40, 15, -25)
    assert table["mismatched"].isna().all(), "no detection was recorded"


def test_classes_mark_recorded_mismatches_and_read_class_numbers(study_dir: Path) -> None:
    run = load_study(study_dir)
    run.apply(Mismatch(mismatched=(2,)))
    flagged = classes_table([run])
    assert list(flagged[flagged["mismatched"].eq(True)]["class"]) == ["two"]


def test_no_table_fails_on_an_empty_study(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path)
    run = load_study(study.close())
    makers = (robustness_table, comparisons_table, ranks_table, importance_table, marginals_table, curves_table,
              selection_table, criteria_table, transfer_table, classes_table, pairs_table)  # fmt: skip
    assert all(make([run]).empty for make in makers)
