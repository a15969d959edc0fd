"""Exports are opened by the tools they are for, and give the predictions of the checkpoint."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image
from sklearn.datasets import load_digits

import captune
from captune.cli.main import main
from captune.decisions.statistics import proportion_interval
from captune.errors import CheckpointError, UsageError

QUICK = {"epochs": 1, "steps_per_epoch": 2, "batch_size": 8}
BLEND = {
    "members": [
        {
            "method": "fpl",
            "weight": 2.0,
            "seeds": [0, 1],
            "settings": {"tuning": "features", "inference_adapters": False, "epochs": 1},
        },
        {"method": "balanced", "weight": 1.0},
    ]
}
KINDS: dict[str, dict[str, Any]] = {
    "features": {"tuning": "features", "inference_adapters": False, **QUICK},
    "text": {"tuning": "prompts", "prompts": "text", "inference_adapters": False, **QUICK},
    "multimodal": {"tuning": "prompts", **QUICK},
    "adapters": {"tuning": "features", "inference_adapters": True, **QUICK},
    "blend": {"method": "blend", **BLEND},
}
FROZEN = ("features", "text", "blend")


@pytest.fixture(scope="module")
def digits() -> list[Any]:
    """Real images as files hold them: 32 pixels high, so that no tool resizes them its own way."""
    images = (load_digits().images[1500:1512] * 15.9).astype(np.uint8)
    return [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)) for image in images]


@pytest.fixture(scope="module")
def place_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Kind → the folder of a model adapted so, once."""

    @cache
    def adapted_as(kind: str) -> Path:
        out = tmp_path_factory.mktemp(kind) / "adapted"
        options = dict(KINDS[kind])
        method = options.pop("method", None)
        captune.adapt(dataset="digits", method=method, config=options, out=out, device="cpu")
        return out

    return adapted_as


@pytest.fixture(scope="module", params=KINDS)
def adapted(request: pytest.FixtureRequest, place_of: Callable[[str], Path]) -> tuple[str, Path]:
    return request.param, place_of(request.param)


def table(model: captune.AdaptedModel, images: list[Any]) -> np.ndarray:
    """Probabilities (N, K) in the order of the classes."""
    rows = model.predict(images, top=len(model.class_names))
    wide = rows.pivot(index="image", columns="class", values="probability")
    return np.asarray(wide[list(model.class_names)])


def run_lines(folders: Sequence[Path], image: Any, *, in_a_process_of_its_own: bool) -> list[dict[str, float]]:
    """What the Python block of each folder's README says of a photo where captune cannot be imported.

    One process for all, since most of the time goes into its imports.
    """
    lines = ["import os, sys", "sys.modules['captune'] = None"]
    for folder in folders:
        Image.fromarray(image).convert("RGB").save(folder / "photo.jpg", format="PNG")
        (block,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
        lines += [f"os.chdir({str(folder)!r})", f"exec({block!r}, {{}})", "print('end')"]
    script = "\n".join(lines)
    if in_a_process_of_its_own:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        printed = done.stdout
    else:
        output = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
            patch.chdir(folders[0])  # and back
            patch.setitem(sys.modules, "captune", None)
            exec(script, {})
        printed = output.getvalue()
    *told, after = printed.split("end\n")
    assert len(told) == len(folders) and not after
    pairs = [[line.split(" ", 1) for line in one.strip().splitlines()] for one in told]
    return [{name: float(value) for value, name in one} for one in pairs]


@pytest.mark.parametrize("in_a_process_of_its_own", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_open_clip_alone_opens_what_is_linear(
    in_a_process_of_its_own: bool, place_of: Callable[[str], Path], digits: list[Any], tmp_path: Path
) -> None:
    models = {kind: captune.load(place_of(kind), device="cpu") for kind in FROZEN}
    for kind, model in models.items():
        model.export(tmp_path / kind, format="open_clip")
    folders = [tmp_path / kind for kind in FROZEN]
    answers = run_lines(folders, digits[0], in_a_process_of_its_own=in_a_process_of_its_own)
    for (kind, model), theirs in zip(models.items(), answers, strict=True):
        assert list(theirs) == list(model.class_names)
        # A blend rounds its members' probabilities to 16 bits.
        tolerance = 5e-4 if kind == "blend" else 1e-5
        assert np.allclose(list(theirs.values()), table(model, digits[:1])[0], atol=tolerance), kind
        again = captune.load(tmp_path / kind, device="cpu")
        assert np.allclose(table(again, digits), table(model, digits), atol=1e-6), kind


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in FROZEN])
def test_open_clip_is_not_given_what_is_not_linear(kind: str, place_of: Callable[[str], Path], tmp_path: Path) -> None:
    model = captune.load(place_of(kind), device="cpu")
    with pytest.raises(CheckpointError, match=r"prompts in the image tower|adapters on image features"):
        model.export(tmp_path / "out", format="open_clip")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_onnx_runtime_gives_the_same_probabilities_for_every_batch(
    adapted: tuple[str, Path], digits: list[Any], tmp_path: Path
) -> None:
    import onnxruntime

    kind, place = adapted
    model = captune.load(place, device="cpu")
    model.export(tmp_path / "out", format="onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    assert entry.name == "pixels" and entry.shape[1:] == [3, 32, 32] and not isinstance(entry.shape[0], int)
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["class_names"]) == list(model.class_names)
    how = json.loads(told["preprocessing"])
    pixels = np.stack([np.repeat(image[None], 3, axis=0) for image in digits]) / 255
    mean, std = (np.array(how[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    pixels_B3SS = ((pixels - mean) / std).astype(np.float32)
    for number in (1, 5, len(digits)):
        (theirs,) = session.run(None, {"pixels": pixels_B3SS[:number]})
        ours = table(model, digits[:number])
        assert np.abs(theirs - ours).max() <= (1e-3 if kind == "blend" else 1e-4)


def test_the_hugging_face_folder_has_a_card_and_opens(
    adapted: tuple[str, Path], digits: list[Any], tmp_path: Path
) -> None:
    kind, place = adapted
    model = captune.load(place, device="cpu")
    model.export(tmp_path / "out", format="hf")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    card_data = card.data.to_dict()
    assert card_data["license"] == "apache-2.0"  # that of the embedded weights
    assert card_data["library_name"] == ("open_clip" if kind in FROZEN else "captune")
    measured = json.loads((place / "metrics.json").read_text())
    assert card.data.eval_results is not None
    assert card.data.eval_results[0].metric_value == pytest.approx(measured["accuracy"], abs=1e-6)
    interval = proportion_interval(measured["accuracy"], measured["num_test"])
    assert f"{measured['accuracy']:.4f} ({interval.low:.4f} to {interval.high:.4f})" in card.text
    for heading in ("Data", "Results", "Use", "Limits", "Licence"):
        assert f"\n## {heading}\n" in card.text
    assert np.allclose(table(captune.load(tmp_path / "out", device="cpu"), digits), table(model, digits), atol=1e-6)


def test_a_licence_and_an_unmeasured_model_are_said_on_the_card(
    adapted: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, place = adapted
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "checkpoint.safetensors").write_bytes((place / "checkpoint.safetensors").read_bytes())
    command = ["export", str(alone), "--format", "hf", "--licence", "mit", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert not ended.value.code
    text = (tmp_path / "out" / "README.md").read_text()
    assert "\nlicense: mit\n" in text and "Not measured" in text and "Nothing is known of its accuracy" in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(("kind", "said"), [("features", "all that was learned is in the class weights"),
                                            ("text", "all that was learned is in the class weights"),
                                            ("adapters", "adapters on image features"),
                                            ("multimodal", "prompts in the image tower")])  # fmt: skip
def test_export_says_where_what_was_learned_lies(
    kind: str, said: str, place_of: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["export", str(place_of(kind)), "--out", str(tmp_path / "out")])
    assert not ended.value.code
    text = " ".join(capsys.readouterr().out.split())
    assert said in text and ("class-weights:" in text) == (kind in FROZEN)


def test_forms_are_named_by_the_nearest_and_extras_by_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captune.adapt(dataset="digits", method="zero_shot", out=tmp_path / "adapted", device="cpu")
    model = captune.load(tmp_path / "adapted", device="cpu")
    with pytest.raises(UsageError, match="Did you mean 'open_clip'"):
        model.export(tmp_path / "out", format="openclip")
    with pytest.raises(UsageError, match="--licence must come with --format hf"):
        model.export(tmp_path / "out", format="bundle", licence="mit")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'pip install "captune\[onnx\]"'):
        model.export(tmp_path / "out", format="onnx")


def test_wilsons_interval_by_hand() -> None:
    # 80 of 100 at 95 %: z² = 3.8415; centre (0.8 + 3.8415/200) / 1.038415 = 0.78890;
    # half width sqrt(3.8415·(0.16/100 + 3.8415/40000)) / 1.038415 = 0.08745 / … = 0.07777
    found = proportion_interval(0.8, 100)
    assert (found.low, found.high) == (pytest.approx(0.7112, abs=2e-4), pytest.approx(0.8666, abs=2e-4))
    assert proportion_interval(1.0, 10).high == 1.0 and proportion_interval(0.0, 10).low == 0.0
