"""The published setting of CAP, once for every command: `--preset paper`, and `--show` for the table of it.

Imports no torch. What a row says of the code is what the authors' published implementation does; where paper and code
differ, the code is followed, because its numbers are what a reproduction is held to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from captune.data.catalog import DATASETS

PRESETS = ("paper",)
# One for each of SPLIT_SEEDS.
TRAINING_SEEDS = (1, 2, 3)
PAPER_DATASETS = ("flowers102", "resisc45", "dtd", "cub200", "eurosat", "fgvc_aircraft")
PAPER_PARADIGMS = ("ssl", "ul", "trzsl")
PAPER_METHODS = ("zero_shot", "fpl", "grip", "cpl", "cap")

# Settings in which the authors' scripts leave their own defaults.
CAP_SETTINGS: dict[str, dict[str, Any]] = {
    "flowers102": {"num_main_samples": 6},
    "fgvc_aircraft": {"confidence_threshold": 0.5, "margin_scale": 14.0, "max_main_ratio": 0.6},
}
_BUDGET: dict[str, Any] = {"epochs": 50, "steps_per_epoch": 50}
_CAP: dict[str, Any] = {
    **_BUDGET,
    "batch_size": 32,
    "batching": "published",
    "learning_rate": 0.01,
    "momentum": 0.9,
    "weight_decay": 0.1,
    "warmup_epochs": 1,
    "prompts": "multimodal",
    "num_context": 2,
    "prompt_depth": 8,
    "adapter_hidden": 128,
    "adapter_residual": 0.01,
    "adapter_start": "random",
    "inference_adapters": False,
    "confidence_threshold": 0.85,
    "num_main_samples": 16,
    "max_main_ratio": 0.8,
    "grow_every": 5,
    "leaderboard": "published",
    "contest": "class_order",
    "pseudolabel_classes": "all",
    "margin_scale": 12.0,
    "margin_form": "published",
    "margin_features": "reencoded",
    "mismatched": "published",
    "description_choice": "nearest",
    "flip_probability": 1.0,
    "crop_scale_min": 0.08,
    "crop_source": "original",
}


@dataclass(frozen=True)
class Row:
    """One setting: what the paper says, what its code does, and what the preset takes.

    Attributes:
        setting: the option's name, or in words where there is none.
        paper: "–" where the paper does not say.
        code: the published implementation.
        ours: the preset.
    """

    setting: str
    paper: str
    code: str
    ours: str


def has_paper_splits(dataset: str) -> bool:
    """Whether the dataset has the splits of the paper (`--protocol paper`)."""
    return dataset in DATASETS and "paper" in DATASETS[dataset].protocols


def preset_task(dataset: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a cell under the preset: the paper's splits and prompts where the dataset has them, under what was
    given.
    """
    published = {"protocol": "paper", "prompt_form": "published"} if has_paper_splits(dataset) else {}
    return published | dict(given)


def preset_trial(config_class: type[Any], dataset: str) -> dict[str, Any]:
    """Settings of a trial under the preset: all of CAP's for CAP and what builds on it, the budget for others."""
    fields = config_class.model_fields
    if "margin_scale" not in fields:
        return _BUDGET if "epochs" in fields else {}
    return _CAP | CAP_SETTINGS.get(dataset, {})


def preset_rows(dataset: str) -> list[Row]:
    """The table that `--show` prints."""
    ours = _CAP | CAP_SETTINGS.get(dataset, {})
    flowers, aircraft, described = dataset == "flowers102", dataset == "fgvc_aircraft", dataset != "eurosat"

    def own(name: str, paper: str, code: str) -> Row:
        value = ours[name]
        return Row(name, paper, code, f"{value:g}" if isinstance(value, float) else str(value).lower())

    return [
        Row("backbone", "ViT-B/32", "ViT-B/32 of OpenAI, fp16", "ViT-B-32, openai, fp32 (--precision)"),
        Row("protocol", "splits of ELEVATER", "train + val pooled, in the order of the files",
            "paper" if has_paper_splits(dataset) else "coop: the paper has no splits of this dataset"),
        Row("pool", "–", _POOL.get(dataset, "train and val images"), "without test images"),
        Row("split_seed", "3 runs", "500, 0, 200", "500; compare: 500, 0, 200"),
        Row("seed", "3 runs", "1 in the script that is published", "0; compare: 1, 2, 3"),
        Row("shots", "2 (ssl)", "2, drawn with seed 0 before every class", "2 (ssl), the same images"),
        Row("zero-shot prompt", "a photo of a [CLASS]", "a photo of a {}[CLASS], braces and all",
            "as the code (prompt_form published)"),
        Row("learned prompt", "a photo of a [CLASS]", "a photo of a [CLASS].", "as the code"),
        own("epochs", "50", "50"),
        own("steps_per_epoch", "50", "50"),
        own("batch_size", "32", "32"),
        own("batching", "–", "the last batch of a pass over labelled or main images is smaller; passes run on"),
        own("learning_rate", "0.01, SGD, cosine", "0.01, SGD, cosine"),
        own("momentum", "–", "0.9"),
        own("weight_decay", "–", "0.1"),
        own("warmup_epochs", "–", "1"),
        own("prompts", "multimodal (MaPLe)", "multimodal (MaPLe)"),
        own("num_context", "–", "2"),
        own("prompt_depth", "–", "8"),
        own("adapter_hidden", "–", "128"),
        own("adapter_residual", "–", "0.01"),
        own("adapter_start", "–", "random, as a linear layer's"),
        own("inference_adapters", "none", "none"),
        own("confidence_threshold", "0.5" if aircraft else "0.85", "0.5" if aircraft else "0.85"),
        own("num_main_samples", "6" if flowers else "16", "6" if flowers else "16"),
        own("max_main_ratio", "–", "0.6" if aircraft else "0.8"),
        own("grow_every", "–", "5, after epochs 0, 5, 10, …"),
        own("leaderboard", "top k by confidence", "a walk over the images in file order"),
        own("contest", "–", "the first class"),
        own("pseudolabel_classes", "–", "all: predictions of seen classes are passed over (trzsl)"),
        own("margin_scale", "14" if aircraft else "12", "of the run script, 12" if aircraft else "12"),
        own("margin_form", "m·max δ·δ_i·S_ij", "(1 - r_i)/(1 + r_i)·(max r - min r)·m·S_ij"),
        own("margin_features", "–", "encoded anew before every epoch"),
        own("mismatched", "found by Algorithm 1", "a fixed list of this dataset's classes" if described else "none"),
        Row("descriptions", "5 per class, the nearest taken", "1 per class" if described else "none",
            "captune's own, 5 per class, the nearest; the authors' by --descriptions" if described else "none"),
        Row("images of a description", "–", "of all images, labelled ones too", "of the pool"),
        own("flip_probability", "–", "1: every strong view"),
        own("crop_scale_min", "–", "0.08"),
        own("crop_source", "–", "the original image"),
    ]  # fmt: skip


_POOL = {"eurosat": "all images in the class folders, test images too"}
