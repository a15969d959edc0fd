"""Make names of files and classes safe to show, paths safe to type, and put counts into words.

A file name may hold any character except `/` and NUL, even those that colour or clear a terminal, write to its
clipboard or reverse the direction of the text that follows.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path

_ACTING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_HALF = re.compile(r"[\ud800-\udfff]")


def visible(text: str) -> str:
    """The text with each control character replaced by a visible one; line ends and tabs stay.

    Escape becomes `␛`, and so on; characters for which Unicode has no picture become `�`.

    Example:
        >>> visible("a\\x1b[2Jb")
        'a␛[2Jb'
    """
    return _ACTING.sub(lambda found: _picture(found[0]), text)


def on_one_line(text: str) -> str:
    """`visible`, but with line ends and tabs replaced too, for a name inside a sentence.

    Example:
        >>> on_one_line("new\\nline")
        'new␊line'
    """
    return visible(text).replace("\n", _picture("\n")).replace("\t", _picture("\t"))


def as_unicode(text: str) -> str:
    """The text with `�` for bytes that are not UTF-8 (in Python lone surrogates), so that it can be written."""
    return _HALF.sub("\ufffd", text)


def counted(number: int, what: str) -> str:
    """A number and its noun, in the singular or the plural.

    Example:
        >>> counted(1, "image"), counted(2, "unreadable image"), counted(0, "study")
        ('1 image', '2 unreadable images', '0 studies')
    """
    if number == 1:
        return f"1 {what}"
    return f"{number} {what[:-1]}ies" if what.endswith("y") else f"{number} {what}s"


def typed_path(path: Path) -> str:
    """A path as a user types it in a shell: relative if it lies below the working directory, quoted if need be.

    A name that begins with a dash gets `./` in front, since a command would take it for an option.

    Example:
        >>> typed_path(Path("runs/my study")), typed_path(Path("-v")), typed_path(Path("runs/digits"))
        ("'runs/my study'", './-v', 'runs/digits')
    """
    with contextlib.suppress(OSError):  # the working directory may have been removed
        path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def resume_command(*directories: Path) -> str:
    """The command that goes on with studies, as it is typed in the working directory.

    Example:
        >>> resume_command(Path("runs/digits-ul-cap"), Path("runs/my study"))
        "captune resume runs/digits-ul-cap 'runs/my study'"
    """
    return " ".join(["captune resume", *map(typed_path, directories)])


def _picture(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"
