"""Defaults that come from the catalogue, and published numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captune.config import TaskConfig, TrialConfig
from captune.data import catalog
from captune.data.catalog import DATASETS, cache_directory, data_root, default_backbone, default_settings, load_dataset
from captune.data.paradigms import build_task
from captune.data.published_accuracies import published, published_results
from captune.records import Role
from tests.slow import in_one_test


def _task(dataset: str = "digits", **values: object) -> TaskConfig:
    return TaskConfig.parse({"dataset": dataset, "paradigm": "ul", **values})


@in_one_test(
    ("values", "expected"),
    [
        ({"dataset": "digits"}, ("tiny", None)),
        ({"dataset": "caltech101"}, ("ViT-B-32", "openai")),
        ({"dataset": "folder:x"}, ("ViT-B-32", "openai")),
        ({"dataset": "caltech101", "backbone": "tiny"}, ("tiny", None)),
        ({"dataset": "digits", "backbone": "ViT-B-16"}, ("ViT-B-16", "openai")),
        (
            {"dataset": "digits", "backbone": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"},
            ("ViT-B-32", "laion2b_s34b_b79k"),
        ),
        ({"dataset": "dtd", "backbone": "hf-hub:a/b"}, ("hf-hub:a/b", None)),
    ],
)
def test_backbone_defaults_to_the_datasets(values: dict[str, str], expected: tuple[str, str | None]) -> None:
    assert default_backbone(_task(**values)) == expected


def test_settings_default_to_the_papers_budget_and_to_what_the_dataset_needs() -> None:
    paper = {"epochs": 50, "steps_per_epoch": 50, "tuning": "prompts"}
    assert default_settings(_task("dtd")) == default_settings(_task("csv:x")) == paper
    assert default_settings(_task("features:x.npz")) == {**paper, "tuning": "features"}
    digits = default_settings(_task())
    assert digits["epochs"] * digits["steps_per_epoch"] < 50 * 50
    assert TrialConfig.parse(digits).model_dump().items() >= digits.items()
    prompts = default_settings(_task(), "prompts")
    assert (digits["tuning"], prompts["tuning"]) == ("features", "prompts")
    assert prompts["epochs"] < digits["epochs"]
    assert prompts["flip_probability"] == digits["flip_probability"] == 0.0


def test_places_come_from_the_configuration_then_the_environment_then_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CAPTUNE_DATA", raising=False)
    monkeypatch.delenv("CAPTUNE_CACHE", raising=False)
    assert data_root(_task()) == Path.home() / ".cache/captune/data"
    assert cache_directory(_task()) == Path.home() / ".cache/captune/store"
    monkeypatch.setenv("CAPTUNE_DATA", str(tmp_path / "d"))
    monkeypatch.setenv("CAPTUNE_CACHE", str(tmp_path / "c"))
    assert (data_root(), cache_directory(_task())) == (tmp_path / "d", tmp_path / "c")
    given = _task(data_root=tmp_path / "x", cache_dir=tmp_path / "y")
    assert (data_root(given), cache_directory(given)) == (tmp_path / "x", tmp_path / "y")


def test_digits_are_one_channel_and_ten_words() -> None:
    dataset = load_dataset(_task())
    assert dataset.images_NHWC is not None and dataset.images_NHWC.shape == (1797, 8, 8, 1)
    assert dataset.class_names[3] == "three"
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (1078, 180, 539)


@pytest.mark.parametrize(
    ("dataset", "counts"), [("caltech101", (100, 800, 200, 400)), ("eurosat", (10, 400, 100, 300))]
)
def test_real_subsets_are_read_in_coop_layout(dataset: str, counts: tuple[int, ...]) -> None:
    root = Path(__file__).parents[3] / "shared" / "data"
    if not root.is_dir():
        pytest.skip("the subsets of real datasets are not beside this checkout")
    found = load_dataset(_task(dataset, data_root=root))
    assert (found.num_classes, len(found.train), len(found.val), len(found.test)) == counts
    assert found.layout == "CoOp"
    if dataset == "caltech101":
        assert found.class_names[:5] == ("face", "leopard", "motorbike", "accordion", "airplane")


def test_published_numbers_stand_beside_the_protocol_they_belong_to() -> None:
    lines = published_results(_task("dtd", protocol="paper"), "grip")
    assert lines[0] == "published (ViT-B/32, ul, the paper's splits): grip 46.1 %, zero_shot 43.2 %"
    assert "menghini-neurips23-code" in lines[1]
    for other in (
        {"protocol": "coop"},
        {"backbone": "ViT-L-14"},
        {"pool_imbalance": 10},
        {"paradigm": "tft"},
        {"template": "a {}."},
        {"paradigm": "ssl", "shots": 4},
        {"dataset": "caltech101"},
        {"pretrained": "laion2b_s34b_b79k"},
        {"pixels": "viewer"},
        {"paradigm": "trzsl", "split_seed": 7},
    ):
        assert published_results(_task(**{"dataset": "dtd", "protocol": "paper", **other}), "grip") == [], other


def test_a_published_number_has_a_source_and_a_plausible_value() -> None:
    numbers = [
        published(dataset, paradigm, method)
        for dataset in DATASETS
        for paradigm in ("ssl", "ul", "trzsl", "tft")
        for method in ("zero_shot", "fpl", "grip", "cpl", "cap", "coop")
    ]
    known = [number for number in numbers if number is not None]
    # Five datasets by GRIP's authors (CoOp has nothing to learn from in ul), and CUB's zero-shot in ssl and ul.
    assert len(known) == 2 * 5 * 3 + 5 * 2 + 2
    assert all(0 < number.value < 100 and number.source for number in known)
    assert published("cub200", "ul", "cap") is None and published("cub200", "trzsl", "zero_shot") is None


def test_a_process_reads_a_dataset_once_and_again_once_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []
    read = catalog._own_dataset
    monkeypatch.setattr(catalog, "_own_dataset", lambda task, *rest: reads.append(task) or read(task, *rest))
    noise = np.random.default_rng(0)

    def photograph(name: str, numbers: range) -> None:
        for number in numbers:
            pixels = noise.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")

    for name in ("cat", "dog", "owl"):
        (tmp_path / name).mkdir()
        photograph(name, range(6))
    task = TaskConfig(dataset=f"folder:{tmp_path}", paradigm="ul")
    for changes in ({}, {"pool_imbalance": 2.0}, {"backbone": "tiny"}, {"shots": 2}):
        assert load_dataset(task.model_copy(update=changes)).class_names == ("cat", "dog", "owl")
    build_task(task, role=Role.SCORE)
    assert len(reads) == 1
    before = len(load_dataset(task).train.labels_N)
    photograph("dog", range(6, 12))
    assert len(load_dataset(task).train.labels_N) > before and len(reads) == 2
    assert load_dataset(task.model_copy(update={"open_set_fraction": 0.3})).class_names != ("cat", "dog", "owl")
