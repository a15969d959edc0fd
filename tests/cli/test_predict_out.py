"""Where `captune predict` writes, and what it may replace there."""

from __future__ import annotations

import csv
import errno
import shutil
from pathlib import Path

import numpy as np
import pytest

from captune.records.layout import CHECKPOINT, PREDICTIONS_CSV
from tests.cli.test_inputs_and_outputs import adapted, photos
from tests.cli.test_using import captune, words

__all__ = ["adapted", "photos"]  # fixtures


@pytest.mark.parametrize(
    "victim", ["photos/b.png", "features.npz", "model/checkpoint.safetensors", "model/metrics.json"]
)
def test_predictions_replace_nothing_that_is_read(
    adapted: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], victim: str
) -> None:
    shutil.copytree(adapted, tmp_path / "model")
    features = tmp_path / "features.npz"
    np.savez(features, image_features=np.ones((2, 64), np.float32))
    given = features if victim == "features.npz" else photos
    before = (tmp_path / victim).read_bytes()
    link = tmp_path / "link.csv"
    link.symlink_to(tmp_path / victim)
    named = [tmp_path / victim] if victim.startswith("model") else [tmp_path / victim, link]
    for out in named:
        assert captune("predict", tmp_path / "model", given, "--out", out) == 2
        assert "--out must not replace a file" in words(capsys.readouterr().err)
    assert (tmp_path / victim).read_bytes() == before


def test_predictions_may_be_written_again_even_beside_the_model(adapted: Path, photos: Path, tmp_path: Path) -> None:
    place = tmp_path / "model"
    shutil.copytree(adapted, place)
    for _ in range(2):
        assert captune("predict", place, photos, "--out", place / "mine.csv") == 0
    assert captune("predict", place, photos, "--out", place / PREDICTIONS_CSV) == 2
    assert len(list(csv.reader((place / "mine.csv").open()))) == 3
    assert not list(place.glob(".*"))


def test_predictions_beside_a_checkpoint_that_was_named_replace_what_the_user_keeps_there(
    adapted: Path, photos: Path, tmp_path: Path
) -> None:
    place = tmp_path / "model"
    shutil.copytree(adapted, place)
    for _ in range(2):
        assert captune("predict", place / CHECKPOINT, photos, "--out", place / "mine.txt") == 0
    for name in (CHECKPOINT, "metrics.json", "config.yaml"):
        assert captune("predict", place / CHECKPOINT, photos, "--out", place / name) == 2


def test_a_model_that_is_not_there_is_told_so_whatever_is_written_over(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the output was there already, it was "files must be there, readable and writable", with code 1."""
    (tmp_path / "out.csv").write_text("x")
    assert captune("predict", tmp_path / "adaptde", photos, "--out", tmp_path / "out.csv") == 2
    assert "an adapted model must be there" in words(capsys.readouterr().err)


def test_predictions_go_into_a_file_whose_folder_takes_no_other(
    adapted: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file that is mounted into a container. All was classified first, and then lost."""

    def busy(*_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr("captune.cli.predict.atomic_write", busy)
    out = tmp_path / "out.csv"
    out.write_text("x")
    assert captune("predict", adapted, photos, "--out", out) == 0
    assert len(list(csv.reader(out.open()))) == 3
    assert captune("predict", adapted, photos, "--out", tmp_path / "new.csv") == 1


def test_a_full_disk_is_told_in_words(adapted: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    assert captune("predict", adapted, photos, "--out", "/dev/full") == 1
    said = words(capsys.readouterr().err)
    assert "but got No space left on device" in said
    assert "foresaw" not in said
