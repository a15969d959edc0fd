"""The plain way: one step of CAP as a reader of the paper would write it, slow and faithful.

It is what `python -m tests.bench` divides by and what the tests hold the fast path against: open_clip's own
modules in fp32, the text tower once for every stream at full length, one gradient forward a stream, the pool encoded
image by image, losses and boards by loops. It shares nothing with the fast path but parameters and class tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from captune.errors import UsageError
from captune.model.adapters import Adapter
from captune.model.backbone import Backbone
from captune.model.class_prompts import class_prompts
from captune.model.classifier import Classifier
from captune.model.prompts import MultimodalPrompts, class_tokens

Boards = dict[int, list[tuple[int, float]]]


@dataclass(frozen=True)
class PlainBatch:
    """What one unsupervised step sees.

    Attributes:
        weak_B3SS: weak views of pool images.
        strong_B3SS: strong views of the same images.
        main_B3SS: weak views of main samples.
        main_labels_B: their pseudolabels.
    """

    weak_B3SS: Tensor
    strong_B3SS: Tensor
    main_B3SS: Tensor
    main_labels_B: Tensor


class PlainModel:
    """open_clip's two towers with multimodal prompts, by straightforward code (MaPLe).

    Args:
        backbone: in fp32; only its `model` and its tokenizer are used.
        classifier: whose parameters are used, so that gradients can be compared.
        template: of the class prompts.

    Raises:
        UsageError: the classifier's prompts are not multimodal, or the backbone is not in fp32.
    """

    def __init__(self, backbone: Backbone, classifier: Classifier, template: str) -> None:
        if not isinstance(classifier.prompts, MultimodalPrompts) or backbone.precision != "fp32":
            raise UsageError(
                "the plain way must have multimodal prompts and an fp32 backbone",
                got=f"{type(classifier.prompts).__name__} and {backbone.precision}",
            )
        self.model: Any = backbone.model  # open_clip states no types
        self.prompts, self.adapters = classifier.prompts, classifier.adapters
        self.logit_scale = backbone.logit_scale
        texts = class_prompts(classifier.class_names, template)
        num_context = len(classifier.prompts.context)
        tokens_KL, _ = class_tokens(backbone, texts, template.split("{}")[0], num_context)
        self.tokens_KL = tokens_KL.to(backbone.device)

    def text_features(self) -> Tensor:
        """Normalised prompted text features (K, D), all positions of all prompts through all layers."""
        model, tokens_KL = self.model, self.tokens_KL
        vectors = [self.prompts.context, *self.prompts.deep]
        x_KLW = _overwritten(model.token_embedding(tokens_KL), vectors[0])
        x_KLW = x_KLW + model.positional_embedding
        for layer, block in enumerate(model.transformer.resblocks):
            if 1 <= layer < len(vectors):
                x_KLW = _overwritten(x_KLW, vectors[layer])
            x_KLW = _block(block, x_KLW, model.attn_mask)
        x_KLW = model.ln_final(x_KLW)
        ends_K = tokens_KL.argmax(-1)
        pooled_KW = torch.stack([x_LW[end] for x_LW, end in zip(x_KLW, ends_K, strict=True)])
        return F.normalize(pooled_KW @ model.text_projection, dim=-1)

    def image_features(self, pixels_B3SS: Tensor) -> Tensor:
        """Normalised prompted image features (B, D)."""
        visual = self.model.visual
        vectors = [self._image_vectors(layer) for layer in range(len(self.prompts.projection))]
        x_BLW = visual.conv1(pixels_B3SS).flatten(2).transpose(1, 2)
        x_BLW = torch.cat([visual.class_embedding.expand(len(x_BLW), 1, -1), x_BLW], dim=1)
        x_BLW = x_BLW + visual.positional_embedding
        num_tokens = x_BLW.shape[1]
        x_BLW = visual.ln_pre(torch.cat([x_BLW, vectors[0].expand(len(x_BLW), -1, -1)], dim=1))
        for layer, block in enumerate(visual.transformer.resblocks):
            if 1 <= layer < len(vectors):
                x_BLW = torch.cat([x_BLW[:, :num_tokens], vectors[layer].expand(len(x_BLW), -1, -1)], dim=1)
            x_BLW = _block(block, x_BLW, None)
        return F.normalize(visual.ln_post(x_BLW)[:, 0] @ visual.proj, dim=-1)

    def _image_vectors(self, layer: int) -> Tensor:
        text_nW = self.prompts.context if layer == 0 else self.prompts.deep[layer - 1]
        return text_nW @ self.prompts.projection[layer] + self.prompts.projection_bias[layer]

    def logits(self, pixels_B3SS: Tensor, adapter: str) -> Tensor:
        """Logits (B, K) of one stream: both towers, both adapters, anew."""
        text_KD = _adapted(self.text_features(), self.adapters["text"])
        image_BD = _adapted(self.image_features(pixels_B3SS), self.adapters[adapter])
        return self.logit_scale * image_BD @ text_KD.T

    def loss(self, batch: PlainBatch, margin_KK: Tensor, *, threshold: float) -> Tensor:
        """The loss of one unsupervised step without class weights: a gradient forward a stream."""
        weak_BK = self.logits(batch.weak_B3SS, "main")
        main_BK = self.logits(batch.main_B3SS, "main")
        strong_BK = self.logits(batch.strong_B3SS, "pseudo")
        main = [
            _sample_loss(logits_K, int(label), margin_KK)
            for logits_K, label in zip(main_BK, batch.main_labels_B, strict=True)
        ]
        pool = []
        for weak_K, strong_K in zip(weak_BK.detach(), strong_BK, strict=True):
            probs_K = weak_K.softmax(-1)
            if float(probs_K.max()) > threshold:
                pool.append(_sample_loss(strong_K, int(probs_K.argmax()), margin_KK))
        # With nothing confident the strong stream still takes part, as zero.
        pool_loss = sum(pool, strong_BK.sum() * 0.0) / max(1, len(pool))
        return torch.stack(main).mean() + pool_loss


def _overwritten(x_KLW: Tensor, vectors_nW: Tensor) -> Tensor:
    """Positions 1…n of every prompt replaced."""
    return torch.cat([x_KLW[:, :1], vectors_nW.expand(len(x_KLW), -1, -1), x_KLW[:, 1 + len(vectors_nW) :]], dim=1)


def _block(block: Any, x_BLW: Tensor, mask_LL: Tensor | None) -> Tensor:
    if block.attn.batch_first:
        return block(x_BLW, attn_mask=mask_LL)
    return block(x_BLW.transpose(0, 1), attn_mask=mask_LL).transpose(0, 1)


def _adapted(features_BD: Tensor, adapter: nn.Module) -> Tensor:
    assert isinstance(adapter, Adapter)  # for the type checker: a ModuleDict forgets what it holds
    hidden_BH = (features_BD @ adapter.down_weight.T + adapter.down_bias).relu()
    return F.normalize(features_BD + adapter.residual * (hidden_BH @ adapter.up_weight.T + adapter.up_bias), dim=-1)


def _sample_loss(logits_K: Tensor, label: int, margin_KK: Tensor) -> Tensor:
    raised_K = margin_KK[label].clone()
    raised_K[label] = 0
    return (logits_K + raised_K).logsumexp(-1) - logits_K[label]


@torch.no_grad()
def encode_one_by_one(model: Any, pixels_N3SS: Tensor) -> Tensor:
    """Normalised features (N, D) by open_clip's own forward, one image at a time, as the published code does."""
    return torch.cat([F.normalize(model.encode_image(pixels_3SS[None]), dim=-1) for pixels_3SS in pixels_N3SS])


def first_boards(probs_NK: Tensor, k: int) -> Boards:
    """The published walk over the pool: image by image, boards as sorted lists of (probability, image)."""
    boards: list[list[tuple[float, int]]] = [[] for _ in range(probs_NK.shape[1])]
    for image, probs in enumerate(probs_NK.tolist()):
        best = probs.index(max(probs))
        if len(boards[best]) < k or boards[best][-1][0] < probs[best]:
            boards[best] = sorted([*boards[best], (probs[best], image)], reverse=True)[:k]
            continue
        for prob, label in sorted(((prob, label) for label, prob in enumerate(probs) if label != best), reverse=True):
            if len(boards[label]) < k:
                boards[label].append((prob, image))
            elif boards[label][-1][0] < prob:
                boards[label] = sorted([*boards[label], (prob, image)], reverse=True)[:k]
    return {label: [(image, prob) for prob, image in board] for label, board in enumerate(boards)}
