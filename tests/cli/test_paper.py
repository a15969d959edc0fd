"""`--preset paper`: one setting for every command, its table, and the paper's whole table on miniatures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from captune.algorithms import ALGORITHMS, default_config
from captune.algorithms.preset import PAPER_DATASETS, PAPER_METHODS, PAPER_PARADIGMS, preset_rows, preset_task
from captune.cli.main import main
from captune.cli.paper import _departures, _planned
from captune.config import TaskConfig
from captune.data import catalog
from captune.data.digits import load_digits_arrays
from captune.data.known_datasets import DATASETS
from captune.data.published_accuracies import is_published_protocol
from captune.results.paper_table import cell_text, grid, paper_table
from tests.data.miniatures import MINIATURES, eurosat_grip
from tests.slow import in_one_test

LAYOUTS = {"flowers102": 1, "resisc45": 0, "dtd": 1, "cub200": 0, "fgvc_aircraft": 2}


def captune(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture
def miniatures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The six layouts of the paper side by side, with digits for images, so that predictions differ."""
    root, (digits_NHW, _) = tmp_path / "data", load_digits_arrays()
    root.mkdir()
    built = {key: MINIATURES[key, number](root) for key, number in LAYOUTS.items()}
    # As the published code has it: no list of training images, whole class folders.
    built["eurosat"] = eurosat_grip(with_train_list=False)(root)
    for number, file in enumerate(sorted(root.rglob("*.jpg"))):
        pixels = np.kron(digits_NHW[number * 7 % len(digits_NHW)], np.ones((4, 4), np.uint8))
        Image.fromarray(pixels).convert("RGB").save(file)
    for key, miniature in built.items():
        monkeypatch.setitem(catalog.DATASETS, key, replace(DATASETS[key], num_classes=len(miniature.class_names)))
    return root


SMALL = ("--backbone", "tiny", "--tuning", "prompts", "--epochs", "1", "--steps-per-epoch", "2", "--batch-size", "2")


@pytest.mark.parametrize("command", ["adapt", "run", "compare"])
def test_show_prints_every_published_setting_and_ends(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert captune(command, "--preset", "paper", "--show", "--dataset", "fgvc_aircraft,dtd") == 0
    shown = words(capsys.readouterr().out)
    assert "--preset paper: fgvc_aircraft" in shown and "--preset paper: dtd" in shown
    for setting in ("margin_features", "pseudolabel_classes", "crop_source", "batching", "adapter_start"):
        assert setting in shown


def test_show_without_a_preset_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert captune("adapt", "--show", "--dataset", "dtd") == 2
    assert "--show must be used with --preset" in words(capsys.readouterr().err)


@pytest.mark.parametrize("command", ["adapt", "run", "compare"])
def test_a_preset_or_a_dataset_there_is_not_is_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for preset, dataset, said in (("papers", "dtd", "must be 'paper'"), ("paper", "flower102", "flowers102")):
        assert captune(command, "--preset", preset, "--show", "--dataset", dataset) == 2
        assert said in words(capsys.readouterr().err)


def test_settings_of_a_search_are_refused_where_nothing_is_searched(capsys: pytest.CaptureFixture[str]) -> None:
    assert captune("compare", "--preset", "paper", "--trials", "5", "--concurrency", "2", "--split-seed", "1") == 2
    assert "--concurrency, --split-seed, --trials" in words(capsys.readouterr().err)


@in_one_test("dataset", PAPER_DATASETS)
def test_the_table_says_what_the_configuration_holds(dataset: str) -> None:
    task = TaskConfig.parse(preset_task(dataset, {"dataset": dataset, "paradigm": "trzsl"}))
    assert (task.protocol, task.prompt_form, task.split_seed) == ("paper", "published", 500)
    config = default_config("cap", task, None, "paper")
    shown = {row.setting: row.ours for row in preset_rows(dataset)}
    for name, value in config.model_dump().items():
        if name in shown:
            assert shown[name] == (f"{value:g}" if isinstance(value, float) else str(value).lower()), name
    assert (config.epochs, config.steps_per_epoch, config.flip_probability) == (50, 50, 1.0)
    k, tau, margin, ratio = {
        "flowers102": (6, 0.85, 12, 0.8),
        "fgvc_aircraft": (16, 0.5, 14, 0.6),
    }.get(dataset, (16, 0.85, 12, 0.8))
    held = config.num_main_samples, config.confidence_threshold, config.margin_scale, config.max_main_ratio  # type: ignore[attr-defined]
    assert held == (k, tau, margin, ratio)


@in_one_test("method", ALGORITHMS)
def test_every_method_takes_the_preset(method: str) -> None:
    task = TaskConfig.parse({"dataset": "dtd", "paradigm": "ul"})
    default_config(method, task, None, "paper")


def test_what_is_typed_comes_before_the_preset() -> None:
    assert preset_task("dtd", {"protocol": "coop"})["protocol"] == "coop"
    assert preset_task("caltech101", {}) == {}


def test_two_datasets_of_the_table_are_run_and_the_missing_ones_named(
    miniatures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (miniatures / "DTD").rename(tmp_path / "elsewhere")
    out = tmp_path / "out"
    asked = ("--dataset", "flowers102,eurosat,dtd", "--paradigm", "ul,trzsl", "--methods", "zero_shot,cap")
    assert captune("compare", "--preset", "paper", "--data-root", miniatures, "--out", out, *asked, *SMALL) == 0
    said = words(capsys.readouterr().out)
    assert "not on disk, left out: dtd" in said
    table = pd.read_csv(out / "paper_table.csv")
    assert len(table) == 3 * 2 * 2
    ran = table[table["dataset"] != "dtd"]
    assert ran["num_seeds"].tolist() == [3] * 8 and ran["mean"].between(0, 100).all()
    assert table[table["dataset"] == "dtd"]["mean"].isna().all()
    # The embedded model is not the published one: no published number stands beside it, and the table says why.
    assert table["published"].isna().all() and table["source"].isna().all()
    page = (out / "paper_table.html").read_text()
    assert "Not on disk" in page and "63.7" not in page and "published numbers are left out" in words(page)
    assert "backbone tiny" in page and "steps_per_epoch 2" in page and "knows only printed digits" in page
    # A second call finds everything done, and says the same of it.
    assert captune("compare", "--preset", "paper", "--data-root", miniatures, "--out", out, *asked, *SMALL) == 0
    assert "seed 1:" not in capsys.readouterr().out
    assert (out / "paper_table.html").read_text() == page
    # With other settings the runs that are kept are not taken for new ones.
    other = ("compare", "--preset", "paper", "--data-root", miniatures, "--out", out, *asked, *SMALL[:-1], "3")
    assert captune(*other) == 2
    assert "batch_size 2 instead of 3" in words(capsys.readouterr().err)


def test_every_run_that_is_kept_must_be_of_the_settings_asked_for_and_needs_no_checkpoint_to_tell(
    miniatures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, cell = tmp_path / "out", "flowers102-ul-zero_shot"
    asked = ("--dataset", "flowers102", "--paradigm", "ul", "--methods", "zero_shot", "--backbone", "tiny")
    command = ("compare", "--preset", "paper", "--data-root", miniatures, "--out", out, *asked)
    assert captune(*command) == 0
    # What the first seed leaves where it fails.
    (out / "runs" / cell / "seed1" / "metrics.json").unlink()
    capsys.readouterr()
    assert captune(*command, "--precision", "bf16") == 2
    said = words(capsys.readouterr().err)
    assert "precision fp32 instead of bf16" in said and "seed2" in said
    checkpoints = list(out.rglob("checkpoint.safetensors"))
    for file in checkpoints:
        file.unlink()
    assert len(checkpoints) == 3 and captune(*command) == 0
    assert captune(*command, "--precision", "bf16") == 2
    # As an earlier version left it: what a run was made with stands in its checkpoint alone.
    (out / "runs" / cell / "seed1" / "task.yaml").unlink()
    assert captune(*command) == 0
    assert captune(*command, "--precision", "bf16") == 2
    (out / "runs" / cell / "seed2" / "task.yaml").unlink()
    capsys.readouterr()
    assert captune(*command) == 2
    said = words(capsys.readouterr().err)
    assert "got no task.yaml, and of checkpoint.safetensors: no such file" in said
    assert "Delete its metrics.json to train it again" in said


PUBLISHED = {"protocol": "paper", "prompt_form": "published", "pretrained": "openai", "pixels": "open_clip"}


@pytest.mark.parametrize("backbone", ["ViT-B-32", "ViT-B/32", "ViT-B-32-quickgelu"])
def test_settings_that_are_the_published_ones_are_no_departures(backbone: str) -> None:
    given = {**PUBLISHED, "shots": 2, "backbone": backbone, "max_unreadable": 0.5, "follow_links": True}
    cells = [(dataset, kind, method) for dataset in ("dtd", "fgvc_aircraft") for kind in ("ul", "ssl")
             for method in ("zero_shot", "grip", "cap")]  # fmt: skip
    planned = [(cell, *_planned(cell, given, {"epochs": 50, "micro_batch": 8})) for cell in cells]
    assert all(is_published_protocol(task) for _, task, _ in planned)
    assert _departures(planned, False) == []


def test_only_settings_that_differ_are_named_and_what_follows_from_them() -> None:
    cells = [("dtd", "ssl", "cap"), ("fgvc_aircraft", "ssl", "cap")]
    given = {**PUBLISHED, "shots": 4, "backbone": "tiny", "pretrained": None}
    planned = [(cell, *_planned(cell, given, {"margin_scale": 12.0, "epochs": 3})) for cell in cells]
    (line,) = _departures(planned, False)
    # Aircraft's margin scale is published as 14; the embedded model has weights of its own.
    settings = "shots 4, backbone tiny, pretrained None, tuning features, epochs 3, margin_scale 12.0"
    assert line == f"settings other than the preset's: {settings}; this is not the published protocol"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_table_runs_on_miniatures(miniatures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert captune("compare", "--preset", "paper", "--data-root", miniatures, "--out", out, *SMALL) == 0
    table = pd.read_csv(out / "paper_table.csv")
    assert len(table) == len(PAPER_DATASETS) * len(PAPER_PARADIGMS) * len(PAPER_METHODS)
    assert table["num_seeds"].tolist() == [3] * len(table)
    assert table["mean"].between(0, 100).all()


def test_a_cell_shows_the_difference_and_whether_it_lies_within_the_published_deviation(tmp_path: Path) -> None:
    for seed, value in ((1, 0.70), (2, 0.71), (3, 0.72)):
        folder = tmp_path / "flowers102-ul-grip" / f"seed{seed}"
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(f'{{"metric": {value}}}')
    table = paper_table(tmp_path, [("flowers102", "ul", "grip"), ("flowers102", "ul", "cap")])
    assert cell_text(table.iloc[0]) == "71.0 ± 1.0 (69.8, +1.2)"
    assert cell_text(table.iloc[1]) == "not run"
    elsewhere = paper_table(tmp_path, [("flowers102", "ul", "grip")], {("flowers102", "ul", "grip")})
    assert cell_text(elsewhere.iloc[0]) == "71.0 ± 1.0"
    table.loc[0, ["published_sd", "within_published_sd"]] = [2.0, True]
    assert cell_text(table.iloc[0]) == "71.0 ± 1.0 (69.8 ± 2.0, +1.2, within its sd)"
    assert grid(table, "ul").shape == (2, 1)
