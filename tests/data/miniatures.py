"""Miniature copies of every dataset in every folder shape that its row reads, built from the shape's description.

`MINIATURES` holds one for each, by the row's key and the place of the layout in the row, counted from 0; a shape
without a list of images also goes into `UNLISTED`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat


@dataclass
class Miniature:
    """What a loader must find.

    Attributes:
        class_names: in label order.
        truth: split → file below the root → class name.
    """

    class_names: tuple[str, ...]
    truth: dict[str, dict[str, str]] = field(default_factory=lambda: {"train": {}, "val": {}, "test": {}})

    def paths(self) -> list[str]:
        return [path for part in self.truth.values() for path in part]


def write_image(path: Path, colour: int = 0, size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (colour * 37 % 256, colour * 91 % 256, 50))
    # No two files have the same bytes: those would be one image twice.
    image.info["comment"] = "/".join(path.parts[-3:]).encode("utf-8", "surrogateescape")
    image.save(path, "JPEG", comment=image.info["comment"])


def coop(folder: str, split_name: str, prefix: str = "") -> Callable[[Path], Miniature]:
    """CoOp: a split JSON whose labels are in no alphabetical order."""

    def build(root: Path) -> Miniature:
        classes = {"zebra": "zebra", "Ape": "ape", "car_side": "car_side"}
        result = Miniature(("zebra", "ape", "car side"))
        lists: dict[str, list[list[object]]] = {}
        for split, count in (("train", 3), ("val", 2), ("test", 2)):
            lists[split] = []
            for label, (directory, name) in enumerate(classes.items()):
                for number in range(count):
                    relative = f"{prefix}{directory}/{split}_{number}.jpg"
                    write_image(root / folder / relative, label)
                    lists[split].append([relative, label, name])
                    result.truth[split][f"{folder}/{relative}"] = name.replace("_", " ")
        base = root / folder.split("/")[0]
        (base / f"split_zhou_{split_name}.json").write_text(json.dumps(lists))
        return result

    return build


def cut(folder: str, classes: dict[str, str], extra: Sequence[str] = (), also: str = "") -> Callable[[Path], Miniature]:
    """Class folders without lists: ten images a class, so 5/2/3; which image is where is the loader's own affair."""

    def build(root: Path) -> Miniature:
        result = Miniature(tuple(classes.values()))
        for label, (directory, name) in enumerate(classes.items()):
            for number in range(10):
                relative = f"{folder}/{directory}/sun_image_{number:04d}.jpg"
                write_image(root / relative, label)
                result.truth["train"][relative] = name
        for directory in extra:
            write_image(root / folder / directory / "image_0001.jpg")
            (root / folder / directory / "tmp").write_text("no image")
        if also:
            lines = [f"/{directory}" for directory in classes]
            (root / folder / also).write_text("\n".join(lines) + "\n")
        return result

    return build


def pets(base: str) -> Callable[[Path], Miniature]:
    def build(root: Path) -> Miniature:
        breeds = {"Abyssinian": "abyssinian", "american_bulldog": "american bulldog"}
        result = Miniature(tuple(breeds.values()))
        for split, count in (("trainval", 5), ("test", 2)):
            lines = ["#Image CLASS-ID SPECIES BREED ID"] if split == "test" else []
            for label, (breed, name) in enumerate(breeds.items()):
                for number in range(count):
                    image = f"{breed}_{number if split == 'test' else number + 100}"
                    write_image(root / base / "images" / f"{image}.jpg", label)
                    lines.append(f"{image} {label + 1} 1 1")
                    result.truth["test" if split == "test" else "train"][f"{base}/images/{image}.jpg"] = name
            (root / base / "annotations").mkdir(parents=True, exist_ok=True)
            (root / base / "annotations" / f"{split}.txt").write_text("\n".join(lines) + "\n")
        return result

    return build


def cars(root: Path) -> Miniature:
    names = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]
    result = Miniature(("2000 AM General Hummer SUV", "2012 Acura RL Sedan"))
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    savemat(base / "devkit/cars_meta.mat", {"class_names": np.array([names], dtype=object)})
    kinds = [("fname", object), ("class", object)]
    for folder, file, count in (
        ("cars_train", "devkit/cars_train_annos.mat", 5),
        ("cars_test", "cars_test_annos_withlabels.mat", 2),
    ):
        rows = []
        for label, name in enumerate(result.class_names):
            for number in range(count):
                image = f"{label}{number:04d}.jpg"
                write_image(base / folder / image, label)
                rows.append((image, label + 1))
                result.truth["train" if folder == "cars_train" else "test"][f"stanford_cars/{folder}/{image}"] = name
        savemat(base / file, {"annotations": np.array(rows, dtype=kinds)[None]})
    return result


def flowers(base: str) -> Callable[[Path], Miniature]:
    def build(root: Path) -> Miniature:
        from captune.data.names import FLOWERS102

        result = Miniature(FLOWERS102)
        ids: dict[str, list[int]] = {"train": [], "val": [], "test": []}
        labels = []
        for label, name in enumerate(FLOWERS102):
            for split in ("train", "train", "val", "test"):
                labels.append(label + 1)
                ids[split].append(len(labels))
                relative = f"{base}/jpg/image_{len(labels):05d}.jpg"
                write_image(root / relative, label)
                result.truth[split][relative] = name
        savemat(root / base / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
        sets = {"trnid": ids["train"], "valid": ids["val"], "tstid": ids["test"]}
        savemat(root / base / "setid.mat", {name: np.array([values], np.uint16) for name, values in sets.items()})
        return result

    return build


def flowers_labels(root: Path) -> Miniature:
    result = Miniature(("pink primrose", "ball moss"))
    labels = []
    for label, name in enumerate(result.class_names):
        for _ in range(10):
            labels.append(label + 1)
            relative = f"oxford_flowers/jpg/image_{len(labels):05d}.jpg"
            write_image(root / relative, label)
            result.truth["train"][relative] = name
    savemat(root / "oxford_flowers/imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    (root / "oxford_flowers/cat_to_name.json").write_text(json.dumps({"2": "ball moss", "1": "pink primrose"}))
    return result


def food(root: Path) -> Miniature:
    result = Miniature(("apple pie", "waffles"))
    base = root / "food-101"
    (base / "meta").mkdir(parents=True)
    for split, count in (("train", 5), ("test", 2)):
        lists: dict[str, list[str]] = {"waffles": [], "apple_pie": []}
        for directory, images in lists.items():
            for number in range(count):
                images.append(f"{directory}/{split}{number}")
                write_image(base / "images" / f"{images[-1]}.jpg")
                result.truth[split][f"food-101/images/{images[-1]}.jpg"] = directory.replace("_", " ")
        (base / "meta" / f"{split}.json").write_text(json.dumps(lists))
    return result


def aircraft(base: str) -> Callable[[Path], Miniature]:
    def build(root: Path) -> Miniature:
        variants = ("707-320", "BAE 146-200", "F-16A/B")
        result = Miniature(variants)
        (root / base).mkdir(parents=True)
        (root / base / "variants.txt").write_text("\n".join(variants) + "\n")
        number = 0
        for split in ("train", "val", "test"):
            lines = []
            for variant in variants:
                for _ in range(3):
                    number += 1
                    write_image(root / base / "images" / f"{number:07d}.jpg")
                    lines.append(f"{number:07d} {variant}")
                    result.truth[split][f"{base}/images/{number:07d}.jpg"] = variant
            (root / base / f"images_variant_{split}.txt").write_text("\n".join(lines) + "\n")
        return result

    return build


def sun_lists(root: Path) -> Miniature:
    folders = {"a/abbey": "abbey", "a/apse/indoor": "indoor apse"}
    result = Miniature(tuple(folders.values()))
    base = root / "sun397"
    base.mkdir()
    (base / "ClassName.txt").write_text("".join(f"/{folder}\n" for folder in folders))
    for split, file, count in (("train", "Training_01.txt", 5), ("test", "Testing_01.txt", 2)):
        lines = []
        for folder, name in folders.items():
            for number in range(count):
                lines.append(f"/{folder}/sun_{split}{number}.jpg")
                write_image(base / "SUN397" / lines[-1][1:])
                result.truth[split][f"sun397/SUN397{lines[-1]}"] = name
        (base / file).write_text("\n".join(lines) + "\n")
    return result


def dtd(base: str) -> Callable[[Path], Miniature]:
    def build(root: Path) -> Miniature:
        result = Miniature(("banded", "polka-dotted"))
        (root / base / "labels").mkdir(parents=True)
        for split in ("train", "val", "test"):
            lines = []
            for name in result.class_names:
                for number in range(3):
                    lines.append(f"{name}/{name}_{split}{number}.jpg")
                    write_image(root / base / "images" / lines[-1])
                    result.truth[split][f"{base}/images/{lines[-1]}"] = name
            (root / base / "labels" / f"{split}1.txt").write_text("\n".join(lines) + "\n")
        return result

    return build


def grip_lists(base: str, names_file: str, folders: Sequence[str], names: Sequence[str]) -> Callable[[Path], Miniature]:
    """`train.zip@<class>/<image> <label>`."""

    def build(root: Path) -> Miniature:
        result = Miniature(tuple(names))
        (root / base).mkdir(parents=True)
        (root / base / names_file).write_text("\n".join(names) + "\n")
        for split in ("train", "val", "test"):
            lines = []
            for label, (directory, name) in enumerate(zip(folders, names, strict=True)):
                for number in range(3):
                    image = f"{directory}/image_{split}{number}.jpg"
                    write_image(root / base / split / image)
                    lines.append(f"{split}.zip@{image} {label}")
                    result.truth[split][f"{base}/{split}/{image}"] = name
            (root / base / f"{split}.txt").write_text("\n".join(lines) + "\n")
        return result

    return build


def resisc(root: Path) -> Miniature:
    result = Miniature(("airplane", "baseball diamond"))
    base = root / "RESICS45"
    categories = [{"id": number, "name": name.replace(" ", "_")} for number, name in enumerate(result.class_names)]
    base.mkdir()
    for split in ("train", "val", "test"):
        images = []
        for category in categories:
            for number in range(3):
                name = f"{category['name']}/{category['name']}_{split}{number}.jpg"
                write_image(base / name)
                images.append({"file_name": f"{split}.zip@{name}"})
                result.truth[split][f"RESICS45/{name}"] = str(category["name"]).replace("_", " ")
        (base / f"{split}.json").write_text(json.dumps({"images": images, "categories": categories}))
    return result


def eurosat_grip(with_train_list: bool) -> Callable[[Path], Miniature]:
    def build(root: Path) -> Miniature:
        from captune.data.names import EUROSAT_PAPER

        result = Miniature(tuple(EUROSAT_PAPER.values()))
        base = root / "EuroSAT"
        lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        for label, (directory, name) in enumerate(EUROSAT_PAPER.items()):
            for number in range(6):
                split = ("train", "val", "test")[number % 3]
                image = f"{directory}_{number}.jpg"
                write_image(base / directory / image)
                lists[split].append(f"{split}.zip@{label:03d}/{image} {label}")
                kept = split if with_train_list or split == "test" else "train"
                result.truth[kept][f"EuroSAT/{directory}/{image}"] = name
        for split, lines in lists.items():
            if with_train_list or split == "test":
                (base / f"{split}.txt").write_text("\n".join(lines) + "\n")
        return result

    return build


def cub(base: str) -> Callable[[Path], Miniature]:
    def build(root: Path) -> Miniature:
        folders = ("001.Black_footed_Albatross", "002.Laysan_Albatross")
        result = Miniature(("black footed albatross", "laysan albatross"))
        (root / base).mkdir(parents=True)
        (root / base / "classes.txt").write_text("".join(f"{n} {folder}\n" for n, folder in enumerate(folders, 1)))
        images, is_train = [], []
        for folder, name in zip(folders, result.class_names, strict=True):
            for number in range(6):
                relative = f"{folder}/bird_{number}.jpg"
                write_image(root / base / "images" / relative)
                images.append(relative)
                is_train.append(int(number < 4))
                result.truth["train" if number < 4 else "test"][f"{base}/images/{relative}"] = name
        for file, values in (("images.txt", images), ("train_test_split.txt", is_train)):
            (root / base / file).write_text("".join(f"{n} {value}\n" for n, value in enumerate(values, 1)))
        return result

    return build


def ucf(root: Path) -> Miniature:
    actions = {"ApplyEyeMakeup": "Apply Eye Makeup", "YoYo": "Yo Yo"}
    result = Miniature(tuple(actions.values()))
    base = root / "ucf101"
    (base / "ucfTrainTestlist").mkdir(parents=True)
    index = [f"{number} {action}" for number, action in enumerate(actions, 1)]
    (base / "ucfTrainTestlist/classInd.txt").write_text("\n".join(index) + "\n")
    for split, count in (("train", 5), ("test", 2)):
        lines = []
        for label, (action, name) in enumerate(actions.items(), 1):
            for number in range(count):
                video = f"v_{action}_{split}_c{number:02d}"
                relative = f"UCF-101-midframes/{name.replace(' ', '_')}/{video}.jpg"
                write_image(base / relative)
                lines.append(f"{action}/{video}.avi" + (f" {label}" if split == "train" else ""))
                result.truth[split][f"ucf101/{relative}"] = name
        (base / f"ucfTrainTestlist/{split}list01.txt").write_text("\n".join(lines) + "\n")
    return result


def imagenet(root: Path) -> Miniature:
    wnids = {"n01440764": "tench", "n01443537": "goldfish"}
    result = Miniature(tuple(wnids.values()))
    base = root / "imagenet"
    for split, count in (("train", 4), ("val", 2)):
        for wnid, name in wnids.items():
            for number in range(count):
                relative = f"images/{split}/{wnid}/{split}_{number}.JPEG"
                write_image(base / relative)
                result.truth["train" if split == "train" else "test"][f"imagenet/{relative}"] = name
    (base / "classnames.txt").write_text("n01443537 goldfish\nn01440764 tench\nn99999999 something else\n")
    return result


def _eurosat_folders() -> dict[str, str]:
    from captune.data.names import EUROSAT

    return dict(EUROSAT)


_CALTECH = {"Faces": "face", "accordion": "accordion", "airplanes": "airplane", "car_side": "car side"}
_BACKGROUND = ("BACKGROUND_Google", "Faces_easy")

# (dataset, number of the layout in its row) → builder
MINIATURES: dict[tuple[str, int], Callable[[Path], Miniature]] = {
    ("caltech101", 0): coop("caltech-101/101_ObjectCategories", "Caltech101"),
    ("caltech101", 1): cut("caltech-101/101_ObjectCategories", _CALTECH, _BACKGROUND),
    ("caltech101", 2): cut("caltech101/101_ObjectCategories", _CALTECH, _BACKGROUND),
    ("oxford_pets", 0): coop("oxford_pets/images", "OxfordPets"),
    ("oxford_pets", 1): pets("oxford_pets"),
    ("oxford_pets", 2): pets("oxford-iiit-pet"),
    ("stanford_cars", 0): coop("stanford_cars", "StanfordCars", "cars_train/"),
    ("stanford_cars", 1): cars,
    ("flowers102", 0): coop("oxford_flowers/jpg", "OxfordFlowers"),
    ("flowers102", 1): grip_lists("Flowers102", "class_names.txt", ("000", "001"), ("pink primrose", "globe flower")),
    ("flowers102", 2): flowers("flowers-102"),
    ("flowers102", 3): flowers("oxford_flowers"),
    ("flowers102", 4): flowers_labels,
    ("food101", 0): coop("food-101/images", "Food101"),
    ("food101", 1): food,
    ("fgvc_aircraft", 0): aircraft("fgvc_aircraft"),
    ("fgvc_aircraft", 1): aircraft("fgvc-aircraft-2013b/data"),
    ("fgvc_aircraft", 2): grip_lists(
        "FGVCAircraft", "labels.txt", ("707-320", "BAE 146-200", "F-16A-B"), ("707-320", "BAE 146-200", "F-16A-B")
    ),
    ("sun397", 0): coop("sun397/SUN397", "SUN397"),
    ("sun397", 1): sun_lists,
    ("sun397", 2): cut("SUN397", {"a/apse": "apse", "a/apse/indoor": "indoor apse"}, also="ClassName.txt"),
    ("dtd", 0): coop("dtd/images", "DescribableTextures"),
    ("dtd", 1): grip_lists("DTD", "class_names.txt", ("banded", "blotchy"), ("banded", "blotchy")),
    ("dtd", 2): dtd("dtd/dtd"),
    ("dtd", 3): dtd("dtd"),
    ("eurosat", 0): coop("eurosat/2750", "EuroSAT"),
    ("eurosat", 1): eurosat_grip(with_train_list=True),
    ("eurosat", 2): cut("eurosat/2750", _eurosat_folders()),
    ("ucf101", 0): coop("ucf101/UCF-101-midframes", "UCF101"),
    ("ucf101", 1): ucf,
    ("imagenet", 0): imagenet,
    ("resisc45", 0): resisc,
    ("resisc45", 1): cut("NWPU-RESISC45", {"airplane": "airplane", "baseball_diamond": "baseball diamond"}),
    ("cub200", 0): cub("CUB/CUB_200_2011"),
    ("cub200", 1): cub("CUB_200_2011"),
}

# Shapes whose images stand in no list: a missing one cannot be noticed.
UNLISTED = (("caltech101", 1), ("caltech101", 2), ("sun397", 2), ("eurosat", 2), ("imagenet", 0), ("resisc45", 1))
