"""The folder shapes of ELEVATER, GRIP, CPL and CAP: the paper's own splits (`--protocol paper`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from captune.data.layouts import as_words, read_json, read_lines
from captune.data.listing import SPLITS, Items, Listing
from captune.data.names import EUROSAT_PAPER
from captune.data.tree import Tree
from captune.errors import DataError


def read_split_lists(class_names: Path, *_needed: Path) -> Listing:
    """DTD and Flowers102: class_names.txt, and split lists with lines `train.zip@<class>/<image> <label>`."""
    folder = class_names.parent
    splits = {}
    for split in SPLITS:
        file = folder / f"{split}.txt"
        splits[split] = [
            (f"{split}/{image}", label) for image, label in (_image_and_label(line, file) for line in read_lines(file))
        ]
    return Listing(_names(class_names), splits, folder, str(folder))


def read_aircraft_lists(labels: Path, *_needed: Path) -> Listing:
    """FGVCAircraft: as DTD, but lines are split at the last space, and the folder, maybe with spaces, is the class."""
    folder = labels.parent
    variants = [line.strip() for line in read_lines(labels)]
    numbers = {name: number for number, name in enumerate(variants)}
    splits: dict[str, Items] = {}
    for split in SPLITS:
        file = folder / f"{split}.txt"
        images = [line.rsplit(" ", 1)[0].split("@")[-1].strip() for line in read_lines(file)]
        variants_of = [image.split("/")[0] for image in images]
        unknown = sorted(set(variants_of) - set(numbers))
        if unknown:
            raise DataError("every variant must stand in labels.txt", got=f"'{unknown[0]}'", where=file)
        splits[split] = [
            (f"{split}/{image}", numbers[variant]) for image, variant in zip(images, variants_of, strict=True)
        ]
    return Listing(tuple(variants), splits, folder, str(folder))


def read_resisc_json(train_json: Path, *_needed: Path) -> Listing:
    """RESICS45: `{train,val,test}.json` with `images[].file_name` and `categories[].name`, class = folder."""
    folder = train_json.parent
    try:
        categories = [str(category["name"]) for category in read_json(train_json)["categories"]]
        numbers = {as_words(name): number for number, name in enumerate(categories)}
        splits = {split: _resisc_items(read_json(folder / f"{split}.json"), numbers) for split in SPLITS}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            "RESICS45's split files must hold images[].file_name and categories[].name, every folder a category",
            got=f"no {error}",
            where=folder,
        ) from None
    return Listing(tuple(as_words(name) for name in categories), splits, folder, str(folder))


def _resisc_items(values: Any, numbers: dict[str, int]) -> Items:
    items: Items = []
    for image in values["images"]:
        name = str(image["file_name"]).split("@")[-1]
        items.append((name, numbers[as_words(name.split("/")[0])]))
    return items


def read_eurosat_lists(test_list: Path, *_needed: Path) -> Listing:
    """EuroSAT: `test.txt` (and train.txt and val.txt if they are there), files at `<Class>/<file>`.

    Without train.txt, the training images are those in the class folders that test.txt does not name. Published code
    pools whole folders instead, test images included.
    """
    folder = test_list.parent
    numbers = {name: number for number, name in enumerate(EUROSAT_PAPER)}
    splits: dict[str, Items] = {"test": _eurosat_items(test_list, numbers)}
    held_out = {name for name, _ in splits["test"]}
    if (folder / "train.txt").exists():
        splits["train"] = _eurosat_items(folder / "train.txt", numbers)
        val = folder / "val.txt"
        splits["val"] = _eurosat_items(val, numbers) if val.exists() else []
        splits = {
            split: items if split == "test" else [item for item in items if item[0] not in held_out]
            for split, items in splits.items()
        }
    else:
        tree = Tree(folder)
        splits["train"] = [
            (name, number)
            for class_folder, number in numbers.items()
            for name in (f"{class_folder}/{Path(path).name}" for path in tree.images(class_folder))
            if name not in held_out
        ]
    return Listing(tuple(EUROSAT_PAPER.values()), splits, folder, str(folder))


def _eurosat_items(file: Path, numbers: dict[str, int]) -> Items:
    """`test.zip@<class>/<Class>_<n>.jpg <label>`: the part of the file's name before `_` is the class folder."""
    items: Items = []
    for line in read_lines(file):
        image, _ = _image_and_label(line, file)
        name = image.split("/")[-1]
        class_folder = name.split("_")[0]
        if class_folder not in numbers:
            raise DataError("EuroSAT's files must be called <Class>_<number>", got=f"'{name}'", where=file)
        items.append((f"{class_folder}/{name}", numbers[class_folder]))
    return items


def read_cub(classes: Path, *_needed: Path) -> Listing:
    """CUB-200-2011's own `{classes,images,train_test_split}.txt`: no val; name = after the last `.`, lower case."""
    folder = classes.parent
    numbers: dict[str, int] = {}
    names: list[str] = []
    for line in read_lines(classes):
        _, _, class_folder = line.partition(" ")
        numbers[class_folder.strip()] = len(names)
        names.append(as_words(class_folder.rsplit(".", 1)[-1]).lower())
    is_train = dict(line.split() for line in _pairs(folder / "train_test_split.txt"))
    splits: dict[str, Items] = {"train": [], "test": []}
    for line in _pairs(folder / "images.txt"):
        number, name = line.split(maxsplit=1)
        class_folder = name.split("/")[0]
        if class_folder not in numbers or number not in is_train:
            raise DataError(
                "images.txt must agree with classes.txt and train_test_split.txt", got=f"'{line}'", where=folder
            )
        splits["train" if is_train[number] == "1" else "test"].append((name.strip(), numbers[class_folder]))
    return Listing(tuple(names), splits, folder / "images", str(folder))


def _pairs(file: Path) -> list[str]:
    lines = [line.strip() for line in read_lines(file)]
    wrong = [line for line in lines if len(line.split(maxsplit=1)) != 2]
    if wrong:
        raise DataError("every line must hold a number and a value", got=f"'{wrong[0]}'", where=file)
    return lines


def _image_and_label(line: str, file: Path) -> tuple[str, int]:
    image, _, label = line.strip().rpartition(" ")
    try:
        return image.split("@")[-1].strip(), int(label)
    except ValueError:
        raise DataError(
            "every line must be `<split>.zip@<class>/<image> <label>`", got=f"'{line}'", where=file
        ) from None


def _names(file: Path) -> tuple[str, ...]:
    return tuple(as_words(line) for line in read_lines(file))
