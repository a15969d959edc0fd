"""The image store: what it keeps, and that neither two builders nor a killed one can spoil it."""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from captune.data import decode
from captune.data.dataset import Dataset, Split, empty_split
from captune.data.image_store import ImageStore, store_key
from captune.data.views import ImageViews
from captune.errors import DataError
from captune.preprocessing import Preprocessing
from tests.data.miniatures import write_image
from tests.waiting import wait_until

_PREPROCESSING = Preprocessing(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def _dataset(paths: list[Path]) -> Dataset:
    split = Split(tuple(str(path) for path in paths), np.zeros(len(paths), np.int64))
    return Dataset("mini", ("a", "b"), "{}", split, empty_split(), empty_split())


def _images(folder: Path, count: int = 20) -> list[Path]:
    paths = [folder / f"{number:02d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        write_image(path, number, size=(20 + number, 24))
    return paths


def test_store_holds_each_image_resized_to_its_shortest_side(tmp_path: Path) -> None:
    paths = _images(tmp_path / "images", 3)
    store = ImageStore.open_or_build(_dataset(paths), _PREPROCESSING, tmp_path / "cache")
    # 24 high, 20, 21, 22 wide: the width becomes 16, the height ⌊16 · 24 / width⌋ = 19, 18, 17.
    assert store.sizes_N2.tolist() == [[19, 16], [18, 16], [17, 16]]
    with Image.open(paths[1]) as image:
        expected = np.asarray(image.resize((16, 18), Image.Resampling.BICUBIC))
    assert np.array_equal(store.image(1), expected)
    assert len(store) == 3


def test_store_cannot_be_written_through(tmp_path: Path) -> None:
    store = ImageStore.open_or_build(_dataset(_images(tmp_path / "images", 2)), _PREPROCESSING, tmp_path / "cache")
    with pytest.raises(ValueError, match="read-only"):
        store.image(0)[0, 0, 0] = 1


def test_arrays_of_one_channel_become_grey_images(tmp_path: Path) -> None:
    pixels = np.full((2, 8, 8, 1), 77, np.uint8)
    split = Split((), np.zeros(2, np.int64))
    dataset = Dataset("array", ("a", "b"), "{}", split, empty_split(), empty_split(), images_NHWC=pixels)
    store = ImageStore.open_or_build(dataset, _PREPROCESSING, tmp_path)
    assert store.uniform_size == (16, 16)
    assert (store.images(np.array([1, 0])) == 77).all() and store.images(np.array([1])).shape == (1, 16, 16, 3)


def test_key_stands_for_files_and_preprocessing(tmp_path: Path) -> None:
    paths = _images(tmp_path, 3)
    first = store_key(_dataset(paths), _PREPROCESSING)
    assert store_key(_dataset(paths), _PREPROCESSING) == first
    assert store_key(_dataset(paths[::-1]), _PREPROCESSING) != first
    assert store_key(_dataset(paths), Preprocessing(17, (0.5,) * 3, (0.5,) * 3)) != first  # type: ignore[arg-type]
    assert store_key(_dataset(paths), Preprocessing(16, (0.1,) * 3, (0.5,) * 3)) == first  # type: ignore[arg-type]
    os.utime(paths[0], ns=(1, 1))
    assert store_key(_dataset(paths), _PREPROCESSING) != first


def test_progress_counts_up_to_all_images(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    dataset = _dataset(_images(tmp_path / "images", 5))
    ImageStore.open_or_build(dataset, _PREPROCESSING, tmp_path / "c", progress=lambda *now: calls.append(now))
    assert calls == [(number, 5) for number in range(1, 6)]
    ImageStore.open_or_build(dataset, _PREPROCESSING, tmp_path / "c", progress=lambda *now: calls.append(now))
    assert len(calls) == 5, "an open store is not built again"


def test_unreadable_images_are_counted_and_three_named(tmp_path: Path) -> None:
    paths = _images(tmp_path / "images", 8)
    whole = paths[0].read_bytes()
    paths[1].write_bytes(b"")
    paths[3].write_bytes(whole[: len(whole) // 2])
    paths[5].write_text("this is a text")
    paths[7].write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    with pytest.raises(DataError) as caught:
        ImageStore.open_or_build(_dataset(paths), _PREPROCESSING, tmp_path / "cache")
    text = str(caught.value)
    assert "4 of 8 broken" in text and "01.jpg (empty file)" in text and "03.jpg (" in text and "05.jpg" in text
    assert "07.jpg" not in text and "captune datasets --check" in text
    assert not [path for path in (tmp_path / "cache").iterdir() if not path.name.endswith(".lock")]


def test_huge_images_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = _images(tmp_path / "images", 2)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # 20 × 24 is more than twice that
    with pytest.raises(DataError, match=r"2 broken: .*00\.jpg \(more than 0 million pixels\)"):
        ImageStore.open_or_build(_dataset(paths), _PREPROCESSING, tmp_path / "cache")


def test_image_that_vanished_is_named(tmp_path: Path) -> None:
    paths = _images(tmp_path / "images", 3)
    paths[2].unlink()
    with pytest.raises(DataError, match=r"1 missing: .*02\.jpg"):
        ImageStore.open_or_build(_dataset(paths), _PREPROCESSING, tmp_path / "cache")


def test_file_names_that_are_no_text_are_read(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    write_image(tmp_path / "good.jpg", 3)
    try:
        (tmp_path / "good.jpg").rename(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    store = ImageStore.open_or_build(_dataset([tmp_path / name]), _PREPROCESSING, tmp_path / "cache")
    assert len(store) == 1


def test_damaged_store_is_built_again(tmp_path: Path) -> None:
    dataset = _dataset(_images(tmp_path / "images", 3))
    store = ImageStore.open_or_build(dataset, _PREPROCESSING, tmp_path / "cache")
    expected = store.image(2).copy()
    with (store.directory / "pixels.u8").open("r+b") as file:
        file.truncate(10)
    again = ImageStore.open_or_build(dataset, _PREPROCESSING, tmp_path / "cache")
    assert np.array_equal(again.image(2), expected)


def test_unwritable_cache_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(DataError, match=r"cache directory must be writable.*CAPTUNE_CACHE"):
        ImageStore.open_or_build(_dataset(_images(tmp_path / "i", 1)), _PREPROCESSING, tmp_path / "cache")


# A builder in a process of its own, slowed down through its progress callback.
_FORK = multiprocessing.get_context("fork")  # another start would import PyTorch anew


def _build(folder: Path, cache: Path, pause: float, log: Path, told: Any, hangs_at: int) -> None:
    def progress(done: int, total: int) -> None:
        with log.open("a") as file:
            file.write(f"{done}\n")
        time.sleep(pause if done != hangs_at else 600)

    store = ImageStore.open_or_build(_dataset(sorted(folder.glob("*.jpg"))), _PREPROCESSING, cache, progress=progress)
    told.put((len(store), int(store.image(19).sum())))


def _builder(folder: Path, cache: Path, pause: float, log: Path, told: Any, hangs_at: int = -1) -> Any:
    """A process of its own that builds a store and tells its length and the sum of one image."""
    process = _FORK.Process(target=_build, args=(folder, cache, pause, log, told, hangs_at))
    process.start()
    return process


def test_two_builders_at_once_decode_every_image_once(tmp_path: Path) -> None:
    paths = _images(tmp_path / "images")
    log = tmp_path / "log"
    told = _FORK.Queue()
    builders = [_builder(tmp_path / "images", tmp_path / "cache", 0.02, log, told) for _ in range(2)]
    outputs = [told.get(timeout=90) for _ in builders]
    for builder in builders:
        builder.join(timeout=30)
    assert [builder.exitcode for builder in builders] == [0, 0]
    assert outputs[0] == outputs[1] and outputs[0][0] == 20
    # One built, the other waited for the lock and found the store whole.
    assert log.read_text().split() == [str(number) for number in range(1, len(paths) + 1)]


def test_killed_builder_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    paths = _images(tmp_path / "images")
    log, cache = tmp_path / "log", tmp_path / "cache"
    builder = _builder(tmp_path / "images", cache, 0.0, log, _FORK.Queue(), hangs_at=5)
    wait_until(lambda: log.exists() and len(log.read_text().split()) == 5)
    builder.kill()
    builder.join(timeout=30)
    assert [path for path in cache.iterdir() if path.name.endswith(".part")], "it was killed half-way"
    assert not list(cache.glob("images-*"))
    store = ImageStore.open_or_build(_dataset(paths), _PREPROCESSING, cache)
    assert len(store) == len(paths)
    assert not [path for path in cache.iterdir() if path.name.endswith(".part")], "the remains are cleared away"


# ---- JPEGs in place of pixels


def _photos(folder: Path, sizes: list[tuple[int, int]]) -> list[Path]:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number, size in enumerate(sizes):
        rough = Image.fromarray(generator.integers(0, 256, (6, 8, 3)).astype(np.uint8))
        rough.resize(size, Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


_WIDE = Preprocessing(96, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_a_store_of_jpegs_holds_the_same_images_in_less_room(tmp_path: Path) -> None:
    dataset = _dataset(_photos(tmp_path / "images", [(120, 100), (96, 130), (300, 200), (97, 97)]))
    pixels = ImageStore.open_or_build(dataset, _WIDE, tmp_path / "cache")
    jpegs = ImageStore.open_or_build(dataset, _WIDE, tmp_path / "cache", keep="jpeg")
    assert jpegs.key != pixels.key and (pixels.keep, jpegs.keep) == ("pixels", "jpeg")
    assert jpegs.sizes_N2.tolist() == pixels.sizes_N2.tolist()
    assert jpegs.num_bytes < pixels.num_bytes / 3
    for index in range(4):
        assert np.abs(jpegs.image(index).astype(int) - pixels.image(index)).mean() < 1.5
    with pytest.raises(ValueError, match="store of pixels"):
        jpegs.flat()
    again = ImageStore.open_or_build(dataset, _WIDE, tmp_path / "cache", keep="jpeg")
    assert np.array_equal(again.image(3), jpegs.image(3)), "it was not built again, and is whole"


def test_views_of_jpegs_are_those_of_their_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, sizes in (("ragged", [(120, 100), (96, 130), (200, 150)]), ("uniform", [(100, 100)] * 3)):
        dataset = _dataset(_photos(tmp_path / name, sizes))
        jpegs = ImageStore.open_or_build(dataset, _WIDE, tmp_path / "cache", keep="jpeg")
        plain = ImageStore.open_or_build(dataset, _WIDE, tmp_path / "cache")
        views = ImageViews(jpegs, _WIDE, "cpu")
        indices = np.array([2, 0])
        weak = views.weak(indices)
        assert weak.shape == (2, 3, 96, 96)
        assert (weak - ImageViews(plain, _WIDE, "cpu").weak(indices)).abs().mean() < 2 * 1.5 / 255
        crops = {"flip_probability": 0.5, "crop_scale_min": 0.3}
        strong = views.strong(indices, torch.Generator().manual_seed(0), **crops)
        assert torch.equal(strong, views.strong(indices, torch.Generator().manual_seed(0), **crops))
        monkeypatch.setattr(decode, "simplejpeg", None)
        assert torch.equal(views.weak(indices), weak), "Pillow decodes the same pixels"
        monkeypatch.undo()


def test_unreadable_images_are_black_in_a_store_of_jpegs_too(tmp_path: Path) -> None:
    paths = _photos(tmp_path / "images", [(120, 100), (96, 130), (97, 97)])
    paths[1].write_bytes(b"")
    dataset = replace(_dataset(paths), max_unreadable=0.5)
    store = ImageStore.open_or_build(dataset, _WIDE, tmp_path / "cache", keep="jpeg")
    assert store.unreadable == {1: "empty file"} and store.image(1).max() == 0 and store.image(2).max() > 0


def test_a_full_disk_is_told_what_jpegs_would_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = _dataset(_photos(tmp_path / "images", [(120, 100)] * 4))
    usage = type("Usage", (), {"free": 50_000})
    monkeypatch.setattr("captune.data.image_store.shutil.disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"4 images of 33 kB, .*Or keep JPEGs: --store jpeg takes about 0\.0 GB"):
        ImageStore.open_or_build(dataset, _WIDE, tmp_path / "cache")
    assert ImageStore.open_or_build(dataset, _WIDE, tmp_path / "cache", keep="jpeg").num_bytes < 50_000
