"""Pixels as a person sees them, within bounded memory; and open_clip's reading for benchmark datasets."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captune.config import TaskConfig
from captune.data import decode
from captune.data.catalog import load_dataset
from captune.data.dataset import Dataset, Split, empty_split
from captune.data.decode import MAX_ASPECT, Unreadable, decode_file
from captune.data.duplicates import equal_files
from captune.data.image_store import ImageStore
from captune.data.views import centre_crop
from captune.errors import DataError
from captune.preprocessing import Preprocessing
from captune.training.context import open_context
from tests.data.miniatures import write_image
from tests.slow import in_one_test

_SMALL = Preprocessing(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_USUAL = Preprocessing(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def _picture(size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A smooth picture without symmetry."""
    across, down = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    planes = [255 * across, 255 * down**2, 255 * across * down]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


def _seen(image: Image.Image, tmp_path: Path, name: str, **options: object) -> np.ndarray:
    image.save(tmp_path / name, **options)
    return decode_file(tmp_path / name, _SMALL).astype(int)


@in_one_test("orientation", range(1, 9))
@in_one_test("name", ["1.png", "1.jpg", "1.tif", "1.webp"])
def test_a_photo_is_turned_as_its_exif_says(tmp_path: Path, orientation: int, name: str) -> None:
    turns = {2: (0,), 3: (3,), 4: (1,), 5: (5,), 6: (2,), 7: (6,), 8: (4,)}  # what undoes each orientation
    lying = _picture()
    for turn in turns.get(orientation, ()):
        lying = lying.transpose(Image.Transpose(turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if name.endswith("jpg") else {}
    options = {"lossless": True} if name.endswith("webp") else options
    seen = _seen(lying, tmp_path, name, exif=exif, **options)
    upright = _seen(_picture(), tmp_path, "upright.png")
    assert seen.shape == upright.shape and np.abs(seen - upright).max() <= 6


def test_open_clips_reading_leaves_photos_as_they_are_stored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    _picture().save(tmp_path / "1.png", exif=exif)
    plain = np.asarray(_picture().resize((21, 16), Image.Resampling.BICUBIC))
    assert np.array_equal(decode_file(tmp_path / "1.png", _SMALL, "open_clip"), plain)
    write_image(tmp_path / "d" / "a" / "1.jpg")
    write_image(tmp_path / "d" / "b" / "2.jpg")
    for pixels, reading in (("auto", "viewer"), ("open_clip", "open_clip")):
        values = {"dataset": f"folder:{tmp_path / 'd'}", "paradigm": "ul", "pixels": pixels}
        assert load_dataset(TaskConfig.parse(values)).reading == reading
    assert load_dataset(TaskConfig.parse({"dataset": "digits", "paradigm": "ul"})).reading == "open_clip"


@in_one_test(
    ("grey", "name"),
    [
        (np.uint16(257), "1.png"), (np.uint16(257), "1.tif"), (np.float32(1 / 255), "1.tif"), (np.float32(1), "1.tif"),
        (np.float32(257), "1.tif"), (np.int32(257), "1.tif"), (np.int32(1), "1.tif"), (np.int32(1_000_000), "1.tif"),
    ],
)  # fmt: skip
def test_wide_grey_is_scaled_and_never_clipped(tmp_path: Path, grey: np.generic, name: str) -> None:
    eight_HW = np.asarray(_picture().convert("L"))
    eight_HW = np.clip(eight_HW, 0, 255)
    eight_HW = eight_HW - eight_HW.min()
    eight_HW = (eight_HW.astype(float) * 255 / eight_HW.max()).round().astype(np.uint8)
    seen = _seen(Image.fromarray(eight_HW.astype(grey.dtype) * grey), tmp_path, name)
    twin = _seen(Image.fromarray(eight_HW), tmp_path, "twin.png")
    assert np.abs(seen - twin).max() <= 1


def test_grey_without_a_finite_value_is_unreadable_and_others_are_black(tmp_path: Path) -> None:
    values = np.full((20, 20), np.nan, np.float32)
    Image.fromarray(values).save(tmp_path / "nan.tif")
    with pytest.raises(Unreadable, match="no finite grey value"):
        decode_file(tmp_path / "nan.tif", _SMALL)
    values[:, 10:] = 1
    Image.fromarray(values).save(tmp_path / "half.tif")
    assert decode_file(tmp_path / "half.tif", _SMALL)[:, [0, -1], 0].tolist() == [[0, 255]] * 16


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (10, 0, 20, 20))
    seen = _seen(image.convert(mode), tmp_path, "1.png")
    assert seen[:, 0].min() == 255 and seen[:, -1].max() == 0


@pytest.mark.parametrize("size", [(4000, 2), (2, 4000), (65535, 1), (999, 40), (41, 997)])
def test_of_a_thin_image_the_middle_is_kept_and_the_centre_crop_sees_the_same(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    image = _picture(size)
    image.save(tmp_path / "1.png")
    kept = decode_file(tmp_path / "1.png", _SMALL)
    assert max(kept.shape) <= MAX_ASPECT * 16 and min(kept.shape[:2]) == 16
    short = min(size)
    whole = np.asarray(image.resize((16 * size[0] // short, 16 * size[1] // short), Image.Resampling.BICUBIC))
    crops = np.zeros((2, 16, 16, 3), np.uint8)
    centre_crop(kept, crops[0])
    centre_crop(whole, crops[1])
    assert np.abs(crops[0].astype(int) - crops[1]).max() <= 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(("size", "kind"), [((4000, 2), "PNG"), ((65535, 1), "PNG"), ((20000, 15000), "JPEG"),
                                            pytest.param((20000, 15000), "PNG", marks=pytest.mark.slow)])  # fmt: skip
def test_reading_an_extreme_image_stays_below_300_mb(tmp_path: Path, size: tuple[int, int], kind: str) -> None:
    file = tmp_path / f"1.{kind.lower()}"
    script = f"""
        import re
        from captune.data.decode import Unreadable, decode_file
        from captune.preprocessing import Preprocessing
        try:
            print(decode_file({str(file)!r}, Preprocessing(224, (0.5,) * 3, (0.5,) * 3)).shape)
        except Unreadable as reason:
            print(reason)
        print(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Image, "MAX_IMAGE_PIXELS", None)
        Image.new("L", size, 200).save(file, kind)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, timeout=100
    )
    # Not ru_maxrss, which a child takes over from its parent.
    said, kilobytes = done.stdout.splitlines()
    assert int(kilobytes) < 300 * 1024
    if kind == "PNG" and size == (20000, 15000):
        assert "million pixels" in said
    else:
        assert said.startswith("(224, ")


def test_large_jpegs_are_read_small_and_look_the_same(tmp_path: Path) -> None:
    large = _picture((1600, 1200))
    seen = _seen(large, tmp_path, "1.jpg", quality=95)
    full = np.asarray(large.resize((21, 16), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(seen - full).max() <= 4


def _photo(size: tuple[int, int] = (60, 45)) -> Image.Image:
    """A picture with detail at every scale."""
    generator = np.random.default_rng(0)
    layers = [
        np.asarray(Image.fromarray(generator.integers(0, 256, (side, side, 3)).astype(np.uint8)).resize(size), float)
        for side in (3, 9, 40)
    ]
    return Image.fromarray(np.mean(layers, axis=0).astype(np.uint8))


@pytest.mark.parametrize("size", [(60, 45), (33, 47), (16, 16), (10, 14), (31, 31)])
def test_the_resize_differs_from_pillows_by_a_grey_level_here_and_there(tmp_path: Path, size: tuple[int, int]) -> None:
    _photo(size).save(tmp_path / "1.png")
    seen = decode_file(tmp_path / "1.png", _SMALL).astype(int)
    plain = decode_file(tmp_path / "1.png", _SMALL, "open_clip").astype(int)
    assert np.abs(seen - plain).max() <= 1 and (seen != plain).mean() < 0.02


def test_a_progressive_jpeg_too_large_to_decode_small_is_refused_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, progressive in (("progressive", True), ("baseline", False)):
        Image.new("RGB", (2500, 1000), "red").save(tmp_path / f"{name}.jpg", progressive=progressive)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500_000)
    preprocessing = Preprocessing(64, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(Unreadable, match=r"progressive JPEG of 2 million pixels.*at most 1\).*not progressive"):
        decode_file(tmp_path / "progressive.jpg", preprocessing)
    assert decode_file(tmp_path / "baseline.jpg", preprocessing).shape[0] == 64


@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True}, {"quality": 20}])
def test_the_fast_decoder_of_jpegs_gives_pillows_pixels(
    tmp_path: Path, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("simplejpeg")
    exif = Image.Exif()
    exif[0x0112] = 6
    _photo((31, 23)).save(tmp_path / "1.jpg", exif=exif, **options)
    assert decode._turbo_pixels(Image.open(tmp_path / "1.jpg")) is not None
    fast = decode_file(tmp_path / "1.jpg", _SMALL)
    monkeypatch.setattr(decode, "simplejpeg", None)
    assert np.array_equal(fast, decode_file(tmp_path / "1.jpg", _SMALL)) and fast.shape == (21, 16, 3)


@pytest.mark.parametrize("seed", range(30))
def test_a_damaged_jpeg_is_read_or_refused_as_by_pillow(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _photo((31, 23)).save(tmp_path / "1.jpg")
    data, generator = bytearray((tmp_path / "1.jpg").read_bytes()), np.random.default_rng(seed)
    data[int(generator.integers(3, len(data)))] ^= int(generator.integers(1, 256))
    (tmp_path / "1.jpg").write_bytes(data[: len(data) if seed % 3 else int(generator.integers(4, len(data)))])

    def read() -> object:
        try:
            return decode_file(tmp_path / "1.jpg", _SMALL).tolist()
        except Unreadable as reason:
            return str(reason)

    fast = read()
    monkeypatch.setattr(decode, "simplejpeg", None)
    assert fast == read()
    assert capfd.readouterr().err == "", "the library's own warnings are nobody's business"


def test_a_program_for_ghostscript_called_photo_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "photo.eps")
    (tmp_path / "photo.eps").rename(tmp_path / "photo.jpg")
    ghostscript = tmp_path / "bin" / "gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/was_run\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(ghostscript.parent), prepend=":")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    with pytest.raises(Unreadable, match="no image format that captune reads"):
        decode_file(tmp_path / "photo.jpg", _SMALL)
    equal_files([str(tmp_path / "photo.jpg")] * 2)
    assert not (tmp_path / "was_run").exists()
    with Image.open(tmp_path / "photo.jpg") as plain, contextlib.suppress(Exception):
        plain.load()
    assert (tmp_path / "was_run").exists(), "Pillow itself would have"


# ---- unreadable ones


def _folder(tmp_path: Path, count: int) -> Path:
    for number in range(count):
        write_image(tmp_path / "photos" / f"{number:03d}.jpg", number, size=(20, 18))
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 not much of a photo")
    return tmp_path / "photos"


def test_one_unreadable_image_is_left_out_of_a_study_and_counted(tmp_path: Path) -> None:
    folder = _folder(tmp_path, 120)
    values = {"dataset": f"folder:{folder}", "paradigm": "ul", "class_names": "a,b", "backbone": "tiny"}
    config = TaskConfig.parse({**values, "cache_dir": tmp_path / "cache"})
    context = open_context(config, "report")
    assert len(context.task.pool) == len(context.task.test) == 120
    (note,) = [note for note in context.notes if "unreadable" in note]
    assert note.startswith("1 unreadable image left out") and "bad.jpg" in note
    strict = TaskConfig.parse({**values, "cache_dir": tmp_path / "cache", "max_unreadable": 0.001})
    with pytest.raises(DataError, match=r"1 of 121 broken: .*bad\.jpg.*--max-unreadable"):
        open_context(strict, "report")


def test_a_store_that_does_not_fit_is_refused_with_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _folder(tmp_path, 10)
    paths = tuple(str(path) for path in sorted(folder.iterdir()))
    split = Split(paths, np.zeros(len(paths), np.int64))
    dataset = Dataset("mine", ("a", "b"), "{}", split, empty_split(), empty_split(), max_unreadable=0.5)
    usage = type("Usage", (), {"free": 5000})
    monkeypatch.setattr("captune.data.image_store.shutil.disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"must fit on the disk, but got .* for 11 images of 1 kB.*--cache-dir"):
        ImageStore.open_or_build(dataset, _SMALL, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("images-*"))


def test_store_keys_keep_readings_apart(tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(data, "PNG")
    (tmp_path / "1.png").write_bytes(data.getvalue())
    split = Split((str(tmp_path / "1.png"),), np.zeros(1, np.int64))
    values = [
        ImageStore.open_or_build(
            Dataset("mine", ("a", "b"), "{}", split, empty_split(), empty_split(), reading=reading), _SMALL, tmp_path
        ).image(0).max()
        for reading in ("open_clip", "viewer")
    ]  # fmt: skip
    assert values == [0, 255]


def test_a_jpeg_of_nothing_but_pixels_is_read_without_pillow_to_the_same_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("simplejpeg")
    random = np.random.default_rng(0)
    photo = Image.fromarray(random.integers(0, 256, (300, 400, 3), np.uint8)).resize((400, 300))
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds: dict[str, tuple[Image.Image, dict[str, object]]] = {
        "plain": (photo, {}),
        "progressive": (photo, {"progressive": True, "subsampling": 0}),
        "of the stored size": (photo.resize((224, 224)), {}),
        "turned": (photo, {"exif": turned}),
        "grey": (photo.convert("L"), {}),
        "four inks": (photo.convert("CMYK"), {}),
        "decoded at a half": (photo.resize((1200, 900)), {}),
    }
    read = decode._plain_jpeg
    for number, (name, (image, options)) in enumerate(kinds.items()):
        path = tmp_path / f"{number}.jpg"
        image.save(path, **options)
        plain = read(path, _USUAL)
        assert (plain is not None) == (number < 3), name
        monkeypatch.setattr(decode, "_plain_jpeg", lambda *_: None)
        by_pillow = decode.decode_file(path, _USUAL)
        monkeypatch.setattr(decode, "_plain_jpeg", read)
        np.testing.assert_array_equal(decode.decode_file(path, _USUAL), by_pillow, err_msg=name)
    damaged = tmp_path / "damaged.jpg"
    damaged.write_bytes((tmp_path / "0.jpg").read_bytes()[:2000])
    with pytest.raises(decode.Unreadable):
        decode.decode_file(damaged, _USUAL)


def test_pixels_stay_when_the_thread_decodes_another_image(tmp_path: Path) -> None:
    for name, colour in (("red", (250, 0, 0)), ("blue", (0, 0, 250))):
        Image.new("RGB", (224, 224), colour).save(tmp_path / f"{name}.jpg")
    red = decode.decode_file(tmp_path / "red.jpg", _USUAL)
    before = red.copy()
    decode.decode_file(tmp_path / "blue.jpg", _USUAL)
    np.testing.assert_array_equal(red, before)
