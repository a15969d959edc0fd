"""`folder:DIR`: class folders, with or without train/val/test above them, or images alone and a list of names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from captune.data.dataset import UNKNOWN
from captune.data.layouts import SPLIT_NAMES, as_words, cut_by_class
from captune.data.listing import SPLITS, Items, Listing
from captune.data.overrides import NO_LABELS, GivenNames, names_missing, renaming, spelled_alike, spelling
from captune.data.tree import Tree, name_some, printable
from captune.errors import DataError
from captune.plain_text import counted


def read_folder(
    folder: Path,
    given: GivenNames | None = None,
    *,
    labels: bool = True,
    root: Path | None = None,
    follow_links: bool = False,
    pass_over: Sequence[str] = (),
) -> Listing:
    """Read a folder of images in one of these shapes:

    - `DIR/<class>/…/<image>`: each class is cut 50/20/30 % by a fixed seeded shuffle of its sorted files.
    - `DIR/train/<class>/<image>` beside `val` and `test`: splits as given. Without test, val is the test; without both,
      train is cut as above. Images of val or test outside class folders have no label.
    - images without class folders, if `given` names the classes: one pool without labels.

    A folder that holds nothing but one other folder (as unpacking a zip leaves it) is entered.

    Args:
        folder: DIR.
        given: `--class-names`.
        labels: False to read no labels, whatever the folders are called.
        root: a folder around DIR that links may lead into.
        follow_links: links may lead anywhere.
        pass_over: names of folders that are not read.

    Raises:
        DataError: no images, images beside class folders, classes that differ between splits, folders beside train
            and test, a link that leads out, images without labels and without class names.
    """
    tree = Tree(folder, root=root, follow_links=follow_links, skip=pass_over)
    parts = _inside_wrappers(tree)
    where = printable("/".join([tree.base, *parts]))
    notes = (f"the images lie in {'/'.join(parts)}, the only folder there",) if parts else ()
    by_split = _split_names(tree, parts)
    if by_split:
        listing = _split_folders(tree, parts, by_split, given, where, labels=labels)
    else:
        listing = _folders(tree, parts, given, where, labels=labels)
    notes = (*notes, *listing.notes, *tree.notes())
    return Listing(listing.class_names, listing.splits, None, where, listing.layout, notes, listing.cut)


def _inside_wrappers(tree: Tree) -> list[str]:
    """Names of nested folders, each the only one in its parent, down to the folder that matters."""
    parts: list[str] = []
    while not tree.direct_images(*parts):
        folders = tree.folders(*parts)
        if len(folders) != 1 or folders[0].lower() in SPLIT_NAMES or not tree.folders(*parts, folders[0]):
            break
        parts.append(folders[0])
    return parts


def _split_names(tree: Tree, parts: list[str]) -> dict[str, str]:
    """Split → its folder; empty if folders called train or test are classes like the others."""
    top = tree.folders(*parts)
    found: dict[str, str] = {}
    for name in top:
        split = SPLIT_NAMES.get(name.lower())
        if split is None:
            continue
        if split in found:
            raise DataError(
                f"one folder must hold the {split} split",
                got=f"{found[split]} and {name}",
                where=printable(tree.base),
                next_step="Put their images together, or take one of them away.",
            )
        found[split] = name
    if len(found) == len(top):
        return found
    # `train` or `test` can be a class (of vehicles, say). Such a folder holds images directly, as other classes do.
    return found if any(tree.folders(*parts, name) for name in found.values()) else {}


def _folders(tree: Tree, parts: list[str], given: GivenNames | None, where: str, *, labels: bool) -> Listing:
    top, loose = tree.folders(*parts), tree.direct_images(*parts)
    if not (labels and _are_classes(top, loose, given, where)):
        return _without_labels(tree, parts, top, given, where, labels=labels)
    files = {name: tree.images(*parts, name) for name in top}
    _refuse_empty(files, where)
    cut = cut_by_class(list(top), [files[name] for name in top], where=where)
    return Listing(cut.class_names, cut.splits, None, where, "class folders", renaming(top, given), cut.cut)


def _are_classes(folders: Sequence[str], loose: Sequence[str], given: GivenNames | None, where: str) -> bool:
    """Whether the folders are classes, judged by the class names that were given."""
    names = {} if given is None or given.names is None else {spelling(name): name for name in given.names}
    called = [folder for folder in folders if spelling(folder) in names]
    if folders and loose and (called or not names):
        raise DataError(
            "a folder must hold class folders or images, not both",
            got=f"{counted(len(loose), 'image')} ({name_some([Path(path).name for path in loose])}) beside the folders "
            f"{name_some(folders)}",
            where=where,
            next_step=f"Move the images into the folder of their class, or elsewhere. {NO_LABELS}",
        )
    if not names and len(folders) < 2:
        raise names_missing(
            f"{counted(len(loose), 'image')} and no names"
            if loose
            else f"{name_some(folders) or 'no folder'} alone, which is no choice of classes",
            where,
            " Or give each class a folder: DIR/<class>/<image>.",
        )
    return bool(folders) and not loose and (not names or bool(called) or len(folders) == len(names))


def _without_labels(
    tree: Tree, parts: list[str], folders: Sequence[str], given: GivenNames | None, where: str, *, labels: bool
) -> Listing:
    names = _named(given, where)
    images = tree.images(*parts)
    if not images:
        raise DataError("there must be an image", got="none", where=where)
    notes: tuple[str, ...] = ()
    if folders and labels:
        notes = (f"folders are not read as classes, none is called like one: {name_some(folders)}",)
    return Listing(names, {"train": _unknown(images)}, None, where, "images without labels", notes)


def _named(given: GivenNames | None, where: str) -> tuple[str, ...]:
    if given is None or given.names is None:
        raise names_missing("none", where)
    return given.names


def _unknown(images: Sequence[str]) -> Items:
    return [(path, UNKNOWN) for path in images]


def _split_folders(
    tree: Tree, parts: list[str], by_split: dict[str, str], given: GivenNames | None, where: str, *, labels: bool
) -> Listing:
    _refuse_others(tree, parts, by_split, where)
    if "train" not in by_split:
        raise DataError("split folders must hold a train folder", got=", ".join(by_split.values()), where=where)
    train = [*parts, by_split["train"]]
    names = tree.folders(*train)
    if not (labels and _are_classes(names, tree.direct_images(*train), given, where)):
        everything = {split: _unknown(tree.images(*parts, name)) for split, name in by_split.items()}
        if not everything["train"]:
            raise DataError("there must be a training image", got="none", where=where)
        return Listing(_named(given, where), everything, None, where, "train/val/test without labels")
    splits, notes = _labelled_splits(tree, parts, by_split, names, where)
    if not splits.get("test"):
        if not splits.get("val"):
            everything_K = [tree.images(*train, name) for name in names]
            cut = cut_by_class(names, everything_K, where=where)
            return Listing(cut.class_names, cut.splits, None, where, "class folders", renaming(names, given), cut.cut)
        # As in ImageNet, whose test labels are not public.
        splits["test"], splits["val"] = splits["val"], []
        notes = (*notes, f"there is no test folder: {by_split['val']} serves as the test split")
    class_names = tuple(as_words(name) for name in names)
    return Listing(class_names, splits, None, where, "train/val/test class folders", (*notes, *renaming(names, given)))


def _labelled_splits(
    tree: Tree, parts: list[str], by_split: dict[str, str], names: list[str], where: str
) -> tuple[dict[str, Items], tuple[str, ...]]:
    splits: dict[str, Items] = {}
    notes: tuple[str, ...] = ()
    for split in (split for split in SPLITS if split in by_split):
        folder = [*parts, by_split[split]]
        found, loose = tree.folders(*folder), tree.direct_images(*folder)
        if split != "train" and not found and loose:
            splits[split] = _unknown(loose)
            nowhere = f"{by_split[split]} holds {counted(len(loose), 'image')} in no class folder"
            notes = (*notes, f"{nowhere}: labels unknown")
            continue
        if loose:
            raise DataError(
                "a split folder must hold class folders or images, not both",
                got=f"{counted(len(loose), 'image')} beside class folders: "
                f"{name_some([Path(path).name for path in loose])}",
                where=f"{where}/{by_split[split]}",
                next_step="Move the images into the folder of their class, or elsewhere.",
            )
        there = _same_classes(names, found, by_split["train"], by_split[split], where)
        files = {name: tree.images(*folder, there[name]) for name in names}
        if split == "train":
            _refuse_empty(files, f"{where}/{by_split[split]}")
        splits[split] = [(path, label) for label, name in enumerate(names) for path in files[name]]
    return splits, notes


def _same_classes(names: list[str], found: list[str], train: str, split: str, where: str) -> dict[str, str]:
    """Class folder of train → the folder of that class in another split, which may be spelled differently."""
    if set(found) == set(names):
        return {name: name for name in names}  # `--class-names` may still tell `A` and `a` apart
    alike = [f"{pair} in {folder}" for folder, held in ((train, names), (split, found)) for pair in spelled_alike(held)]
    if alike:
        raise DataError(
            "folders of one class must be spelled in one way",
            got=name_some(alike),
            where=where,
            next_step=f"Put the images of one class into one folder. If these are different classes, {train} and "
            f"{split} must have the same folders, spelled the same, and --class-names must tell them apart.",
        )
    by_spelling = {spelling(name): name for name in found}
    own = {spelling(name) for name in names}
    if by_spelling.keys() != own:
        alone = [f"{name} in {train}" for name in names if spelling(name) not in by_spelling]
        alone += [f"{name} in {split}" for key, name in by_spelling.items() if key not in own]
        raise DataError(
            "all splits must have the same classes",
            got=f"{len(names)} in {train} and {len(found)} in {split}; in one alone: {name_some(alone)}",
            where=where,
            next_step="Rename the folders so that they agree. A class without images in a split has an empty folder "
            "there; a folder that is no class is left out by --pass-over.",
        )
    return {name: by_spelling[spelling(name)] for name in names}


def _refuse_others(tree: Tree, parts: list[str], by_split: dict[str, str], where: str) -> None:
    others = [name for name in tree.folders(*parts) if name not in by_split.values() and tree.images(*parts, name)]
    loose = tree.direct_images(*parts)
    if others or loose:
        listed = [*(f"the folder '{name}'" for name in others), *([counted(len(loose), "image")] if loose else [])]
        raise DataError(
            "nothing but split folders must hold images beside train and test",
            got=name_some(listed),
            where=where,
            next_step="Say --pass-over with the names of the folders that are not to be read, or move them."
            if others
            else "Move the images away.",
        )


def _refuse_empty(files: dict[str, list[str]], where: str) -> None:
    empty = [name for name, paths in files.items() if not paths]
    if empty:
        raise DataError(
            "every class folder must hold an image",
            got=f"{len(empty)} without: {name_some(empty)}",
            where=where,
            next_step="Remove the empty folders, add images, or say --pass-over with their names.",
        )
