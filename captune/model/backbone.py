"""A frozen CLIP by name and weights: features, tokens, preprocessing, and lean towers that prompts can enter."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import open_clip
import open_clip.transformer as oc
import safetensors.torch
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, nn
from torch.nn import functional as F

from captune.errors import ModelError, UsageError, first_line
from captune.model.blocks import LeanOptions
from captune.model.configuration import CONFIG_FILE, read_configuration, without_remote_code
from captune.model.device import resolve_device
from captune.model.hub import offline_if_unreachable
from captune.model.sources import TINY, VOCABULARY, find_source
from captune.model.towers import LeanImageTower, LeanTextTower, image_refusal, text_refusal
from captune.model.weights import model_config, open_model
from captune.preprocessing import Preprocessing
from captune.records import atomic_write

LOG = logging.getLogger(__name__)
Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_BATCH = 256


class Backbone:
    """A frozen open_clip model.

    Attributes:
        name: as it was asked for.
        pretrained: likewise; paths are absolute.
        precision: of the towers' weights and products; features are fp32.
        device: where features are computed.
        model: open_clip's model, untouched, in evaluation mode, without gradients. In bf16 and fp16 it stays on the
            CPU in fp32 where the lean towers hold a cast copy.
        preprocessing: how images are resized and normalised.
        logit_scale: s = exp(logit_scale).
        embed_dim: D.
        prompt_refusal: why prompts cannot enter, or None.
        notes: decisions a person should know (activation, random weights, fallbacks).
        text_tower, image_tower: the lean towers, or None where open_clip's own forward serves.
    """

    def __init__(
        self,
        model: Any,
        *,
        name: str,
        pretrained: str | None = None,
        precision: Precision = "fp32",
        device: torch.device | str = "cpu",
        tokenizer: Callable[[], Callable[[Sequence[str]], Tensor]] | None = None,
        options: LeanOptions | None = None,
        config: dict[str, Any] | None = None,
        folder: Path | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        """Wrap an open_clip model; `load_backbone` is the usual way in.

        Args:
            model: a CLIP, CustomTextCLIP or another that has encode_image, encode_text and logit_scale.
            name: shown and recorded.
            pretrained: likewise.
            precision: of the towers.
            device: where to compute.
            tokenizer: makes the tokenizer on first use; default: open_clip's for `name`.
            options: how the lean towers compute.
            config: the architecture, for `save_backbone`.
            folder: where a vocabulary lies beside the model.
            notes: decisions made on the way.
        """
        self.name, self.pretrained, self.precision = name, pretrained, precision
        self.device = torch.device(device)
        self.model: Any = model.eval().requires_grad_(False)
        self.config, self.folder, self.notes = config, folder, list(notes)
        self._make_tokenizer = tokenizer or (lambda: _tokenizer(name, folder))
        self._dtype = _DTYPES[precision]
        self.logit_scale = float(model.logit_scale.detach().exp())
        self.preprocessing = _preprocessing(model)
        image_reason, text_reason = image_refusal(model), text_refusal(model)
        self.prompt_refusal = _refusal(name, image_reason or text_reason)
        options = options or LeanOptions()
        if image_reason or text_reason:
            self.model.to(self.device)
            self.notes.append(f"{name}: open_clip's own forward, since {image_reason or text_reason}")
            LOG.info(self.notes[-1])
        elif precision == "fp32":
            self.model.to(self.device)
        self.text_tower = None if text_reason else LeanTextTower(model, self.device, self._dtype, options)
        self.image_tower = None if image_reason else LeanImageTower(model, self.device, self._dtype, options)

    @property
    def view_dtype(self) -> torch.dtype:
        """The dtype to make images in: the towers' own on a GPU, which would cast them anyway, else fp32."""
        return self._dtype if self.device.type == "cuda" and self.image_tower is not None else torch.float32

    @property
    def supports_prompts(self) -> bool:
        """Whether both towers can be prompted."""
        return self.prompt_refusal is None

    @cached_property
    def embed_dim(self) -> int:
        """D, the width of the features."""
        width = getattr(self.model.visual, "output_dim", None)
        if width is None:
            size = self.preprocessing.image_size
            width = self.encode_images(torch.zeros(1, 3, size, size)).shape[1]
        return int(width)

    @cached_property
    def _tokenize(self) -> Callable[[Sequence[str]], Tensor]:
        tokenizer = self._make_tokenizer()
        known, has = getattr(tokenizer, "vocab_size", None), _vocabulary_size(self.model)
        if isinstance(known, int) and has is not None and known > has:
            raise ModelError(
                "the tokenizer must not know more tokens than the model embeds",
                got=f"{known} tokens, {has} embeddings",
                where=self.name,
                next_step=f"Put the model's own vocabulary beside it as {VOCABULARY}.",
            )
        return tokenizer

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (K, L) int64 on the CPU, padded by the model's tokenizer.

        Raises:
            ModelError: the tokenizer's files are not here.
        """
        return self._tokenize(list(texts))

    def cut_texts(self, texts: Sequence[str]) -> list[int]:
        """Which texts are longer than the text tower's context, so that their ends are cut off (indices, rising).

        A text was cut if its tokens change when the context has one place more.
        """
        if not texts:
            return []
        tokens_KL = self.tokenize(texts)
        length = tokens_KL.shape[1]
        try:
            longer_KL = self._tokenize(list(texts), context_length=length + 1)  # type: ignore[call-arg]
        except TypeError:  # this tokenizer does not take a context length
            return []
        return [int(row) for row in (longer_KL[:, :length] != tokens_KL).any(dim=1).nonzero()]

    @torch.no_grad()
    def encode_images(self, pixels_B3SS: Tensor) -> Tensor:
        """Normalised features (B, D) fp32 of preprocessed images, by the frozen tower."""
        # An exported graph must hold for every batch size, so the batch it is traced with is not split.
        batches = [pixels_B3SS] if torch.compiler.is_compiling() else torch.split(pixels_B3SS, _BATCH)
        parts = []
        for pixels in batches:
            pixels = pixels.to(self.device)
            if self.image_tower is not None:
                parts.append(self.image_tower(pixels))
            else:
                with self._autocast():
                    parts.append(F.normalize(self.model.encode_image(pixels).float(), dim=-1))
        return torch.cat(parts) if parts else torch.zeros(0, self.embed_dim, device=self.device)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Normalised features (K, D) fp32 of texts, by the frozen tower."""
        parts = []
        for start in range(0, len(texts), _BATCH):
            tokens_KL = self.tokenize(texts[start : start + _BATCH])
            if self.text_tower is not None:
                parts.append(self.text_tower(self.text_tower.plan(tokens_KL)))
            else:
                with self._autocast():
                    features = self.model.encode_text(tokens_KL.to(self.device))
                    parts.append(F.normalize(features.float(), dim=-1))
        return torch.cat(parts) if parts else torch.zeros(0, self.embed_dim, device=self.device)

    def with_directions(self, features_ND: Tensor, of: str) -> Tensor:
        """The same features, checked: without a direction, every class would be equally likely.

        The check waits for the device, so it is done where features are computed for all trials, not within a step.

        Args:
            features_ND: normalised, as `encode_images` and `encode_texts` give them.
            of: what they are of, for the message.

        Raises:
            ModelError: features without a direction: weights that are damaged, or too large for the precision.
        """
        lost = int((~(features_ND.norm(dim=-1) > 0.5)).sum())  # a row has length 1, or is zero or not finite
        if lost:
            raise ModelError(
                f"the features of {of} must be finite and not zero",
                got=f"{lost} of {len(features_ND)} that are not",
                where=f"{self.name}, {self.precision}",
                next_step="The weights are damaged, or their numbers too large"
                + (": take the file anew." if self.precision == "fp32" else f" for {self.precision}: use fp32."),
            )
        return features_ND

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self._dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self._dtype)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the names, kinds and bytes of all weights and over the activations they are run with."""
        digest = hashlib.sha256()
        for key, tensor in sorted(self.model.state_dict().items()):
            tensor = tensor.detach().cpu().contiguous()
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)};".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        kinds = [
            type(module).__name__ for module in self.model.modules() if isinstance(module, (nn.GELU, oc.QuickGELU))
        ]
        digest.update(" ".join(kinds).encode())
        return digest.hexdigest()


def _refusal(name: str, reason: str | None) -> str | None:
    if reason is None:
        return None
    return (
        f"prompts cannot enter {name}: {reason}. What works: tuning: features with this backbone, "
        "or a ViT with open_clip's own towers such as ViT-B-32, ViT-B-16 or ViT-L-14"
    )


def _vocabulary_size(model: nn.Module) -> int | None:
    text = getattr(model, "text", model)
    embedding = getattr(text, "token_embedding", None)
    return embedding.num_embeddings if isinstance(embedding, nn.Embedding) else None


def _preprocessing(model: nn.Module) -> Preprocessing:
    config = open_clip.get_model_preprocess_cfg(model)
    size = config.get("size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ModelError("a backbone's images must be square", got=f"{height} by {width} pixels")
    interpolation, resize_mode = config.get("interpolation", "bicubic"), config.get("resize_mode", "shortest")
    if interpolation not in ("bicubic", "bilinear"):
        raise ModelError("a backbone's images must be resized bicubic or bilinear", got=repr(interpolation))
    mean, std = config.get("mean", OPENAI_DATASET_MEAN), config.get("std", OPENAI_DATASET_STD)
    return Preprocessing(height, tuple(mean), tuple(std), resize_mode, interpolation)


def _tokenizer(address: str, folder: Path | None) -> Callable[[Sequence[str]], Tensor]:
    try:
        if folder is not None and (folder / VOCABULARY).is_file():
            return open_clip.get_tokenizer(address, bpe_path=str(folder / VOCABULARY))
        config = read_configuration(address)
        hub = offline_if_unreachable() if _uses_hub(address) else contextlib.nullcontext()
        with hub, without_remote_code(config):
            return open_clip.get_tokenizer(address)
    except ModelError:
        raise
    except Exception as error:  # transformers and the Hub raise many kinds; each means that no tokenizer is here
        raise ModelError(
            "the model's tokenizer must be installed or reachable",
            got=first_line(error)[:200],
            where=address,
            next_step="Models with open_clip's own tokenizer (ViT-B-32, ViT-B-16, ViT-L-14) need nothing more.",
        ) from None


def _uses_hub(address: str) -> bool:
    if address.startswith(("hf-hub:", "local-dir:")):
        return address.startswith("hf-hub:")
    text = (open_clip.get_model_config(address) or {}).get("text_cfg", {})
    return "hf_tokenizer_name" in text or "siglip" in address.lower()


def load_backbone(
    name: str | None,
    pretrained: str | None = None,
    *,
    precision: Precision = "fp32",
    device: str = "auto",
    options: LeanOptions | None = None,
    interpolate_positions: bool = False,
) -> Backbone:
    """Open a frozen backbone; the same arguments give the same object within a process.

    Args:
        name: open_clip model name (with "-quickgelu" to say so), "tiny", a folder, `local-dir:DIR` or
            `hf-hub:ORG/REPO`; None where `pretrained` is one of the last three.
        pretrained: a tag, a .safetensors, .pt or .bin file, a folder, `local-dir:`, `hf-hub:`, or "random" (untrained,
            seeded, for tests and benchmarks); None where the name brings weights.
        precision: of the towers.
        device: auto (the first GPU where there is one), cpu, cuda, cuda:N.
        options: how the lean towers compute.
        interpolate_positions: stretch position embeddings of another length instead of refusing them.

    Raises:
        UsageError: an unknown name, tag, precision, path or device, or no weights named.
        ModelError: weights that cannot be fetched, read or fitted.
    """
    if precision not in _DTYPES:
        raise UsageError(f"precision must be one of {', '.join(_DTYPES)}", got=repr(precision))
    device = str(resolve_device(device))
    if pretrained is not None and ":" not in pretrained and Path(pretrained).expanduser().exists():
        pretrained = str(Path(pretrained).expanduser().absolute())
    return _load(name, pretrained, precision, device, options, interpolate_positions)


@lru_cache(maxsize=4)
def _load(
    name: str | None,
    pretrained: str | None,
    precision: Precision,
    device: str,
    options: LeanOptions | None,
    interpolate_positions: bool,
) -> Backbone:
    source = find_source(name, pretrained)
    source.interpolate_positions = interpolate_positions
    model = open_model(source)
    shown = TINY if name == TINY else (name or source.name)
    return Backbone(
        model,
        name=shown,
        pretrained=pretrained,
        precision=precision,
        device=device,
        tokenizer=lambda: _tokenizer(source.name, source.folder),
        options=options,
        config=model_config(source),
        folder=source.folder,
        notes=source.notes,
    )


def save_backbone(backbone: Backbone, directory: Path) -> None:
    """Write a folder that `load_backbone("local-dir:…")` and open_clip itself open: configuration, weights, vocabulary.

    Raises:
        ModelError: the backbone was not opened by `load_backbone`, so its architecture is not known.
    """
    if backbone.config is None:
        raise ModelError("a backbone must have been opened by name to be saved", got=backbone.name)
    directory.mkdir(parents=True, exist_ok=True)
    preprocessing = backbone.preprocessing
    content = {
        "model_cfg": backbone.config,
        "preprocess_cfg": {
            "size": preprocessing.image_size,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "interpolation": preprocessing.interpolation,
            "resize_mode": preprocessing.resize_mode,
        },
    }
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in backbone.model.state_dict().items()}
    atomic_write(directory / "open_clip_model.safetensors", safetensors.torch.save(state))
    if backbone.folder is not None and (backbone.folder / VOCABULARY).is_file():
        atomic_write(directory / VOCABULARY, (backbone.folder / VOCABULARY).read_bytes())
    if backbone.config.get("text_cfg", {}).get("hf_tokenizer_name"):
        # open_clip looks for such a tokenizer in the folder itself.
        hub_tokenizer: Any = backbone._tokenize
        hub_tokenizer.tokenizer.save_pretrained(str(directory))
    # The configuration is written last, so that an unfinished folder is not taken for a model.
    atomic_write(directory / CONFIG_FILE, json.dumps(content, indent=2) + "\n")
