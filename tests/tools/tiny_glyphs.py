"""Training images of the embedded model: printed characters, bent until they look written by hand.

The fonts are those that matplotlib carries; no real image is read. The last steps imitate how the UCI digits were made
according to their description (a 32 × 32 bitmap that fills its box, ink counted in 4 × 4 blocks, 17 levels).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from captune.errors import ModelError

# LastResort draws boxes; the Computer Modern symbol fonts keep braces and primes where others keep digits; the rest
# have no digits.
_NO_LETTERS = ("LastResort", "cmex10", "cmsy10", "Display", "STIXNonUni", "STIXSiz")

_CANVAS = 64  # pixels; the glyph's box is _GLYPH high or wide inside it
_GLYPH = 44
_BITMAP = 32
_CHUNK = 1024  # glyphs bent at a time, to keep memory small


def font_files() -> list[Path]:
    """The matplotlib fonts that draw digits and capital letters as such, by file name."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [path for path in folder.glob("*.ttf") if not any(part in path.name for part in _NO_LETTERS)]
    return sorted(fonts, key=lambda path: path.name)


def printed(font: Path, characters: Sequence[str]) -> Tensor:
    """Draw K characters in one font, each scaled until its longer side is 44 pixels.

    Returns:
        (K, 64, 64) float32 ink in [0, 1], each glyph centred.

    Raises:
        ModelError: the font leaves a character blank.
    """
    typeface = ImageFont.truetype(str(font), size=96)
    return torch.from_numpy(np.stack([_fit(character, typeface) for character in characters]))


def _fit(text: str, typeface: ImageFont.FreeTypeFont) -> npt.NDArray[np.float32]:
    page = Image.new("L", (256, 256))
    ImageDraw.Draw(page).text((64, 64), text, fill=255, font=typeface)
    box = page.getbbox()
    if box is None:
        raise ModelError("every font must draw every character", got=f"a blank page for {text!r}", where=typeface.path)
    glyph = page.crop(box)
    scale = _GLYPH / max(glyph.size)
    size = (max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale)))
    canvas = Image.new("L", (_CANVAS, _CANVAS))
    canvas.paste(glyph.resize(size, Image.Resampling.BILINEAR), ((_CANVAS - size[0]) // 2, (_CANVAS - size[1]) // 2))
    return np.asarray(canvas, dtype=np.float32) / np.float32(255)


def draw_glyphs(labels_N: Tensor, characters: Sequence[str], generator: torch.Generator) -> Tensor:
    """Draw one bent character per label in a random font.

    Args:
        labels_N: (N,) int64 indices into `characters`.
        characters: the K characters to draw from.
        generator: source of fonts and distortions.

    Returns:
        (N, 8, 8) uint8, bright on dark, as the real digits are stored.
    """
    fonts_F = torch.stack([printed(font, characters) for font in font_files()])
    # Blurred ink is a cheap distance map: where it is cut later decides how thick the pen is. The maximum of each glyph
    # becomes 1, or hairline fonts would break.
    soft_FK = _blur(fonts_F.flatten(0, 1).unsqueeze(1), sigma=2.0).view_as(fonts_F)
    soft_FK = soft_FK / soft_FK.amax(dim=(-2, -1), keepdim=True)
    choice_N = torch.randint(len(fonts_F), labels_N.shape, generator=generator)
    pieces = []
    for start in range(0, len(labels_N), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        pieces.append(_distort(soft_FK[choice_N[chunk], labels_N[chunk]].unsqueeze(1), generator))
    return torch.cat(pieces)


def _distort(soft_N1HW: Tensor, generator: torch.Generator) -> Tensor:
    """Bend, thicken, count the ink in blocks and add noise: (N, 1, 64, 64) soft ink → (N, 8, 8) uint8."""
    num = len(soft_N1HW)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(num, *shape, generator=generator) * (high - low) + low

    angle, slant = uniform(-0.3, 0.3), uniform(-0.35, 0.35)
    # The window is 64 wide, the glyph 44: 44/64 = 0.69 shows the glyph just filling the bitmap.
    width, height = uniform(0.6, 1.15), uniform(0.62, 0.8)
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = [
        torch.stack([cos * width, (slant - sin) * height, uniform(-0.12, 0.12)], dim=1),
        torch.stack([sin * width, cos * height, uniform(-0.06, 0.06)], dim=1),
    ]
    grid_NHW2 = F.affine_grid(torch.stack(rows, dim=1), [num, 1, _BITMAP, _BITMAP], align_corners=False)
    # A smooth random field moves parts of a stroke against each other, as a hand does.
    bend_N2HW = torch.randn(num, 2, 4, 4, generator=generator) * uniform(0.0, 0.12, 1, 1, 1)
    bend_N2HW = F.interpolate(bend_N2HW, size=(_BITMAP, _BITMAP), mode="bicubic", align_corners=True)
    bent_N1HW = F.grid_sample(soft_N1HW, grid_NHW2 + bend_N2HW.permute(0, 2, 3, 1), align_corners=False)
    cut_N = uniform(0.2, 0.65, 1, 1, 1)
    ink_N1HW = torch.sigmoid((bent_N1HW - cut_N) * 20)
    counts_N1HW = F.avg_pool2d(ink_N1HW, 4) * 16
    counts_N1HW = counts_N1HW + torch.randn(counts_N1HW.shape, generator=generator) * uniform(0.0, 1.0, 1, 1, 1)
    return (counts_N1HW.round().clamp(0, 16) * (255 / 16)).round().to(torch.uint8).squeeze(1)


def _blur(image_N1HW: Tensor, *, sigma: float) -> Tensor:
    reach = int(3 * sigma)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    across = F.conv2d(image_N1HW, kernel.view(1, 1, 1, -1), padding=(0, reach))
    return F.conv2d(across, kernel.view(1, 1, -1, 1), padding=(reach, 0))
