"""Decode an image file to the pixels that open_clip's preprocessing has just before its centre crop.

There are two readings. "open_clip" gives exactly open_clip's pixels, for benchmark datasets. "viewer" gives what a
person sees: turned as EXIF says, 16- and 32-bit grey scaled to 8 bits, transparency on white; it decodes large JPEGs at
a half, a quarter or an eighth of their size.
"""

from __future__ import annotations

import io
import os
import stat
import threading
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from captune.data.file_kinds import HEIC_HELP, HEIC_SUFFIXES, open_image, reads_heic
from captune.preprocessing import Preprocessing

try:
    import simplejpeg
except ImportError:  # no wheel for this machine; Pillow decodes the same pixels
    simplejpeg = None

Pixels = npt.NDArray[np.uint8]
Reading = Literal["viewer", "open_clip"]
_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
MAX_ASPECT = 32
"""If one side of an image is more than this many times the other, only its middle is kept: a ruler or divider of
4000 × 2 pixels would become 448,000 × 224. The centre crop sees the same pixels, to one grey level."""
# A large JPEG is decoded to at least this many times the size it is resized to.
_DRAFT_GAP = 2
_MAX_BYTES = 200 * 2**20
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


# Files up to this size may be plain JPEGs: those without orientation data (EXIF, XMP) and without a second image (MPF).
_PLAIN_BYTES = 2 * 2**20
_MORE_THAN_PIXELS = (b"Exif\0", b"http://ns.adobe.com/xap/", b"MPF\0")
# Two megapixels of RGB.
_BUFFER_BYTES = 6 * 2**20
_OF_THREAD = threading.local()


class Unreadable(Exception):
    """An image that cannot be decoded; its text is the reason."""


def resized_size(height: int, width: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Height and width after the resize, rounded as torchvision and open_clip round.

    Shortest side: that side is S, the other ⌊S · long / short⌋. Squash: S × S. Longest side: both divided by the
    larger of height/S and width/S, rounded half to even.
    """
    size = preprocessing.image_size
    if preprocessing.resize_mode == "squash":
        return size, size
    if preprocessing.resize_mode == "longest":
        ratio = max(height / size, width / size)
        return max(1, round(height / ratio)), max(1, round(width / ratio))
    if width <= height:
        return int(size * height / width), size
    return size, int(size * width / height)


def stored_size(height: int, width: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Height and width of an image as it is kept: resized and, if it is very long, cut to its middle."""
    most = MAX_ASPECT * preprocessing.image_size
    height, width = resized_size(height, width, preprocessing)
    return min(height, most), min(width, most)


def decode_file(path: str | Path, preprocessing: Preprocessing, reading: Reading = "viewer") -> Pixels:
    """Decode and resize one file.

    Returns:
        pixels_HW3: uint8 RGB.

    Raises:
        Unreadable: empty, truncated, too large, or no image.
    """
    try:
        if str(path).lower().endswith(HEIC_SUFFIXES) and not reads_heic():
            raise Unreadable(HEIC_HELP)
        if reading == "viewer" and (plain_HW3 := _plain_jpeg(path, preprocessing)) is not None:
            return plain_HW3
        try:
            image = open_image(path)
        except Image.DecompressionBombError:
            if reading == "open_clip":
                raise
            return _decode_huge(path, preprocessing)
        with image:
            return resize_image(image, preprocessing, reading)
    except Image.DecompressionBombError:
        raise Unreadable(f"more than {_most_million_pixels()} million pixels") from None
    except UnidentifiedImageError:
        raise Unreadable(_what_else(Path(path))) from None
    except Unreadable:
        raise
    except Exception as error:  # for a damaged file, decoders raise many kinds of exceptions
        raise Unreadable(getattr(error, "strerror", None) or str(error) or type(error).__name__) from None


def _most_million_pixels() -> int:
    return round(2 * (Image.MAX_IMAGE_PIXELS or 0) / 10**6)


def _decode_huge(path: str | Path, preprocessing: Preprocessing) -> Pixels:
    """Decode a JPEG of more pixels than Pillow opens at a smaller size, so that it never fills the memory."""
    with open(path, "rb") as file:  # noqa: PTH123 - the plug-in wants a file
        if file.read(3) != b"\xff\xd8\xff":
            raise Image.DecompressionBombError
        file.seek(0)
        with JpegImagePlugin.JpegImageFile(file) as image:
            if "progressive" in image.info:  # a progressive JPEG: its decoder keeps all coefficients in memory
                raise Unreadable(
                    f"a progressive JPEG of {image.width * image.height // 10**6} million pixels, which cannot be "
                    f"decoded small (at most {_most_million_pixels()}): save it smaller, or not progressive"
                )
            _draft(image, preprocessing)
            if image.width * image.height * len(image.getbands()) > _MAX_BYTES:
                raise Image.DecompressionBombError
            return resize_image(image, preprocessing, "viewer")


def _what_else(path: Path) -> str:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
            return "no regular file"
        head = path.read_bytes()[:64] if path.stat().st_size < 1000 else b""
    except OSError as error:
        return error.strerror or str(error)
    if path.stat().st_size == 0:
        return "empty file"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer in place of the image (fetch it: git lfs pull)"
    return "no image format that captune reads"


def decode_array(pixels: Pixels, preprocessing: Preprocessing) -> Pixels:
    """Resize one uint8 array (H, W, 1 or 3); one channel stands for grey."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    return resize_image(image, preprocessing, "open_clip")


def decode_stored(data: bytes) -> Pixels:
    """The pixels (H, W, 3) of a JPEG that captune itself wrote."""
    if simplejpeg is not None:
        pixels_HW3: Pixels = simplejpeg.decode_jpeg(data, "RGB")
        return pixels_HW3
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def resize_image(image: Image.Image, preprocessing: Preprocessing, reading: Reading = "open_clip") -> Pixels:
    """Resize, then convert to RGB, in that order as open_clip does: greyscale and CMYK resize in their own mode."""
    if reading == "viewer":
        return _as_seen(image, preprocessing)
    height, width = resized_size(image.height, image.width, preprocessing)
    return np.asarray(_resized(image, height, width, preprocessing).convert("RGB"))


def _as_seen(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """The viewer's reading of an image: decoded small, eight bits on white, resized, turned."""
    drafted = _draft(image, preprocessing)
    pixels_HW3 = None if drafted else _turbo_pixels(image)
    if pixels_HW3 is None:
        image.load()
    turn = _TURNS.get(_orientation(image))
    if pixels_HW3 is None:
        image = _eight_bits_on_white(image)
    lies = turn is not None and turn in (
        Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE, Image.Transpose.ROTATE_90
    )  # fmt: skip
    sides = (image.width, image.height) if lies else (image.height, image.width)
    height, width = resized_size(*sides, preprocessing)
    if lies:
        height, width = width, height
    if image.mode == "RGB" and max(height, width) <= MAX_ASPECT * preprocessing.image_size:
        pixels_HW3 = np.array(image) if pixels_HW3 is None else pixels_HW3
        resized_HW3 = _resized_pixels(pixels_HW3, height, width, preprocessing)
        return resized_HW3 if turn is None else np.asarray(Image.fromarray(resized_HW3).transpose(turn))
    image = _resized(image, height, width, preprocessing)
    return np.asarray((image if turn is None else image.transpose(turn)).convert("RGB"))


def _plain_jpeg(path: str | Path, preprocessing: Preprocessing) -> Pixels | None:
    """Decode and resize a plain colour JPEG of moderate size as a viewer shows it, without Pillow.

    None for any other file, which Pillow then handles.
    """
    if simplejpeg is None or not str(path).lower().endswith((".jpg", ".jpeg")):
        return None
    with open(path, "rb") as file:  # noqa: PTH123 - a Path for each of a million files costs seconds
        data = file.read(_PLAIN_BYTES + 1)
    if len(data) > _PLAIN_BYTES or any(mark in data for mark in _MORE_THAN_PIXELS):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        small = 3 * height * width <= _BUFFER_BYTES
        sides = resized_size(height, width, preprocessing)
        if colours != "YCbCr" or not small or max(sides) > MAX_ASPECT * preprocessing.image_size:
            return None
        if min(height // sides[0], width // sides[1]) >= 2 * _DRAFT_GAP:  # decoded at a half (`_draft`)
            return None
        pixels_HW3: Pixels = simplejpeg.decode_jpeg(data, "RGB", buffer=_buffer(3 * height * width))
    except ValueError:
        return None
    return _resized_pixels(pixels_HW3, *sides, preprocessing)


def _turbo_pixels(image: Image.Image) -> Pixels | None:
    """The pixels (H, W, 3) of a colour JPEG, bit for bit those of Pillow in three quarters of the time.

    They lie in this thread's buffer, which the next image overwrites.

    None for any other image, for a damaged one (Pillow then decides whether it can be read), and without simplejpeg.
    """
    if simplejpeg is None or not isinstance(image, JpegImagePlugin.JpegImageFile) or image.mode != "RGB":
        return None
    if image.format != "JPEG" or image.fp is None:  # several images in one file; already loaded
        return None
    image.fp.seek(0)
    try:
        pixels_HW3: Pixels = simplejpeg.decode_jpeg(
            image.fp.read(), "RGB", buffer=_buffer(3 * image.width * image.height)
        )
    except ValueError:
        return None
    return pixels_HW3 if pixels_HW3.shape[:2] == (image.height, image.width) else None


def _buffer(num_bytes: int) -> npt.NDArray[np.uint8] | None:
    """This thread's buffer for the pixels of an image; in fresh memory the kernel would first clear page by page.

    None for large images: they are rare, and their memory would be held for nothing.
    """
    if num_bytes > _BUFFER_BYTES:
        return None
    if not hasattr(_OF_THREAD, "buffer"):
        _OF_THREAD.buffer = np.empty(_BUFFER_BYTES, np.uint8)
    buffer: npt.NDArray[np.uint8] = _OF_THREAD.buffer[:num_bytes]
    return buffer


def _resized_pixels(pixels_HW3: Pixels, height: int, width: int, preprocessing: Preprocessing) -> Pixels:
    """Resize as Pillow does, but with torch's vector instructions: a sixth of the time. The result is a copy.

    Its weights have 15 bits, Pillow's 22. In photographs 0.3 % of the values differ by one grey level, a few in a
    million by two.
    """
    if pixels_HW3.shape[:2] == (height, width):
        return pixels_HW3.copy()
    import torch  # not at the top: commands that only list or describe data do without PyTorch

    # As a batch in channels-last layout, for which torch has a fast kernel.
    pixels_13HW = torch.from_numpy(pixels_HW3)[None].permute(0, 3, 1, 2)
    resized_13HW = torch.nn.functional.interpolate(
        pixels_13HW, (height, width), mode=preprocessing.interpolation, align_corners=False, antialias=True
    )
    return np.ascontiguousarray(resized_13HW[0].permute(1, 2, 0).numpy())


def _resized(image: Image.Image, height: int, width: int, preprocessing: Preprocessing) -> Image.Image:
    """The image at a size; of a very long one (see `MAX_ASPECT`) only the middle."""
    resampling = _RESAMPLING[preprocessing.interpolation]
    kept = [min(length, MAX_ASPECT * preprocessing.image_size) for length in (height, width)]
    if kept == [height, width]:
        return image if (image.height, image.width) == (height, width) else image.resize((width, height), resampling)
    size, box = preprocessing.image_size, []
    for full, part, source in ((width, kept[1], image.width), (height, kept[0], image.height)):
        # Chosen so that the centre crop of the part is that of the whole; both round half to even.
        start = 0 if part == full else round((full - size) / 2) - round((part - size) / 2)
        box.append((start * source / full, (start + part) * source / full))
    (left, right), (top, bottom) = box
    return image.resize((kept[1], kept[0]), resampling, (left, top, right, bottom))


def _draft(image: Image.Image, preprocessing: Preprocessing) -> bool:
    """Ask a JPEG's decoder for a smaller image; returns whether it will be smaller. Other formats stay as they are."""
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        return False
    before = image.size
    # The image may still be turned by 90°, so both sides must be large enough.
    height, width = resized_size(image.height, image.width, preprocessing)
    image.draft(image.mode, (_DRAFT_GAP * width, _DRAFT_GAP * height))
    return image.size != before


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 if there is none or it cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data can raise any exception
        return 1
    return value if isinstance(value, int) else 1


def _eight_bits_on_white(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits scaled to 8, transparency on white; other images unchanged."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_scaled(np.asarray(image)))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        seen = image.convert("RGBA")
        white = Image.new("RGBA", seen.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, seen).convert("RGB")
    return image


def _scaled(values_HW: npt.NDArray[np.generic]) -> Pixels:
    """Grey of 16 or 32 bits or floating point as 8 bits.

    16 bits are scaled by their full range, as viewers do. Wider types do not say which value is white: if all values
    are at most 1 (floating point), 255 or 65,535, that is white; otherwise their own range is scaled. Values that are
    not finite become black.
    """
    if values_HW.dtype == np.uint16 or values_HW.dtype == np.dtype(">u2"):
        wide_HW: npt.NDArray[np.uint16] = values_HW.astype(np.uint16, copy=False)
        # v / 257 rounded, without a wider copy of what may be a large image.
        scaled: Pixels = (wide_HW // 257 + (wide_HW % 257 > 128)).astype(np.uint8)
        return scaled
    grey_HW = values_HW.astype(np.float32)
    finite_HW = np.isfinite(grey_HW)
    if not finite_HW.any():
        raise ValueError("no finite grey value")
    low, high = float(grey_HW[finite_HW].min()), float(grey_HW[finite_HW].max())
    if low >= 0:
        ranges = (1.0, 255.0, 65535.0) if np.issubdtype(values_HW.dtype, np.floating) else (255.0, 65535.0)
        white = next((most for most in ranges if high <= most), None)
        low, high = (low, high) if white is None else (0.0, white)
    grey_HW = np.where(finite_HW, (grey_HW - low) / max(high - low, 1e-30), 0)
    return np.rint(255 * grey_HW.clip(0, 1)).astype(np.uint8)
