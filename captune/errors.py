"""Every error a user can meet.

    CaptuneError                    exit 1
    ├── UsageError                  exit 2   what was typed: an option, a name, a path
    │   └── ConfigError             exit 2   what was written in a configuration or search-space file
    ├── DataError                   exit 1   images, splits, features
    ├── ModelError                  exit 1   backbones, weights, prompts
    │   └── CheckpointError         exit 1   an adapted model that does not fit
    ├── TrainingFailed              exit 1   NaN, collapse: the trial fails, the study goes on
    ├── RecordError                 exit 1   records on disk that cannot be read
    └── StudyError                  exit 1   a study that cannot start or go on

Each message says what must hold, what was found instead, where, and what to do next.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class CaptuneError(Exception):
    """Base of all errors a user is meant to read.

    Args:
        must_hold: the invariant, as a sentence without a full stop ("margin_scale must be at least 0").
        got: what was found instead.
        where: the file and key, the option, or the directory.
        next_step: what the user can do now.
    """

    exit_code = 1

    def __init__(
        self, must_hold: str, *, got: object = None, where: object = None, next_step: str | None = None
    ) -> None:
        self.must_hold = must_hold
        self.got = got
        self.where = where
        self.next_step = next_step
        super().__init__(must_hold)

    def __str__(self) -> str:
        text = self.must_hold
        if self.got is not None:
            text += f", but got {self.got}"
        if self.where is not None:
            text += f" (in {self.where})"
        text += "."
        if self.next_step is not None:
            text += f" {self.next_step}"
        return text

    def __reduce__(self) -> tuple[object, ...]:
        # Ray pickles errors to send them between processes; pickle does not pass keyword-only arguments by itself.
        return (
            _rebuild,
            (type(self), self.must_hold, self.got and str(self.got), self.where and str(self.where), self.next_step),
        )


def _rebuild(
    cls: type[CaptuneError], must_hold: str, got: object, where: object, next_step: str | None
) -> CaptuneError:
    return cls(must_hold, got=got, where=where, next_step=next_step)


class UsageError(CaptuneError):
    """The command line asks for something that does not exist or contradicts itself."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration or search-space file holds something that is not allowed."""


class DataError(CaptuneError):
    """Images, split files or features cannot be used as they are."""


class ModelError(CaptuneError):
    """A backbone, its weights or its prompts cannot be used as asked."""


class CheckpointError(ModelError):
    """An adapted model was made for other classes or another backbone, or is damaged."""


class TrainingFailed(CaptuneError):
    """Training became NaN or collapsed; the trial FAILS with this reason, the study goes on."""


class RecordError(CaptuneError):
    """Records on disk cannot be read as what they claim to be."""


class StudyError(CaptuneError):
    """A study cannot start or go on."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The sentence that names the nearest known name, or lists them all when none is near."""
    known = list(known)
    near = nearest(name, known)
    return f"Did you mean '{near}'?" if near is not None else f"Known: {', '.join(known)}."


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` is probably a misspelling of, ignoring case; None if none is near."""
    lowered: dict[str, str] = {}
    for one in known:
        lowered.setdefault(one.lower(), one)
    # One wrong letter in a name of three leaves a similarity of 2/3, so short names need a low cutoff. Among longer
    # names one as low would take different names for each other (cifar10, ucf101).
    cutoff = 0.65 if len(name) <= 4 else 0.72
    near = get_close_matches(name.lower(), lowered, n=1, cutoff=cutoff)
    return lowered[near[0]] if near else None


def did_you_mean_path(path: Path) -> str | None:
    """The sentence that suggests an existing path in place of one that does not exist; None if none is near."""
    for parent in path.absolute().parents:
        if not parent.is_dir():
            continue
        missing = path.absolute().relative_to(parent).parts[0]
        near = nearest(missing, sorted(entry.name for entry in parent.iterdir()))
        if near is None or near == missing:  # the same name: a link that leads nowhere
            return None
        # The suggestion is written as the path was typed: a relative path stays relative.
        found = Path(*path.parts[: len(path.parts) - len(path.absolute().relative_to(parent).parts)], near)
        return f"Did you mean '{found}'?"
    return None


_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES, errno.EPERM, errno.ESTALE}


def unwritable(error: OSError) -> bool:
    """Whether an error says that a disk is full, broken, read-only, or closed to this user."""
    return error.errno in _DISK


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its type if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
