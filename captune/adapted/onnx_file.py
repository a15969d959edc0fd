"""One ONNX file from preprocessed images to class probabilities, checked on real photographs before it is kept."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captune.adapted.model import AdaptedModel
from captune.data.loose_images import pixels_in_batches
from captune.errors import ModelError, UsageError, first_line

FILE = "model.onnx"
INPUT, OUTPUT = "pixels", "probabilities"
TOLERANCE = 1e-4
"""Largest difference of a probability between ONNX Runtime and PyTorch that is accepted."""
_BLEND_TOLERANCE = 1e-3  # a blend rounds its members' probabilities to 16 bits, as a study stores them
_NEEDED = ("onnx", "onnxruntime", "onnxscript")


class _Classify(nn.Module):
    def __init__(self, model: AdaptedModel) -> None:
        super().__init__()
        self._model = model

    def forward(self, pixels: Tensor) -> Tensor:
        return self._model.probabilities(pixels)


def write_onnx(model: AdaptedModel, out: Path) -> list[Path]:
    """Write model.onnx: input `pixels` (B, 3, S, S) float32, preprocessed; output `probabilities` (B, K).

    The batch B is free. Class names and the preprocessing stand in the file's metadata as JSON.

    Raises:
        UsageError: captune[onnx] is not installed.
        ModelError: the backbone has no form in ONNX, or ONNX Runtime gives other numbers.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            "--format onnx needs the extra captune[onnx]", got=f"no {', '.join(missing)}",
            next_step='Type: pip install "captune[onnx]"',
        )  # fmt: skip
    pixels_B3SS = _photographs(model)
    program = _exported(model, pixels_B3SS)
    preprocessing = model.image_backbone.preprocessing
    program.model.metadata_props.update(
        {
            "class_names": json.dumps(model.class_names, ensure_ascii=False),
            "preprocessing": json.dumps(
                {
                    "size": preprocessing.image_size, "mean": preprocessing.mean, "std": preprocessing.std,
                    "resize_mode": preprocessing.resize_mode, "interpolation": preprocessing.interpolation,
                }
            ),
        }
    )  # fmt: skip
    file = out / FILE
    program.save(str(file))
    try:
        _check(file, model, pixels_B3SS)
    except ModelError:
        for written in out.glob(f"{FILE}*"):
            written.unlink()
        raise
    return sorted(out.glob(f"{FILE}*"))


def _photographs(model: AdaptedModel) -> Tensor:
    """Real pixels (B, 3, S, S): scikit-learn's two photographs and parts of them."""
    # Imported here: using a model needs no scikit-learn.
    from sklearn.datasets import load_sample_images

    photographs = [np.asarray(image) for image in load_sample_images().images]
    parts = [
        image[top : top + 200, left : left + 200] for image in photographs for top in (0, 200) for left in (0, 300)
    ]
    backbone = model.image_backbone
    return torch.cat(list(pixels_in_batches([*photographs, *parts], backbone.preprocessing, backbone.device)))


def _exported(model: AdaptedModel, pixels_B3SS: Tensor) -> Any:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    said = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _Classify(model).eval(), (pixels_B3SS,), input_names=[INPUT], output_names=[OUTPUT], dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), verbose=False,
            )  # fmt: skip
    except Exception as error:  # the exporter raises many kinds; each means that it cannot write the model
        raise ModelError(
            "the model must have a form in ONNX",
            got=first_line(error)[:200],
            where=model.image_backbone.name,
            next_step="Take --format bundle instead.",
        ) from error
    return program


def _check(file: Path, model: AdaptedModel, pixels_B3SS: Tensor) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    allowed = _BLEND_TOLERANCE if model.members else TOLERANCE
    for batch in (pixels_B3SS, pixels_B3SS[:1]):
        (theirs_BK,) = session.run(None, {INPUT: batch.cpu().numpy()})
        apart = float(np.abs(theirs_BK - model.probabilities(batch).cpu().numpy()).max())
        if not apart <= allowed:
            raise ModelError(
                f"ONNX Runtime must give the probabilities of PyTorch to {allowed:g}",
                got=f"a difference of {apart:.3g}",
                where=model.image_backbone.name, next_step="Take --format bundle instead.",
            )  # fmt: skip
