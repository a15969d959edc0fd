"""DATASETS: the facts about each known dataset (names, defaults, licence, shapes on disk), which catalog.py reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from captune.data.digits import TEMPLATE
from captune.data.layouts import read_coop_split
from captune.data.layouts_official import (
    read_caltech101,
    read_dtd,
    read_eurosat,
    read_fgvc_aircraft,
    read_flowers102,
    read_flowers102_labels,
    read_food101,
    read_imagenet,
    read_oxford_pets,
    read_plain_folders,
    read_stanford_cars,
    read_sun397,
    read_sun397_lists,
    read_ucf101_lists,
)
from captune.data.layouts_paper import (
    read_aircraft_lists,
    read_cub,
    read_eurosat_lists,
    read_resisc_json,
    read_split_lists,
)
from captune.data.listing import Layout, Listing
from captune.data.names import EUROSAT


@dataclass(frozen=True)
class DatasetRow:
    """One dataset.

    Attributes:
        key: its name on the command line.
        num_classes: K, which a copy on disk must have.
        template: the prompt that is usual for it, with one `{}`.
        licence: what its owners allow.
        how_to_get: where to get it, as sentences.
        layouts: folder shapes it is read in, best first.
        torchvision: name of the class in torchvision.datasets that downloads it, if there is one.
        backbone: default model.
        budget: epochs and steps per epoch.
        settings: trial settings that differ for this dataset, each with its reason beside it.
        tuning: what is learned by default, "prompts" or "features".
        feature_settings: trial settings that differ if frozen features are tuned.
    """

    key: str
    num_classes: int
    template: str
    licence: str
    how_to_get: str
    layouts: tuple[Layout, ...] = ()
    torchvision: str | None = None
    backbone: str = "ViT-B-32"
    budget: tuple[int, int] = (50, 50)
    settings: Mapping[str, Any] = field(default_factory=dict)
    tuning: str = "prompts"
    feature_settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def protocols(self) -> tuple[str, ...]:
        """Protocols whose own splits it can be read in: "coop", "paper"."""
        known = {name for layout in self.layouts for name in layout.protocols}
        return tuple(name for name in ("coop", "paper") if name in known)


def _coop(folder: str, split_name: str) -> Layout:
    """CoOp's split file beside the images."""
    base = folder.split("/")[0]
    return Layout(
        "CoOp",
        ("coop",),
        (folder, f"{base}/split_zhou_{split_name}.json"),
        lambda images, split: read_coop_split(split, images),
    )


def _official(read: Callable[..., Listing], *needs: str, protocols: tuple[str, ...] = ()) -> Layout:
    """As released, or as torchvision unpacks it."""
    return Layout("official release", protocols, needs, read)


def _grip(read: Callable[..., Listing], folder: str, *names: str) -> Layout:
    """ELEVATER's and GRIP's folders."""
    return Layout("ELEVATER/GRIP", ("paper",), tuple(f"{folder}/{name}" for name in names), read)


_CUB_FILES = ("classes.txt", "images.txt", "train_test_split.txt", "images")
_LISTS = ("train.txt", "val.txt", "test.txt", "train", "val", "test")
_AIRCRAFT_LISTS = tuple(f"images_variant_{split}.txt" for split in ("train", "val", "test"))
_COOP_SPLIT = "CoOp's split file: github.com/KaiyangZhou/CoOp, DATASETS.md."
_RESEARCH = "research use only (see its owners' page)"

DATASETS: dict[str, DatasetRow] = {
    row.key: row
    for row in (
        DatasetRow(
            key="digits",
            num_classes=10,
            template=TEMPLATE,
            licence="CC BY 4.0 (E. Alpaydin, C. Kaynak, UCI)",
            how_to_get="It travels with scikit-learn.",
            backbone="tiny",
            budget=(12, 16),
            # A mirrored digit is not a digit, nor is a small crop of one. The embedded model gains most from
            # the adapters, so they are kept when predicting.
            settings={"flip_probability": 0.0, "crop_scale_min": 0.6, "inference_adapters": True},
            # Frozen features take a tenth of the time of prompts and gain more on so small a model.
            tuning="features",
            feature_settings={"epochs": 20},
        ),
        DatasetRow(
            key="caltech101",
            num_classes=100,
            template="a photo of a {}.",
            licence="CC BY 4.0 (F.-F. Li, M. Andreeto, M. Ranzato, P. Perona)",
            how_to_get=f"caltech-101.zip at data.caltech.edu/records/20086. {_COOP_SPLIT}",
            layouts=(
                _coop("caltech-101/101_ObjectCategories", "Caltech101"),
                _official(read_caltech101, "caltech-101/101_ObjectCategories"),
                _official(read_caltech101, "caltech101/101_ObjectCategories"),
            ),
            torchvision="Caltech101",
        ),
        DatasetRow(
            key="oxford_pets",
            num_classes=37,
            template="a photo of a {}, a type of pet.",
            licence="CC BY-SA 4.0 (O. Parkhi, A. Vedaldi, A. Zisserman, C. V. Jawahar)",
            how_to_get=f"images.tar.gz and annotations.tar.gz at www.robots.ox.ac.uk/~vgg/data/pets. {_COOP_SPLIT}",
            layouts=(
                _coop("oxford_pets/images", "OxfordPets"),
                *(
                    _official(
                        read_oxford_pets,
                        f"{base}/images",
                        f"{base}/annotations/trainval.txt",
                        f"{base}/annotations/test.txt",
                    )
                    for base in ("oxford_pets", "oxford-iiit-pet")
                ),
            ),
            torchvision="OxfordIIITPet",
        ),
        DatasetRow(
            key="stanford_cars",
            num_classes=196,
            template="a photo of a {}.",
            licence=_RESEARCH,
            how_to_get="Its address no longer works and torchvision cannot fetch it: ask its owners "
            f"(ai.stanford.edu/~jkrause/cars) or use a mirror you trust. {_COOP_SPLIT}",
            layouts=(
                # Paths in the split file begin with cars_train/ and cars_test/.
                _coop("stanford_cars", "StanfordCars"),
                _official(
                    read_stanford_cars,
                    "stanford_cars/cars_train",
                    "stanford_cars/devkit/cars_meta.mat",
                    "stanford_cars/devkit/cars_train_annos.mat",
                    "stanford_cars/cars_test_annos_withlabels.mat",
                ),
            ),
        ),
        DatasetRow(
            key="flowers102",
            num_classes=102,
            template="a photo of a {}, a type of flower.",
            licence="none stated; collected from the web for research",
            how_to_get="102flowers.tgz and imagelabels.mat at www.robots.ox.ac.uk/~vgg/data/flowers/102. "
            + _COOP_SPLIT,
            layouts=(
                _coop("oxford_flowers/jpg", "OxfordFlowers"),
                _grip(read_split_lists, "Flowers102", "class_names.txt", *_LISTS),
                # The official sets are the paper's.
                *(
                    _official(
                        read_flowers102,
                        f"{base}/jpg",
                        f"{base}/imagelabels.mat",
                        f"{base}/setid.mat",
                        protocols=("paper",),
                    )
                    for base in ("flowers-102", "oxford_flowers")
                ),
                _official(
                    read_flowers102_labels,
                    "oxford_flowers/jpg",
                    "oxford_flowers/imagelabels.mat",
                    "oxford_flowers/cat_to_name.json",
                ),
            ),
            torchvision="Flowers102",
        ),
        DatasetRow(
            key="food101",
            num_classes=101,
            template="a photo of {}, a type of food.",
            licence="images from Foodspotting, research use only",
            how_to_get=f"food-101.tar.gz at data.vision.ee.ethz.ch/cvl/datasets_extra/food-101. {_COOP_SPLIT}",
            layouts=(
                _coop("food-101/images", "Food101"),
                _official(read_food101, "food-101/images", "food-101/meta/train.json", "food-101/meta/test.json"),
            ),
            torchvision="Food101",
        ),
        DatasetRow(
            key="fgvc_aircraft",
            num_classes=100,
            template="a photo of a {}, a type of aircraft.",
            licence="non-commercial research only (S. Maji et al.)",
            how_to_get="fgvc-aircraft-2013b.tar.gz at www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft. "
            "GRIP's folders: github.com/BatsResearch/menghini-neurips23-code.",
            layouts=(
                Layout(
                    "CoOp",
                    ("coop",),
                    tuple(f"fgvc_aircraft/{name}" for name in ("images", "variants.txt", *_AIRCRAFT_LISTS)),
                    read_fgvc_aircraft,
                ),
                _official(
                    read_fgvc_aircraft,
                    "fgvc-aircraft-2013b/data/images",
                    "fgvc-aircraft-2013b/data/variants.txt",
                    *(f"fgvc-aircraft-2013b/data/{name}" for name in _AIRCRAFT_LISTS),
                ),
                _grip(read_aircraft_lists, "FGVCAircraft", "labels.txt", *_LISTS),
            ),
            torchvision="FGVCAircraft",
        ),
        DatasetRow(
            key="sun397",
            num_classes=397,
            template="a photo of a {}.",
            licence=_RESEARCH,
            how_to_get=f"SUN397.tar.gz and Partitions.zip at vision.princeton.edu/projects/2010/SUN. {_COOP_SPLIT}",
            layouts=(
                _coop("sun397/SUN397", "SUN397"),
                _official(
                    read_sun397_lists,
                    "sun397/SUN397",
                    "sun397/ClassName.txt",
                    "sun397/Training_01.txt",
                    "sun397/Testing_01.txt",
                ),
                _official(read_sun397, "SUN397", "SUN397/ClassName.txt"),
            ),
            torchvision="SUN397",
        ),
        DatasetRow(
            key="dtd",
            num_classes=47,
            template="{} texture.",
            licence="research use only (M. Cimpoi et al.)",
            how_to_get=f"dtd-r1.0.1.tar.gz at www.robots.ox.ac.uk/~vgg/data/dtd. {_COOP_SPLIT}",
            layouts=(
                _coop("dtd/images", "DescribableTextures"),
                _grip(read_split_lists, "DTD", "class_names.txt", *_LISTS),
                # The official first partition is the paper's.
                *(
                    _official(
                        read_dtd,
                        f"{base}/images",
                        *(f"{base}/labels/{split}1.txt" for split in ("train", "val", "test")),
                        protocols=("paper",),
                    )
                    for base in ("dtd/dtd", "dtd")
                ),
            ),
            torchvision="DTD",
        ),
        DatasetRow(
            key="eurosat",
            num_classes=10,
            template="a centered satellite photo of {}.",
            licence="MIT (P. Helber et al.)",
            how_to_get=f"EuroSAT.zip (RGB) at github.com/phelber/EuroSAT. {_COOP_SPLIT}",
            layouts=(
                _coop("eurosat/2750", "EuroSAT"),
                _grip(read_eurosat_lists, "EuroSAT", "test.txt", *EUROSAT),
                _official(read_eurosat, "eurosat/2750"),
            ),
            torchvision="EuroSAT",
        ),
        DatasetRow(
            key="ucf101",
            num_classes=101,
            template="a photo of a person doing {}.",
            licence="none stated; research use",
            how_to_get=f"UCF-101-midframes.zip, linked there. {_COOP_SPLIT} torchvision has no midframes.",
            layouts=(
                _coop("ucf101/UCF-101-midframes", "UCF101"),
                _official(
                    read_ucf101_lists,
                    "ucf101/UCF-101-midframes",
                    *(f"ucf101/ucfTrainTestlist/{name}.txt" for name in ("classInd", "trainlist01", "testlist01")),
                ),
            ),
        ),
        DatasetRow(
            key="imagenet",
            num_classes=1000,
            template="a photo of a {}.",
            licence="non-commercial research and education only",
            how_to_get="After registration at image-net.org (ILSVRC 2012); sort val into wnid folders. "
            "classnames.txt: github.com/KaiyangZhou/CoOp, DATASETS.md.",
            layouts=(
                Layout(
                    "CoOp",
                    ("coop",),
                    ("imagenet/images/train", "imagenet/images/val", "imagenet/classnames.txt"),
                    read_imagenet,
                ),
            ),
        ),
        DatasetRow(
            key="resisc45",
            num_classes=45,
            template="a satellite photo of a {}.",
            licence="none stated; research use",
            how_to_get="NWPU-RESISC45 from its authors (G. Cheng, J. Han, X. Lu, 2017); the split files with GRIP: "
            "github.com/BatsResearch/menghini-neurips23-code.",
            layouts=(
                _grip(read_resisc_json, "RESICS45", "train.json", "val.json", "test.json"),
                _official(read_plain_folders, "NWPU-RESISC45"),
            ),
        ),
        DatasetRow(
            key="cub200",
            num_classes=200,
            template="a photo of a {}, a type of bird.",
            licence="images from Flickr, non-commercial research only",
            how_to_get="CUB_200_2011.tgz at www.vision.caltech.edu/datasets/cub_200_2011.",
            layouts=(
                _grip(read_cub, "CUB/CUB_200_2011", *_CUB_FILES),
                _official(read_cub, *(f"CUB_200_2011/{name}" for name in _CUB_FILES), protocols=("paper",)),
            ),
        ),
    )
}
