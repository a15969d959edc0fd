"""An adapted model: a backbone and what was learned on it; it predicts, encodes and exports."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from captune.algorithms.configs import BlendConfig
from captune.algorithms.zlap import as_probabilities
from captune.data.feature_bank import check_table, checked_features, read_image_features
from captune.data.loose_images import LooseImage, as_list, pixels_in_batches
from captune.equations.averaging import blend
from captune.equations.label_propagation import PropagatedLabels
from captune.errors import CheckpointError, DataError, UsageError
from captune.model.backbone import Backbone
from captune.model.classifier import Classifier
from captune.model.recorded import no_backbone_recorded

if TYPE_CHECKING:
    import pandas as pd

_FEATURES_AT_ONCE = 4096
_FEATURES = "the image features"
WEIGHTS = "class_weights.safetensors"
BACKBONE = "backbone"
"""Folder of the backbone in a bundle."""


@dataclass(frozen=True)
class AdaptedModel:
    """A backbone and what was learned on it.

    Attributes:
        backbone: the frozen CLIP; None for a model of precomputed features whose backbone was not named.
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

    def predict(
        self,
        images: LooseImage | Iterable[LooseImage] | None = None,
        *,
        features: str | Path | npt.NDArray[np.floating] | Tensor | None = None,
        top: int = 1,
    ) -> pd.DataFrame:
        """Classify images, or image features that were computed before.

        Args:
            images: files or folders of them, Pillow images, uint8 arrays (H, W, 3), or several of these. A Pillow
                image is read as its file is: turned as its EXIF data say, 16 bits scaled to 8, transparency on white.
            features: in place of images what the frozen backbone made of them: an array (N, D), or an `.npz` with
                `image_features`.
            top: how many classes to list per image.

        Returns:
            One row per image and rank: `image` (the file, or the image's place among those given), `rank` from 1,
            `class`, `probability` in [0, 1].

        Raises:
            UsageError: neither images nor features, or both; `top` below 1; something that is no image.
            DataError: an image that is not there or cannot be read, features of another width.
            CheckpointError: images for a model of precomputed features whose backbone was not named; features for a
                model that has learned prompts in the image tower.

        Example:
            >>> import captune
            >>> model = captune.load("adapted")  # doctest: +SKIP
            >>> model.predict("photos", top=3)  # doctest: +SKIP
        """
        import pandas as pd

        if (images is None) == (features is None):
            raise UsageError("predict must be given images or features", got="neither" if images is None else "both")
        _check_top(top)
        names: Sequence[str | int]
        if features is not None:
            if isinstance(features, (str, Path)):
                features = read_image_features(Path(features).expanduser())
            rows_ND = _as_array(features)
            check_table(rows_ND, _FEATURES)
            names, probabilities = range(len(rows_ND)), self.in_parts(rows_ND)
        else:
            assert images is not None  # for the type checker
            listed = as_list(images)
            names = [str(image) if isinstance(image, (str, Path)) else place for place, image in enumerate(listed)]
            probabilities = map(self.probabilities, self._pixels(listed))
        best = [row for probs_BK in probabilities for row in top_k(probs_BK, self.class_names, top)]
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
            raise no_backbone_recorded(self.source or "this checkpoint")
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
    def _adapts_tower(self) -> bool:
        """Whether prompts were learned in the image tower, so that frozen features are not what the model sees."""
        config = self.meta["config"]
        return self.classifier is not None and config["tuning"] == "prompts" and config["prompts"] != "text"

    @property
    def image_side(self) -> str | None:
        """What was learned on the image side, in words; None where it is the frozen backbone's."""
        sides = {side for _, model in self.members if (side := model.image_side) is not None}
        if self.classifier is not None:
            if self._adapts_tower:
                sides.add("prompts in the image tower")
            if self.adapters:
                sides.add("adapters on image features")
        return " and ".join(sorted(sides, reverse=True)) or None

    @torch.no_grad()
    def probabilities(self, pixels_B3SS: Tensor) -> Tensor:
        """Class probabilities (B, K) fp32 of preprocessed images."""
        return self._probabilities(pixels_B3SS, cache(lambda: self.image_backbone.encode_images(pixels_B3SS)))

    def in_parts(self, image_features_ND: npt.NDArray[np.floating] | Tensor) -> Iterator[Tensor]:
        """`probabilities_of_features` of 4,096 rows at a time: (N, K) may not fit into memory."""
        given_ND = _as_array(image_features_ND)
        check_table(given_ND, _FEATURES)
        for start in range(0, len(given_ND), _FEATURES_AT_ONCE):
            yield self.probabilities_of_features(given_ND[start : start + _FEATURES_AT_ONCE], first_row=start)

    @torch.no_grad()
    def probabilities_of_features(
        self, image_features_ND: npt.NDArray[np.floating] | Tensor, *, first_row: int = 0
    ) -> Tensor:
        """Class probabilities (N, K) fp32 of image features that the frozen backbone gave, of any length but 0.

        Args:
            image_features_ND: the features.
            first_row: the number of their first row in error messages, if they are a part of a larger table.

        Raises:
            CheckpointError: the model has learned prompts in the image tower, so that frozen features say nothing.
            DataError: not a table (N, D), features of another width, without direction, NaN or infinity.
        """
        if self._adapts_tower or any(model._adapts_tower for _, model in self.members):
            raise CheckpointError(
                "features must go to a model whose image tower is frozen",
                got=self.image_side,
                where=self.source,
                next_step="Give images.",
            )
        given = _as_array(image_features_ND)
        if given.ndim == 2 and given.shape[1] != self.text_KD.shape[1]:
            raise DataError(
                "image features must be as wide as those the model was made on",
                got=f"{given.shape[1]} wide, where {self.text_KD.shape[1]} are wanted",
                where=self.source,
                next_step="Were they made by the same backbone?",
            )
        checked = checked_features(given, _FEATURES, first_row=first_row)
        features_ND = torch.nn.functional.normalize(torch.from_numpy(checked), dim=-1).to(self.text_KD.device)
        return self._probabilities(None, lambda: features_ND)

    def _probabilities(self, pixels_B3SS: Tensor | None, frozen: Callable[[], Tensor]) -> Tensor:
        """The same; `frozen` gives the frozen towers' features of the images, which members share.

        Pixels are needed only where prompts were learned in the image tower.
        """
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
    def _image_features(self, pixels_B3SS: Tensor | None, frozen: Callable[[], Tensor]) -> Tensor:
        if self.classifier is None:
            return frozen()
        if self._adapts_tower:
            assert pixels_B3SS is not None  # for the type checker: such a model is given pixels
            image_BD = self.classifier.encode_images(pixels_B3SS)
        else:
            image_BD = frozen()
        return self.classifier.adapt_images(image_BD, "main") if self.adapters else image_BD


def _check_top(top: object) -> None:
    if isinstance(top, bool) or not isinstance(top, (int, np.integer)) or top < 1:
        raise UsageError("top must be a whole number from 1", got=repr(top))


def _as_array(features: object) -> npt.NDArray[Any]:
    """Features as NumPy takes them; PyTorch's of 16 bits as fp32, whole numbers as they are.

    Raises:
        DataError: rows of different lengths.
    """
    if isinstance(features, Tensor):
        return np.asarray((features.float() if features.is_floating_point() else features).detach().cpu())
    try:
        return np.asarray(features)
    except ValueError:
        raise DataError("features must be a table (N, D)", got="rows of different lengths", where=_FEATURES) from None


def member_shares(model: AdaptedModel) -> list[float]:
    """The share of each model of a blend in its average, adding up to 1; seeds of one member share its weight."""
    members = BlendConfig.parse(model.meta["config"]).members
    total = sum(member.weight for member in members)
    sizes = [sum(group == at for group, _ in model.members) for at in range(len(members))]
    return [members[group].weight / total / sizes[group] for group, _ in model.members]


def top_k(probs_BK: Tensor, class_names: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
    """The k most probable classes of each image with their probabilities, most probable first."""
    values_Bk, labels_Bk = probs_BK.topk(min(k, len(class_names)), dim=-1)
    return [
        [(class_names[label], value) for label, value in zip(labels, values, strict=True)]
        for labels, values in zip(labels_Bk.tolist(), values_Bk.tolist(), strict=True)
    ]
