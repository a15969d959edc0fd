"""Find a dataset's files, whatever the case of their names; refuse links that leave the folder and names not in UTF-8.

Folders are listed once each and looked up in memory: a million single look-ups on a network file system take an hour.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from captune.data.file_kinds import BROKEN_LINK, DEVICE, HIDDEN, is_junk_folder, is_special, reason_not_to_read
from captune.errors import DataError, UsageError, did_you_mean_path
from captune.plain_text import on_one_line

_JUNK = "folders of the system or of a program"


def printable(path: str | Path) -> str:
    """A file name as text inside a sentence, which any terminal takes; see `captune.plain_text`."""
    return on_one_line(str(path))


def name_some(names: Sequence[str], count: int = 3) -> str:
    """The first few names and, if there are more, an ellipsis."""
    return ", ".join(printable(name) for name in names[:count]) + (", …" if len(names) > count else "")


def find_path(root: Path, relative: str) -> Path | None:
    """A file or folder below `root`, each part in any case, an exact match first; None if it is not there."""
    path = root
    for part in relative.split("/"):
        if (path / part).exists():
            path = path / part
            continue
        try:
            same = [entry for entry in path.iterdir() if entry.name.casefold() == part.casefold()]
        except OSError:
            return None
        if len(same) != 1:
            return None
        path = same[0]
    return path


class Tree:
    """The files below one folder, which may itself be a link.

    Files that are no images are passed over and counted (`notes`). Links must not lead out of the folder, or out of
    `root` if that is given.
    """

    def __init__(
        self, base: Path, *, root: Path | None = None, follow_links: bool = False, skip: Sequence[str] = ()
    ) -> None:
        """The tree at `base`.

        Args:
            base: the folder.
            root: a folder around it that links may lead into.
            follow_links: links may lead anywhere.
            skip: names of folders that are not read, or their paths below `base`.

        Raises:
            DataError: no such folder.
        """
        if not base.is_dir():
            raise DataError(
                "an image folder must be there", got="none", where=printable(base), next_step=did_you_mean_path(base)
            )
        self.base = str(base.absolute())
        self.passed_over: dict[str, list[str]] = {}
        self._skip = frozenset(name.strip("/") for name in skip)
        self._skipped: set[str] = set()
        real = os.path.realpath(self.base)
        around = real if root is None else os.path.realpath(root)
        self._real = around if lies_in(real, around) else real
        self._follow_links = follow_links
        self._folders: dict[str, _Folder | None] = {"": self._list(self.base)}

    def locate(self, relatives: Iterable[str], *, where: object) -> tuple[str, ...]:
        """Absolute paths of files named relative to the tree.

        Raises:
            DataError: files that are missing, or that lie outside the tree: counted, three named.
        """
        found, missing, outside = [], [], []
        for relative in relatives:
            parts = [part for part in relative.replace("\\", "/").split("/") if part not in ("", ".")]
            if relative.startswith("/") or ".." in parts or not parts or "\0" in relative:
                outside.append(relative)
                continue
            folder = self._enter(parts[:-1])
            name = None if folder is None else folder.entry(parts[-1])
            if folder is None or name is None or name in folder.special or name in folder.broken:
                missing.append(relative)
            elif name in folder.links and not self._holds(f"{folder.path}/{name}"):
                outside.append(relative)
            else:
                found.append(f"{folder.path}/{name}")
        if missing:
            raise DataError(
                "every listed image must be on disk",
                got=f"{len(missing)} missing: {name_some(missing)}",
                where=f"{where}, below {printable(self.base)}",
                next_step="Was the dataset unpacked completely?",
            )
        _refuse_outside(outside, self.base)
        return tuple(found)

    def images(self, *parts: str) -> list[str]:
        """Absolute paths of all images at and below a folder, in order of their names.

        Raises:
            DataError: a link that leads out of the tree, nowhere, or to a folder that it lies in.
        """
        problems = _Problems()
        found = self._walk(list(parts), problems, ())
        problems.refuse(self.base)
        return found

    def direct_images(self, *parts: str) -> list[str]:
        """Absolute paths of the images directly in a folder, in order of their names."""
        folder = self._enter(list(parts))
        return [] if folder is None else [f"{folder.path}/{name}" for name in self._images_in(folder)]

    def folders(self, *parts: str) -> list[str]:
        """Names of the folders in a folder, in order; hidden, junk and skipped ones are passed over.

        Raises:
            DataError: a name that is not UTF-8: it could not stand in a prompt.
        """
        folder = self._enter(list(parts))
        names = [] if folder is None else self._folders_in(folder, list(parts))
        unreadable = [name for name in names if not is_text(name)]
        if unreadable:
            raise DataError(
                "names of class folders must be UTF-8 text",
                got=f"{len(unreadable)} that are not: {name_some(unreadable)}",
                where=printable(self.base),
                next_step="Rename the folders.",
            )
        return names

    def notes(self) -> tuple[str, ...]:
        """What was passed over, counted by reason, in one sentence; none if nothing was.

        Raises:
            UsageError: a folder to skip that is not there.
        """
        unknown = sorted(self._skip - self._skipped)
        if unknown:
            raise UsageError(
                "--pass-over must name folders that are there", got=name_some(unknown), where=printable(self.base)
            )
        counted = [f"the folder {name} (--pass-over)" for name in sorted(self._skipped)]
        for reason, names in sorted(self.passed_over.items()):
            example = "" if reason == HIDDEN else f" ({name_some(sorted(names))})"
            counted.append(f"{reason}: {len(names)}{example}")
        return (f"passed over: {'; '.join(counted)}",) if counted else ()

    def _walk(self, parts: list[str], problems: _Problems, above: tuple[str, ...]) -> list[str]:
        """Images at and below a folder; `above` are the real paths of folders that links led through."""
        folder = self._enter(parts)
        if folder is None:
            return []
        found = []
        for name in self._images_in(folder):
            path = f"{folder.path}/{name}"
            if name in folder.broken:
                problems.broken.append(path)
            elif name in folder.links and not self._holds(path):
                problems.outside.append(path)
            found.append(path)
        for name in self._folders_in(folder, parts):
            path, through = f"{folder.path}/{name}", above
            if name in folder.links:
                target = os.path.realpath(path)
                if not self._holds(path):
                    problems.outside.append(path)
                    continue
                if target in above or lies_in(os.path.realpath(folder.path), target):
                    problems.circles.append(path)
                    continue
                through = (*above, target)
            found += self._walk([*parts, name], problems, through)
        return found

    def _images_in(self, folder: _Folder) -> list[str]:
        if folder.images is None:
            folder.images = []
            for name in sorted(folder.files):
                path = f"{folder.path}/{name}"
                reason = DEVICE if name in folder.special else reason_not_to_read(path, name)
                if reason is None:
                    folder.images.append(name)
                else:
                    self._pass_over(BROKEN_LINK if name in folder.broken and reason != HIDDEN else reason, path)
        return folder.images

    def _folders_in(self, folder: _Folder, parts: list[str]) -> list[str]:
        names = []
        for name in sorted(folder.folders):
            below = "/".join([*parts, name])
            if is_junk_folder(name):
                if not folder.counted:
                    self._pass_over(_JUNK, f"{folder.path}/{name}")
            elif name in self._skip or below in self._skip:
                self._skipped.add(name if name in self._skip else below)
            else:
                names.append(name)
        folder.counted = True
        return names

    def _pass_over(self, reason: str, path: str) -> None:
        self.passed_over.setdefault(reason, []).append(os.path.relpath(path, self.base))

    def _enter(self, parts: list[str]) -> _Folder | None:
        key = "/".join(parts)
        if key not in self._folders:
            above = self._enter(parts[:-1])
            name = None if above is None else above.entry(parts[-1], folder=True)
            folder = None
            if above is not None and name is not None:
                path = f"{above.path}/{name}"
                if name in above.links and not self._holds(path):
                    _refuse_outside([path], self.base)
                folder = self._list(path)
            self._folders[key] = folder
        return self._folders[key]

    def _list(self, path: str) -> _Folder:
        folder = _Folder(path)
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    folder.add(entry)
        except OSError as error:
            raise DataError("a folder must be readable", got=error.strerror, where=printable(path)) from None
        return folder

    def _holds(self, path: str) -> bool:
        return self._follow_links or lies_in(os.path.realpath(path), self._real)


def lies_in(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies below it, judged by the two strings alone."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


class _Problems:
    """Links that may not be followed."""

    def __init__(self) -> None:
        self.outside: list[str] = []
        self.broken: list[str] = []
        self.circles: list[str] = []

    def refuse(self, base: str) -> None:
        """Raise for the worst of them."""
        _refuse_outside(self.outside, base)
        if self.circles:
            raise DataError(
                "a link must not lead to a folder it lies in",
                got=name_some(self.circles),
                where=printable(base),
                next_step="Remove the link.",
            )
        if self.broken:
            raise DataError(
                "every link must lead to an image",
                got=f"{len(self.broken)} that lead nowhere: {name_some(self.broken)}",
                where=printable(base),
                next_step="Fetch the files (`dvc pull`, `git annex get`), or remove the links.",
            )


class _Folder:
    """One listed folder."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.files: set[str] = set()
        self.folders: set[str] = set()
        self.links: set[str] = set()
        self.broken: set[str] = set()
        self.special: set[str] = set()
        self.images: list[str] | None = None
        self.counted = False
        self._folded: dict[str, list[str]] | None = None

    def add(self, entry: os.DirEntry[str]) -> None:
        """Note what an entry is."""
        if entry.is_symlink():
            self.links.add(entry.name)
        try:
            if entry.is_dir():
                self.folders.add(entry.name)
                return
            self.files.add(entry.name)
            if not entry.is_file() and is_special(entry.stat().st_mode):
                self.special.add(entry.name)
        except OSError:  # a link to nowhere, or to itself
            self.files.add(entry.name)
            self.broken.add(entry.name)

    def entry(self, name: str, *, folder: bool = False) -> str | None:
        """The name as it is on disk: itself, or the only one that differs just in case."""
        names = self.folders if folder else self.files
        if name in names:
            return name
        if self._folded is None:
            self._folded = {}
            for known in sorted(self.files | self.folders):
                self._folded.setdefault(known.casefold(), []).append(known)
        same = [known for known in self._folded.get(name.casefold(), []) if known in names]
        return same[0] if len(same) == 1 else None


def _refuse_outside(outside: Sequence[str], base: str) -> None:
    if outside:
        raise DataError(
            "images must lie inside their dataset's folder",
            got=f"{len(outside)} that lead out of it: {name_some(outside)}",
            where=printable(base),
            next_step="Copy the files in, name a folder around both by --data-root, or say --follow-links.",
        )


def is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8: no bytes that are not text, no half surrogates."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
