"""Read `.npz` files from anywhere: only plain arrays, and never more memory than the data in the file need."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from captune.errors import DataError, did_you_mean_path, first_line

_MAX_ARRAYS = 64
_MAX_HEADER = 10_000
_CHUNK = 1 << 24
# Deflate shrinks zeros a thousandfold. Small arrays (labels, names) may shrink as much; large real ones do not.
_LARGE = 64 << 20
_MAX_RATIO = 100
_LAST_CHARACTER = 0x10FFFF
_USUAL = ("image_features", "labels", "split", "class_names")


def read_npz(file: Path, *, only: Collection[str] = ()) -> dict[str, npt.NDArray[np.generic]]:
    """The arrays of an `.npz` by name.

    Raises:
        DataError: no such file, not an archive of arrays, encrypted or oddly compressed parts, pickled objects, headers
            whose sizes differ from the data's, an array compressed more than a hundredfold, invalid text.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
            if len(parts) > _MAX_ARRAYS:
                raise _Refused(f"{len(parts)} parts, where {_MAX_ARRAYS} are the most")
            if only:
                parts = [part for part in parts if part.filename.removesuffix(".npy") in only]
            found = {part.filename.removesuffix(".npy"): _array(archive, part, file.stat().st_size) for part in parts}
            if len(found) != len(parts):
                raise _Refused("two parts of one name")
            return found
    except FileNotFoundError:
        raise DataError(
            "a feature file must be there", got="none", where=file, next_step=did_you_mean_path(file)
        ) from None
    except IsADirectoryError:
        raise DataError("a feature file must be an .npz file", got="a folder", where=file) from None
    except _Refused as refused:
        got = str(refused)
    except zipfile.BadZipFile:
        got = "no archive, or a damaged one"
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds for damaged bytes
        got = first_line(error)
    raise DataError(
        "a feature file must be an .npz of plain arrays",
        got=got,
        where=file,
        next_step=f"Write it by numpy.savez(file, {', '.join(f'{name}=…' for name in only or _USUAL)}).",
    )


class _Refused(Exception):
    pass


def _array(archive: zipfile.ZipFile, part: zipfile.ZipInfo, file_bytes: int) -> npt.NDArray[np.generic]:
    name = part.filename
    if part.flag_bits & 0x1:
        raise _Refused(f"{name}, which is encrypted")
    if part.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _Refused(f"{name}, compressed by method {part.compress_type}, where NumPy stores or deflates")
    if part.compress_size > file_bytes or (part.compress_type == zipfile.ZIP_STORED and part.file_size > file_bytes):
        raise _Refused(f"{name}, which is said to be larger than the file")
    if part.file_size > max(_LARGE, _MAX_RATIO * part.compress_size):
        raise _Refused(f"{name}, {part.file_size} bytes packed into {part.compress_size}")
    with archive.open(part) as stream:
        dtype, shape, fortran = _header(stream, name)
        wanted = math.prod(shape) * dtype.itemsize
        content = bytearray()
        while len(content) <= wanted and (chunk := stream.read(min(_CHUNK, wanted + 1 - len(content)))):
            content += chunk
    if len(content) != wanted:
        more = "more than" if len(content) > wanted else "not"
        raise _Refused(f"{name}, whose header says {dtype} {shape} and whose data are {more} that")
    array = np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
    if dtype.kind == "U":
        _refuse_no_text(content, dtype, name)
    return array


def _header(stream: IO[bytes], name: str) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise _Refused(f"{name}, in version {version} of NumPy's format")
    shape, fortran, dtype = read(stream, max_header_size=_MAX_HEADER)
    if dtype.hasobject:
        raise _Refused(f"{name}, an array of Python objects, which only pickle can read")
    if any(length < 0 for length in shape):
        raise _Refused(f"{name}, of shape {shape}")
    return dtype, shape, fortran


def _refuse_no_text(content: bytearray, dtype: np.dtype[Any], name: str) -> None:
    codes = np.frombuffer(content, np.dtype(np.uint32).newbyteorder(dtype.byteorder))
    if ((codes > _LAST_CHARACTER) | ((codes >= 0xD800) & (codes < 0xE000))).any():
        raise _Refused(f"{name}, which holds characters that are none")
