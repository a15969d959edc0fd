"""What people do with adapted models by the command line: notes, seeds, predict and export, and their mistakes."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import captune as captune_api
from captune.algorithms import default_config
from captune.cli.main import _seeds_joined, main
from captune.config import StudyConfig, TaskConfig
from captune.model.backbone import load_backbone
from captune.results.load import load_study
from captune.studies.planning import plan_study
from captune.training.checkpoint import load_checkpoint, save_checkpoint
from captune.tuning.open_study import OpenStudy

QUICK = ["--epochs", "1", "--steps-per-epoch", "2", "--batch-size", "4"]
TINY = ["--backbone", "tiny"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of twelve noisy images."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        (folder / name).mkdir()
        for number in range(12):
            pixels = generator.integers(0, 120, (40, 48, 3)) + 120 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features 64 wide, as the embedded model's."""
    file = tmp_path_factory.mktemp("features") / "f.npz"
    generator = np.random.default_rng(0)
    np.savez(
        file,
        image_features=generator.normal(size=(60, 64)).astype(np.float32),
        labels=np.arange(60) % 2,
        split=np.array(["train"] * 40 + ["test"] * 20),
        text_features=generator.normal(size=(2, 64)).astype(np.float32),
        class_names=np.array(["dark", "light"]),
    )
    return file


def captune(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def words(text: str) -> str:
    return " ".join(text.split())


def test_seeds_may_be_parted_by_spaces() -> None:
    given = ["adapt", "--seeds", "0", "1", "2", "--out", "x", "--seed", "3", "4"]
    assert _seeds_joined(given) == ["adapt", "--seeds", "0,1,2", "--out", "x", "--seed", "3", "4"]
    assert _seeds_joined(["--seeds", "0,1", "7"]) == ["--seeds", "0,1,7"]
    assert _seeds_joined(["adapt", "--seeds"]) == ["adapt", "--seeds"]


def test_tiny_on_other_data_than_digits_says_that_accuracy_is_not_the_point(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "adapted"
    command = ["adapt", "--dataset", f"folder:{photos}", "--paradigm", "ul", *TINY, "--tuning", "features", *QUICK]
    assert captune(*command, "--seeds", "0", "1", "--out", out) == 0
    said = words(capsys.readouterr().out)
    assert said.count("accuracy is not the point here: the embedded model 'tiny' knows only printed digits") == 1
    assert (out / "seed0" / "metrics.json").exists()
    assert "accuracy is not the point" in json.loads((out / "seed1" / "metrics.json").read_text())["notes"][-1]
    assert captune("adapt", "--dataset", "digits", "--paradigm", "ul", *QUICK, "--out", tmp_path / "digits") == 0
    assert "not the point" not in words(capsys.readouterr().out)


def test_a_study_records_what_its_backbone_makes_of_the_numbers(photos: Path, tmp_path: Path) -> None:
    task = TaskConfig.parse({"dataset": f"folder:{photos}", "paradigm": "ul", "backbone": "tiny"})
    study = StudyConfig(task=task, fixed={"batch_size": 4, "tuning": "features"})
    plan = plan_study(study, tmp_path / "run")
    OpenStudy(plan.directory, study, plan.info, plan.space, durable=False).close()
    assert "accuracy is not the point" in yaml.safe_load((plan.directory / "study.yaml").read_text())["notes"][-1]
    assert any("accuracy is not the point" in note for note in load_study(plan.directory).notes)


def test_weights_that_are_not_there_stop_a_study_before_it_begins(photos: Path, tmp_path: Path) -> None:
    run = ["run", "--dataset", f"folder:{photos}", "--paradigm", "ul", "--backbone", "ViT-B-32", "--batch-size", "4"]
    assert captune(*run, "--pretrained", "/nowhere/weights.pt", "--out", tmp_path / "run") == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["features", "adapters", "text", "multimodal"])
def test_exports_moved_elsewhere_predict_as_the_checkpoint(photos: Path, tmp_path: Path, kind: str) -> None:
    settings = {
        "features": {"tuning": "features"},
        "adapters": {"tuning": "features", "inference_adapters": True},
        "text": {"tuning": "prompts", "prompts": "text"},
        "multimodal": {"tuning": "prompts"},
    }[kind]
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    adapted, exported, moved = tmp_path / "adapted", tmp_path / "exported", tmp_path / "elsewhere" / "moved"
    command = ["adapt", "--dataset", f"folder:{photos}", "--paradigm", "ul", *TINY, *QUICK, "--config", config]
    assert captune(*command, "--out", adapted) == 0
    assert captune("export", adapted, "--out", exported) == 0
    moved.parent.mkdir()
    shutil.move(exported, moved)
    linear = kind in ("features", "text")
    form = "class_weights.safetensors" if linear else "checkpoint.safetensors"
    tables = {}
    for name, place in {"checkpoint": adapted, "folder": moved, "file": moved / form}.items():
        assert captune("predict", place, photos, "--top", "2", "--out", tmp_path / f"{name}.csv") == 0
        tables[name] = (tmp_path / f"{name}.csv").read_text()
    assert tables["checkpoint"] == tables["folder"] == tables["file"]
    assert len(tables["checkpoint"].splitlines()) == 1 + 24 * 2
    if linear:
        tensors, meta = load_checkpoint(moved / form)
        rows = list(csv.DictReader(tables["checkpoint"].splitlines()))
        backbone = load_backbone("tiny", device="cpu")
        from captune.data.loose_images import preprocessed_batches

        (batch,) = preprocessed_batches([Path(rows[0]["image"])], backbone.preprocessing, "cpu", [])
        logits_1K = meta["logit_scale"] * backbone.encode_images(batch.pixels_B3SS) @ tensors["class_weights"].T
        best = (logits_1K + tensors["bias"]).softmax(-1).max(-1)
        assert meta["class_names"][int(best.indices)] == rows[0]["class"]
        assert float(best.values) == pytest.approx(float(rows[0]["probability"]), abs=2e-6)


def test_a_bundle_file_needs_no_weights_at_the_recorded_place(photos: Path, tmp_path: Path) -> None:
    # The backbone beside the checkpoint serves, also where only the file is named and the first weights are gone.
    weights = tmp_path / "weights"
    shutil.copytree(Path(__file__).parents[2] / "captune" / "model" / "assets" / "tiny", weights)
    command = ["adapt", "--dataset", f"folder:{photos}", "--paradigm", "ul", "--backbone", f"local-dir:{weights}"]
    assert captune(*command, *QUICK, "--tuning", "prompts", "--out", tmp_path / "adapted") == 0
    export = ["export", tmp_path / "adapted", "--out", tmp_path / "bundle"]
    assert captune(*export) == 1  # a recorded path is opened only where it is named
    assert captune(*export, "--backbone", f"local-dir:{weights}") == 0
    shutil.rmtree(weights)
    load_backbone.__globals__["_load"].cache_clear()
    assert captune("predict", tmp_path / "bundle" / "checkpoint.safetensors", photos, "--out", tmp_path / "p.csv") == 0


def test_class_weights_of_precomputed_features_are_exported_without_any_backbone(
    features: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapted, exported = tmp_path / "adapted", tmp_path / "exported"
    assert captune("adapt", "--dataset", f"features:{features}", "--paradigm", "ul", *QUICK, "--out", adapted) == 0
    assert captune("export", adapted, "--out", exported) == 0
    tensors, meta = load_checkpoint(exported / "class_weights.safetensors")
    assert tensors["class_weights"].shape == (2, 64) and meta["class_names"] == ["dark", "light"]
    assert meta["logit_scale"] == 100
    assert captune("predict", exported, photos) == 1
    assert "must be given features, or the backbone they came from" in words(capsys.readouterr().err)
    for place in (adapted, exported):
        assert captune("predict", place, photos, *TINY, "--out", tmp_path / f"{place.name}.csv") == 0
    assert (tmp_path / "adapted.csv").read_text() == (tmp_path / "exported.csv").read_text()


def test_features_are_classified_by_a_model_of_features_and_called_by_their_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(3)
    labels, text_KD = np.arange(60) % 2, generator.normal(size=(2, 64))
    arrays = {
        "image_features": (text_KD[labels] + generator.normal(size=(60, 64))).astype(np.float32),
        "labels": labels, "split": np.array(["test", "train", "train"] * 20),  # rows of a split lie apart
        "text_features": text_KD.astype(np.float32), "class_names": np.array(["dark", "light"]),
    }  # fmt: skip
    file, out = tmp_path / "f.npz", tmp_path / "out.csv"
    np.savez(file, **arrays)
    for method in ("cap", "zlap"):
        adapted = tmp_path / method
        adapt = ["adapt", "--dataset", f"features:{file}", "--paradigm", "ul", "--method", method, "--out", adapted]
        assert captune(*adapt, *(QUICK if method == "cap" else ())) == 0
        assert f"captune predict {adapted} NEW.npz" in words(capsys.readouterr().out)
        said, tested = predicted(adapted, file, out), list(csv.DictReader((adapted / "predictions.csv").open()))
        assert [row["image"] for row in said] == [str(row) for row in range(60)]
        assert {row["image"] for row in tested} == {str(row) for row in range(0, 60, 3)}
        assert all(row["class"] == said[int(row["image"])]["class"] for row in tested)
        right = np.mean([arrays["class_names"][label] == row["class"] for label, row in zip(labels, said, strict=True)])
        assert right > 0.9
    np.savez(tmp_path / "new.npz", image_features=arrays["image_features"][:3])
    assert captune("predict", tmp_path / "cap", tmp_path / "new.npz", "--top", "2", "--out", out) == 0
    assert [row["rank"] for row in csv.DictReader(out.open())] == ["1", "2"] * 3
    rows = captune_api.load(tmp_path / "cap").predict(features=arrays["image_features"])
    assert rows.equals(captune_api.load(tmp_path / "cap").predict(features=str(file)))
    assert rows["image"].tolist() == list(range(60)) and rows["class"].tolist() == [
        row["class"] for row in predicted(tmp_path / "cap", file, tmp_path / "again.csv")
    ]


def predicted(model: Path, images: Path, out: Path) -> list[dict[str, str]]:
    assert captune("predict", model, images, "--out", out) == 0
    return list(csv.DictReader(out.open()))


def test_features_that_a_model_cannot_take_are_refused(
    features: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapted, image_side = tmp_path / "adapted", tmp_path / "image_side"
    assert captune("adapt", "--dataset", f"features:{features}", "--paradigm", "ul", *QUICK, "--out", adapted) == 0
    deep = ["--tuning", "prompts", "--prompts", "image"]
    assert captune("adapt", "--dataset", "digits", "--paradigm", "ul", *QUICK, *deep, "--out", image_side) == 0
    for name, arrays in {
        "narrow": {"image_features": np.ones((2, 8), np.float32)},
        "unnamed": {"features": np.ones((2, 64), np.float32)},
        "endless": {"image_features": np.full((2, 64), np.nan, np.float32)},
    }.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    capsys.readouterr()
    for arguments, code, told in (
        ((adapted, tmp_path / "narrow.npz"), 1, "8 wide, where 64 are wanted"),
        ((adapted, tmp_path / "unnamed.npz"), 1, "must hold image_features"),
        ((adapted, tmp_path / "endless.npz"), 1, "must be finite"),
        ((adapted, tmp_path / "absent.npz"), 1, "must be there"),
        ((image_side, features), 1, "prompts in the image tower"),
        ((adapted, features, photos), 2, "must be given alone"),
        ((adapted, features, "--copy-to", tmp_path / "sorted"), 2, "--copy-to must come with image files"),
    ):
        assert captune("predict", *arguments) == code
        assert told in words(capsys.readouterr().err)


def test_a_backbone_of_another_width_or_other_weights_is_refused(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = {"class_names": ["a", "b"], "logit_scale": 100.0, "backbone": None, "fingerprint": None}
    tensors = {"class_weights": torch.eye(2, 8), "bias": torch.zeros(2)}
    save_checkpoint(tmp_path / "narrow.safetensors", tensors, meta)
    assert captune("predict", tmp_path / "narrow.safetensors", photos, *TINY) == 1
    assert "features 64 wide of tiny, class features 8 wide" in words(capsys.readouterr().err)
    wide = {"class_weights": torch.eye(2, 64), "bias": torch.zeros(2)}
    save_checkpoint(tmp_path / "other.safetensors", wide, meta | {"fingerprint": "0" * 64, "backbone": ["tiny", None]})
    assert captune("predict", tmp_path / "other.safetensors", photos) == 1
    assert "must be the one the checkpoint was made on" in words(capsys.readouterr().err)


def test_a_file_that_a_trial_goes_on_from_is_no_checkpoint_to_predict_with(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = {"class_names": ["a", "b"], "logit_scale": 100.0, "backbone": ["tiny", None]}
    save_checkpoint(tmp_path / "resume.safetensors", {"learned.residual_KD": torch.zeros(2, 64)}, meta)
    assert captune("predict", tmp_path / "resume.safetensors", photos) == 1
    assert "a checkpoint must hold class features" in words(capsys.readouterr().err)


def test_output_that_cannot_be_written_is_told_before_the_work(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert captune("predict", tmp_path / "none", photos, "--out", tmp_path / "no folder" / "p.csv") == 2
    assert "--out must lie in a folder that is there" in words(capsys.readouterr().err)
    assert captune("mismatch", "--dataset", "digits", "--out", tmp_path) == 2
    assert "--out must be a file, but got a folder" in words(capsys.readouterr().err)


def test_cap_has_its_authors_settings_where_they_differ() -> None:
    flowers = default_config("cap", TaskConfig(dataset="flowers102", paradigm="ul"))
    aircraft = default_config("cap_mixture", TaskConfig(dataset="fgvc_aircraft", paradigm="ul"))
    other = default_config("cap", TaskConfig(dataset="dtd", paradigm="ul"))
    values = [(c.num_main_samples, c.confidence_threshold, c.margin_scale) for c in (flowers, aircraft, other)]  # type: ignore[attr-defined]
    assert values == [(6, 0.85, 12.0), (16, 0.5, 14.0), (16, 0.85, 12.0)]
    default_config("fpl", TaskConfig(dataset="flowers102", paradigm="ul"))


def test_the_embedded_model_is_tried_out_in_the_budget_of_digits() -> None:
    tried = default_config("cap", TaskConfig(dataset="caltech101", paradigm="tft", backbone="tiny"))
    assert (tried.epochs, tried.steps_per_epoch, tried.tuning) == (12, 16, "features")
    assert (
        default_config("cap", TaskConfig(dataset="dtd", paradigm="ul", backbone="tiny"), "prompts").tuning == "prompts"
    )
    published = default_config("cap", TaskConfig(dataset="caltech101", paradigm="tft"))
    assert (published.epochs, published.steps_per_epoch, published.tuning) == (50, 50, "prompts")


def test_adapt_says_zero_shot_beside_accuracy_and_warns_where_a_study_advised_against_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "best_config.yaml"
    config.write_text(
        "# Best configuration of the study x.\n# Advice: keep zero-shot. It gains nothing.\nmethod: cap\n"
    )
    command = ["adapt", "--dataset", "digits", "--paradigm", "ul", *QUICK]
    assert captune(*command, "--config", config, "--out", tmp_path / "adapted") == 0
    said = words(capsys.readouterr().out)
    metrics = json.loads((tmp_path / "adapted" / "metrics.json").read_text())
    assert captune("adapt", "--dataset", "digits", "--paradigm", "ul", "--method", "zero_shot",
                   "--out", tmp_path / "frozen") == 0  # fmt: skip
    frozen = json.loads((tmp_path / "frozen" / "metrics.json").read_text())
    assert frozen["zero_shot"] is None
    assert metrics["zero_shot"] == {name: frozen[name] for name in metrics["zero_shot"]}
    gain = 100 * (metrics["metric"] - frozen["metric"])
    assert f"(zero-shot {100 * frozen['metric']:.2f} %, {gain:+.2f} points)" in said
    assert "warning: the study advised not to adapt: keep zero-shot. It gains nothing." in said
    config.write_text("# Advice: adapt. It gains.\nmethod: cap\n")
    assert captune(*command, "--config", config, "--out", tmp_path / "other") == 0
    assert "advised not to" not in words(capsys.readouterr().out)


def test_mismatch_reports_classes_without_descriptions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "d.yaml").write_text("one: [A single upright stroke.]\n")
    assert captune("mismatch", "--dataset", "digits", "--descriptions", tmp_path / "d.yaml") == 0
    assert "left alone if flagged: 9 of 10 classes (zero, two, three, …)" in words(capsys.readouterr().out)
    assert captune("mismatch", "--dataset", "digits") == 0
    assert "Without descriptions" not in words(capsys.readouterr().out)
