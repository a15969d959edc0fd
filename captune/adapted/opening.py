"""Open an adapted model: from a checkpoint, a bundle, or exported class weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captune.adapted.model import BACKBONE, WEIGHTS, AdaptedModel, member_shares
from captune.adapted.onnx_file import FILE as ONNX
from captune.algorithms import method_named
from captune.algorithms.configs import BlendConfig, ZlapConfig
from captune.algorithms.zlap import graph_of
from captune.config import TrialConfig, read_yaml
from captune.data.tree import name_some
from captune.errors import CheckpointError
from captune.model.backbone import Backbone
from captune.model.class_prompts import learned_template
from captune.model.classifier import build_classifier
from captune.model.configuration import CONFIG_FILE
from captune.model.device import resolve_device
from captune.model.recorded import recorded_backbone, refuse_links_outside
from captune.plain_text import resume_command, typed_path
from captune.records.layout import ADAPTED, BEST_CONFIG, CHECKPOINT, STUDY
from captune.training.checkpoint import load_checkpoint, without_prefix


def open_adapted(
    path: Path,
    *,
    backbone: str | None = None,
    pretrained: str | None = None,
    device: str = "auto",
) -> AdaptedModel:
    """Open a checkpoint, a bundle or exported class weights.

    Args:
        path: the file, or the folder that holds it.
        backbone: model name, where the recorded one is called otherwise here.
        pretrained: weights, where the recorded ones lie elsewhere now.
        device: auto, cpu, cuda.

    Raises:
        CheckpointError: no checkpoint, or one of another backbone.
    """
    if path.is_dir():
        found = model_in(path)
        if found is None:
            raise CheckpointError(
                f"a folder must hold {CHECKPOINT} or {WEIGHTS}", got="neither", where=path, next_step=_instead_of(path)
            )
        path = found
    # A folder that holds its backbone may be named by itself or by the file in it.
    beside = path.parent if (path.parent / CONFIG_FILE).is_file() else path.parent / BACKBONE
    if pretrained is None and beside.is_dir():
        refuse_links_outside(beside, path.parent)
        backbone, pretrained = None, f"local-dir:{beside.absolute()}"
    resolve_device(device)  # a wrong one is an error even for a model of features, which stays on the CPU
    tensors, meta = load_checkpoint(path)
    known = [
        tensors[name] for name in ("class_weights", "member0.class_weights", "frozen.text_features") if name in tensors
    ]
    if not known:
        raise CheckpointError(
            "a checkpoint must hold class features",
            got="none, as in the file a trial goes on from",
            where=path,
            next_step=f"Give the {CHECKPOINT} of a finished study or adaptation.",
        )
    frozen = recorded_backbone(meta, backbone, pretrained, device, path)
    if frozen is not None and frozen.embed_dim != known[0].shape[1]:
        raise CheckpointError(
            "the backbone must be the one the checkpoint was made on",
            got=f"features {frozen.embed_dim} wide of {frozen.name}, class features {known[0].shape[1]} wide",
            where=path,
            next_step="Name the right one by --backbone and --pretrained.",
        )
    if "class_weights" in tensors:
        at = torch.device("cpu") if frozen is None else frozen.device
        weights = {name: tensors[name].to(at) for name in ("class_weights", "bias")}
        return AdaptedModel(
            frozen, tuple(meta["class_names"]), weights["class_weights"], meta["logit_scale"], weights["bias"],
            None, False, meta, source=path,
        )  # fmt: skip
    opened = (_from_members if "members" in meta else _from_learned)(frozen, tensors, meta, path)
    return replace(opened, source=path)


def model_in(folder: Path) -> Path | None:
    """The file of a model in a folder, of a study's the one adapted after its end too; None where there is none.

    Raises:
        CheckpointError: that one is of an earlier choice of the study.
    """
    found = next((file for file in (folder / CHECKPOINT, folder / WEIGHTS) if file.exists()), None)
    later = folder / ADAPTED
    if found is not None or not (folder / STUDY).is_file() or not (later / CHECKPOINT).is_file():
        return found
    # Their headers may differ: a later report may say the same advice in other words.
    configs = [read_yaml(place / BEST_CONFIG) for place in (folder, later) if (place / BEST_CONFIG).is_file()]
    if len(configs) < 2 or configs[0] != configs[1]:
        raise CheckpointError(
            "the model in a study's directory must be of its best configuration",
            got="one of an earlier choice", where=later,
            next_step=f"Remove {typed_path(later)}, and it is adapted anew.",
        )  # fmt: skip
    return later / CHECKPOINT


def _instead_of(folder: Path) -> str | None:
    """What to give in place of a folder without a model."""
    if (folder / BEST_CONFIG).is_file() and (folder / STUDY).is_file():
        return f"Adapt what the study advises: captune predict {typed_path(folder)} PHOTOS --yes"
    if (folder / STUDY).is_file():
        return f"The study has not ended. Go on with it: {resume_command(folder)}"
    if (folder / ONNX).is_file():
        return "An ONNX file is for other programs: give the model that it was exported from."
    inside = [
        str(place) for place in sorted(folder.iterdir())
        if place.is_dir() and any((place / name).is_file() for name in (CHECKPOINT, WEIGHTS, STUDY))
    ]  # fmt: skip
    return f"Give one of the folders in it: {name_some(inside)}." if inside else None


def _from_members(
    backbone: Backbone | None, tensors: dict[str, Tensor], meta: dict[str, Any], path: Path
) -> AdaptedModel:
    """A blend: from the checkpoint of one, or from its exported sets of class weights.

    Averaged logits of linear members are folded into one set: softmax(Σ a_m·log softmax(z_m)) = softmax(Σ a_m·z_m),
    since log softmax subtracts the same number from all classes of an image. Averaged probabilities cannot be folded.
    """
    device = torch.device("cpu") if backbone is None else backbone.device
    names, scale = tuple(meta["class_names"]), float(meta["logit_scale"])
    members: list[tuple[int, AdaptedModel]] = []
    for number, said in enumerate(meta["members"]):
        if f"member{number}.class_weights" in tensors:
            own = {name: tensors[f"member{number}.{name}"].to(device) for name in ("class_weights", "bias")}
            model = AdaptedModel(
                backbone, names, own["class_weights"], scale, own["bias"], None, False, {**meta, **said}
            )
        else:
            own = without_prefix(f"algorithm.member{number}", tensors)
            own["frozen.text_features"] = tensors["frozen.text_features"]
            model = _from_learned(backbone, own, {**meta, **said}, path)
        members.append((int(said["group"]), model))
    blended = AdaptedModel(
        backbone, names, members[0][1].text_KD, scale, members[0][1].bias_K, None, False, meta, members=tuple(members)
    )
    config = BlendConfig.parse(meta["config"], where=path)
    if config.average == "probabilities" or not blended.is_frozen:
        return blended
    shares = member_shares(blended)
    weights_KD = torch.stack([a * model.text_KD for a, (_, model) in zip(shares, members, strict=True)]).sum(0)
    bias_K = torch.stack([a * model.bias_K for a, (_, model) in zip(shares, members, strict=True)]).sum(0)
    return AdaptedModel(backbone, names, weights_KD, scale, bias_K, None, False, meta)


@torch.no_grad()
def _from_learned(
    backbone: Backbone | None, tensors: dict[str, Tensor], meta: dict[str, Any], path: Path
) -> AdaptedModel:
    device = torch.device("cpu") if backbone is None else backbone.device
    names = tuple(meta["class_names"])
    config: TrialConfig = method_named(meta["method"]).config_class.parse(meta["config"], where=path)
    learned = without_prefix("learned", tensors)
    bias_K = tensors.get("algorithm.bias", torch.zeros(len(names))).to(device)
    frozen_KD = without_prefix("frozen", tensors)["text_features"].to(device)
    scale = float(meta["logit_scale"])
    if isinstance(config, ZlapConfig):
        graph = graph_of(without_prefix("algorithm", {k: v.to(device) for k, v in tensors.items()}), frozen_KD, config)
        return AdaptedModel(backbone, names, frozen_KD, scale, bias_K, None, False, meta, graph=graph)
    if not learned:
        weights_KD = tensors.get("algorithm.class_weights", frozen_KD).to(device)
        return AdaptedModel(backbone, names, weights_KD, scale, bias_K, None, False, meta)
    features = config.tuning == "features"
    classifier = build_classifier(
        backbone,
        names,
        learned_template(meta["template"], meta["task"].get("prompt_form", "template")),
        config,
        seed=0,
        text_features_KD=frozen_KD if features else None,
        logit_scale=scale if features else None,
    ).to(device)
    classifier.load_learned_state(learned)
    text_KD = classifier.encode_texts()
    if config.inference_adapters:
        text_KD = classifier.adapt_texts(text_KD)
    linear = not config.inference_adapters and (features or config.prompts == "text")
    text_KD = text_KD.float()
    share, beside_KD = 1.0, None
    if "algorithm.frozen_weights" in tensors:
        share = float(tensors["algorithm.learned_share"])
        beside_KD = tensors["algorithm.frozen_weights"].to(device)
        bias_K = tensors["algorithm.frozen_bias"].to(device)
    if linear:
        # A mixture of logits over the same image features is a mixture of class weights.
        weights_KD = text_KD if beside_KD is None else share * text_KD + beside_KD
        return AdaptedModel(backbone, names, weights_KD, scale, bias_K, None, False, meta)
    return AdaptedModel(
        backbone, names, text_KD, scale, bias_K, classifier, config.inference_adapters, meta, share, beside_KD
    )
