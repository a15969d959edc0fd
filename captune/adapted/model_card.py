"""The model card of an adapted model: what it is, its data, the measured accuracy with its interval, its limits."""

from __future__ import annotations

import json
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from captune.adapted.model import AdaptedModel
from captune.adapted.open_clip_folder import open_clip_lines
from captune.algorithms import ALGORITHMS
from captune.config import PARADIGMS
from captune.data.known_datasets import DATASETS
from captune.decisions.statistics import proportion_interval
from captune.model.sources import TINY
from captune.records.layout import METRICS

_UNKNOWN_LICENCE = "other"


def model_card(model: AdaptedModel, licence: str | None = None) -> ModelCard:
    """Make the card.

    Args:
        model: as it is exported.
        licence: an SPDX identifier in small letters; without one, that of the embedded model, or `other`: an adapted
            model stands under the licence of the weights it was adapted from, which captune does not know.

    Returns:
        The card, whose header the Hub reads. Numbers come from the metrics.json beside the model's file.
    """
    measured = _measured(model)
    backbone = model.image_backbone
    own_licence = "apache-2.0" if backbone.name == TINY else _UNKNOWN_LICENCE
    name = f"{backbone.name} adapted to {_dataset(model)}"
    data = ModelCardData(
        model_name=name,
        license=licence or own_licence,
        license_name=None if licence or own_licence != _UNKNOWN_LICENCE else "licence-of-the-backbone-and-its-data",
        library_name="open_clip" if model.is_frozen else "captune",
        pipeline_tag="image-classification",
        tags=["clip", "captune", "pseudolabels", model.meta["method"]],
        metrics=["accuracy"],
        eval_results=_eval_results(model, measured),
    )
    body = [
        f"# {name}",
        _description(model),
        f"## Classes\n\n{', '.join(model.class_names)}.",
        f"## Data\n\n{_data(model)}",
        f"## Results\n\n{_results(measured)}",
        f"## Use\n\n{open_clip_lines(model) if model.is_frozen else _captune_lines()}",
        f"## Limits\n\n{_limits(model, measured)}",
        f"## Licence\n\n{_licence(model, licence or own_licence)}",
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(part.strip() for part in body) + "\n")


def _measured(model: AdaptedModel) -> dict[str, Any]:
    """The metrics saved next to the model's file; empty where there are none."""
    place = None if model.source is None else model.source.parent / METRICS
    found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8")) if place and place.exists() else {}
    return found


def _dataset(model: AdaptedModel) -> str:
    """The dataset's name without paths of this machine."""
    kind, colon, _ = str((model.meta.get("task") or {}).get("dataset", "unknown data")).partition(":")
    return {"folder": "a folder of images", "csv": "a list of images"}.get(kind, "features") if colon else kind


def _description(model: AdaptedModel) -> str:
    method = model.meta["method"]
    learned = model.image_side or "the class features (one per class)"
    words = (
        f"A CLIP model ({model.image_backbone.name}) adapted to unlabelled images by `{method}` "
        f"({ALGORITHMS[method].summary}). What was learned: {learned}. The backbone's own weights are unchanged "
        f"(fingerprint `{model.image_backbone.fingerprint[:12]}`). Made with captune."
    )
    config = model.meta["config"]
    shown = {key: value for key, value in sorted(config.items()) if not isinstance(value, (dict, list))}
    settings = ", ".join(f"{key} {_short(value)}" for key, value in shown.items())
    return f"{words}\n\nSettings: {settings}."


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _data(model: AdaptedModel) -> str:
    task = model.meta.get("task") or {}
    key = str(task.get("dataset", ""))
    row = DATASETS.get(key)
    paradigm = str(task.get("paradigm", ""))
    words = [f"Adapted to {_dataset(model)}, paradigm `{paradigm}`: {PARADIGMS.get(paradigm, 'not recorded')}."]
    words.append(f"Licence of the data: {row.licence}." if row else "Licence of the data: that of its owner.")
    words.append(f"Class texts: `{model.meta.get('template', '{}')}`.")
    return "\n".join(words)


def _results(measured: dict[str, Any]) -> str:
    if measured.get("metric") is None:
        return "Not measured: no test image with a label was at hand."
    number = int(measured["num_test"])
    rows = ["| | this model | zero-shot |", "|---|---|---|"]
    zero_shot = measured.get("zero_shot") or {}
    for key, name in (
        ("accuracy", "accuracy"), ("worst_class_recall", "recall of the worst class"),
        ("ece", "calibration error (ECE)"),
    ):  # fmt: skip
        rows.append(f"| {name} | {_share(measured[key], number, key)} | {_share(zero_shot.get(key), number, key)} |")
    if measured.get("unseen_accuracy") is not None:
        rows.append(f"| harmonic mean of seen and unseen accuracy | {measured['metric']:.4f} | "
                    f"{_share(zero_shot.get('metric'), number, 'metric')} |")  # fmt: skip
    return "\n".join(rows) + (
        f"\n\nOver {number} test images whose labels nothing in training or selection had seen. Intervals are Wilson's "
        "at 95 %: what another draw of test images could change. Training with another seed is not in them."
    )


def _share(value: float | None, number: int, key: str) -> str:
    if value is None:
        return "not measured"
    if key != "accuracy":
        return f"{value:.4f}"
    interval = proportion_interval(value, number)
    return f"{value:.4f} ({interval.low:.4f} to {interval.high:.4f})"


def _eval_results(model: AdaptedModel, measured: dict[str, Any]) -> list[EvalResult] | None:
    if measured.get("accuracy") is None:
        return None
    name = _dataset(model)
    return [
        EvalResult(
            task_type="image-classification", dataset_type=name.replace(" ", "-"), dataset_name=name,
            dataset_split="test", metric_type="accuracy", metric_value=round(float(measured["accuracy"]), 6),
        )
    ]  # fmt: skip


def _captune_lines() -> str:
    return """```python
import captune

model = captune.load(".")
print(model.predict(["photo.jpg"]))
```
"""


def _limits(model: AdaptedModel, measured: dict[str, Any]) -> str:
    lines = [
        f"- An image of none of the {len(model.class_names)} classes is given one of them all the same.",
        "- The model was adapted to the images described above; on others it may be worse than the unadapted one.",
        "- Adaptation without labels can strengthen a mistake: see the recall of the worst class.",
    ]
    if measured.get("metric") is None:
        lines.append("- Nothing is known of its accuracy.")
    if model.image_backbone.name == TINY:
        lines.append("- The backbone is a 1 MB model that knows only printed digits and letters: a demonstration.")
    return "\n".join(lines)


def _licence(model: AdaptedModel, licence: str) -> str:
    if licence != _UNKNOWN_LICENCE:
        return f"`{licence}`."
    return (
        f"That of the backbone's weights ({model.image_backbone.name}) and of the data it was adapted to, which "
        "captune does not know. Name it by `captune export --licence` before you publish this folder."
    )
