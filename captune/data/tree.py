"""Finding a dataset's files: names in another case, links that leave the tree, names that are no text.

Folders are listed once each and looked up in memory: a million single look-ups on a network file system take an hour.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from captune.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")


def printable(path: str | Path) -> str:
    """A file name as text that any terminal takes: bytes that are not UTF-8 become replacement marks."""
    return os.fsencode(path).decode("utf-8", "replace")


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
    """The files below one folder, which may itself be a link; nothing below it may lead out of it."""

    def __init__(self, base: Path) -> None:
        """The tree at `base`.

        Raises:
            DataError: no such folder.
        """
        if not base.is_dir():
            raise DataError("an image folder must be there", got="none", where=printable(base))
        self.base = str(base.absolute())
        self._real = os.path.realpath(self.base)
        self._folders: dict[str, _Folder | None] = {"": self._list(self.base)}

    def locate(self, relatives: Iterable[str], *, where: object) -> tuple[str, ...]:
        """Absolute paths of files named relative to the tree.

        Raises:
            DataError: files that are missing, or that lie outside the tree: counted, three named.
        """
        found, missing, outside = [], [], []
        for relative in relatives:
            parts = [part for part in relative.replace("\\", "/").split("/") if part not in ("", ".")]
            if relative.startswith("/") or ".." in parts or not parts:
                outside.append(relative)
                continue
            folder = self._enter(parts[:-1])
            name = None if folder is None else folder.entry(parts[-1])
            if folder is None or name is None:
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
        """Absolute paths of all images at and below a folder, in order of their names; other files are passed over.

        Raises:
            DataError: a link that leads out of the tree.
        """
        outside: list[str] = []
        found = self._walk(list(parts), outside)
        _refuse_outside(outside, self.base)
        return found

    def direct_images(self, *parts: str) -> list[str]:
        """Absolute paths of the images right in a folder, in order of their names."""
        folder = self._enter(list(parts))
        if folder is None:
            return []
        return [f"{folder.path}/{name}" for name in sorted(folder.files) if _is_image(name)]

    def folders(self, *parts: str) -> list[str]:
        """Names of the folders in a folder, in order; hidden ones are passed over.

        Raises:
            DataError: a name that is not UTF-8: it could not stand in a prompt.
        """
        folder = self._enter(list(parts))
        names = (
            [] if folder is None else sorted(name for name in folder.folders if not name.startswith((".", "__MACOSX")))
        )
        unreadable = [name for name in names if not _is_text(name)]
        if unreadable:
            raise DataError(
                "names of class folders must be UTF-8 text",
                got=f"{len(unreadable)} that are not: {name_some(unreadable)}",
                where=printable(self.base),
                next_step="Rename the folders.",
            )
        return names

    def _walk(self, parts: list[str], outside: list[str]) -> list[str]:
        folder = self._enter(parts)
        if folder is None:
            return []
        found = []
        for name in sorted(folder.files):
            if not _is_image(name):
                continue
            if name in folder.links and not self._holds(f"{folder.path}/{name}"):
                outside.append(f"{folder.path}/{name}")
            found.append(f"{folder.path}/{name}")
        for name in sorted(folder.folders):
            if name in folder.links and not self._holds(f"{folder.path}/{name}"):
                outside.append(f"{folder.path}/{name}")
            else:
                if name in folder.links:
                    _refuse_circle(f"{folder.path}/{name}", folder.path)
                found += self._walk([*parts, name], outside)
        return found

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
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_symlink():
                    folder.links.add(entry.name)
                (folder.folders if entry.is_dir() else folder.files).add(entry.name)
        return folder

    def _holds(self, path: str) -> bool:
        real = os.path.realpath(path)
        return real == self._real or real.startswith(self._real + os.sep)


class _Folder:
    """One listed folder."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.files: set[str] = set()
        self.folders: set[str] = set()
        self.links: set[str] = set()
        self._folded: dict[str, list[str]] | None = None

    def entry(self, name: str, *, folder: bool = False) -> str | None:
        """The name as it is on disk: itself, or the only one that differs in case alone."""
        names = self.folders if folder else self.files
        if name in names:
            return name
        if self._folded is None:
            self._folded = {}
            for known in sorted(self.files | self.folders):
                self._folded.setdefault(known.casefold(), []).append(known)
        same = [known for known in self._folded.get(name.casefold(), []) if known in names]
        return same[0] if len(same) == 1 else None


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)


def _refuse_circle(link: str, folder: str) -> None:
    if f"{os.path.realpath(folder)}/".startswith(f"{os.path.realpath(link)}/"):
        raise DataError(
            "a link must not lead to a folder it lies in", got=printable(link), next_step="Remove the link."
        )


def _refuse_outside(outside: Sequence[str], base: str) -> None:
    if outside:
        raise DataError(
            "images must lie inside their dataset's folder",
            got=f"{len(outside)} that lead out of it: {name_some(outside)}",
            where=printable(base),
            next_step="Copy the files in, or make the whole image folder the link.",
        )


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
