"""Images and class names to features: what is learned beside a frozen backbone (MaPLe prompts and adapters).

Prompt tuning learns prompts in the towers; frozen-feature tuning learns a residual on the text features. Both learn
adapters. The backbone is no registered submodule, so a classifier's parameters are exactly what is learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captune.config import TrialConfig
from captune.errors import CheckpointError, ModelError
from captune.model.adapters import Adapter
from captune.model.backbone import Backbone
from captune.model.class_prompts import class_prompts
from captune.model.prompts import Prompts, build_prompts, class_tokens
from captune.model.towers import TextPlan
from captune.seeding import torch_generator


class Classifier(nn.Module):
    """Features of images and classes, and their adapters; the caller computes logits as s · v·tᵀ.

    Attributes:
        class_names: K names in label order.
        logit_scale: s.
        backbone: the frozen model, or None for precomputed features.
    """

    frozen_text_KD: Tensor | None

    def __init__(
        self,
        class_names: Sequence[str],
        logit_scale: float,
        adapters: dict[str, Adapter],
        *,
        backbone: Backbone | None,
        prompts: Prompts | None = None,
        plan: TextPlan | None = None,
        frozen_text_KD: Tensor | None = None,
    ) -> None:
        """Put the parts together; `build_classifier` is the usual way in.

        Args:
            class_names: K names.
            logit_scale: s.
            adapters: "main", "pseudo" and "text".
            backbone: the frozen model.
            prompts: for prompt tuning.
            plan: the class prompts' tokens, where the text tower is prompted.
            frozen_text_KD: normalised text features, where the text tower is not prompted; without any prompts a
                residual on them is learned.
        """
        super().__init__()
        self.class_names = tuple(class_names)
        self.logit_scale = float(logit_scale)
        self.backbone = backbone
        self.prompts = prompts
        self._plan = plan
        self.register_buffer("frozen_text_KD", frozen_text_KD, persistent=False)
        if prompts is None and frozen_text_KD is not None:
            self.residual_KD = nn.Parameter(torch.zeros_like(frozen_text_KD))
        self.adapters = nn.ModuleDict(adapters)
        self._cached: tuple[tuple[tuple[int, int], ...], Tensor] | None = None

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    def encode_images(self, inputs_B: Tensor) -> Tensor:
        """Normalised features (B, D) fp32 before the adapter.

        Args:
            inputs_B: pixels (B, 3, S, S) for prompt tuning, frozen features (B, D) otherwise, which pass unchanged.
        """
        if self.prompts is None:
            return inputs_B
        backbone = self._backbone
        _, vectors_JnW = self.prompts.vectors()
        if vectors_JnW is None:
            return backbone.encode_images(inputs_B)
        assert backbone.image_tower is not None  # for the type checker: build_prompts has checked it
        return backbone.image_tower(inputs_B.to(backbone.device), vectors_JnW)

    def encode_texts(self) -> Tensor:
        """Normalised class features (K, D) fp32 before the adapter.

        Without gradients the result is kept until a parameter changes.
        """
        if torch.is_grad_enabled():
            self._cached = None
            return self._encode_texts()
        parameters = [p for name, p in self.named_parameters() if not name.startswith("adapters.")]
        versions = tuple((p.data_ptr(), p._version) for p in parameters)
        if self._cached is None or self._cached[0] != versions:
            self._cached = versions, self._encode_texts()
        return self._cached[1]

    def _encode_texts(self) -> Tensor:
        if self.frozen_text_KD is not None:
            # An image-prompted model has no residual: its text features stay those of the frozen tower.
            return self.frozen_text_KD if self.prompts is not None else self._with_residual(self.frozen_text_KD)
        assert self.prompts is not None and self._plan is not None  # for the type checker
        vectors_JnW, _ = self.prompts.vectors()
        assert self._backbone.text_tower is not None  # for the type checker
        return self._backbone.text_tower(self._plan, vectors_JnW)

    def _with_residual(self, frozen_KD: Tensor) -> Tensor:
        return F.normalize(frozen_KD + self.residual_KD, dim=-1)

    @property
    def _backbone(self) -> Backbone:
        if self.backbone is None:
            raise ModelError("encoding pixels needs a backbone", got="precomputed features only")
        return self.backbone

    def adapt_images(self, features_BD: Tensor, which: Literal["main", "pseudo"] | None) -> Tensor:
        """Features (B, D), normalised, through the main adapter, the pseudo adapter or none."""
        return features_BD if which is None else self.adapters[which](features_BD)

    def adapt_texts(self, features_KD: Tensor) -> Tensor:
        """Class features (K, D), normalised, through the text adapter."""
        return self.adapters["text"](features_KD)

    def learned_state(self) -> dict[str, Tensor]:
        """A copy of everything learned, by stable names."""
        return {name: parameter.detach().clone() for name, parameter in self.named_parameters()}

    def load_learned_state(self, tensors: dict[str, Tensor]) -> None:
        """Take up what `learned_state` gave.

        Raises:
            CheckpointError: names or shapes differ: other classes, another backbone, or another configuration.
        """
        own = dict(self.named_parameters())
        problems = [f"{name} is missing" for name in own if name not in tensors]
        problems += [f"{name} is not known here" for name in tensors if name not in own]
        problems += [
            f"{name} has shape {tuple(tensors[name].shape)}, not {tuple(parameter.shape)}"
            for name, parameter in own.items()
            if name in tensors and tensors[name].shape != parameter.shape
        ]
        if problems:
            raise CheckpointError(
                "learned tensors must be of these classes, this backbone and this configuration",
                got="; ".join(problems[:3]) + (f"; {len(problems) - 3} more" if len(problems) > 3 else ""),
                where=None if self.backbone is None else self.backbone.name,
                next_step="Open the checkpoint with the backbone and configuration it was made with.",
            )
        self._cached = None
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(tensors[name])


def build_classifier(
    backbone: Backbone | None,
    class_names: Sequence[str],
    template: str,
    config: TrialConfig,
    *,
    seed: int,
    text_features_KD: Tensor | None = None,
    logit_scale: float | None = None,
    zero_adapters: bool = True,
) -> Classifier:
    """A fresh classifier for a trial.

    Args:
        backbone: the frozen model; None where features are precomputed.
        class_names: K names, `_` read as a space.
        template: prompt template with one {}.
        config: tuning, prompts, num_context, prompt_depth, adapter_hidden and adapter_residual are read.
        seed: of the initial values.
        text_features_KD: frozen text features, for frozen-feature tuning; default: the backbone's.
        logit_scale: s; default: the backbone's.
        zero_adapters: whether adapters start as the identity.

    Raises:
        ModelError: prompts cannot enter the backbone, or there is neither a backbone nor text features.
        ConfigError: the template does not hold exactly one {}.
    """
    prompts, plan, frozen_KD = None, None, None
    if config.tuning == "features":
        frozen_KD = text_features_KD
        if frozen_KD is None:
            frozen_KD = _need(backbone).encode_texts(class_prompts(class_names, template))
        frozen_KD = F.normalize(frozen_KD.detach().float(), dim=-1)
        width, device = frozen_KD.shape[1], frozen_KD.device
    else:
        backbone = _need(backbone)
        _check_prompts(backbone)
        texts = class_prompts(class_names, template)
        tokens_KL, context_nW = class_tokens(backbone, texts, template.split("{}")[0], config.num_context)
        prompts = build_prompts(
            backbone,
            config.prompts,
            context_nW=context_nW,
            depth=config.prompt_depth,
            generator=torch_generator(seed, "prompts"),
        )
        if config.prompts == "image":
            frozen_KD = backbone.encode_texts(texts)
        else:
            assert backbone.text_tower is not None  # for the type checker
            plan = backbone.text_tower.plan(tokens_KL, config.num_context)
        width, device = backbone.embed_dim, backbone.device
    if logit_scale is None:
        logit_scale = _need(backbone).logit_scale
    adapters = {
        which: Adapter(
            width,
            config.adapter_hidden,
            config.adapter_residual,
            generator=torch_generator(seed, "adapters", which),
            zero_last=zero_adapters,
        )
        for which in ("main", "pseudo", "text")
    }
    return Classifier(
        class_names, logit_scale, adapters, backbone=backbone, prompts=prompts, plan=plan, frozen_text_KD=frozen_KD
    ).to(device)


def _need(backbone: Backbone | None) -> Backbone:
    if backbone is None:
        raise ModelError(
            "a classifier without text features needs a backbone",
            got="neither",
            next_step="Name a --backbone, or put `text_features` and `logit_scale` beside the image features.",
        )
    return backbone


def _check_prompts(backbone: Backbone) -> None:
    if not backbone.supports_prompts:
        raise ModelError(
            "prompt tuning needs towers that prompts can enter",
            got=backbone.prompt_refusal,
            next_step="Add --tuning features, or choose another --backbone.",
        )
