"""What is given to an adapted model by the command line and from Python, and where results may go."""

from __future__ import annotations

import csv
import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import captune as captune_api
from captune.adapted import AdaptedModel
from captune.adapted.exporting import export_adapted
from captune.config import StudyConfig, TaskConfig
from captune.data.loose_images import image_files
from captune.errors import CaptuneError, CheckpointError, DataError, ModelError, UsageError
from captune.records.layout import ADAPTED, BEST_CONFIG, CHECKPOINT, PREDICTIONS_CSV, STUDY
from captune.studies.planning import plan_study
from captune.tuning.open_study import OpenStudy
from tests.cli.test_using import captune, words


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model") / "adapted"
    captune_api.adapt(dataset="digits", method="balanced", out=out)
    return out


@pytest.fixture(scope="module")
def model(adapted: Path) -> AdaptedModel:
    return captune_api.load(adapted)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        digit_seven().save(folder / name)
    return folder


def digit_seven() -> Image.Image:
    image = Image.new("RGB", (64, 80))
    ImageDraw.Draw(image).line([(14, 14), (50, 14), (26, 66)], fill=(255, 255, 255), width=7)
    return image


def turned_by_exif(place: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    digit_seven().rotate(90, expand=True).save(place, exif=exif)


def of_sixteen_bits(place: Path) -> None:
    Image.fromarray(np.asarray(digit_seven().convert("L")).astype(np.uint16) * 120).save(place)


def transparent(place: Path) -> None:
    image = Image.new("RGBA", (64, 80), (0, 0, 0, 0))
    image.putalpha(digit_seven().convert("L"))
    image.save(place)


@pytest.mark.parametrize("write", [turned_by_exif, of_sixteen_bits, transparent])
def test_a_pillow_image_is_read_as_its_file(model: AdaptedModel, tmp_path: Path, write: Callable[[Path], None]) -> None:
    file = tmp_path / "image.png"
    write(file)
    with Image.open(file) as image:
        mode, size = image.mode, image.size
        by_image = model.predict(image, top=10)
        assert (image.mode, image.size) == (mode, size)  # the caller's image stays as it is
    by_file = model.predict(file, top=10)
    assert list(by_image["class"]) == list(by_file["class"])
    np.testing.assert_array_equal(by_image["probability"], by_file["probability"])


def test_a_large_jpeg_that_pillow_has_not_read_keeps_its_size(model: AdaptedModel, tmp_path: Path) -> None:
    digit_seven().resize((1600, 2000)).save(tmp_path / "large.jpg")
    with Image.open(tmp_path / "large.jpg") as image:
        model.predict(image)
        assert image.size == (1600, 2000)


def closed_image() -> Image.Image:
    image = digit_seven()
    image.close()
    return image


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (3, "one of type int"),
        (b"abc", "one of type bytes"),
        ([None], "one of type NoneType"),
        (np.zeros((0, 8, 3), np.uint8), r"\(0, 8, 3\)"),
        (np.zeros((0, 8, 8, 3), np.uint8), "there must be an image"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"\(3, 8, 8\)"),
        (Image.new("RGB", (0, 5)), "0 x 5 pixels .in image 0."),
        (closed_image(), "an image must be readable, but got Operation on closed image .in image 0."),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_image_is_refused_in_words(model: AdaptedModel, images: Any, says: str) -> None:
    with pytest.raises(CaptuneError, match=says):
        model.predict(images)
    with pytest.raises(CaptuneError, match=says):
        model.encode(images)


def test_a_truncated_pillow_image_is_refused_with_its_place(model: AdaptedModel, photos: Path) -> None:
    content = (photos / "a.png").read_bytes()
    (photos / "half.png").write_bytes(content[: len(content) // 2])
    with Image.open(photos / "half.png") as image, pytest.raises(DataError, match=r"truncated \(in image 1\)"):
        model.predict([digit_seven(), image])


def test_tensors_and_columns_of_names_are_images(model: AdaptedModel, photos: Path) -> None:
    import pandas as pd

    pixels = np.asarray(digit_seven())
    expected = model.predict(pixels)
    for given in (
        torch.from_numpy(pixels.copy()),
        torch.from_numpy(pixels.copy())[None],
        [torch.from_numpy(pixels.copy())],
    ):
        pd.testing.assert_frame_equal(model.predict(given), expected)
    names = [str(photos / "a.png"), str(photos / "b.png")]
    for column in (pd.Series(names), np.array(names)):
        assert list(model.predict(column)["image"]) == names
    assert list(model.predict(np.array(names[0]))["image"]) == names[:1]


@pytest.mark.parametrize("top", [0, -1, 2.5, True, "3"])
def test_top_must_be_a_count(model: AdaptedModel, top: Any) -> None:
    with pytest.raises(UsageError, match="top must be a whole number from 1"):
        model.predict(digit_seven(), top=top)


def test_wrong_features_are_named_by_their_row_in_the_whole_table(model: AdaptedModel) -> None:
    features = np.random.default_rng(0).normal(size=(9000, 64)).astype(np.float32)
    features[8500, 3] = np.nan
    with pytest.raises(DataError, match="1 row with NaN or infinity, first row 8500"):
        model.predict(features=features)
    features[8500] = 0
    with pytest.raises(DataError, match="row 8500"):
        model.predict(features=features)


@pytest.mark.parametrize(
    "features",
    [np.zeros((0, 64), np.float32), np.float32(1), [[1.0, 2.0], [3.0]], torch.ones(2, 64, dtype=torch.int64)],
    ids=["no row", "a number", "ragged", "whole numbers in a tensor"],
)
def test_what_is_no_table_of_features_is_refused(model: AdaptedModel, features: Any) -> None:
    with pytest.raises(DataError, match="features must be"):
        model.predict(features=features)


@pytest.mark.parametrize("device", ["cuda:99", "foo", None])
def test_a_device_that_is_not_there_is_refused_in_words(adapted: Path, device: Any) -> None:
    with pytest.raises(UsageError, match="--device must be"):
        captune_api.load(adapted, device=device)


def test_an_image_given_twice_is_classified_once(
    adapted: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.csv"
    assert captune("predict", adapted, photos, photos / "a.png", photos, "--out", out) == 0
    assert [row[0] for row in csv.reader(out.open())] == ["image", str(photos / "a.png"), str(photos / "b.png")]
    assert "note: 3 images given again, each taken once" in words(capsys.readouterr().err)


def test_another_image_behind_a_link_is_not_taken_for_one_that_was_given(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "far" / "below").mkdir(parents=True)
    shutil.copy(photos / "b.png", tmp_path / "far" / "a.png")
    (photos / "link").symlink_to(tmp_path / "far" / "below")
    places = [photos / "a.png", photos / "link" / ".." / "a.png"]
    assert image_files(places) == places


def test_an_empty_argument_is_refused_and_not_taken_for_this_folder(
    adapted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert captune("predict", adapted, "") == 2
    assert f"no argument may be empty, but got one after 'captune predict {adapted}'" in words(capsys.readouterr().err)
    assert captune("report", adapted, "--out=") == 2
    assert f"one after 'captune report {adapted} --out='" in words(capsys.readouterr().err)


def test_a_folder_without_images_says_what_it_holds(
    adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("x")
    assert captune("predict", adapted, tmp_path) == 1
    assert "passed over: files that are no images: 1 (notes.txt)" in words(capsys.readouterr().err)


def test_a_link_that_leads_nowhere_is_called_so(
    adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "l.png").symlink_to("l.png")
    assert captune("predict", adapted, tmp_path / "l.png") == 1
    said = words(capsys.readouterr().err)
    assert "1 that lead nowhere" in said
    assert "Did you mean" not in said


def test_an_array_file_is_told_how_to_be_given(
    adapted: Path, model: AdaptedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "f.npy", np.ones((2, 64), np.float32))
    assert captune("predict", adapted, tmp_path / "f.npy") == 2
    assert "numpy.savez(file, image_features=…)" in words(capsys.readouterr().err)
    with pytest.raises(UsageError, match="predict\\(features=…\\)"):
        model.predict(tmp_path / "f.npy")


def test_an_adaptation_replaces_no_study_and_no_other_model(
    adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (STUDY, CHECKPOINT, PREDICTIONS_CSV):
        place = tmp_path / name
        place.mkdir()
        (place / name).write_text("mine")
        command = ["adapt", "--dataset", "digits", "--paradigm", "ul", "--method", "balanced", "--out", place]
        assert captune(*command) == 2
        assert f"but got a {name}" in words(capsys.readouterr().err)
        assert [file.read_text() for file in place.iterdir()] == ["mine"]


def test_a_failed_export_leaves_nothing_behind(
    model: AdaptedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object, out: Path) -> list[Path]:
        (out / "half").mkdir()
        (out / "half" / "file").write_text("x")
        raise ModelError("the model must be exportable")

    monkeypatch.setattr("captune.adapted.exporting.write_onnx", broken)
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with pytest.raises(ModelError):
            export_adapted(model, tmp_path / name, form="onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
    assert not any((tmp_path / "empty").iterdir())
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="must be a folder that can be made"):
        export_adapted(model, tmp_path / "file" / "x")


def test_a_folder_without_a_model_says_where_one_is(adapted: Path, tmp_path: Path) -> None:
    shutil.copytree(adapted, tmp_path / "models" / "one")
    with pytest.raises(CheckpointError, match=r"Give one of the folders in it: .*models/one"):
        captune_api.load(tmp_path / "models")
    with pytest.raises(CheckpointError, match=r"Did you mean .*models/one"):
        captune_api.load(tmp_path / "models" / "onee")
    study = tmp_path / "study"
    study.mkdir()
    (study / STUDY).write_text("")
    with pytest.raises(CheckpointError, match="captune resume"):
        captune_api.load(study)
    (study / BEST_CONFIG).write_text("method: balanced\n")
    with pytest.raises(CheckpointError, match=r"captune predict .* --yes"):
        captune_api.load(study)
    shutil.copytree(adapted, study / ADAPTED)
    with pytest.raises(CheckpointError, match="an earlier choice"):
        captune_api.load(study)
    shutil.copy(study / BEST_CONFIG, study / ADAPTED)
    assert captune_api.load(study).source == study / ADAPTED / CHECKPOINT


def test_a_study_may_be_named_by_a_file_in_it(adapted: Path, photos: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    shutil.copytree(adapted, study)
    for name in (STUDY, BEST_CONFIG):
        (study / name).write_text("method: balanced\n")
    for name in (STUDY, BEST_CONFIG):
        assert captune("predict", study / name, photos, "--out", tmp_path / "out.csv") == 0


def test_a_folder_in_place_of_a_configuration_says_which_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / BEST_CONFIG).write_text("method: balanced\n")
    command = ["adapt", "--dataset", "digits", "--paradigm", "ul", "--config", tmp_path, "--out", tmp_path / "out"]
    assert captune(*command) == 2
    assert f"Give a file in it: {tmp_path / BEST_CONFIG}" in words(capsys.readouterr().err)


def test_a_wrong_member_of_a_blend_is_the_only_problem_told(tmp_path: Path) -> None:
    config = {"method": "blend", "members": [{"method": "balanced", "weight": 0}]}
    with pytest.raises(UsageError) as refused:
        captune_api.adapt(dataset="digits", config=config, out=tmp_path / "out")
    assert "members.0.weight: must be more than 0, got 0" in str(refused.value)
    assert "at least 1 item" not in str(refused.value)


def test_any_name_can_be_written_in_any_locale(
    adapted: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "a.png").rename(photos / "ünï.png")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", errors="strict"))
    assert captune("predict", adapted, photos) == 0
    sys.stdout.flush()
    assert f"{photos}/ünï.png," in written.getvalue().decode("utf-8") and capsys.readouterr().err == ""


def test_output_that_was_closed_before_the_start_fails_no_command(
    adapted: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert captune("predict", adapted, photos) == 0 and capsys.readouterr().err == ""
    sys.stdout.close()  # to which main has opened it


def test_a_new_study_replaces_no_other_model(adapted: Path, tmp_path: Path) -> None:
    place = tmp_path / "model"
    shutil.copytree(adapted, place)
    before = sorted(path.name for path in place.iterdir())
    study = StudyConfig(task=TaskConfig(dataset="digits", paradigm="ul"), method="cap")
    plan = plan_study(study, place)
    with pytest.raises(UsageError, match=r"must hold no other model, but got a checkpoint\.safetensors"):
        OpenStudy(place, study, plan.info, plan.space, durable=False)
    assert not {STUDY, "journal.jsonl"} & {path.name for path in place.iterdir()}
    assert set(before) <= {path.name for path in place.iterdir()}
