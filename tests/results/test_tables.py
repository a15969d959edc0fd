"""trials.csv, epochs.csv, confirm.csv: order and content follow from what the journal says, not from when."""

from __future__ import annotations

import random
from pathlib import Path

import pandas as pd
import pytest
from synthetic import FakeStudy, whole_study

from captune.algorithms import ALGORITHMS
from captune.records import StudyRecord
from captune.results.data_dictionary import meaning_of
from captune.results.load import load_study
from captune.results.tables import (
    ORACLE_STAMP,
    STRESS_COLUMNS,
    WALL_CLOCK_COLUMNS,
    confirm_table,
    epochs_table,
    pareto_front,
    trials_table,
    write_csv,
)
from captune.tuning.agenda import STRESSES


def test_trials_table_has_references_then_search_in_order(study: StudyRecord) -> None:
    table = trials_table([study])
    assert list(table["key"]) == ["zero_shot", "balanced", *(f"t{number:04d}" for number in range(12))]
    assert list(table.columns[-len(WALL_CLOCK_COLUMNS) :]) == list(WALL_CLOCK_COLUMNS)
    paper = table[table["origin"] == "default"].iloc[0]
    assert paper["margin_scale"] == 12.0 and paper["num_main_samples"] == 16
    assert paper["metric_over_zero_shot"] == pytest.approx(paper["metric"] - 0.70)


def test_the_first_configuration_is_called_the_papers_only_under_its_preset(
    study: StudyRecord, study_dir: Path
) -> None:
    """The journal, as of an older captune, says "paper" of every first configuration."""
    assert study.by_key["t0000"].origin == "paper"
    assert "paper" not in set(trials_table([study])["origin"])
    preset = load_study(study_dir)
    preset.opened.study["preset"] = "paper"
    assert list(trials_table([preset])["origin"]).count("paper") == 1


def test_writing_order_and_clock_leave_every_other_column_alone(study_dir: Path, tmp_path: Path) -> None:
    """A resumed study writes the same events later, in another interleaving, some twice."""
    lines = (study_dir / "journal.jsonl").read_bytes().splitlines(keepends=True)
    opened, rest = lines[0], lines[1:]
    by_key: dict[bytes, list[bytes]] = {}
    for line in rest:
        key = line.split(b'"key":"')[1].split(b'"')[0] if b'"key":"' in line else b""
        by_key.setdefault(key, []).append(line)
    generator = random.Random(0)
    mixed: list[bytes] = []
    while any(by_key.values()):
        key = generator.choice([key for key, group in by_key.items() if group])
        line = by_key[key].pop(0)
        mixed += [line, line] if b'"epoch"' in line[:30] else [line]
    other = tmp_path / study_dir.name
    other.mkdir()
    (other / "journal.jsonl").write_bytes(b"".join([opened, *mixed]))
    for make in (trials_table, epochs_table, confirm_table):
        kept = [name for name in make([load_study(study_dir)]).columns if name not in WALL_CLOCK_COLUMNS]
        first, second = make([load_study(study_dir)])[kept], make([load_study(other)])[kept]
        pd.testing.assert_frame_equal(first, second)


def test_no_metric_is_shown_before_the_seal_is_opened(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path / "sealed")
    study.references()
    study.search(3)
    study.confirm([0])
    # A report without the phase that opens the seal, as a hand-edited journal might hold.
    study.write("report", key="t0001", metrics={"metric": 0.99})
    run = load_study(study.close())
    assert trials_table([run])["metric"].isna().all()
    assert confirm_table([run])["metric"].isna().all()


def test_unknown_is_an_empty_cell_and_never_nan(study: StudyRecord, tmp_path: Path) -> None:
    path = write_csv(trials_table([study]).assign(odd=[float("inf"), *[None] * 13]), tmp_path / "t.csv")
    text = path.read_text()
    assert "nan" not in text.lower().replace("became nan", "") and "inf" not in text
    failed = pd.read_csv(path).set_index("key").loc["t0006"]
    assert pd.isna(failed["score"]) and failed["reason"] == "loss became NaN in epoch 1"


def test_oracle_study_stamps_its_tables(tmp_path: Path) -> None:
    run = load_study(whole_study(tmp_path / "oracle", select_by="oracle"))
    path = write_csv(trials_table([run]), tmp_path / "t.csv", [run])
    assert (pd.read_csv(path)["stamp"] == ORACLE_STAMP).all()


def test_setting_named_like_a_column_is_kept_apart(tmp_path: Path) -> None:
    study = FakeStudy(tmp_path / "clash")
    study.plan("t0000", "search", number=0, config_id=0, params={"score": 3.0, "schedule": [1, 2]})
    table = trials_table([load_study(study.close())])
    assert (
        table.loc[0, "config.score"] == 3.0 and table.loc[0, "schedule"] == "[1, 2]" and pd.isna(table.loc[0, "score"])
    )


def test_a_searched_setting_is_explained_as_its_methods_explain_it() -> None:
    def said(name: str) -> str:
        return meaning_of("trials.csv", name, [1.0]).description

    assert said("margin_scale") == "searched setting: m, in logits; 0 turns the margin off"
    assert said("epochs") == "searched setting: training epochs"
    # Two methods with a setting of one name: each says what it means there.
    own = {
        name: ALGORITHMS[name].config_class.model_fields["num_neighbors"].description for name in ("transclip", "zlap")
    }
    assert said("num_neighbors") == "searched setting: " + "; ".join(f"{text} ({name})" for name, text in own.items())


def test_epochs_table_holds_criteria_by_name_and_wall_clock_last(study: StudyRecord) -> None:
    table = epochs_table([study])
    assert table.columns[-1] == "seconds" and {"agree-balanced", "infomax", "loss", "balance"} <= set(table.columns)
    first = table[table["key"] == "t0000"]
    assert list(first["epoch"]) == [1, 2, 3, 4] and list(first["decision"])[-1] == "stop"


def test_confirm_table_holds_confirmation_and_stress(study: StudyRecord) -> None:
    table = confirm_table([study])
    assert set(table["phase"]) == {"confirm", "stress"}
    stress = table[table["phase"] == "stress"].set_index("key")
    assert sorted(stress["pool_imbalance"].dropna()) == [10, 50] and sorted(stress["pool_fraction"].dropna()) == [
        0.25,
        0.5,
    ]
    assert list(table[table["configuration"] == "c0"]["seed"]) == [1, 2, 3]


def test_each_setting_that_a_stress_trial_changes_has_its_column() -> None:
    assert set(STRESS_COLUMNS) == {name for overrides in STRESSES.values() for name in overrides}


def test_pareto_front_by_hand(tmp_path: Path) -> None:
    """(score, balance): a (.9, .5) and b (.8, .7) are on the front, c (.8, .6) loses to b, d has no balance."""
    study = FakeStudy(tmp_path / "front")
    for number, (score, balance) in enumerate([(0.9, 0.5), (0.8, 0.7), (0.8, 0.6), (0.95, None)]):
        key = f"t{number:04d}"
        study.plan(key, "search", number=number, config_id=number, params=study.sample())
        study.write("epoch", key=key, epoch=1, fidelity=1.0, score=score, scores={}, balance=balance)
        study.write("finished", key=key, state="COMPLETE", score=score, scores={}, fidelity=1.0, seconds=1.0, node="a")
    assert pareto_front(load_study(study.close())) == {"t0000", "t0001"}
