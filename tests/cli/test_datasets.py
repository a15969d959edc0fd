"""captune datasets: what it prints and how it ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captune.cli.datasets import _CHECKED, datasets
from captune.data.known_datasets import DATASETS
from captune.errors import UsageError
from tests.data.miniatures import MINIATURES, write_image


def _run(capsys: pytest.CaptureFixture[str], **arguments: object) -> tuple[int, str]:
    values = {"check": None, "fetch": None, "duplicates": False, **dict.fromkeys(_CHECKED), **arguments}
    code = datasets(**values)  # type: ignore[arg-type]
    return code, capsys.readouterr().out


def test_list_shows_every_dataset_found_or_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    MINIATURES[("eurosat", 2)](tmp_path)
    code, text = _run(capsys, data_root=tmp_path)
    assert code == 0
    for key, row in DATASETS.items():
        assert f"{key}: " in text
        if key not in ("digits", "eurosat"):
            assert row.how_to_get in text
    line = next(line for line in text.splitlines() if line.startswith("eurosat "))
    assert line.split() == ["eurosat", "yes", "official", "release", "10", "50/20/30", "MIT"]
    assert f"eurosat: at {tmp_path / 'eurosat/2750'}" in text
    assert "digits" in text and "1078/180/539" in text
    assert "captune datasets --download food101" in text and str(tmp_path) in text


def test_list_tells_of_a_broken_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built = MINIATURES[("eurosat", 1)](tmp_path)
    (tmp_path / built.paths()[0]).unlink()
    code, text = _run(capsys, data_root=tmp_path)
    assert code == 1
    assert "eurosat: broken: every listed image must be on disk, but got 1 missing" in text


def test_check_lists_every_broken_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label, name in enumerate(("a", "b")):
        for number in range(5):
            write_image(tmp_path / name / f"{number}.jpg", label)
    code, text = _run(capsys, check=f"folder:{tmp_path}")
    assert code == 0 and "10 of 10 images readable, 0 broken" in text
    (tmp_path / "a" / "2.jpg").write_bytes(b"")
    (tmp_path / "b" / "3.jpg").write_bytes((tmp_path / "b" / "4.jpg").read_bytes()[:200])
    code, text = _run(capsys, check=f"folder:{tmp_path}")
    assert code == 1 and "8 of 10 images readable, 2 broken" in text
    assert f"{tmp_path / 'a' / '2.jpg'}: empty file" in text and str(tmp_path / "b" / "3.jpg") in text


def test_check_of_arrays_has_nothing_to_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(capsys, check="digits") == (0, "digits: 1797 images in memory, nothing to read\n")


def test_check_and_download_exclude_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="one at a time"):
        _run(capsys, check="digits", fetch="dtd", data_root=tmp_path)
    with pytest.raises(UsageError, match="Did you mean 'digits'"):
        _run(capsys, check="digit", data_root=tmp_path)


def test_download_of_what_is_there_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    MINIATURES[("eurosat", 2)](tmp_path)
    assert _run(capsys, fetch="eurosat", data_root=tmp_path) == (0, "eurosat is already there\n")


def test_check_counts_what_is_passed_over_and_takes_images_without_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(5):
        write_image(tmp_path / f"{number}.jpg", number)
    (tmp_path / "notes.txt").write_text("x")
    for names in ("ring,bar", None):
        code, text = _run(capsys, check=f"folder:{tmp_path}", class_names=names)
        assert code == 0 and "5 of 5 images readable" in text
    assert "passed over: files that are no images: 1 (notes.txt)" in text


def test_near_duplicates_across_the_splits_are_counted_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(3):
                pixels = generator.integers(0, 256, (4, 4, 3)).astype(np.uint8)
                Image.fromarray(pixels).resize((32, 32)).save(tmp_path / split / name / f"{number}.png")
    with Image.open(tmp_path / "train" / "a" / "1.png") as image:
        image.save(tmp_path / "test" / "a" / "same.png", compress_level=0)  # the same pixels in other bytes
    settings = {"backbone": "tiny", "cache_dir": tmp_path / "cache"}
    code, text = _run(capsys, check=f"folder:{tmp_path}", duplicates=True, **settings)
    assert code == 0 and "of 7 test images are nearly a training image" in text
    first = text[text.index("the closest pairs:") :].splitlines()[1]
    assert first.startswith("  1.0000") and "same.png (test)" in first and "train/a/1.png" in first
    with pytest.raises(UsageError, match=r"--duplicates must come with --check"):
        _run(capsys, duplicates=True)
