"""What a file is, by its first bytes: an image that can be read, one that cannot, or none at all."""

from __future__ import annotations

import os
import stat
from functools import cache
from importlib.util import find_spec
from typing import IO

from PIL import Image

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff", ".ppm",
     ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif")
)  # fmt: skip
"""Files with these are taken for images without a look inside; decoding shows whether they are."""

_FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "AVIF", "JPEG2000", "PPM", "HEIF")
HEIC_HELP = "HEIC images (to read them: pip install 'captune[heic]')"
RAW = "camera raw files (export them as JPEG or TIFF)"
NO_IMAGE = "files that are no images"
HIDDEN = "hidden files"
DEVICE = "devices, pipes and sockets"
BROKEN_LINK = "links that lead nowhere"

HEIC_SUFFIXES = (".heic", ".heif", ".hif")
_RAW_SUFFIXES = frozenset((".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".pef", ".srw", ".raf"))
_JUNK_FILES = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"))
_JUNK_FOLDERS = frozenset(("@eadir", "__macosx", "#recycle", "$recycle.bin", "system volume information", "lost+found"))
_SIGNATURES = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+",
    b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51",
)  # fmt: skip
_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
_AVIF_BRANDS = frozenset((b"avif", b"avis"))


def open_image(file: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """Open an image in one of the formats that captune reads, and in no other.

    Pillow recognises forty more formats by a file's first bytes, whatever the file is called. It hands one of them
    (EPS) to Ghostscript, and an EPS file is a program that Ghostscript runs.

    Raises:
        PIL.UnidentifiedImageError: it has none of these formats; otherwise as `PIL.Image.open`.
    """
    Image.init()
    return Image.open(file, formats=[name for name in _FORMATS if name in Image.OPEN])


def is_junk_folder(name: str) -> bool:
    """Whether a folder holds none of the user's data: hidden ones, and what systems and archives leave (@eaDir)."""
    return name.startswith(".") or name.casefold() in _JUNK_FOLDERS


def reason_not_to_read(path: str, name: str) -> str | None:
    """Why a file is passed over; None for an image.

    A file without a known image suffix is judged by its first bytes. The caller finds links that lead nowhere.
    """
    if name.startswith(".") or name.casefold() in _JUNK_FILES:
        return HIDDEN
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - a Path for each of a million files costs seconds
    if suffix in _RAW_SUFFIXES:
        return RAW
    if suffix in HEIC_SUFFIXES:
        return None if reads_heic() else HEIC_HELP
    if suffix in IMAGE_SUFFIXES:
        return None
    return _by_content(path)


def is_special(mode: int) -> bool:
    """Whether a file's mode is that of a device, pipe or socket, which may block or never end."""
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _by_content(path: str) -> str | None:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            head = file.read(32)
    except OSError:
        return "files that cannot be opened"
    if head.startswith(_SIGNATURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return None
    if head[:2] == b"BM" and head[6:10] == b"\0\0\0\0" and len(head) >= 26:
        return None
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3] in (b" ", b"\n", b"\r", b"\t"):
        return None
    if head[4:8] == b"ftyp" and head[8:12] in _AVIF_BRANDS:
        return None
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
        return None if reads_heic() else HEIC_HELP
    return NO_IMAGE


@cache
def reads_heic() -> bool:
    """Whether HEIC files can be read here (captune[heic]). If so, Pillow is told how to open them."""
    if find_spec("pillow_heif") is None:
        return False
    import pillow_heif

    pillow_heif.register_heif_opener()
    return True
