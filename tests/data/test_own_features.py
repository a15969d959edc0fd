"""Features of one's own, in an npz file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from captune.config import TaskConfig
from captune.data.catalog import load_dataset
from captune.data.dataset import Dataset
from captune.errors import DataError, UsageError
from tests.slow import in_one_test


def _load(dataset: str) -> Dataset:
    return load_dataset(TaskConfig.parse({"dataset": dataset, "paradigm": "ul"}))


def _arrays() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {
        "image_features": generator.standard_normal((6, 4)).astype(np.float16),
        "labels": np.array([0, 1, 0, 1, -1, 0]),
        "split": np.array(["test", "train", "train", "val", "train", "test"]),
        "text_features": generator.standard_normal((2, 4)).astype(np.float32),
    }


def _save(folder: Path, arrays: dict[str, np.ndarray]) -> str:
    np.savez(folder / "f.npz", **arrays)
    return f"features:{folder / 'f.npz'}"


def test_feature_rows_are_put_in_the_order_of_splits(tmp_path: Path) -> None:
    arrays = _arrays()
    dataset = _load(_save(tmp_path, {**arrays, "logit_scale": np.array(50.0)}))
    order = [1, 2, 4, 3, 0, 5]
    assert dataset.image_features_MD is not None and dataset.text_features_KD is not None
    assert np.array_equal(dataset.image_features_MD, arrays["image_features"][order].astype(np.float32))
    assert dataset.labels_M.tolist() == arrays["labels"][order].tolist()
    assert dataset.class_names == ("class 0", "class 1") and dataset.logit_scale == 50.0


def test_features_of_real_images_load(tmp_path: Path) -> None:
    file = Path(__file__).parents[3] / "shared" / "data" / "features" / "caltech101_59.npz"
    if not file.exists():
        pytest.skip("the feature file is not beside this checkout")
    dataset = _load(f"features:{file}")
    assert (dataset.num_classes, len(dataset.train), len(dataset.val), len(dataset.test)) == (59, 944, 936, 1401)
    assert dataset.image_features_MD is not None and dataset.text_features_KD is not None
    test = dataset.image_features_MD[dataset.indices("test")]
    agreement = (test @ dataset.text_features_KD.T).argmax(1) == dataset.test.labels_N
    assert agreement.mean() == pytest.approx(0.942, abs=0.01)


def _broken(name: str, value: object) -> dict[str, np.ndarray]:
    arrays = _arrays()
    if value is None:
        del arrays[name]
    else:
        arrays[name] = value  # type: ignore[assignment]
    return arrays


_NAN = _arrays()["image_features"].copy()
_NAN[2, 1] = np.nan
_ZERO = _arrays()["image_features"].copy()
_ZERO[3] = 0


@in_one_test(
    ("name", "value", "message"),
    [
        ("image_features", None, "no image_features"),
        ("split", None, "no split"),
        ("text_features", None, "no text_features or class_names"),
        ("image_features", _NAN, r"finite, but got 1 row with NaN or infinity, first row 2"),
        ("image_features", _ZERO, "no direction, but got row 3"),
        ("image_features", np.zeros((6, 4), int), r"floating-point numbers, but got int64 .*astype\('float32'\)"),
        ("text_features", np.ones((2, 5), np.float32), "same width, but got 4 and 5"),
        ("text_features", np.full((2, 4), np.inf, np.float32), "text_features"),
        ("class_names", np.array(["x", "y", "z"]), "3 names and 2 rows"),
        ("labels", np.array([0, 1, 0, 1, 2, 0]), "between -1 .unknown. and 1"),
        ("labels", np.array([0, 1]), "6 whole numbers"),
        ("labels", np.array([0.0, 1, 0, 1, 0, 0]), "6 whole numbers"),
        ("split", np.array(["train"] * 5 + ["tets"]), "but got 'tets'"),
        ("split", np.array(["train"]), "6 names"),
        ("logit_scale", np.array(-1.0), "above 0"),
        ("image_feature", np.ones(3), "nothing but .* but got image_feature"),
    ],
)
def test_bad_feature_files_are_refused(tmp_path: Path, name: str, value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _load(_save(tmp_path, _broken(name, value)))


def test_files_that_hold_no_plain_arrays_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be there"):
        _load(f"features:{tmp_path / 'no.npz'}")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(DataError, match="plain arrays"):
        _load(f"features:{tmp_path / 'text.npz'}")
    arrays = {**_arrays(), "class_names": np.array(["x", None], dtype=object)}
    with pytest.raises(DataError, match="plain arrays"):
        _load(_save(tmp_path, arrays))
    whole = (tmp_path / "f.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="plain arrays"):
        _load(f"features:{tmp_path / 'cut.npz'}")


def test_a_template_in_a_feature_file_must_hold_one_place(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "f.npz",
        image_features=np.eye(2, 4, dtype=np.float32),
        labels=np.array([0, 1]),
        split=np.array(["train", "test"]),
        class_names=np.array(["a", "b"]),
        template=np.array("a photo"),
    )
    with pytest.raises(UsageError, match=r"must hold exactly one {}, but got 'a photo' .*template"):
        _load(f"features:{tmp_path / 'f.npz'}")
