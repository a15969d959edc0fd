"""The same image twice: one file by two names, or two files with the same bytes.

A test image that is also trained on makes every number on it worthless. So if captune cuts the splits itself, it keeps
copies on one side. Copies across splits that were given are refused or, if allowed, counted.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from captune.data.dataset import UNKNOWN
from captune.data.file_kinds import open_image
from captune.data.listing import SPLITS, Items, Listing
from captune.data.tree import name_some, printable
from captune.errors import DataError
from captune.plain_text import counted
from captune.records import atomic_write

NEARLY = 0.99
"""Two images count as nearly the same from this cosine of their frozen features on."""
_PIECE = 4096
# Fewer files than this are compared again each time; for more, the result is cached beside the stores.
_KEPT_FROM = 500


def equal_files(paths: Sequence[str], cache: Path | None = None) -> list[list[int]]:
    """Groups of positions whose files are one file (links, another spelling) or hold the same bytes; ascending.

    A file is read only if another has the same size, and as a whole only if 4 KiB from their middle agree too.

    Args:
        paths: files that are there.
        cache: a folder that keeps the answer for many files, by their paths, sizes and modification times.
    """
    digest = hashlib.sha256()
    facts_N3 = np.empty((len(paths), 3), np.uint64)
    for position, path in enumerate(paths):
        status = os.stat(path)  # noqa: PTH116 - a Path for each of a million files costs seconds
        facts_N3[position] = status.st_dev % 2**64, status.st_ino % 2**64, status.st_size
        digest.update(os.fsencode(path) + b"\0%d\0%d\n" % (status.st_size, status.st_mtime_ns))
    # One array, not a dictionary of a million lists: every worker of a study holds it in memory.
    one_file = _equal_rows(facts_N3[:, :2], np.arange(len(paths)))
    again = {position for positions in one_file for position in positions[1:]}
    to_read = np.array([at for at in np.flatnonzero(facts_N3[:, 2]) if at not in again], np.int64)
    alike = _equal_rows(facts_N3[to_read, 2:], to_read)
    kept = None
    if cache is not None and sum(map(len, alike)) >= _KEPT_FROM:
        kept = cache / "equal-files" / f"{digest.hexdigest()[:32]}.json"
    groups = _recall(kept)
    if groups is None:
        groups = _equal_bytes(paths, alike)
        if kept is not None:
            _remember(kept, groups)
    names = {positions[0]: positions for positions in one_file}
    joined = [sorted(other for first in group for other in names.get(first, [first])) for group in groups]
    inside = {position for group in joined for position in group}
    joined += [positions for positions in one_file if positions[0] not in inside]
    return sorted(joined)


def _equal_rows(values_ND: npt.NDArray[np.uint64], positions_N: npt.NDArray[np.int64]) -> list[list[int]]:
    """Positions of rows that occur more than once, one group per row, ascending."""
    order_N = np.lexsort(values_ND.T)
    sorted_ND = values_ND[order_N]
    starts = np.flatnonzero(np.r_[True, (sorted_ND[1:] != sorted_ND[:-1]).any(1)]) if len(order_N) else np.empty(0, int)
    ends = np.r_[starts[1:], len(order_N)]
    return sorted(
        sorted(positions_N[order_N[start:end]].tolist())
        for start, end in zip(starts.tolist(), ends.tolist(), strict=False)
        if end - start > 1
    )


def _equal_bytes(paths: Sequence[str], alike: Iterable[Sequence[int]]) -> list[list[int]]:
    found: list[list[int]] = []
    for positions in alike:
        for begun in _grouped(positions, lambda position: _middle(paths[position])):
            found += _grouped(begun, lambda position: _digest(paths[position]))
    # Files that are no images (empty stubs, saved error pages) are not copies of an image; decoding reports them.
    return sorted(group for group in found if _opens(paths[group[0]]))


def _opens(path: str) -> bool:
    try:
        with open_image(path):
            return True
    except Exception:  # damaged files make Pillow raise many kinds of exceptions
        return False


def _grouped(positions: Sequence[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for position in positions:
        groups[key(position)].append(position)
    return [group for group in groups.values() if len(group) > 1]


def _middle(path: str) -> Hashable:
    """A piece from the middle of a file: at the start, many files have the same header."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            file.seek(max(0, os.fstat(file.fileno()).st_size // 2 - _PIECE // 2))
            return file.read(_PIECE)
    except OSError:  # reported when it is decoded; here it equals no other file
        return path


def _digest(path: str) -> Hashable:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return path


def _recall(file: Path | None) -> list[list[int]] | None:
    try:
        return None if file is None else [list(map(int, group)) for group in json.loads(file.read_text())]
    except (OSError, ValueError, TypeError):
        return None


def _remember(file: Path, groups: list[list[int]]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, json.dumps(groups))
    except OSError:
        return  # without the cache it is computed again next time


def keep_copies_together(
    listing: Listing, cache: Path | None, *, allow: bool, shared_test: bool, published: bool = False
) -> Listing:
    """Keep copies on one side of captune's own cut, and note or refuse copies across splits that were given.

    Args:
        listing: absolute files that are there, and their labels.
        cache: see `equal_files`.
        allow: copies across given splits are allowed.
        shared_test: the test images are trained on anyway (tft).
        published: the given splits are those of a published dataset. Nobody can change them, and all numbers on them
            were made with their copies, so copies are noted and never refused.

    Raises:
        DataError: copies with two labels, or test images that are also training images where that is not allowed.
    """
    placed = [(split, path, label) for split in SPLITS for path, label in listing.splits.get(split, [])]
    groups = equal_files([path for _, path, _ in placed], cache)
    across = [group for group in groups if len({placed[at][0] for at in group}) > 1]
    unclear = _two_labels([[placed[at] for at in group] for group in groups], listing)
    if unclear and not published:
        raise _two_labels_error(unclear, listing)
    notes = []
    if groups:
        copies = sum(len(group) - 1 for group in groups)
        are = "is a copy" if copies == 1 else "are copies"
        notes.append(f"{copies} of {len(placed)} images {are} of another (the same file or the same bytes)")
    if unclear:
        notes.append(f"{counted(len(unclear), 'image')} with two labels, as copies: {name_some(unclear)}")
    if listing.cut:
        side = {at: placed[group[0]][0] for group in across for at in group}
        splits: dict[str, Items] = {split: [] for split in SPLITS}
        for at, (split, path, label) in enumerate(placed):
            splits[side.get(at, split)].append((path, label))
        return _with(listing, splits, notes)
    leaks = [leak for group in across if (leak := _leak([placed[at] for at in group])) is not None]
    pairs, num_test = [pair for pair, _ in leaks], sum(count for _, count in leaks)
    measured = any(label != UNKNOWN for _, label in listing.splits.get("test", []))
    shared = f"{counted(num_test, 'test image')} {'is' if num_test == 1 else 'are'} in the training images too"
    if pairs and measured and not shared_test:
        if published:
            notes.append(
                f"{shared}, in the published split itself, so their "
                f"accuracy is partly learned by heart, as in all numbers on it: {name_some(pairs)}"
            )
        elif not allow:
            raise DataError(
                "a test image must not be a training image too, or what is measured on it is learned by heart",
                got=f"{num_test} that are: {name_some(pairs)}",
                where=listing.where,
                next_step="Take them out of one side, or say --allow-duplicates, which every output then records.",
            )
        else:
            notes.append(
                f"--allow-duplicates: {shared}, so their accuracy is partly learned by heart: {name_some(pairs)}"
            )
    return _with(listing, listing.splits, notes)


def _with(listing: Listing, splits: dict[str, Items], notes: Sequence[str]) -> Listing:
    return Listing(
        listing.class_names, splits, listing.image_folder, listing.where, listing.layout, (*listing.notes, *notes),
        listing.cut,
    )  # fmt: skip


def _two_labels(groups: Sequence[Sequence[tuple[str, str, int]]], listing: Listing) -> list[str]:
    """Copies that have more than one label, each with its files and labels."""
    unclear = []
    for group in groups:
        labels = {label: path for _, path, label in group if label != UNKNOWN}
        if len(labels) > 1:
            unclear.append(
                " and ".join(f"{printable(path)} ({listing.class_names[label]})" for label, path in labels.items())
            )
    return unclear


def _two_labels_error(unclear: Sequence[str], listing: Listing) -> DataError:
    return DataError(
        "an image must have one label",
        got=f"{len(unclear)} with two, as copies: {'; '.join(unclear[:3])}{'; …' if len(unclear) > 3 else ''}",
        where=listing.where,
        next_step="Take the wrong ones away.",
    )


def _leak(group: Sequence[tuple[str, str, int]]) -> tuple[str, int] | None:
    """A test image and the training or validation image it equals, and how many test images equal it."""
    tests = [path for split, path, _ in group if split == "test"]
    other = next((path for split, path, _ in group if split != "test"), None)
    return None if not tests or other is None else (f"{printable(tests[0])} = {printable(other)}", len(tests))


def nearest_across(
    pool_ND: np.ndarray, test_TD: np.ndarray, *, threshold: float = NEARLY, num_pairs: int = 10, block: int = 1024
) -> tuple[int, list[tuple[int, int, float]]]:
    """Test images that are nearly a pool image, by cosine of their frozen features.

    Blockwise: never more than block × block similarities at once.

    Args:
        pool_ND: normalised features (N, D).
        test_TD: normalised features (T, D).
        threshold: cosine from which on two images count as near duplicates.
        num_pairs: how many of the closest pairs are returned.
        block: rows of either side at a time.

    Returns:
        how many test images have a pool image at `threshold` or above; and the closest pairs of all (row of the pool,
        row of the test, cosine), each test image once, closest first.
    """
    best_T = np.full(len(test_TD), -np.inf, np.float32)
    nearest_T = np.zeros(len(test_TD), np.int64)
    for start in range(0, len(test_TD), block):
        rows = slice(start, start + block)
        for first in range(0, len(pool_ND), block):
            cosine_BB = test_TD[rows] @ pool_ND[first : first + block].T
            at_B = cosine_BB.argmax(1)
            value_B = cosine_BB[np.arange(len(at_B)), at_B]
            better_B = value_B > best_T[rows]
            nearest_T[rows] = np.where(better_B, at_B + first, nearest_T[rows])
            best_T[rows] = np.where(better_B, value_B, best_T[rows])
    order = np.argsort(-best_T, kind="stable")[:num_pairs]
    pairs = [(int(nearest_T[row]), int(row), float(best_T[row])) for row in order if np.isfinite(best_T[row])]
    return int((best_T >= threshold).sum()), pairs
