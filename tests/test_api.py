"""`import captune`: what it offers, what it costs to import, and that its examples run."""

from __future__ import annotations

import contextlib
import doctest
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import captune
from captune import api, interruption
from captune.data.digits import load_digits_arrays
from captune.errors import CaptuneError, DataError, UsageError
from tests.slow import in_one_test
from tests.tuning.test_open_study import run_study

ROOT = Path(__file__).parent.parent


def test_the_public_names_are_these() -> None:
    assert set(captune.__all__) == {
        "AdaptedModel", "CaptuneError", "Study", "__version__", "adapt", "datasets", "load", "open_study", "run",
    }  # fmt: skip
    for name in captune.__all__:
        assert getattr(captune, name) is not None
        assert name in dir(captune)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = captune.lode  # type: ignore[attr-defined]


def test_importing_captune_imports_and_changes_nothing() -> None:
    program = (
        "import json, os, sys\nmodules, variables = set(sys.modules), dict(os.environ)\nimport captune\n"
        "new = set(sys.modules) - modules\n"
        "heavy = sorted(new & {'torch', 'ray', 'numpy', 'pandas', 'pydantic', 'typer'})\n"
        "import captune.tuning\ncaptune.run, captune.open_study, captune.adapt, captune.load\n"
        "print(json.dumps([len(new), heavy, dict(os.environ) == variables]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    count, heavy, unchanged = json.loads(done.stdout)
    # captune itself, importlib, typing and what these bring: a few milliseconds.
    assert count < 30 and heavy == [] and unchanged


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testmod(api)
    assert failed == 0 and tried >= 8


def test_python_dash_m_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "captune", "--version"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 and captune.__version__ in done.stdout


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> captune.AdaptedModel:
    out = tmp_path_factory.mktemp("api") / "adapted"
    return captune.adapt(dataset="digits", method="balanced", out=out, device="cpu", balance_strength=1.0)


@pytest.fixture(scope="module")
def digits() -> list[Any]:
    images_NHW, _ = load_digits_arrays()
    return list(images_NHW[:70])  # more than a batch


def test_files_pillow_images_and_arrays_are_classified_alike(
    model: captune.AdaptedModel, digits: list[Any], tmp_path: Path
) -> None:
    files = []
    for number, pixels in enumerate(digits):
        files.append(tmp_path / f"{number:03d}.png")
        Image.fromarray(pixels).save(files[-1])
    from_arrays = model.predict(digits, top=2)
    from_pillow = model.predict([Image.fromarray(pixels) for pixels in digits], top=2)
    from_folder = model.predict(tmp_path, top=2)
    assert list(from_arrays["image"][::2]) == list(range(70))
    assert list(from_folder["image"][::2]) == [str(file) for file in files]
    for table in (from_pillow, from_folder):
        assert list(table["class"]) == list(from_arrays["class"])
        assert np.allclose(table["probability"], from_arrays["probability"], atol=1e-6)
    assert set(from_arrays["rank"]) == {1, 2}
    mixed = model.predict([files[0], digits[1], Image.fromarray(digits[2])])
    assert list(mixed["class"]) == list(from_arrays[from_arrays["rank"] == 1]["class"][:3])
    stack = np.stack(digits[:3])[..., None].repeat(3, axis=-1)
    assert list(model.predict(stack)["class"]) == list(mixed["class"])


def test_class_weights_and_features_give_the_probabilities(model: captune.AdaptedModel, digits: list[Any]) -> None:
    features_ND = model.encode(digits)
    assert features_ND.shape == (70, 64) and np.allclose(np.linalg.norm(features_ND, axis=1), 1, atol=1e-5)
    logits_NK = model.logit_scale * features_ND @ model.class_weights.T + model.bias_K.numpy()
    best = [model.class_names[label] for label in logits_NK.argmax(axis=1)]
    assert best == list(model.predict(digits)["class"])


def test_what_is_exported_is_loaded_with_the_same_predictions(
    model: captune.AdaptedModel, digits: list[Any], tmp_path: Path
) -> None:
    files = model.export(tmp_path / "exported")
    assert all(file.exists() for file in files)
    again = captune.load(tmp_path / "exported", device="cpu")
    assert np.allclose(again.predict(digits)["probability"], model.predict(digits)["probability"], atol=1e-6)


def test_settings_of_the_method_and_of_the_cell_are_told_apart(model: captune.AdaptedModel) -> None:
    assert model.meta["config"]["balance_strength"] == 1.0


@in_one_test(
    ("arguments", "said"),
    [
        ({}, "either images or dataset must be given, but got neither"),
        ({"images": "photos", "dataset": "digits"}, "but got both"),
        ({"dataset": "digts"}, "'digits'"),
        ({"dataset": "digits", "margn_scale": 3}, "Did you mean 'margin_scale'"),
        ({"dataset": "digits", "epochs": 0}, "epochs"),
        ({"images": "photos", "class_names": ["a, b", "c"]}, "must hold no comma"),
    ],
)
def test_wrong_arguments_are_usage_errors(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        captune.adapt(**arguments)


def test_images_that_cannot_be_used_are_named(model: captune.AdaptedModel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        model.predict(tmp_path / "nowhere.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png"):
        model.predict(tmp_path / "broken.png")
    with pytest.raises(DataError, match="there must be an image"):
        model.predict([])
    with pytest.raises(UsageError, match=r"float64 of shape \(8, 8, 1\)"):
        model.predict(np.zeros((8, 8)))
    with pytest.raises(UsageError, match=r"images or features.*neither"):
        model.predict()
    with pytest.raises(DataError, match="8 wide, where 64 are wanted"):
        model.predict(features=np.zeros((8, 8)))


def test_the_catalogue_is_a_table(tmp_path: Path) -> None:
    table = captune.datasets(data_root=tmp_path).set_index("name")
    assert bool(table.loc["digits", "found"]) and table.loc["digits", "test"] == 539
    assert not table.loc["eurosat", "found"] and table["how_to_get"].notna().all()


def test_a_finished_study_opens_as_tables(tmp_path: Path) -> None:
    run_study(tmp_path / "run", trials=4, confirm_top=1, confirm_seeds=2)
    study = captune.open_study(tmp_path / "run")
    assert study.name == "run" and study.directory == tmp_path / "run"
    searched = study.trials[study.trials["phase"] == "search"]
    assert len(searched) == 4 and searched["score"].notna().any()
    assert set(study.epochs["key"]) >= set(searched["key"])
    # Trials have ended, nothing has been chosen yet.
    assert study.choice is None and study.advice is None and study.best_config is None
    assert study.candidates.empty and "no choice yet" in repr(study)


def test_wrong_options_of_a_study_are_refused_before_ray(tmp_path: Path) -> None:
    for options, said in (
        ({"trails": 3}, "Did you mean 'trials'|unknown|trails"),
        ({"sampler": "tpr"}, "Did you mean 'tpe'"),
        ({"concurrency": 0}, "concurrency"),
        ({"margin_scale": -1}, "margin_scale"),
        ({"logger": "tensorbord"}, "Did you mean 'tensorboard'"),
    ):
        with pytest.raises(UsageError, match=said):
            captune.run(dataset="digits", out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
    with pytest.raises(CaptuneError, match="journal"):
        captune.open_study(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_users_script_is_type_checked(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import captune\n"
        'model = captune.adapt("photos", ["cat", "dog"], epochs=3)\n'
        'reveal_type(model)\nreveal_type(captune.load("adapted").predict("photo.jpg"))\n'
        "captune.load(3)\n"
    )
    done = subprocess.run(
        # With the project's settings and cache: what PyTorch's own stubs cost is paid once.
        [sys.executable, "-m", "mypy", "--no-error-summary", "--config-file", str(ROOT / "pyproject.toml"),
         "--cache-dir", str(ROOT / ".mypy_cache"), str(script)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert 'Revealed type is "captune.adapted.model.AdaptedModel"' in lines[0]
    assert "DataFrame" in lines[1]
    assert len(lines) == 3 and 'incompatible type "int"' in lines[2], done.stdout


def test_a_signal_that_a_library_swallows_ends_a_study_begun_from_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swallowing(*_: object) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        interruption.check()

    monkeypatch.setattr("captune.studies.running.run_studies", swallowing)
    with pytest.raises(KeyboardInterrupt):
        captune.run(dataset="digits", trials=1, out=tmp_path / "study")
