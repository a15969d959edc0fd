"""Open an adapted model, from a checkpoint or an export, and predict with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from captune.algorithms import method_named
from captune.algorithms.configs import BlendConfig, ZlapConfig
from captune.algorithms.zlap import as_probabilities, graph_of
from captune.config import TrialConfig
from captune.data.loose_images import LooseImage, as_list, pixels_in_batches
from captune.equations.averaging import blend
from captune.equations.label_propagation import PropagatedLabels
from captune.errors import CheckpointError
from captune.model.backbone import Backbone
from captune.model.class_prompts import learned_template
from captune.model.classifier import Classifier, build_classifier
from captune.model.configuration import CONFIG_FILE
from captune.model.recorded import no_backbone_recorded, recorded_backbone, refuse_links_outside
from captune.records.layout import CHECKPOINT
from captune.training.checkpoint import load_checkpoint, without_prefix

if TYPE_CHECKING:
    import pandas as pd

WEIGHTS = "class_weights.safetensors"
BACKBONE = "backbone"
"""Folder of the backbone in a bundle."""


@dataclass(frozen=True)
class AdaptedModel:
    """A backbone and what was learned on it.

    Attributes:
        backbone: the frozen CLIP, or None for class weights of precomputed features that are only to be exported.
        class_names: K names in label order.
        text_KD: the adapted class features, normalised (of any length in `transclip` and `anchored`).
        logit_scale: s.
        bias_K: added to the logits (zero but for `balanced`, `transclip`, `anchored` and `cap_mixture`).
        classifier: the adapted image side, or None where it is the frozen backbone's.
        adapters: whether the main adapter acts on images.
        learned_share: share of what was learned in the logits (1 but for `cap_mixture`).
        frozen_KD: class weights on the frozen image features that are added, where the image side is adapted too.
        meta: the checkpoint's header.
        members: of a blend, its models, each with the number of the member that it is a seed of; the fields above are
            then unused.
        graph: of `zlap`, the graph that answers for images.
        source: the file it was opened from.
    """

    backbone: Backbone | None
    class_names: tuple[str, ...]
    text_KD: Tensor
    logit_scale: float
    bias_K: Tensor
    classifier: Classifier | None
    adapters: bool
    meta: dict[str, Any]
    learned_share: float = 1.0
    frozen_KD: Tensor | None = None
    members: tuple[tuple[int, AdaptedModel], ...] = ()
    graph: PropagatedLabels | None = None
    source: Path | None = None

    def predict(self, images: LooseImage | Iterable[LooseImage], *, top: int = 1) -> pd.DataFrame:
        """Classify images.

        Args:
            images: files or folders of them, Pillow images, uint8 arrays (H, W, 3), or several of these.
            top: how many classes to list per image.

        Returns:
            One row per image and rank: `image` (the file, or the image's place among those given), `rank` from 1,
            `class`, `probability` in [0, 1].

        Raises:
            DataError: an image that is not there or cannot be read.
            CheckpointError: a model of precomputed features whose backbone was not named.

        Example:
            >>> import captune
            >>> model = captune.load("adapted")  # doctest: +SKIP
            >>> model.predict("photos", top=3)  # doctest: +SKIP
        """
        import pandas as pd

        listed = as_list(images)
        names = [str(image) if isinstance(image, (str, Path)) else place for place, image in enumerate(listed)]
        best = [
            row for pixels in self._pixels(listed) for row in top_k(self.probabilities(pixels), self.class_names, top)
        ]
        rows = [
            (name, rank, label, value)
            for name, classes in zip(names, best, strict=True)
            for rank, (label, value) in enumerate(classes, start=1)
        ]
        return pd.DataFrame(rows, columns=["image", "rank", "class", "probability"])

    def encode(self, images: LooseImage | Iterable[LooseImage]) -> npt.NDArray[np.float32]:
        """Image features (N, D) of the adapted image side, of length 1; images as for `predict`."""
        backbone = self.image_backbone
        rows = [
            self._image_features(pixels, partial(backbone.encode_images, pixels)).float().cpu().numpy()
            for pixels in self._pixels(as_list(images))
        ]
        return np.concatenate(rows)

    @property
    def class_weights(self) -> npt.NDArray[np.float32]:
        """Class weights (K, D): logits of frozen image features v are `logit_scale * v @ class_weights.T + bias_K`.

        Raises:
            CheckpointError: the image side is adapted too, so that class weights are not the whole model.
        """
        if not self.is_linear:
            raise CheckpointError(
                "class weights must be asked of a model whose image side is the frozen backbone",
                got="a blend of probabilities" if self.members else self.image_side,
                next_step="Use predict, or export a bundle.",
            )
        return self.text_KD.float().cpu().numpy()

    def export(self, out: str | Path, *, format: str | None = None, licence: str | None = None) -> list[Path]:
        """Write the model in a form that other programs or machines can open; returns the files.

        Args:
            out: a new or empty folder.
            format: class-weights, bundle, open_clip, onnx or hf (`captune.adapted.exporting.FORMS`); if None,
                class-weights where nothing else was learned, else bundle.
            licence: an SPDX identifier for the model card (hf).

        Raises:
            UsageError: `out` holds something already or is a file; no such format; an extra that is not installed.
            CheckpointError: the model cannot be written in this form.
        """
        from captune.adapted.exporting import export_adapted

        return export_adapted(self, Path(out).expanduser(), form=format, licence=licence)

    def _pixels(self, images: Sequence[LooseImage]) -> Iterator[Tensor]:
        backbone = self.image_backbone
        return pixels_in_batches(images, backbone.preprocessing, backbone.device)

    @property
    def image_backbone(self) -> Backbone:
        """The frozen CLIP that images go through.

        Raises:
            CheckpointError: none was named for a checkpoint of precomputed features.
        """
        if self.backbone is None:
            raise no_backbone_recorded("this checkpoint")
        return self.backbone

    @property
    def is_linear(self) -> bool:
        """Whether the model is one set of class weights on frozen image features."""
        return self.classifier is None and not self.members and self.graph is None

    @property
    def is_frozen(self) -> bool:
        """Whether the image side is frozen, so that one or several sets of class weights are all that was learned."""
        return self.is_linear or (bool(self.members) and all(model.is_linear for _, model in self.members))

    @property
    def image_side(self) -> str | None:
        """What was learned on the image side, in words; None where it is the frozen backbone's."""
        sides = {side for _, model in self.members if (side := model.image_side) is not None}
        if self.classifier is not None:
            config = self.meta["config"]
            if config["tuning"] == "prompts" and config["prompts"] != "text":
                sides.add("prompts in the image tower")
            if self.adapters:
                sides.add("adapters on image features")
        return " and ".join(sorted(sides, reverse=True)) or None

    @torch.no_grad()
    def probabilities(self, pixels_B3SS: Tensor) -> Tensor:
        """Class probabilities (B, K) fp32 of preprocessed images."""
        return self._probabilities(pixels_B3SS, cache(lambda: self.image_backbone.encode_images(pixels_B3SS)))

    def _probabilities(self, pixels_B3SS: Tensor, frozen: Callable[[], Tensor]) -> Tensor:
        """The same; `frozen` gives the frozen towers' features of the images, which members share."""
        if self.members:
            config = BlendConfig.parse(self.meta["config"])
            groups: list[list[Tensor]] = [[] for _ in config.members]
            for group, model in self.members:
                groups[group].append(model._probabilities(pixels_B3SS, frozen))
            return blend(groups, [member.weight for member in config.members], config.average)
        if self.graph is not None:
            return as_probabilities(self.graph.scores(frozen().double()))
        image_BD = self._image_features(pixels_B3SS, frozen)
        logits_BK = self.learned_share * self.logit_scale * image_BD.float() @ self.text_KD.T + self.bias_K
        if self.frozen_KD is not None:
            logits_BK = logits_BK + self.logit_scale * frozen() @ self.frozen_KD.T
        return logits_BK.softmax(-1)

    @torch.no_grad()
    def _image_features(self, pixels_B3SS: Tensor, frozen: Callable[[], Tensor]) -> Tensor:
        if self.classifier is None:
            return frozen()
        on_features = self.meta["config"]["tuning"] == "features"
        image_BD = self.classifier.encode_images(frozen() if on_features else pixels_B3SS)
        return self.classifier.adapt_images(image_BD, "main") if self.adapters else image_BD


def open_adapted(
    path: Path,
    *,
    backbone: str | None = None,
    pretrained: str | None = None,
    device: str = "auto",
    images: bool = True,
) -> AdaptedModel:
    """Open a checkpoint, a bundle or exported class weights.

    Args:
        path: the file, or the folder that holds it.
        backbone: model name, where the recorded one is called otherwise here.
        pretrained: weights, where the recorded ones lie elsewhere now.
        device: auto, cpu, cuda.
        images: whether images are to be classified; else class weights of precomputed features need no backbone.

    Raises:
        CheckpointError: no checkpoint, of another backbone, or without one.
    """
    if path.is_dir():
        inside = [path / CHECKPOINT, path / WEIGHTS]
        found = next((file for file in inside if file.exists()), None)
        if found is None:
            raise CheckpointError(f"a folder must hold {CHECKPOINT} or {WEIGHTS}", got="neither", where=path)
        path = found
    # A folder that holds its backbone may be named by itself or by the file in it.
    beside = path.parent if (path.parent / CONFIG_FILE).is_file() else path.parent / BACKBONE
    if pretrained is None and beside.is_dir():
        refuse_links_outside(beside, path.parent)
        backbone, pretrained = None, f"local-dir:{beside.absolute()}"
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
    frozen = recorded_backbone(meta, backbone, pretrained, device, path, images=images)
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


def member_shares(model: AdaptedModel) -> list[float]:
    """The share of each model of a blend in its average, adding up to 1; seeds of one member share its weight."""
    members = BlendConfig.parse(model.meta["config"]).members
    total = sum(member.weight for member in members)
    sizes = [sum(group == at for group, _ in model.members) for at in range(len(members))]
    return [members[group].weight / total / sizes[group] for group, _ in model.members]


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


def top_k(probs_BK: Tensor, class_names: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
    """The k most probable classes of each image with their probabilities, most probable first."""
    values_Bk, labels_Bk = probs_BK.topk(min(k, len(class_names)), dim=-1)
    return [
        [(class_names[label], value) for label, value in zip(labels, values, strict=True)]
        for labels, values in zip(labels_Bk.tolist(), values_Bk.tolist(), strict=True)
    ]
