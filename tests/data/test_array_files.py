"""`.npz` files from anywhere: plain arrays are read, all else is refused in a sentence and takes no memory."""

from __future__ import annotations

import io
import resource
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captune.data.array_files import read_npz
from captune.data.feature_bank import read_feature_file
from captune.errors import ConfigError, DataError
from tests.slow import in_one_test


def header(shape: str, descr: str = "'<f4'", fortran: bool = False) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}}}".encode()
    text += b" " * (64 - (len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def archive(path: Path, parts: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in parts.items():
            file.writestr(name, content)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_plain_arrays_are_read_as_numpy_reads_them(tmp_path: Path, save: Any) -> None:
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "c": np.array(["x", "äß"]),
        "d": np.float32(4.5),
        "e": np.zeros((0, 3)),
        "f": np.array([b"train"]),
        "g": np.arange(3, dtype=">i2"),
    }
    save(tmp_path / "f.npz", **arrays)
    read = read_npz(tmp_path / "f.npz")
    with np.load(tmp_path / "f.npz") as expected:
        assert set(read) == set(arrays) == set(expected.files)
        for name in arrays:
            assert np.array_equal(read[name], expected[name]) and read[name].dtype == expected[name].dtype


@in_one_test(
    ("content", "says"),
    [
        (header("(1000000000000, 8)") + b"1234", r"data are not that"),
        (header("(2,)") + b"123456789", "data are more than that"),
        (header("(-1,)"), "shape"),
        (header("(2,)", "'|O'") + b"12345678", "Python objects"),
        (header("(1,)", "'<U1'") + struct.pack("<I", 0x110000), "characters that are none"),
        (header("(1,)", "'<U1'") + struct.pack("<I", 0xD800), "characters that are none"),
        (header("(1,)", "'" + "x" * 12000 + "'"), "."),
        (b"\x93NUMPY\x09\x00", "version"),
        (b"no array", "."),
        (b"", "."),
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, content: bytes, says: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=f"must be an .npz of plain arrays, but got .*{says}"):
        read_npz(archive(tmp_path / "f.npz", {"image_features.npy": content}))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_encrypted_odd_and_packed_parts_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(4.0))
    path = archive(tmp_path / "f.npz", {"a.npy": buffer.getvalue()}, zipfile.ZIP_LZMA)
    with pytest.raises(DataError, match="method 14"):
        read_npz(path)
    path = archive(path, {"a.npy": buffer.getvalue()})
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    content[6] |= 1
    content[directory + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="encrypted"):
        read_npz(path)
    archive(path, {"a.npy": header("(30000000,)") + bytes(120_000_000)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match=r"120000\d+ bytes packed into"):
        read_npz(path)
    archive(path, {f"a{number}.npy": b"" for number in range(100)})
    with pytest.raises(DataError, match="100 parts"):
        read_npz(path)
    for wrong in (b"", b"PK\x03\x04", b"\x93NUMPY"):
        path.write_bytes(wrong)
        with pytest.raises(DataError, match="no archive, or a damaged one"):
            read_npz(path)
    with pytest.raises(DataError, match="must be there"):
        read_npz(tmp_path / "nowhere.npz")
    with pytest.raises(DataError, match="a folder"):
        read_npz(tmp_path)


@in_one_test(
    ("change", "says"),
    [
        ({"image_features": np.full((4, 2), 1e-30)}, "length between 1e-12 and 1e"),
        ({"image_features": np.full((4, 2), 1e30)}, "length between 1e-12 and 1e"),
        ({"image_features": np.zeros((4, 2))}, "must not be zero"),
        ({"image_features": np.full((4, 2), np.nan)}, "finite"),
        ({"image_features": np.ones((4, 2), np.complex64)}, "floating-point numbers"),
        ({"labels": np.array([0, 1, 2**64 - 1, 0], np.uint64)}, "18446744073709551615"),
        ({"labels": np.array([0, 1, -2, 0])}, "must lie between -1"),
        ({"split": np.array([1, 2, 3, 4])}, "split must be text"),
        ({"split": np.array([b"train", b"t\xe9st", b"test", b"test"])}, "must be train, val or test"),
        ({"template": np.array([], "<U4")}, "template must be one text"),
        ({"class_names": np.array([["a", "b"]])}, "row of text"),
        ({"class_names": np.array([1, 2])}, "row of text"),
        ({"class_names": np.array(["a", "a"])}, "different and not empty"),
        ({"logit_scale": np.array([1.0, 2.0])}, "logit_scale must be a number"),
        ({"logit_scale": np.array("100")}, "logit_scale must be a number"),
        ({"logit_scale": np.array(1 + 1j)}, "logit_scale must be a number"),
    ],
)
def test_wrong_arrays_are_one_sentence_each(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    right = {
        "image_features": np.ones((4, 2)), "labels": np.array([0, 1, 0, 1]), "class_names": np.array(["a", "b"]),
        "split": np.array(["train", "train", "test", "test"]),
    }  # fmt: skip
    np.savez(tmp_path / "f.npz", **(right | change))
    with pytest.raises((DataError, ConfigError), match=says):
        read_feature_file(tmp_path / "f.npz", "features:f.npz", "a photo of a {}.")
