"""findings.json: what a real study says of its pool and test images, and the pictures it takes for the page."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
from PIL import Image
from real import real_study

from captune.config import TaskConfig
from captune.data.catalog import load_dataset
from captune.data.dataset import Dataset, Split, empty_split
from captune.data.paradigms import build_task
from captune.data.thumbnails import SIDE, has_pictures, thumbnail
from captune.records import Role
from captune.records.layout import FINDINGS, trial_directory
from captune.results.classes import classes_table
from captune.results.findings_tables import confusion_table, jpegs_of, pictures_table, reliability_table
from captune.results.galleries import confusion_grids
from captune.results.load import load_study
from captune.results.report import report_study
from captune.studies import findings
from captune.training.evaluation import _gain


@pytest.fixture(scope="module")
def closed(real_dir: Path) -> Path:
    return real_dir


@pytest.fixture
def copy(closed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(closed, tmp_path / closed.name))


def test_confusion_holds_every_test_image_once_and_agrees_with_the_predictions(closed: Path) -> None:
    study = load_study(closed)
    table = confusion_table([study])
    assert table["before"].sum() == table["after"].sum() == study.opened.num_test
    task, _ = build_task(TaskConfig.parse(study.task), role=Role.SCORE)
    labels_N = load_dataset(TaskConfig.parse(study.task)).labels_M[task.test]
    stored = safetensors.numpy.load_file(trial_directory(closed, "zero_shot") / "predictions.safetensors")
    predicted_N = stored["test_probs"].argmax(-1)
    names = study.opened.class_names
    for row in table.itertuples():
        true, said = names.index(row[3]), names.index(row.predicted_as)
        assert row.before == ((labels_N == true) & (predicted_N == said)).sum()


def test_the_gain_and_its_interval_are_those_of_paired_test_images(closed: Path) -> None:
    found = json.loads((closed / FINDINGS).read_text())
    best = pd.read_csv(closed / "best_configs.csv").iloc[0]
    table = confusion_table([load_study(closed)])
    own = table[table["class"] == table["predicted_as"]]
    gain = (own["after"].sum() - own["before"].sum()) / table["before"].sum()
    assert found["gain"] == pytest.approx(gain, abs=1e-6)
    # The variance of a difference of shares with disagreement q is at most q / n.
    assert 0 < found["gain_error"] <= (1 / table["before"].sum()) ** 0.5
    if best["advised_candidate"] == found["candidate"]:
        assert best["advised_gain"] == pytest.approx(gain, abs=1e-6)
        assert "test images" in best["advised_gain_over"] and "test images" in best["answer"]


def test_reliability_is_over_all_test_images_and_means_the_accuracy(closed: Path) -> None:
    study = load_study(closed)
    for name, rows in reliability_table([study]).groupby("of"):
        assert rows["images"].sum() == pytest.approx(study.opened.num_test)
        right = (rows["images"] * rows["accuracy"]).sum() / study.opened.num_test
        if name == "zero_shot":
            assert right == pytest.approx(study.find("zero_shot").metric)  # type: ignore[union-attr]
        assert ((rows["low"] <= rows["confidence"]) & (rows["confidence"] <= rows["high"])).all()


def test_class_shares_add_to_one_before_and_after(closed: Path) -> None:
    table = classes_table([load_study(closed)])
    assert len(table) == 10
    assert table["share_before"].sum() == pytest.approx(1) and table["share_after"].sum() == pytest.approx(1)


def test_pictures_are_small_jpegs_of_images_whose_class_changed(closed: Path) -> None:
    study = load_study(closed)
    table, jpegs = pictures_table([study]), jpegs_of(study)
    assert len(table) == len(jpegs) > 5
    changed = table[table["section"] == "changed"]
    assert (changed["before"] != changed["after"]).all() and changed["image"].is_unique
    assert ((changed["class"] == changed["before"]) | (changed["class"] == changed["after"])).all()
    for _, rows in changed.groupby("class"):
        assert list(rows["order"]) == sorted(rows["order"], reverse=True), "surest first"
    confused = table[table["section"] == "confused"]
    assert len(confused) and (confused["class"] != confused["after"]).all()
    for one in jpegs:
        picture = Image.open(io.BytesIO(base64.b64decode(one[0])))
        assert picture.format == "JPEG" and max(picture.size) <= SIDE and not picture.getexif()


def test_page_shows_each_picture_with_what_it_was_taken_for_and_stays_small(closed: Path) -> None:
    html = (closed / "report.html").read_text(encoding="utf-8")
    pictures = re.findall(r'<img alt="image [^"]+" src="data:image/jpeg;base64,[^"]+">', html)
    assert len(pictures) == len(pd.read_csv(closed / "pictures.csv")) == html.count("<img")
    assert len(html) < 2_000_000
    assert "nothing here has a label" in html


@pytest.mark.usefixtures("no_figures")
def test_no_images_keeps_them_off_the_page_and_out_of_the_file(copy: Path, tmp_path: Path) -> None:
    report_study(copy, images=False)
    assert "<img" not in (copy / "report.html").read_text() and not (copy / "pictures.csv").exists()
    never = real_study(tmp_path / "never", trials=1, confirm_top=1, confirm_seeds=1, images=False)
    assert "pictures" not in json.loads((never / FINDINGS).read_text())
    assert "<img" not in (never / "report.html").read_text()
    assert "confusion" in json.loads((never / FINDINGS).read_text()), "numbers are no pictures"


def test_nothing_that_needs_a_label_is_shown_while_the_seal_is_closed(copy: Path) -> None:
    study = load_study(copy)
    study.sealed_opened = False
    assert confusion_table([study]).empty and reliability_table([study]).empty
    assert set(pictures_table([study])["section"]) <= {"changed", "mismatched", "duplicates"}
    assert classes_table([study])["recall_before"].isna().all() and classes_table([study])["share_after"].notna().all()


@pytest.mark.usefixtures("no_figures")
def test_a_damaged_or_stale_file_is_no_findings(copy: Path) -> None:
    for content in ("", "{", "[]", '{"candidate": "c99", "shares": [[1, 0]]}'):
        (copy / FINDINGS).write_text(content)
        study = load_study(copy)
        assert confusion_table([study]).empty and pictures_table([study]).empty, content
    report_study(copy)
    assert "<img" not in (copy / "report.html").read_text()


def test_too_many_pictures_are_cut_alike_in_every_section(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "MOST_BYTES", 8_000)
    findings.write_findings(load_study(copy))
    table = pictures_table([load_study(copy)])
    counts = table["section"].value_counts()
    assert 0 < len(table) < 20 and {"changed", "confused"} <= set(counts.index) and counts.max() - counts.min() <= 1


def test_findings_written_again_are_the_same_to_the_byte(copy: Path) -> None:
    before = (copy / FINDINGS).read_bytes()
    findings.write_findings(load_study(copy))
    assert (copy / FINDINGS).read_bytes() == before


def test_thumbnail_of_a_photograph_drops_what_its_file_says_of_place_and_camera(tmp_path: Path) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    photo.save(tmp_path / "photo.jpg", exif=exif)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    paths = (str(tmp_path / "photo.jpg"), str(tmp_path / "broken.jpg"))
    dataset = Dataset("folder:x", ("a",), "a {}", Split(paths, np.zeros(2, np.int64)), empty_split(), empty_split())
    data = thumbnail(dataset, 0)
    assert data is not None and b"taken at home" not in data
    assert Image.open(io.BytesIO(data)).size == (96, 72) and thumbnail(dataset, 1) is None


def test_a_file_of_features_has_no_pictures() -> None:
    split = Split((), np.zeros(3, np.int64))
    features = np.zeros((3, 4), np.float32)
    dataset = Dataset("features:x", ("a",), "a {}", split, empty_split(), empty_split(), image_features_MD=features)
    assert not has_pictures(dataset)


def test_a_large_confusion_matrix_is_cut_to_the_confused_classes_side_by_side() -> None:
    """100 classes, all right but for c7 taken for c93 and c93 for c40."""
    rows = [(f"c{n}", f"c{n}", 20.0, 20.0) for n in range(100)]
    rows += [("c7", "c93", 9.0, 1.0), ("c93", "c40", 4.0, 4.0)]
    table = pd.DataFrame(rows, columns=["class", "predicted_as", "before", "after"]).assign(study="s", candidate="c0")
    before, after = confusion_grids(table)
    assert before.columns[:3] == ("c7", "c93", "c40") and len(before.columns) == 12 == len(before.rows)
    assert [cell.text for cell in before.rows[0].cells[:3]] == ["20", "9", "·"]
    assert after.rows[0].cells[1].text == "1" and before.rows[0].cells[0].own and "12 classes" in before.note


def test_the_gain_of_a_harmonic_mean_by_hand() -> None:
    """Seen images 1 of 2 right before and both after, unseen ones 1 of 2 both times: ½ → 2·1·½ / 1½ = ⅔."""
    task = SimpleNamespace(config=SimpleNamespace(paradigm="trzsl"), seen_K=np.array([True, False]))
    labels_N = np.array([0, 0, 1, 1])
    before_N, after_SN = np.array([True, False, True, False]), np.array([[True, True, True, False]])
    gain, error = _gain(after_SN, before_N, labels_N, task)  # type: ignore[arg-type]
    assert gain == pytest.approx(2 / 3 - 1 / 2) and error > 0
