"""Images and class names, nothing else: what is read as labels, what is not, and who is pooled and reported on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from captune.config import TaskConfig
from captune.data.catalog import load_dataset
from captune.data.dataset import Dataset
from captune.data.paradigms import Task, build_task
from captune.errors import CaptuneError, ConfigError, DataError
from captune.records.layout import PREDICTIONS
from captune.training.evaluation import evaluate_trial
from tests.data.miniatures import write_image

NAMES = "ring,bar,cup"


def _images(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        write_image(folder / name, number, size=(12 + number, 10))
    return folder


def _config(dataset: str, paradigm: str = "ul", **values: object) -> TaskConfig:
    return TaskConfig.parse({"dataset": dataset, "paradigm": paradigm, **values})


def _load(dataset: str, **values: object) -> Dataset:
    return load_dataset(_config(dataset, **values))


def _task(dataset: str, paradigm: str, role: str = "report", **values: object) -> Task:
    return build_task(_config(dataset, paradigm, **values), role=role)[0]  # type: ignore[arg-type]


# ---- folders


@pytest.mark.parametrize("files", [("1.jpg", "2.jpg", "3.jpg"), ("2023/1.jpg", "2023/05/2.jpg", "2024/3.jpg")])
def test_a_folder_of_images_and_class_names_is_a_pool_without_labels(tmp_path: Path, files: tuple[str, ...]) -> None:
    dataset = _load(f"folder:{_images(tmp_path, *files)}", class_names=NAMES)
    assert dataset.class_names == ("ring", "bar", "cup")
    assert dataset.labels_M.tolist() == [-1, -1, -1]
    assert [Path(path).name for path in dataset.train.paths] == ["1.jpg", "2.jpg", "3.jpg"]
    nested = "/" in files[0]
    assert any("folders are not read as classes" in note for note in dataset.notes) == nested


def test_names_come_from_text_and_yaml_files_too(tmp_path: Path) -> None:
    photos = _images(tmp_path / "photos", "1.jpg")
    (tmp_path / "names.txt").write_text("\ufeffring\n\n  bar stool \ncup\n", encoding="utf-8")
    assert _load(f"folder:{photos}", class_names=tmp_path / "names.txt").class_names == ("ring", "bar stool", "cup")
    (tmp_path / "listed.txt").write_text("- ring\n- bar\n")
    assert _load(f"folder:{photos}", class_names=tmp_path / "listed.txt").class_names == ("ring", "bar")
    (tmp_path / "names.yaml").write_text("class_names: [ring, bar]\ntemplate: a sketch of a {}\n")
    dataset = _load(f"folder:{photos}", class_names=tmp_path / "names.yaml")
    assert (dataset.class_names, dataset.template) == (("ring", "bar"), "a sketch of a {}")


def test_images_without_names_are_refused_with_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'1 image and no names.*--class-names "ring,bar,cup"'):
        _load(f"folder:{_images(tmp_path, '1.jpg')}")


def test_names_stay_with_the_folders_they_name(tmp_path: Path) -> None:
    folder = _images(tmp_path, "Bar_Stool/1.jpg", "cup/2.jpg", "ring/3.jpg")
    dataset = _load(f"folder:{folder}", class_names="ring,cup,bar stool")
    by_image = dict(zip([Path(path).name for path in dataset.paths], dataset.labels_M.tolist(), strict=True))
    assert {name: dataset.class_names[label] for name, label in by_image.items()} == {
        "1.jpg": "bar stool",
        "2.jpg": "cup",
        "3.jpg": "ring",
    }


def test_folders_renamed_class_by_class_are_told(tmp_path: Path) -> None:
    folder = _images(tmp_path, "2023/1.jpg", "2024/2.jpg")
    dataset = _load(f"folder:{folder}", class_names="cat,dog")
    assert dataset.labels_M.tolist() == [0, 1]
    assert any("2023 = cat, 2024 = dog" in note and "--labels none" in note for note in dataset.notes)
    hidden = _load(f"folder:{folder}", class_names="cat,dog", labels="none")
    assert hidden.labels_M.tolist() == [-1, -1]


def test_names_that_stand_at_another_place_than_their_class_are_refused(tmp_path: Path) -> None:
    folder = _images(tmp_path, "bar/1.jpg", "cup/2.jpg")
    with pytest.raises(ConfigError, match=r"label order, but got bar at another place.*bar, cup"):
        _load(f"folder:{folder}", class_names="ring,bar")


def test_images_beside_class_folders_are_named(tmp_path: Path) -> None:
    folder = _images(tmp_path, "bar/1.jpg", "cup/2.jpg", "loose.jpg")
    for names in ({}, {"class_names": NAMES}):
        with pytest.raises(DataError, match=r"class folders or images, not both, but got 1 image \(loose.jpg\)"):
            _load(f"folder:{folder}", **names)
    assert len(_load(f"folder:{folder}", class_names=NAMES, labels="none").paths) == 3
    assert len(_load(f"folder:{folder}", class_names="cat,dog,cow").paths) == 3, "no folder is called like a class"


def test_folders_around_the_class_folders_are_entered(tmp_path: Path) -> None:
    _images(tmp_path, *(f"photos/photos-main/{name}/{n}.jpg" for name in ("a", "b") for n in range(4)))
    (tmp_path / "photos" / "__MACOSX").mkdir()
    dataset = _load(f"folder:{tmp_path}")
    assert dataset.class_names == ("a", "b")
    assert "photos/photos-main" in dataset.notes[1]


def test_split_folders_may_hold_images_without_class_folders(tmp_path: Path) -> None:
    folder = _images(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "test/3.jpg", "test/4.jpg")
    dataset = _load(f"folder:{folder}")
    assert dataset.train.labels_N.tolist() == [0, 1] and dataset.test.labels_N.tolist() == [-1, -1]
    assert any("test holds 2 images in no class folder" in note for note in dataset.notes)
    hidden = _load(f"folder:{folder}", class_names=NAMES, labels="none")
    assert (hidden.train.labels_N.tolist(), hidden.test.labels_N.tolist()) == ([-1, -1], [-1, -1])


def test_other_folders_beside_train_and_test_never_become_classes(tmp_path: Path) -> None:
    folder = _images(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "test/a/3.jpg", "test/b/4.jpg", "to predict/5.jpg")
    with pytest.raises(DataError, match=r"beside train and test, but got the folder 'to predict'.*--pass-over"):
        _load(f"folder:{folder}")


def test_train_may_be_a_class_among_others(tmp_path: Path) -> None:
    folder = _images(tmp_path, *(f"{name}/{n}.jpg" for name in ("car", "plane", "train") for n in range(3)))
    assert _load(f"folder:{folder}").class_names == ("car", "plane", "train")


def test_two_folders_for_one_split_are_refused(tmp_path: Path) -> None:
    folder = _images(tmp_path, "train/a/1.jpg", "train/b/2.jpg", "val/a/3.jpg", "val/b/4.jpg", "valid/a/5.jpg")
    with pytest.raises(DataError, match="one folder must hold the val split, but got val and valid"):
        _load(f"folder:{folder}")


# ---- lists and features


def _list(folder: Path, text: str) -> str:
    _images(folder, *(f"{number}.jpg" for number in range(1, 9)))
    (folder / "list.csv").write_text(text)
    return f"csv:{folder / 'list.csv'}"


def test_a_list_may_have_no_label_at_all(tmp_path: Path) -> None:
    rows = "".join(f"{number}.jpg,\n" for number in range(1, 9))
    key = _list(tmp_path, f"path,label\n{rows}")
    assert _load(key, class_names=NAMES).labels_M.tolist() == [-1] * 8
    with pytest.raises(DataError, match=r"no label in the list and no names.*--class-names"):
        _load(key)
    paths = _list(tmp_path, "path\n" + "".join(f"{number}.jpg\n" for number in range(1, 9)))
    assert _load(paths, class_names=NAMES, labels="none").labels_M.tolist() == [-1] * 8


@pytest.mark.parametrize("labels", [("ring", "Cup"), ("0", "2")])
def test_labels_in_part_are_classes_of_the_given_names(tmp_path: Path, labels: tuple[str, str]) -> None:
    rows = f"1.jpg,{labels[0]}\n2.jpg,{labels[1]}\n" + "".join(f"{number}.jpg,\n" for number in range(3, 9))
    dataset = _load(_list(tmp_path, f"path,label\n{rows}"), class_names=NAMES)
    assert dataset.class_names == ("ring", "bar", "cup")
    named = {Path(path).name: label for path, label in zip(dataset.paths, dataset.labels_M.tolist(), strict=True)}
    assert (named["1.jpg"], named["2.jpg"]) == (0, 2) and list(named.values()).count(-1) == 6


def _features(folder: Path, labels: list[int], splits: list[str]) -> str:
    generator = np.random.default_rng(0)
    np.savez(
        folder / "f.npz", image_features=generator.normal(size=(len(labels), 4)).astype(np.float32),
        labels=np.array(labels), split=np.array(splits), text_features=np.eye(3, 4, dtype=np.float32),
        class_names=np.array(["ring", "bar", "cup"]),
    )  # fmt: skip
    return f"features:{folder / 'f.npz'}"


# ---- who is pooled, labelled and reported on


@pytest.mark.parametrize("paradigm", ["ul", "tft"])
def test_without_any_label_every_image_is_pooled_and_reported_on(tmp_path: Path, paradigm: str) -> None:
    key = f"folder:{_images(tmp_path, *(f'{number}.jpg' for number in range(8)))}"
    report = _task(key, paradigm, class_names=NAMES)
    assert report.pool.tolist() == report.test.tolist() == list(range(8))
    assert report.num_measurable == 0
    assert any("no labels: accuracy is not measured" in note for note in report.notes)
    score = _task(key, paradigm, "score", class_names=NAMES)
    assert sorted([*score.pool.tolist(), *score.holdout.tolist()]) == list(range(8))
    assert any("cannot be told from chance" in note and "from 100" in note for note in score.notes)


def test_ssl_takes_the_labelled_rows_there_are(tmp_path: Path) -> None:
    labels = [0, 0, 0, 1, 1, 2, *[-1] * 20, 0, 1, 2]
    key = _features(tmp_path, labels, ["train"] * 26 + ["test"] * 3)
    report = _task(key, "ssl")
    assert report.labelled.indices_N.tolist() == [0, 1, 2, 3, 4, 5]
    assert report.pool.tolist() == list(range(6, 26))
    score = _task(key, "ssl", "score")
    assert len(score.validation) > 0 and not set(score.validation.indices_N) & set(score.labelled.indices_N)
    assert set(score.labelled.labels_N.tolist()) == {0, 1, 2}, "a class keeps a labelled image"
    assert _task(key, "ssl", shots=1).labelled.labels_N.tolist() == [0, 1, 2]
    unlabelled = _features(tmp_path, [-1] * 29, ["train"] * 26 + ["test"] * 3)
    with pytest.raises(DataError, match=r"ssl must have labelled training images.*--paradigm ul"):
        _task(unlabelled, "ssl")


def test_metrics_are_over_the_test_images_that_have_a_label(tmp_path: Path) -> None:
    key = _features(tmp_path, [-1] * 6 + [0, 1, -1, -1], ["train"] * 6 + ["test"] * 4)
    config = _config(key)
    task = _task(key, "ul")
    probs_NK = torch.zeros(len(task.test), 3)
    probs_NK[:, 0] = 1
    save_file({"test_probs": probs_NK}, tmp_path / PREDICTIONS)
    metrics = evaluate_trial(config, "report", tmp_path)
    assert (metrics["metric"], metrics["num_test"], metrics["num_classified"]) == (0.5, 2, 10)
    assert any("over the 2 of 10" in note for note in task.notes)


def test_metrics_of_images_without_labels_are_none_and_never_nan(tmp_path: Path) -> None:
    key = _features(tmp_path, [-1] * 10, ["train"] * 6 + ["test"] * 4)
    probs_NK = torch.eye(3)[torch.arange(10) % 3]
    save_file({"test_probs": probs_NK}, tmp_path / PREDICTIONS)
    metrics = evaluate_trial(_config(key), "report", tmp_path)
    for name in ("metric", "accuracy", "worst_class_recall", "per_class_recall", "ece"):
        assert metrics[name] is None
    assert metrics["num_test"] == 0 and metrics["prediction_balance"] > 0.9


def test_an_imbalanced_pool_needs_labels(tmp_path: Path) -> None:
    key = _features(tmp_path, [-1] * 10, ["train"] * 6 + ["test"] * 4)
    with pytest.raises(CaptuneError, match="--pool-imbalance must know the label"):
        _task(key, "ul", pool_imbalance=5.0)


@pytest.mark.parametrize(("paradigm", "empty"), [("ul", "test split"), ("tft", "pool")])
def test_what_is_advised_for_classes_of_one_image_works(tmp_path: Path, paradigm: str, empty: str) -> None:
    folder = f"folder:{_images(tmp_path, 'ring/1.jpg', 'bar/1.jpg')}"
    with pytest.raises(DataError, match=rf"the {empty} must hold images(.|\n)*--labels none, with --class-names"):
        _task(folder, paradigm)
    task = _task(folder, paradigm, labels="none", class_names="ring,bar")
    assert len(task.pool) == len(task.test) == 2
