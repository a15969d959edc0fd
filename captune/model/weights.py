"""Open the model that a source names: architecture, activation, preprocessing, weights; nothing of a file is run."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import open_clip
import torch
from torch import nn

from captune.errors import CaptuneError, ModelError
from captune.model import use_timm, use_transformers
from captune.model.configuration import read_configuration, without_remote_code
from captune.model.fitting import fit
from captune.model.hub import offline_if_unreachable
from captune.model.sources import MODEL_FILES, QUICK_SUFFIX, Source, weight_file_in
from captune.model.weight_files import WeightFile, check_weight_file, read_weights
from captune.seeding import derive_seed

LOG = logging.getLogger(__name__)
# Entries that OpenAI's archives hold beside the weights.
_OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without open_clip's root-logger messages, which would set up logging for the whole process."""
    root, keep = logging.getLogger(), logging.NullHandler()
    root.addHandler(keep)
    level = root.level
    root.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
        root.removeHandler(keep)


def open_model(source: Source) -> nn.Module:
    """The open_clip model in fp32 on the CPU, in evaluation mode, without gradients.

    Raises:
        ModelError: weights that cannot be fetched, read without pickle, or fitted.
    """
    config = model_config(source)
    if "timm_model_name" in config.get("vision_cfg", {}):
        use_timm()
    if "hf_model_name" in config.get("text_cfg", {}):
        use_transformers()
    if source.folder is not None and source.file is None and not source.random:
        source.file = weight_file_in(source.folder, preferred=MODEL_FILES)
    try:
        with without_remote_code(config):
            if source.random or source.file is not None:
                model = _open_local(source)
            else:
                with _quiet(), offline_if_unreachable():
                    model = open_clip.create_model(
                        source.name, pretrained=source.tag, force_quick_gelu=source.quick_gelu, require_pretrained=True
                    )
    except CaptuneError:
        raise
    except ImportError as error:
        raise ModelError(
            "this model needs a package that is not installed",
            got=str(error).splitlines()[0],
            where=source.name,
            next_step="Install it, or use a model with open_clip's own towers such as ViT-B-32.",
        ) from None
    # AssertionError comes from open_clip's own checks.
    except (RuntimeError, OSError, ValueError, KeyError, AssertionError) as error:
        raise _cannot_open(source, error) from None
    for note in source.notes:
        LOG.info(note)
    return model.eval().requires_grad_(False)


def fetch_weights(source: Source) -> None:
    """Check that a file may hold weights; download those of a tag that are not on disk.

    Raises:
        ModelError: a file of another kind, or weights that are neither on disk nor to be had.
    """
    if source.file is not None:
        check_weight_file(source.file)
        return
    if source.tag is None or source.random:
        return
    try:
        with _quiet(), offline_if_unreachable():
            open_clip.download_pretrained(open_clip.get_pretrained_cfg(source.name, source.tag))
    except (RuntimeError, OSError, ValueError) as error:
        raise _cannot_open(source, error) from None


def _open_local(source: Source) -> nn.Module:
    weights = None
    if source.file is not None:
        weights = read_weights(source.file)
        source.notes += weights.notes
        extras = [weights.state.pop(key) for key in _OPENAI_EXTRAS if key in weights.state]
        _decide_by_content(source, weights, released=bool(extras) or weights.form == "torchscript")
    # Random weights are a function of the name alone, so that every process has the same.
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.manual_seed(derive_seed(0, "random backbone", source.name))
        model = open_clip.create_model(
            source.name,
            load_weights=False,
            pretrained_text=False,
            force_quick_gelu=source.quick_gelu,
            force_preprocess_cfg=source.preprocessing,
        )
    if weights is not None and source.file is not None:
        source.notes += fit(
            model,
            weights.state,
            name=source.name,
            where=source.file,
            interpolate_positions=source.interpolate_positions,
        )
    return model


def _decide_by_content(source: Source, weights: WeightFile, *, released: bool) -> None:
    """Rule 4 of the docstring of `sources`, as far as the file and those beside it decide it."""
    file = source.file
    assert file is not None  # for the type checker
    if weights.preprocessing:
        source.preprocessing = weights.preprocessing
        source.notes.append(f"{file.name}: images are prepared as preprocessor_config.json beside it says")
    named_quick = source.name.endswith(QUICK_SUFFIX) or source.named_quick
    if weights.quick_gelu is not None:
        quick_anyhow = named_quick or bool(read_configuration(source.name).get("quick_gelu", False))
        if quick_anyhow and not weights.quick_gelu:
            raise ModelError(
                "weights must run with the activation they were trained with",
                got="GELU in config.json beside them, QuickGELU in the backbone's name or configuration",
                where=file,
                next_step=f"Name the backbone without it: --backbone {source.name.removesuffix(QUICK_SUFFIX)}.",
            )
        source.quick_gelu = weights.quick_gelu
        activation = "QuickGELU" if weights.quick_gelu else "GELU"
        source.notes.append(f"{file.name}: transformers' CLIPModel with {activation}, as config.json beside it says")
    elif source.folder is not None or named_quick or source.quick_gelu:
        return
    elif released:
        source.quick_gelu = True
        source.notes.append(f"{file.name}: QuickGELU, since it has the form of OpenAI's release")
    else:
        source.notes.append(
            f"{file.name}: GELU, as nothing says otherwise; for weights trained with QuickGELU (OpenAI's, "
            f"MetaCLIP's, DFN's) name the backbone {source.name}{QUICK_SUFFIX}"
        )


def _cannot_open(source: Source, error: Exception) -> ModelError:
    text = str(error)
    if source.file is not None or "size mismatch" in text:
        problems = [line.strip() for line in text.splitlines()[1:] if line.strip()]
        return ModelError(
            f"the weights must fit {source.name}",
            got=f"{len(problems)} problems, first: {problems[0][:200] if problems else text[:200]}",
            where=source.file or source.tag or source.name,
            next_step="Name the architecture they were trained with by --backbone.",
        )
    if source.tag is not None or source.name.startswith("hf-hub:"):
        what = f"{source.name} {source.tag}" if source.tag else source.name
        return ModelError(
            f"the weights of {what} must be on disk or the network reachable",
            got=_first_line(error).split(". Last error")[0],
            next_step="Copy the weight file here and give its path by --pretrained; or use --backbone tiny, "
            "which needs no download.",
        )
    return ModelError(f"{source.name} must open as an open_clip model", got=_first_line(error))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def model_config(source: Source) -> dict[str, Any]:
    """The architecture as open_clip_config.json states it, with the activation in force.

    Raises:
        ModelError: the configuration cannot be read, or asks for more than towers.
    """
    config = read_configuration(source.name)
    return config | {"quick_gelu": True} if source.quick_gelu else config
