"""Training captions of the embedded model, and the small byte-pair vocabulary learned from them."""

from __future__ import annotations

import gzip
import itertools
import re
import string
from collections import Counter
from collections.abc import Iterable
from typing import Final

import torch

DIGIT_NAMES: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

CHARACTERS: Final[dict[str, str]] = {
    **dict(zip(DIGIT_NAMES, string.digits, strict=True)),
    **{f"letter {letter.lower()}": letter for letter in string.ascii_uppercase},
}
"""Name → the character that is drawn. The letters make the features tell apart more shapes than the ten classes need,
which is what leaves room for adaptation."""

TEMPLATES: Final = (
    "a photo of a {}.",
    "a photo of the digit {}.",
    "a photo of the number {}.",
    "a picture of a {}.",
    "a drawing of a {}.",
    "an image of the digit {}.",
    "a handwritten {}.",
    "a printed {}.",
    "a blurry photo of a {}.",
    "a small {} in white on black.",
    "the digit {}.",
    "the number {}.",
    "{}",
)

SHAPES: Final[dict[str, tuple[str, ...]]] = {
    "zero": ("a closed oval", "one round loop", "a ring with an empty middle", "an egg with no line inside"),
    "one": ("a single upright line", "a straight stroke down", "a thin pole with a small flag", "a line with no loop"),
    "two": ("an arch above a flat base", "a curve that ends in a flat line", "a hook on a level foot", "a swan"),
    "three": ("two bumps to the right", "two open curves stacked", "a curve with a waist, open on the left", "a bird"),
    "four": ("an open top and a crossbar", "a triangle on a stick", "a crossed upright line", "three straight strokes"),
    "five": (
        "a flat top and an open belly",
        "a cap above a round belly",
        "a bar with a hook below",
        "a corner then a bowl",
    ),
    "six": (
        "a loop below a long stem",
        "a closed loop at the bottom",
        "a curl with a round foot",
        "a spiral that ends low",
    ),
    "seven": (
        "a flat top and a slanted stem",
        "a bar and a diagonal line",
        "a sharp corner at the top right",
        "a roof edge",
    ),
    "eight": ("two loops stacked", "a crossed double loop", "two rings that touch", "a snowman"),
    "nine": (
        "a loop above a long stem",
        "a closed loop at the top",
        "a round head with a tail",
        "a balloon on a string",
    ),
}
"""What each digit looks like; the model has read these, so they work as class descriptions."""


def all_captions() -> list[str]:
    """Every caption that training can draw, in a fixed order."""
    return [caption for name in CHARACTERS for caption in _captions_of(name)]


def draw_captions(generator: torch.Generator) -> list[str]:
    """One random caption a class, in class order: two in three only name it, the rest give its shape where known."""
    drawn = []
    for name in CHARACTERS:
        captions = _captions_of(name)
        named = int(torch.randint(3, (), generator=generator)) > 0
        low, high = (0, len(TEMPLATES)) if named or name not in SHAPES else (len(TEMPLATES), len(captions))
        drawn.append(captions[int(torch.randint(low, high, (), generator=generator))])
    return drawn


def _captions_of(name: str) -> list[str]:
    """Named captions first, one a template, then the shapes with and without the name."""
    shapes = SHAPES.get(name, ())
    named = [template.format(name) for template in TEMPLATES]
    shaped = [f"a photo of a {name}, {shape}." for shape in shapes]
    unnamed = [f"a photo of {shape}." for shape in shapes]
    return [*named, *shaped, *unnamed]


def learn_merges(captions: Iterable[str], max_merges: int) -> list[tuple[str, str]]:
    """Byte-pair merges: join the most frequent neighbouring pair, the first in the alphabet among equals, and repeat.

    See Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", ACL 2016.

    Args:
        captions: plain ASCII text.
        max_merges: at most this many; fewer when every word is one symbol.
    """
    words = Counter(word for caption in captions for word in re.findall(r"[a-z]+", caption.lower()))
    spelled = {word: (*word[:-1], word[-1] + "</w>") for word in words}
    merges: list[tuple[str, str]] = []
    while len(merges) < max_merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, symbols in spelled.items():
            for pair in itertools.pairwise(symbols):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = {word: _merge(symbols, best) for word, symbols in spelled.items()}
    return merges


def _merge(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    position = 0
    while position < len(symbols):
        if symbols[position : position + 2] == pair:
            merged.append("".join(pair))
            position += 2
        else:
            merged.append(symbols[position])
            position += 1
    return tuple(merged)


def vocabulary_file(merges: Iterable[tuple[str, str]]) -> bytes:
    """The gzip file that open_clip's SimpleTokenizer reads: a heading, then one merge a line.

    There is no line end after the last merge, because the tokenizer would count the empty line as a symbol. The time
    stamp is zero, so that equal merges give equal bytes.
    """
    lines = ["captune tiny vocabulary", *(" ".join(pair) for pair in merges)]
    return gzip.compress("\n".join(lines).encode(), mtime=0)
