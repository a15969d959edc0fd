"""What a person with images and class names gets: predictions.csv, and the images in one folder a class."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from captune.cli.main import main
from captune.data import labelling
from captune.data.labelling import Prediction, predictions, sort_into_folders
from captune.errors import UsageError

QUICK = ["--backbone", "tiny", "--epochs", "1", "--steps-per-epoch", "2"]


def captune(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images in no class folder."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(12):
        pixels = generator.integers(0, 120, (40, 48, 3)) + 120 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def adapted(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "adapted"
    names = ["--class-names", "dark,light,cup"]
    assert captune("adapt", "--dataset", f"folder:{photos}", *names, "--paradigm", "ul", *QUICK, "--out", out) == 0
    return out


def test_adapt_writes_what_each_image_was_taken_for(photos: Path, adapted: Path) -> None:
    rows = list(csv.DictReader((adapted / "predictions.csv").open()))
    assert list(rows[0]) == ["image", "class", "probability", "second_class", "second_probability", "margin"]
    assert [row["image"] for row in rows] == [str(path) for path in sorted(photos.iterdir())]
    for row in rows:
        first, second = float(row["probability"]), float(row["second_probability"])
        assert 1 >= first >= second >= 0 and float(row["margin"]) == pytest.approx(first - second, abs=2e-6)
        assert {row["class"], row["second_class"]} < {"dark", "light", "cup"}
    assert json.loads((adapted / "metrics.json").read_text())["metric"] is None


def test_predict_says_the_same_and_sorts_copies(photos: Path, adapted: Path, tmp_path: Path) -> None:
    ours = list(csv.DictReader((adapted / "predictions.csv").open()))
    place = tmp_path / "sorted"
    arguments = ["predict", adapted, photos, "--out", tmp_path / "p.csv", "--copy-to", place, "--min-confidence", 0.6]
    assert captune(*arguments) == 0
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert [row["class"] for row in rows] == [row["class"] for row in ours]
    sure = {f"{row['class']}/{Path(row['image']).name}" for row in rows if float(row["probability"]) >= 0.6}
    assert {str(path.relative_to(place)) for path in place.rglob("*.png")} == sure
    assert captune(*arguments) == 2, "the folder is not empty any more"
    inside = photos / "sorted"
    assert captune("predict", adapted, photos, "--copy-to", inside) == 2 and not inside.exists()


def test_equal_file_names_and_odd_class_names_stay_apart(tmp_path: Path) -> None:
    found = []
    for folder, label in (("a", "x/y"), ("b", "x/y"), ("c", "x\\y"), ("d", "..")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").write_text(folder)
        found.append(Prediction(str(tmp_path / folder / "1.jpg"), label, 0.9, None, None))
    place = tmp_path / "out"
    assert sort_into_folders(found, place) == (4, 0)
    texts = {str(path.relative_to(place)): path.read_text() for path in place.rglob("*.jpg")}
    assert len(texts) == 4 and sorted(texts.values()) == ["a", "b", "c", "d"]
    assert len({name.split("/")[0] for name in texts}) == 3 and not any(name.startswith(".") for name in texts)
    with pytest.raises(UsageError, match="empty folder"):
        sort_into_folders(found, place)
    assert sort_into_folders(found, tmp_path / "linked", link=True) == (4, 0)
    assert all(path.is_symlink() and path.exists() for path in (tmp_path / "linked").rglob("*.jpg"))


def test_names_longer_than_a_file_system_takes_are_cut_and_stay_apart(tmp_path: Path) -> None:
    classes = ["é" * 200 + "a", "é" * 200 + "b"]
    found = []
    for number, folder in enumerate("abcd"):
        image = tmp_path / folder / ("x" * 251 + ".jpg")
        image.parent.mkdir()
        image.write_text(folder)
        found.append(Prediction(str(image), classes[number // 2], 0.9, None, None))
    place = tmp_path / "out"
    assert sort_into_folders(found, place) == (4, 0)
    copies = sorted(place.rglob("*.jpg"))
    assert sorted(copy.read_text() for copy in copies) == ["a", "b", "c", "d"]
    assert [len(list(folder.iterdir())) for folder in sorted(place.iterdir())] == [2, 2]
    assert max(len(part.encode()) for copy in copies for part in copy.relative_to(place).parts) <= 255


def test_thousands_of_equal_file_names_are_counted_on_not_tried_from_the_first(tmp_path: Path) -> None:
    tried = {}
    for count in (200, 400):
        names = _CountedNames()
        assert len({names.take("1", ".jpg") for _ in range(count)}) == count
        tried[count] = names.looked_up
    assert tried == {200: 200, 400: 400}


class _CountedNames(labelling.FreeNames):
    """Counts how often a name is looked up among those taken."""

    def __init__(self) -> None:
        super().__init__()
        names = self

        class Counted(set[str]):
            def __contains__(self, name: object) -> bool:
                names.looked_up += 1
                return super().__contains__(name)

        self.looked_up = 0
        self._taken = Counted()


def test_ties_go_to_the_first_class() -> None:
    (only,) = predictions(["i"], np.array([[0.4, 0.4, 0.2]]), ["a", "b", "c"])
    assert (only.label, only.second, only.row[-1]) == ("a", "b", "0.000000")
    assert predictions(["i"], np.array([[1.0]]), ["a"])[0].row == ["i", "a", "1.000000", "", "", ""]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_of_real_images_without_labels_is_a_whole_study(tmp_path: Path) -> None:
    source = Path(__file__).parents[3] / "shared" / "data" / "eurosat" / "2750"
    if not source.exists():
        pytest.skip("the EuroSAT images are not beside this checkout")
    flat = tmp_path / "flat"
    flat.mkdir()
    names = sorted(folder.name for folder in source.iterdir())
    for number, image in enumerate(sorted(source.rglob("*.jpg"))):
        shutil.copy(image, flat / f"{number:04d}.jpg")
    out = tmp_path / "run"
    budget = ["--trials", 3, "--confirm-top", 2, "--confirm-seeds", 2]
    settings = ["--no-dashboard", "--logger", "none", "--deterministic", "--out", out]
    run = ["run", "--dataset", f"folder:{flat}", "--class-names", ",".join(names), "--paradigm", "ul", *QUICK]
    assert captune(*run, *budget, *settings) == 0
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert len(rows) == len(list(flat.iterdir()))
    best = pd.read_csv(out / "best_configs.csv")
    assert isinstance(best["advice"][0], str) and (out / "best_config.yaml").exists()
    labelled = {"best_configs.csv": ["test_mean", "test_low", "zero_shot", "gain_over_zero_shot", "regret"],
                "trials.csv": ["metric", "metric_over_zero_shot"],
                "confirm.csv": ["metric", "accuracy", "worst_class_recall", "ece"]}  # fmt: skip
    for file, columns in labelled.items():
        table = pd.read_csv(out / file)
        assert len(table) and table[columns].isna().all(axis=None), file
    page = (out / "report.html").read_text()
    assert "No test image has a label, so how good that is was not measured." in page
    told = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)  # a script may say isNaN
    assert not re.search(r"\bnan\b", told.lower())
