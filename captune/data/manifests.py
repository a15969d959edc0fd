"""`csv:FILE`: a list of images with their labels and splits, as spreadsheets and scripts write it."""

from __future__ import annotations

import csv
import io
import os
import re
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from captune.data.dataset import UNKNOWN
from captune.data.layouts import SPLIT_NAMES, as_words, cut_by_class
from captune.data.listing import SPLITS, Items, Listing
from captune.data.overrides import GivenNames, names_missing, renaming, spelled_alike, spelling
from captune.data.tree import lies_in, name_some, printable
from captune.errors import DataError, did_you_mean, did_you_mean_path
from captune.plain_text import counted

_UNKNOWN_LABELS = ("", "-1")
_MISSING = re.compile(r"nan|n/?a|<na>|none|null|unknown|unlabell?ed|\?|-\d+(\.\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Columns:
    """Header names of the columns, compared without case and outer blanks."""

    image: str = "path"
    label: str = "label"
    split: str = "split"


@dataclass(frozen=True)
class _Row:
    line: int
    path: str
    label: str
    split: str


def read_manifest(
    file: Path,
    given: GivenNames | None = None,
    *,
    labels: bool = True,
    columns: Columns | None = None,
    root: Path | None = None,
    follow_links: bool = False,
) -> Listing:
    """Read a list whose header names the columns `path` and, optionally, `label` and `split`, in any case and order.

    Comma, semicolon or tab; UTF-8 or UTF-16; any line ends; `\\` or `/` in paths. Paths are relative to the file, or
    absolute below `root`. A label is a class name or a whole number; an empty one (or -1) is unknown. Classes are in
    name order, numbers in numeric order; if `given` names all of them, they are in its order. Without a split column,
    labelled images are cut 50/20/30 % per class and the others are pooled.

    Args:
        file: the list.
        given: `--class-names`; needed if no row has a label.
        labels: False to read no labels.
        columns: what the columns are called.
        root: images must lie below it or below the list's own folder.
        follow_links: links may lead out of it.

    Raises:
        DataError: no such file or columns, another encoding, unknown splits, labels that are spelled in two ways,
            missing images, images outside the root, an image with two labels or in two splits.
    """
    rows = _rows(file, columns or Columns(), labels=labels)
    names, numbers = _classes(rows, given, file)
    notes = (*_counted(rows, names, numbers), *_odd(numbers), *renaming(names, given))
    paths = _located(rows, file, (root or file.parent).absolute(), follow_links=follow_links)
    listed = len(rows)
    rows, paths = _once(rows, paths, file)
    if len(rows) < listed:
        notes = (*notes, f"{listed - len(rows)} of {listed} rows name an image that an earlier row names: read once")
    splits: dict[str, Items] = {split: [] for split in SPLITS}
    for row, path in zip(rows, paths, strict=True):
        splits[row.split].append((path, numbers.get(row.label, UNKNOWN)))
    if not splits["train"]:
        raise DataError("a list must have training images", got="none", where=file)
    known = [item for item in splits["train"] if item[1] != UNKNOWN]
    unknown = sum(label == UNKNOWN for items in splits.values() for _, label in items)
    layout = "list of images" + (f", {unknown} of {len(rows)} without a label" if unknown else "")
    if splits["val"] or splits["test"] or not known:
        return Listing(names, splits, None, str(file), layout, notes)
    by_class: list[list[str]] = [[] for _ in names]
    for path, label in known:
        by_class[label].append(path)
    cut = cut_by_class(names, by_class, where=str(file))
    cut.splits["train"].extend(item for item in splits["train"] if item[1] == UNKNOWN)
    return Listing(names, cut.splits, None, str(file), layout, notes, cut.cut)


def _rows(file: Path, columns: Columns, *, labels: bool) -> list[_Row]:
    text = _text(file)
    delimiter = _delimiter(text, columns)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter)
    try:
        header = [name.strip() for name in next(reader, [])]
        if header and header[0].casefold() == "sep=":  # Excel writes this line before the header
            header = [name.strip() for name in next(reader, [])]
        places = _places(header, columns, file, labels=labels)
        rows = [
            _row(cells, reader.line_num, places, len(header), file) for cells in reader if any(map(str.strip, cells))
        ]
    except csv.Error as error:
        raise DataError(
            "a list of images must be CSV", got=str(error), where=f"{file}: line {reader.line_num}"
        ) from None
    if not rows:
        raise DataError("a list of images must list images", got="a header alone", where=file)
    return rows


def _text(file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        near = did_you_mean_path(file)
        raise DataError("a list of images must be readable", got=error.strerror, where=file, next_step=near) from None
    encoding = "utf-8-sig"
    if data.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        encoding = "utf-32"
    elif data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\0" in data[:1000]:  # UTF-16 without its mark: every second byte of plain text is 0
        encoding = "utf-16-be" if data[:1] == b"\0" else "utf-16-le"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            "a list of images must be UTF-8 text",
            got=f"byte {error.start} is not",
            where=file,
            next_step='Save it as UTF-8 (in Excel: "CSV UTF-8").',
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _delimiter(text: str, columns: Columns) -> str:
    """Of comma, semicolon and tab the one that finds most of the columns in the first line, then the most frequent."""
    lines = [line for line in text.split("\n", 2) if line.strip() and not line.casefold().startswith("sep=")]
    first = lines[0] if lines else ""
    wanted = {columns.image.casefold(), columns.label.casefold(), columns.split.casefold()}

    def merit(delimiter: str) -> tuple[int, int]:
        cells = [cell.strip().strip('"').casefold() for cell in first.split(delimiter)]
        return len(wanted.intersection(cells)), first.count(delimiter)

    return max((",", ";", "\t"), key=merit)


def _places(header: Sequence[str], columns: Columns, file: Path, *, labels: bool) -> dict[str, int | None]:
    folded = [name.casefold() for name in header]
    twice = sorted(name for name, count in Counter(folded).items() if count > 1 and name)
    if twice:
        raise DataError("a list's columns must have different names", got=name_some(twice), where=file)
    places = {}
    for what, name in (("image", columns.image), ("label", columns.label), ("split", columns.split)):
        named = name != getattr(Columns(), what)
        at = folded.index(name.strip().casefold()) if name.strip().casefold() in folded else None
        if at is None and (what == "image" or named or (what == "label" and labels)):
            raise DataError(
                f"a list of images must have a column {name}"
                if named
                else "a list of images must have a header with the columns path, label and optionally split",
                got=", ".join(header) or "an empty file",
                where=file,
                next_step=did_you_mean(name, header)
                if named
                else "Name yours by --image-column, --label-column and --split-column; without labels, --labels none.",
            )
        places[what] = at
    if not labels:
        places["label"] = None
    return places


def _row(cells: list[str], line: int, places: dict[str, int | None], width: int, file: Path) -> _Row:
    if len(cells) != width:
        raise DataError(
            f"every line must have {width} cells, as the header", got=len(cells), where=f"{file}: line {line}"
        )

    def cell(what: str) -> str:
        at = places[what]
        return "" if at is None else cells[at]

    split = cell("split").strip().lower() or "train"
    if split not in SPLIT_NAMES:
        raise DataError("split must be train, val or test", got=f"'{split}'", where=f"{file}: line {line}")
    path = cell("image").strip()
    if not path or "\0" in path:
        raise DataError("path must be given", got="nothing" if not path else "a NUL byte", where=f"{file}: line {line}")
    return _Row(line, path, cell("label"), SPLIT_NAMES[split])


def _classes(rows: list[_Row], given: GivenNames | None, file: Path) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names in label order, and label as written → its index."""
    written = sorted({row.label for row in rows})
    unclear = spelled_alike(label for label in written if label.strip())
    if unclear:
        raise DataError(
            "a class must be spelled in one way",
            got="; ".join(unclear),
            where=file,
            next_step="Labels that differ in case, blanks, `_` or the coding of accents alone would be different "
            "classes.",
        )
    known = sorted((label for label in written if label.strip() not in _UNKNOWN_LABELS), key=_numbers_in_order)
    stripped = [label.strip() for label in known]
    names = None if given is None else given.names
    if not known:
        if names is None:
            raise names_missing("no label in the list and no names", file)
        return names, {}
    if names is not None:
        index = {spelling(name): number for number, name in enumerate(names)}
        if all(spelling(label) in index for label in stripped):
            return names, {label: index[spelling(label)] for label in known}
        if all(label.isdecimal() and int(label) < len(names) for label in stripped):
            return names, {label: int(label) for label in known}
    return tuple(as_words(label) for label in stripped), {label: number for number, label in enumerate(known)}


def _counted(rows: list[_Row], names: tuple[str, ...], numbers: dict[str, int]) -> tuple[str, ...]:
    """A note if labels are numbers for given names, since a list that counts from 1 would be read off by one."""
    if not numbers or not all(
        label.strip().isdecimal() and names[at] != label.strip() for label, at in numbers.items()
    ):
        return ()
    counts = Counter(row.label.strip() for row in rows)
    pairs = [
        f"{label.strip()} = {names[at]} ({counted(counts[label.strip()], 'image')})" for label, at in numbers.items()
    ]
    return (f"labels are numbers that count the class names from 0: {name_some(pairs, 5)}",)


def _odd(numbers: dict[str, int]) -> tuple[str, ...]:
    """A note on classes whose names programs use for missing values (nan, NULL)."""
    odd = sorted(label.strip() for label in numbers if _MISSING.fullmatch(label.strip()))
    return (f"read as names of classes: {name_some(odd)}; an unknown label is an empty cell or -1",) if odd else ()


def _numbers_in_order(label: str) -> tuple[int, int, str]:
    label = label.strip()
    return (0, int(label), "") if label.isdecimal() else (1, 0, label)


def _located(rows: list[_Row], file: Path, root: Path, *, follow_links: bool) -> list[str]:
    """The absolute path of each row; a path is looked up once, however many rows name it."""
    base = str(file.parent.absolute())
    around, real_around = (base, str(root)), (os.path.realpath(base), os.path.realpath(root))
    real_folders: dict[str, str] = {}

    def leads_out(path: str, *, link: bool) -> bool:
        if not any(lies_in(path, each) for each in around):
            return True
        if follow_links:
            return False
        folder, name = os.path.split(path)
        # Resolving each path anew would look at every folder above it again: seconds for a list of 100,000.
        if folder not in real_folders:
            real_folders[folder] = os.path.realpath(folder)
        real = os.path.realpath(path) if link else os.path.join(real_folders[folder], name)  # noqa: PTH118
        return not any(lies_in(real, each) for each in real_around)

    found: dict[str, str] = {}
    missing: list[str] = []
    outside: list[str] = []
    special: list[str] = []
    for written in dict.fromkeys(row.path for row in rows):
        path, kind = _looked_up(base, written)
        if kind is None and "\\" in written:
            path, kind = _looked_up(base, written.replace("\\", "/"))
        found[written] = path
        link = kind is not None and stat.S_ISLNK(kind)
        if kind is None or (link and not os.path.exists(path)):  # noqa: PTH110
            missing.append(written)
        elif not (stat.S_ISREG(kind) or (link and os.path.isfile(path))):  # noqa: PTH113
            special.append(written)
        elif leads_out(path, link=link):
            outside.append(path)
    if missing:
        raise DataError(
            "every listed image must be on disk",
            got=f"{len(missing)} missing: {name_some(missing)}",
            where=file,
            next_step="Paths in the list are absolute or relative to it.",
        )
    if special:
        raise DataError("every listed image must be a file", got=f"other things: {name_some(special)}", where=file)
    if outside:
        common = os.path.commonpath([os.path.dirname(path) for path in outside] + [base])  # noqa: PTH120
        raise DataError(
            "every listed image must lie inside the data root",
            got=f"{len(outside)} outside: {name_some(outside)}",
            where=printable(root),
            next_step=f"Say --data-root {printable(common)} if they are meant (for links: --follow-links).",
        )
    return [found[row.path] for row in rows]


def _looked_up(base: str, written: str) -> tuple[str, int | None]:
    """An absolute path, and what lies there: the mode of the file or of the link itself, None if nothing does."""
    path = os.path.normpath(os.path.join(base, written))  # noqa: PTH118 - a Path a row costs seconds
    try:
        return path, os.lstat(path).st_mode
    except (OSError, ValueError):
        return path, None


def _once(rows: list[_Row], paths: list[str], file: Path) -> tuple[list[_Row], list[str]]:
    """Each path once; a path that occurs twice must have one split and one label."""
    first: dict[str, _Row] = {}
    kept_rows, kept_paths, in_two, two_labels = [], [], [], []
    for row, path in zip(rows, paths, strict=True):
        known = first.setdefault(path, row)
        if known is row:
            kept_rows.append(row)
            kept_paths.append(path)
        elif known.split != row.split:
            in_two.append(f"{row.path} (lines {known.line} and {row.line})")
        elif known.label.strip() != row.label.strip():
            two_labels.append(f"{row.path}: '{known.label.strip()}' and '{row.label.strip()}'")
    if two_labels:
        raise DataError(
            "an image must have one label", got=f"{len(two_labels)} with two: {name_some(two_labels)}", where=file
        )
    if in_two:
        raise DataError(
            "an image must stand in one split, or test images are trained on",
            got=f"{len(in_two)} in two: {name_some(in_two)}",
            where=file,
        )
    return kept_rows, kept_paths
