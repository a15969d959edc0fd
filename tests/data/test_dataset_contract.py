"""What every dataset row must do in every folder shape it claims to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captune.config import PARADIGMS, TaskConfig
from captune.data import catalog
from captune.data.catalog import load_dataset
from captune.data.dataset import Dataset
from captune.data.known_datasets import DATASETS
from captune.data.paradigms import build_task
from captune.errors import DataError
from tests.data.miniatures import MINIATURES, UNLISTED, Miniature, eurosat_grip

_CASES = list(MINIATURES)
# Class folders without a list cannot know what is missing.
_LISTED = [case for case in _CASES if case not in UNLISTED]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, int]], tuple[Path, Miniature]]:
    """Builds each miniature once; for tests that only read."""

    @cache
    def build(case: tuple[str, int]) -> tuple[Path, Miniature]:
        root = tmp_path_factory.mktemp("-".join(map(str, case)))
        return root, MINIATURES[case](root)

    return build


def _announce(key: str, built: Miniature, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tell the row how many classes its miniature has."""
    monkeypatch.setitem(catalog.DATASETS, key, replace(DATASETS[key], num_classes=len(built.class_names)))


@pytest.fixture
def mini(
    request: pytest.FixtureRequest,
    built: Callable[[tuple[str, int]], tuple[Path, Miniature]],
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[str, Path, Miniature]:
    """A miniature on disk, to be read."""
    root, miniature = built(request.param)
    _announce(request.param[0], miniature, monkeypatch)
    return request.param[0], root, miniature


@pytest.fixture
def own_mini(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Path, Miniature]:
    """A miniature of one's own, to be changed."""
    miniature = MINIATURES[request.param](tmp_path)
    _announce(request.param[0], miniature, monkeypatch)
    return request.param[0], tmp_path, miniature


def _load(key: str, root: Path, protocol: str = "coop") -> Dataset:
    return load_dataset(TaskConfig(dataset=key, paradigm="ul", data_root=root, protocol=protocol))


def _found(dataset: Dataset, root: Path) -> dict[str, dict[str, str]]:
    return {
        name: {
            str(Path(path).relative_to(root)): dataset.class_names[label]
            for path, label in zip(split.paths, split.labels_N, strict=True)
        }
        for name, split in (("train", dataset.train), ("val", dataset.val), ("test", dataset.test))
    }


def test_every_layout_of_every_row_has_a_miniature() -> None:
    layouts = {(key, number) for key, row in DATASETS.items() for number in range(len(row.layouts))}
    assert layouts == set(MINIATURES)


@pytest.mark.parametrize("mini", _CASES, indirect=True)
def test_loader_finds_every_image_with_its_class(mini: tuple[str, Path, Miniature]) -> None:
    key, root, built = mini
    dataset = _load(key, root)
    found = _found(dataset, root)
    assert dataset.class_names == built.class_names
    merged = {path: name for part in found.values() for path, name in part.items()}
    assert merged == {path: name for part in built.truth.values() for path, name in part.items()}
    assert found["test"] and found["train"]
    for path in dataset.paths:
        with Image.open(path) as image:
            assert image.size == (12, 10)


@pytest.mark.parametrize("mini", _CASES, indirect=True)
def test_loader_keeps_given_splits_and_cuts_the_others_per_class(mini: tuple[str, Path, Miniature]) -> None:
    key, root, built = mini
    found = _found(_load(key, root), root)
    if built.truth["val"] or (built.truth["test"] and not found["val"]):  # three given splits
        assert found == built.truth
    elif built.truth["test"]:  # an official trainval of five a class: 4 and 1
        assert found["test"] == built.truth["test"]
        assert set(Counter(found["train"].values()).values()) == {4}
        assert set(Counter(found["val"].values()).values()) == {1}
    else:  # ten a class: 50/20/30 %
        sizes = [set(Counter(found[split].values()).values()) for split in ("train", "val", "test")]
        assert sizes == [{5}, {2}, {3}]


@pytest.mark.parametrize("mini", _CASES, indirect=True)
def test_loading_twice_gives_the_same_order(mini: tuple[str, Path, Miniature]) -> None:
    key, root, _ = mini
    first, second = _load(key, root), _load(key, root)
    assert first.paths == second.paths
    assert np.array_equal(first.labels_M, second.labels_M)


@pytest.mark.parametrize("own_mini", _LISTED, indirect=True)
def test_missing_files_of_a_list_are_counted_and_named(own_mini: tuple[str, Path, Miniature]) -> None:
    key, root, built = own_mini
    gone = built.paths()[:4]
    for path in gone:
        (root / path).unlink()
    with pytest.raises(DataError, match="4 missing") as caught:
        _load(key, root)
    assert sum(Path(path).name in str(caught.value) for path in gone) >= 3


@pytest.mark.parametrize(
    ("mini", "paradigm"),
    # By default a paradigm per folder shape, each in turn.
    [
        pytest.param(case, paradigm, marks=() if number % len(PARADIGMS) == place else pytest.mark.slow)
        for number, case in enumerate(_CASES)
        for place, paradigm in enumerate(PARADIGMS)
    ],
    indirect=["mini"],
)
def test_every_paradigm_can_be_built_on_every_dataset(mini: tuple[str, Path, Miniature], paradigm: str) -> None:
    key, root, _ = mini
    config = TaskConfig(dataset=key, paradigm=paradigm, data_root=root, shots=1 if paradigm == "ssl" else None)
    task, sealed = build_task(config, role="report")
    assert len(sealed.reveal()["pool"]) == len(task.pool) > 0
    assert len(np.intersect1d(task.labelled.indices_N, task.pool)) == 0


@pytest.mark.parametrize("mini", _CASES, indirect=True)
def test_a_copy_with_another_number_of_classes_is_refused(
    mini: tuple[str, Path, Miniature], monkeypatch: pytest.MonkeyPatch
) -> None:
    key, root, built = mini
    row = replace(catalog.DATASETS[key], num_classes=len(built.class_names) + 1)
    monkeypatch.setitem(catalog.DATASETS, key, row)
    catalog._read_dataset.cache_clear()  # the row is no part of what it remembers a dataset by
    with pytest.raises(DataError, match=f"{key} must have {row.num_classes} classes, but got {len(built.class_names)}"):
        _load(key, root)


@pytest.mark.parametrize("own_mini", _CASES, indirect=True)
def test_folders_in_another_case_are_found(own_mini: tuple[str, Path, Miniature]) -> None:
    key, root, _ = own_mini
    top = next(path for path in root.iterdir() if path.is_dir())
    top.rename(root / top.name.swapcase())
    assert _load(key, root).num_images > 0


@pytest.mark.parametrize("key", [key for key in DATASETS if key != "digits"])
def test_missing_data_is_explained_in_one_screen(key: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset(TaskConfig(dataset=key, paradigm="tft", data_root=tmp_path))
    text = str(caught.value)
    row = DATASETS[key]
    assert f"{key} must be on disk" in text and str(tmp_path) in text
    assert row.layouts[0].needs[0] in text and row.licence in text
    assert "captune run --dataset digits --paradigm ul" in text
    assert len(text.splitlines()) <= 20


@pytest.mark.parametrize("key", list(DATASETS))
def test_rows_say_what_people_need(key: str) -> None:
    row = DATASETS[key]
    assert row.key == key
    assert row.template.count("{}") == 1
    assert row.num_classes >= 2 and row.licence and row.how_to_get.endswith(".")
    assert (row.backbone, row.budget) == (("tiny", (12, 16)) if key == "digits" else ("ViT-B-32", (50, 50)))


@pytest.mark.parametrize("mini", [case for case in _CASES if len(DATASETS[case[0]].protocols) == 2], indirect=True)
def test_paper_protocol_takes_the_papers_splits_alone(mini: tuple[str, Path, Miniature]) -> None:
    key, root, _ = mini
    layout = catalog.find_layout(catalog.DATASETS[key], root)
    assert layout is not None
    if "paper" in layout[0].protocols:
        dataset = _load(key, root, "paper")
        assert dataset.template == "a photo of a {}"
        config = TaskConfig(dataset=key, paradigm="ul", data_root=root, protocol="paper")
        task, _ = build_task(config, role="report")
        assert len(task.pool) == len(dataset.train) + len(dataset.val)
    else:
        with pytest.raises(DataError, match=r"in the splits of the paper(.|\n)*leave out --protocol paper"):
            _load(key, root, "paper")


def test_eurosat_pool_without_lists_leaves_out_the_test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = eurosat_grip(with_train_list=False)(tmp_path)
    dataset = _load("eurosat", tmp_path, "paper")
    assert _found(dataset, tmp_path) == built.truth
    assert len(dataset.train) == 40 and len(dataset.test) == 20


def test_coop_layout_is_preferred_to_the_papers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MINIATURES[("dtd", 1)](tmp_path)
    MINIATURES[("dtd", 0)](tmp_path)
    monkeypatch.setitem(catalog.DATASETS, "dtd", replace(DATASETS["dtd"], num_classes=3))
    assert _load("dtd", tmp_path).layout == "CoOp"
    monkeypatch.setitem(catalog.DATASETS, "dtd", replace(DATASETS["dtd"], num_classes=2))
    assert _load("dtd", tmp_path, "paper").layout == "ELEVATER/GRIP"


def test_imagenet_gives_no_study_its_test_labels_as_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MINIATURES[("imagenet", 0)](tmp_path)
    monkeypatch.setitem(catalog.DATASETS, "imagenet", replace(DATASETS["imagenet"], num_classes=2))
    config = TaskConfig(dataset="imagenet", paradigm="ssl", data_root=tmp_path, shots=1)
    task, _ = build_task(config, role="score")
    assert len(task.validation) == 2
    assert len(np.intersect1d(task.validation.indices_N, task.test)) == 0
