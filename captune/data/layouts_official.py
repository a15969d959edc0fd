"""Datasets as their owners release them and torchvision unpacks them, without CoOp's split files.

An official train list without a val is cut 80/20 per class; a release without any list 50/20/30 per class.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from captune.data.layouts import as_words, cut_by_class, cut_validation, read_json, read_lines
from captune.data.listing import Items, Listing
from captune.data.names import CALTECH101_IGNORED, CALTECH101_RENAMED, EUROSAT, FLOWERS102
from captune.data.tree import Tree
from captune.errors import DataError


def read_caltech101(images: Path) -> Listing:
    """101_ObjectCategories: class folders; the background and the second set of faces are ignored."""
    tree = Tree(images)
    folders = [name for name in tree.folders() if name not in CALTECH101_IGNORED]
    names = [CALTECH101_RENAMED.get(name, name) for name in folders]
    return cut_by_class(names, [tree.images(name) for name in folders], where=str(images))


def read_eurosat(images: Path) -> Listing:
    """2750: ten class folders."""
    tree = Tree(images)
    return cut_by_class(list(EUROSAT.values()), [tree.images(folder) for folder in EUROSAT], where=str(images))


def read_plain_folders(images: Path) -> Listing:
    """One folder per class, named after it (RESISC45)."""
    tree = Tree(images)
    folders = tree.folders()
    return cut_by_class(folders, [tree.images(name) for name in folders], where=str(images))


def read_sun397(images: Path, class_names: Path) -> Listing:
    """SUN397 with ClassName.txt inside and no lists."""
    tree = Tree(images)
    folders = [line.strip().strip("/") for line in read_lines(class_names)]
    files = [tree.images(*folder.split("/")) for folder in folders]
    # The folder of a class can hold folders for its indoor and outdoor variants.
    nested = [
        [path for path in paths if Path(path).parent.name == folder.split("/")[-1]]
        for folder, paths in zip(folders, files, strict=True)
    ]
    return cut_by_class([_sun_name(folder) for folder in folders], nested, where=str(images))


def read_sun397_lists(images: Path, class_names: Path, train: Path, test: Path) -> Listing:
    """SUN397 with ClassName.txt, Training_01.txt and Testing_01.txt beside it."""
    folders = [line.strip().strip("/") for line in read_lines(class_names)]
    numbers = {folder: number for number, folder in enumerate(folders)}

    def items(file: Path) -> Items:
        names = [line.strip().strip("/") for line in read_lines(file)]
        return [(name, _number(numbers, name.rsplit("/", 1)[0], file)) for name in names]

    train_items, val_items = cut_validation(items(train))
    splits = {"train": train_items, "val": val_items, "test": items(test)}
    return Listing(tuple(_sun_name(folder) for folder in folders), splits, images, str(train))


def _sun_name(folder: str) -> str:
    """`a/apse/indoor` → `indoor apse`."""
    return as_words(" ".join(reversed(folder.split("/")[1:])))


def read_oxford_pets(images: Path, trainval: Path, test: Path) -> Listing:
    """images and annotations/{trainval,test}.txt with lines `<name>_<n> <label from 1> …`."""
    names: dict[int, str] = {}

    def items(file: Path) -> Items:
        result: Items = []
        for line in read_lines(file):
            if line.startswith("#"):
                continue
            try:
                image, label = line.split()[:2]
                number = int(label) - 1
            except ValueError:
                raise DataError("every line must be `<image> <label> …`", got=f"'{line}'", where=file) from None
            names.setdefault(number, as_words(image.rsplit("_", 1)[0]).lower())
            result.append((f"{image}.jpg", number))
        return result

    train_items, val_items = cut_validation(items(trainval))
    splits = {"train": train_items, "val": val_items, "test": items(test)}
    return Listing(_in_order(names, trainval), splits, images, str(trainval.parent))


def read_stanford_cars(train_images: Path, meta: Path, train: Path, test: Path) -> Listing:
    """cars_train, cars_test and the devkit's .mat files; the year moves to the front of a name."""
    try:
        names = [str(name) for name in _mat(meta)["class_names"].reshape(-1)]
        items = {
            file: [
                (f"{folder}/{row['fname']}", int(row["class"]) - 1) for row in np.atleast_1d(_mat(file)["annotations"])
            ]
            for folder, file in (("cars_train", train), ("cars_test", test))
        }
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise DataError(
            "the devkit's .mat files must be the official ones", got=str(error), where=meta.parent
        ) from None
    train_items, val_items = cut_validation(items[train])
    with_year_first = tuple(" ".join([name.split(" ")[-1], *name.split(" ")[:-1]]) for name in names)
    splits = {"train": train_items, "val": val_items, "test": items[test]}
    return Listing(with_year_first, splits, train_images.parent, str(meta.parent))


def read_flowers102(images: Path, labels: Path, sets: Path) -> Listing:
    """jpg, imagelabels.mat and setid.mat: the official splits of 1,020/1,020/6,149 images."""
    try:
        labels_N = _mat(labels)["labels"].reshape(-1).astype(np.int64) - 1
        ids = {
            name: np.atleast_1d(_mat(sets)[key]).astype(int)
            for name, key in (("train", "trnid"), ("val", "valid"), ("test", "tstid"))
        }
        splits = {
            name: [(f"image_{number:05d}.jpg", int(labels_N[number - 1])) for number in numbers]
            for name, numbers in ids.items()
        }
    except (KeyError, IndexError, ValueError) as error:
        raise DataError(
            "imagelabels.mat and setid.mat must be the official ones", got=str(error), where=labels
        ) from None
    return Listing(FLOWERS102, splits, images, str(sets))


def read_flowers102_labels(images: Path, labels: Path, names: Path) -> Listing:
    """jpg, imagelabels.mat and cat_to_name.json without a split: cut 50/20/30 per class."""
    labels_N = _mat(labels)["labels"].reshape(-1).astype(np.int64)
    called = {int(number): str(name) for number, name in read_json(names).items()}
    tree = Tree(images)
    files: list[list[str]] = [[] for _ in called]
    listed = [f"image_{number:05d}.jpg" for number in range(1, len(labels_N) + 1)]
    for path, label in zip(tree.locate(listed, where=str(labels)), labels_N.tolist(), strict=True):
        files[label - 1].append(path)
    return cut_by_class([called[number] for number in sorted(called)], files, where=str(labels))


def read_food101(images: Path, train: Path, test: Path) -> Listing:
    """images and meta/{train,test}.json: class folder → image names without .jpg."""
    lists = {file: read_json(file) for file in (train, test)}
    if not all(isinstance(values, dict) for values in lists.values()):
        raise DataError("meta/train.json must map class folders to images", got="another shape", where=train)
    folders = sorted(lists[train])
    items: dict[Path, Items] = {
        file: [
            (f"{name}.jpg", _number({key: n for n, key in enumerate(folders)}, folder, file))
            for folder, images_of in values.items()
            for name in images_of
        ]
        for file, values in lists.items()
    }
    train_items, val_items = cut_validation(items[train])
    splits = {"train": train_items, "val": val_items, "test": items[test]}
    return Listing(tuple(as_words(name) for name in folders), splits, images, str(train.parent))


def read_fgvc_aircraft(images: Path, variants: Path, *_lists: Path) -> Listing:
    """images, variants.txt and images_variant_{train,val,test}.txt with lines `<id> <variant>` (spaces, slashes)."""
    names = [line.strip() for line in read_lines(variants)]
    numbers = {name: number for number, name in enumerate(names)}
    splits: dict[str, Items] = {}
    for split in ("train", "val", "test"):
        file = variants.parent / f"images_variant_{split}.txt"
        pairs = [line.strip().split(" ", 1) for line in read_lines(file)]
        splits[split] = [(f"{pair[0]}.jpg", _number(numbers, pair[-1], file)) for pair in pairs]
    return Listing(tuple(names), splits, images, str(variants.parent))


def read_dtd(images: Path, train: Path, *_lists: Path) -> Listing:
    """images and labels/{train,val,test}1.txt with lines `<class>/<image>`: the official first partition."""
    lists = {
        split: [line.strip() for line in read_lines(train.parent / f"{split}1.txt")]
        for split in ("train", "val", "test")
    }
    folders = sorted({name.split("/")[0] for names in lists.values() for name in names})
    numbers = {folder: number for number, folder in enumerate(folders)}
    splits = {split: [(name, numbers[name.split("/")[0]]) for name in names] for split, names in lists.items()}
    return Listing(tuple(as_words(name) for name in folders), splits, images, str(train.parent))


def read_ucf101_lists(images: Path, class_index: Path, train: Path, test: Path) -> Listing:
    """UCF-101-midframes with ucfTrainTestlist/{classInd,trainlist01,testlist01}.txt."""
    actions = [line.split()[-1] for line in read_lines(class_index)]
    numbers = {action: number for number, action in enumerate(actions)}

    def items(file: Path) -> Items:
        result: Items = []
        for line in read_lines(file):
            action, _, video = line.split()[0].partition("/")
            frame = re.sub(r"\.avi$", ".jpg", video)
            result.append((f"{'_'.join(_capitals(action))}/{frame}", _number(numbers, action, file)))
        return result

    train_items, val_items = cut_validation(items(train))
    splits = {"train": train_items, "val": val_items, "test": items(test)}
    return Listing(tuple(" ".join(_capitals(action)) for action in actions), splits, images, str(train.parent))


def _capitals(action: str) -> list[str]:
    """`ApplyEyeMakeup` → Apply, Eye, Makeup."""
    return re.findall("[A-Z][^A-Z]*", action)


def read_imagenet(train: Path, val: Path, class_names: Path) -> Listing:
    """images/{train,val} with wnid folders, and classnames.txt with lines `<wnid> <name>`.

    A label is the index among the sorted wnids. The official val is the test split here, and the val split is empty:
    published few-shot code uses the same images for both, which would show a study its own test labels.
    """
    names = dict(line.strip().split(" ", 1) for line in read_lines(class_names) if " " in line.strip())
    train_tree, val_tree = Tree(train), Tree(val)
    wnids = train_tree.folders()
    without = [wnid for wnid in wnids if wnid not in names]
    if without or val_tree.folders() != wnids:
        raise DataError(
            "images/train, images/val and classnames.txt must have the same wnids",
            got=f"{len(wnids)} in train, {len(val_tree.folders())} in val, {len(without)} of train's without a name",
            where=train.parent,
            next_step="Are the validation images sorted into wnid folders?",
        )
    items = {
        split: [(path, label) for label, wnid in enumerate(wnids) for path in tree.images(wnid)]
        for split, tree in (("train", train_tree), ("test", val_tree))
    }
    return Listing(tuple(names[wnid] for wnid in wnids), items, None, str(train.parent))


def _mat(file: Path) -> dict[str, Any]:
    """A MATLAB file, squeezed.

    Raises:
        DataError: unreadable.
    """
    try:
        from scipy.io import loadmat  # imported here: it takes a second, and only this layout needs it

        values: dict[str, Any] = loadmat(file, squeeze_me=True)
    except Exception as error:  # for a damaged file scipy raises many kinds of exceptions
        raise DataError("a .mat file must be readable", got=str(error) or type(error).__name__, where=file) from None
    return values


def _number(numbers: dict[str, int], name: str, file: Path) -> int:
    if name not in numbers:
        raise DataError("every listed class must be one of the dataset's", got=f"'{name}'", where=file)
    return numbers[name]


def _in_order(names: dict[int, str], file: Path) -> tuple[str, ...]:
    if sorted(names) != list(range(len(names))):
        raise DataError(
            "labels must run from 1 without gaps", got=f"{len(names)} labels up to {max(names) + 1}", where=file
        )
    return tuple(names[number] for number in range(len(names)))
