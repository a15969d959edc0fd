"""The worlds of the exam: one feature file, dealt to a paradigm, its pool or its names made difficult.

A world is a pure function of (feature file, paradigm, kind, seed). It is written as a feature file of its own, so that
captune reads it by the code a user's file goes through.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from captune.config import TaskConfig
from captune.data.draws import exponential_pool
from captune.seeding import numpy_generator

Arrays = dict[str, np.ndarray]
SPLIT_OF = {"ul": "train", "ssl": "train", "trzsl": "train", "tft": "test"}
"""The split a paradigm's pool is dealt from."""
LABELLED = ("ssl", "trzsl")
"""Paradigms with labelled images, whose worlds are a table of their own."""


@dataclass(frozen=True, order=True)
class World:
    """One case of the exam.

    Attributes:
        dataset: stem of the feature file.
        paradigm: ul, tft, ssl or trzsl.
        kind: a key of KINDS.
        seed: which classes and images are drawn.
    """

    dataset: str
    paradigm: str
    kind: str
    seed: int

    @property
    def key(self) -> str:
        """Its name in the cache and in tables."""
        return f"{self.dataset}.{self.paradigm}.{self.kind}.{self.seed}"

    @classmethod
    def of_key(cls, key: str) -> World:
        """The world of a key."""
        dataset, paradigm, kind, seed = key.rsplit(".", 3)
        return cls(dataset, paradigm, kind, int(seed))

    def open(self, features: Path, folder: Path) -> TaskConfig:
        """Write the world's feature file into `folder`; the cell to open.

        Raises:
            KeyError: no such kind.
        """
        with np.load(features / f"{self.dataset}.npz") as archive:
            arrays = {name: archive[name] for name in archive.files}
        arrays["split"] = arrays["split"].astype(str)
        # A file without validation images spares nothing: absent classes are parked there, where ul and tft never look.
        kind = KINDS[self.kind]
        arrays = kind.change(arrays, self)
        file = folder / f"{self.key}.npz"
        np.savez(file, **{name: np.asarray(values) for name, values in arrays.items()})
        return TaskConfig.parse(
            {"dataset": f"features:{file}", "paradigm": self.paradigm, "split_seed": 500 + self.seed, **kind.task}
        )


@dataclass(frozen=True)
class Kind:
    """How a world differs from its feature file.

    Attributes:
        words: for tables.
        change: arrays of the feature file → arrays of the world.
        task: settings of the cell.
        paradigms: where it makes sense.
    """

    words: str
    change: Callable[[Arrays, World], Arrays]
    task: dict[str, Any]
    paradigms: tuple[str, ...] = ("ul", "tft")


def _as_is(arrays: Arrays, world: World) -> Arrays:
    return arrays


def _present(count: int) -> Callable[[Arrays, World], Arrays]:
    def change(arrays: Arrays, world: World) -> Arrays:
        """Pool and test hold images of `count` classes; all names are asked for."""
        num_classes = len(arrays["text_features"])
        kept = numpy_generator(world.seed, "present", world.dataset).permutation(num_classes)[:count]
        return _only(arrays, np.isin(arrays["labels"], kept))

    return change


def _only(arrays: Arrays, kept_M: np.ndarray) -> Arrays:
    """The images of a mask; a class left without images keeps one as a validation image."""
    labels_M, split_M = arrays["labels"], arrays["split"].copy()
    kept_M = kept_M & (split_M != "val")
    for label in np.setdiff1d(np.arange(len(arrays["text_features"])), labels_M[kept_M]):
        parked = int(np.flatnonzero(labels_M == label)[0])
        kept_M[parked] = True
        split_M[parked] = "val"
    return _rows(arrays | {"split": split_M}, kept_M)


def _rows(arrays: Arrays, kept_M: np.ndarray) -> Arrays:
    by_image = ("image_features", "labels", "split")
    return {name: values[kept_M] if name in by_image else values for name, values in arrays.items()}


def _few_a_class(count: int) -> Callable[[Arrays, World], Arrays]:
    def change(arrays: Arrays, world: World) -> Arrays:
        """The pool holds at most `count` images a class."""
        split = SPLIT_OF[world.paradigm]
        kept_M = arrays["split"] != split
        for label in range(len(arrays["text_features"])):
            members = np.flatnonzero((arrays["labels"] == label) & ~kept_M & (arrays["split"] == split))
            order = numpy_generator(world.seed, "few", label).permutation(members)
            kept_M[order[:count]] = True
        return _rows(arrays, kept_M)

    return change


def _long_tailed(imbalance: float) -> Callable[[Arrays, World], Arrays]:
    def change(arrays: Arrays, world: World) -> Arrays:
        """Pool and test are long-tailed alike, as a deployment would be."""
        labels_M, num_classes = arrays["labels"], len(arrays["text_features"])
        kept_M = arrays["split"] == "val"
        for split in ("train", "test"):
            rows = np.flatnonzero(arrays["split"] == split)
            kept_M[exponential_pool(rows, labels_M[rows], np.arange(num_classes), imbalance, world.seed)] = True
        return _rows(arrays, kept_M)

    return change


def _swapped_names(arrays: Arrays, world: World) -> Arrays:
    """The names of two classes stand for one another."""
    first, second = numpy_generator(world.seed, "swap", world.dataset).permutation(len(arrays["text_features"]))[:2]
    text_KD = arrays["text_features"].copy()
    text_KD[[first, second]] = text_KD[[second, first]]
    return arrays | {"text_features": text_KD}


def _replaced_names(share: float) -> Callable[[Arrays, World], Arrays]:
    def change(arrays: Arrays, world: World) -> Arrays:
        """Some names, at least two, are of things the dataset does not show: texts are random mixes of its own."""
        generator = numpy_generator(world.seed, "replace", world.dataset)
        text_KD = arrays["text_features"].astype(np.float32)
        count = max(2, round(share * len(text_KD)))
        text_KD /= np.linalg.norm(text_KD, axis=1, keepdims=True)
        mean_D, spread = text_KD.mean(0), (text_KD - text_KD.mean(0))
        for label in generator.permutation(len(text_KD))[:count]:
            mixed_D = generator.standard_normal(len(text_KD)).astype(np.float32) @ spread
            length = np.linalg.norm(spread[label])
            text_KD[label] = mean_D + mixed_D * length / np.linalg.norm(mixed_D)
        return arrays | {"text_features": text_KD}

    return change


def _few_classes(count: int) -> Callable[[Arrays, World], Arrays]:
    def change(arrays: Arrays, world: World) -> Arrays:
        """A task of `count` classes only, drawn by the seed."""
        kept = np.sort(
            numpy_generator(world.seed, "task", world.dataset).permutation(len(arrays["text_features"]))[:count]
        )
        changed = _rows(arrays, np.isin(arrays["labels"], kept))
        for name in ("text_features", "class_names"):
            if name in changed:
                changed[name] = changed[name][kept]
        return changed | {"labels": np.searchsorted(kept, changed["labels"])}

    return change


def _coarser(width: int) -> Callable[[Arrays, World], Arrays]:
    def change(arrays: Arrays, world: World) -> Arrays:
        """A weaker backbone of the same images: one random projection of images and texts."""
        generator = numpy_generator(world.seed, "coarse", width)
        dimension = arrays["image_features"].shape[1]
        basis_DE, _ = np.linalg.qr(generator.standard_normal((dimension, width)))
        unit = {
            name: arrays[name].astype(np.float32)
            / np.linalg.norm(arrays[name].astype(np.float32), axis=1, keepdims=True)
            for name in ("image_features", "text_features")
        }
        return arrays | {name: (values @ basis_DE).astype(np.float32) for name, values in unit.items()}

    return change


KINDS: dict[str, Kind] = {
    "plain": Kind("as it is", _as_is, {}, ("ul", "tft", "ssl", "trzsl")),
    "shots-1": Kind("one labelled image a class", _as_is, {"shots": 1}, ("ssl",)),
    "shots-8": Kind("eight labelled images a class", _as_is, {"shots": 8}, ("ssl",)),
    "imbalance-20": Kind("pool long-tailed, 20:1, beside labels", _as_is, {"pool_imbalance": 20.0}, LABELLED),
    "imbalance-10": Kind("pool long-tailed, 10:1", _as_is, {"pool_imbalance": 10.0}),
    "imbalance-50": Kind("pool long-tailed, 50:1", _as_is, {"pool_imbalance": 50.0}),
    "tail-50": Kind("pool and test long-tailed, 50:1", _long_tailed(50.0), {}),
    "present-4": Kind("4 classes present, all asked for", _present(4), {}),
    "present-10": Kind("10 classes present, all asked for", _present(10), {}),
    "present-25": Kind("25 classes present, all asked for", _present(25), {}),
    "open-set": Kind("a fifth of the classes not asked for", _as_is, {"open_set_fraction": 0.2}),
    "few-5": Kind("5 pool images a class", _few_a_class(5), {}),
    "swapped": Kind("the names of two classes swapped", _swapped_names, {}),
    "replaced": Kind("a tenth of the names wrong", _replaced_names(0.1), {}),
    "classes-2": Kind("a task of 2 classes", _few_classes(2), {}, ("ul", "tft", "ssl")),
    "classes-3": Kind("a task of 3 classes", _few_classes(3), {}, ("ul", "tft", "ssl")),
    "coarse": Kind("a weaker backbone (features projected to 64)", _coarser(64), {}),
    "nothing": Kind("all names wrong: zero-shot at chance", _replaced_names(1.0), {}),
}


def table_of_worlds(
    datasets: dict[str, int], *, seeds: int, kinds: tuple[str, ...] = (), labelled: bool = False
) -> list[World]:
    """Every world that makes sense, seeds outermost so that a table that was cut short covers all kinds.

    Args:
        datasets: stem of the feature file → its number of classes.
        seeds: draws of each.
        kinds: keys of KINDS (default all).
        labelled: the worlds with labelled images, and no others.
    """
    worlds = []
    for seed in range(seeds):
        for name in kinds or tuple(KINDS):
            for dataset, num_classes in sorted(datasets.items()):
                for paradigm in KINDS[name].paradigms:
                    wanted = int(name.split("-")[1]) if name.startswith("present") else 0
                    if (paradigm in LABELLED) != labelled or wanted >= num_classes:
                        continue
                    # Without a draw, another seed is another held-out fifth only.
                    worlds.append(World(dataset, paradigm, name, seed))
    return worlds
