"""Learned prompts: vectors that stand among the tokens of the frozen towers (MaPLe, Khattak et al., CVPR 2023).

See Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023. J layers are prompted, or all layers of a tower
that has fewer. These modules return (J, n, W): row j is inserted into the input of layer j.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from captune.errors import ModelError
from captune.model.adapters import uniform
from captune.model.backbone import Backbone

_SD = 0.02
_WORDS = "a photo of a"


class TextPrompts(nn.Module):
    """Context vectors and deep text vectors.

    Attributes:
        context: (n, W), layer 0's.
        deep: (J−1, n, W), layers 1…J−1's, N(0, 0.02²).
    """

    def __init__(self, context_nW: Tensor, depth: int, generator: torch.Generator) -> None:
        super().__init__()
        self.context = nn.Parameter(context_nW.clone())
        self.deep = nn.Parameter(_SD * torch.randn(depth - 1, *context_nW.shape, generator=generator))

    def text_vectors(self) -> Tensor:
        """What stands in the text tower's layers, (J, n, W)."""
        return torch.cat([self.context[None], self.deep])

    def vectors(self) -> tuple[Tensor | None, Tensor | None]:
        """Vectors of the text tower and of the image tower (None: not prompted)."""
        return self.text_vectors(), None


class MultimodalPrompts(TextPrompts):
    """Text prompts, and image prompts that are linear projections of them.

    Each tower is prompted to its own depth: where the image tower is the deeper one, its last prompts are projections
    of vectors that the text tower has no layer for.

    Attributes:
        projection: (J image, W text, W image), one matrix a layer, all started as copies of one initialisation.
        projection_bias: (J image, W image), likewise.
    """

    def __init__(
        self,
        context_nW: Tensor,
        depth: int,
        image_width: int,
        generator: torch.Generator,
        *,
        text_depth: int | None = None,
        image_depth: int | None = None,
    ) -> None:
        """Prompts for `text_depth` and `image_depth` layers, `depth` where they are not given."""
        self._text_depth = depth if text_depth is None else text_depth
        image_depth = depth if image_depth is None else image_depth
        super().__init__(context_nW, max(self._text_depth, image_depth), generator)
        width = context_nW.shape[1]
        weight = uniform((width, image_width), width, generator)
        bias = uniform((image_width,), width, generator)
        self.projection = nn.Parameter(weight.repeat(image_depth, 1, 1))
        self.projection_bias = nn.Parameter(bias.repeat(image_depth, 1))

    def vectors(self) -> tuple[Tensor | None, Tensor | None]:
        """Vectors of the text tower and of the image tower."""
        text_JnW = self.text_vectors()
        projected_JnW = torch.baddbmm(self.projection_bias[:, None], text_JnW[: len(self.projection)], self.projection)
        return text_JnW[: self._text_depth], projected_JnW


class ImagePrompts(nn.Module):
    """Image vectors learned by themselves, N(0, 0.02²).

    Attributes:
        visual: (J, n, W image).
    """

    def __init__(self, num_context: int, depth: int, image_width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.visual = nn.Parameter(_SD * torch.randn(depth, num_context, image_width, generator=generator))

    def vectors(self) -> tuple[Tensor | None, Tensor | None]:
        """Vectors of the text tower (None: not prompted) and of the image tower."""
        return None, self.visual


Prompts = TextPrompts | ImagePrompts


def build_prompts(
    backbone: Backbone,
    kind: Literal["text", "image", "multimodal"],
    *,
    context_nW: Tensor,
    depth: int,
    generator: torch.Generator,
) -> Prompts:
    """Prompts for a backbone; the depth is cut to the towers they enter, to each by itself.

    Raises:
        ModelError: the backbone's towers cannot be prompted.
    """
    text, image = backbone.text_tower, backbone.image_tower
    if text is None or image is None:
        raise ModelError(
            "prompt tuning needs towers that prompts can enter",
            got=backbone.prompt_refusal,
            where=backbone.name,
            next_step="Add --tuning features, or choose another --backbone.",
        )
    num_context = len(context_nW)
    if kind == "image":
        return ImagePrompts(num_context, min(depth, len(image.blocks)), image.width, generator)
    text_depth, image_depth = min(depth, len(text.blocks)), min(depth, len(image.blocks))
    if kind == "text":
        return TextPrompts(context_nW, text_depth, generator)
    return MultimodalPrompts(context_nW, depth, image.width, generator, text_depth=text_depth, image_depth=image_depth)


def class_tokens(backbone: Backbone, prompts: list[str], prefix: str, num_context: int) -> tuple[Tensor, Tensor]:
    """Token ids with room for the context, and the embeddings it starts from.

    Positions 1…n are replaced. Where fewer than n words stand before the name, places are inserted behind the start
    token, so that the context replaces all of those words and never the name.

    Args:
        backbone: whose tokenizer and token embeddings are used.
        prompts: K class prompts.
        prefix: the words that stand before the name in the template.
        num_context: n.

    Returns:
        Token ids (K, L), and context_nW fp32: the embeddings that are replaced; for inserted places those of
        "a photo of a", repeated.
    """
    tokens_KL = backbone.tokenize(prompts)
    text = backbone.text_tower
    if text is None:
        raise ModelError("class tokens need a text tower that prompts can enter", got=backbone.prompt_refusal)
    words = _words(backbone, prefix)
    usable = min(num_context, len(words))
    # The words before the name may not be cut alike in all prompts (a template like "un-{}").
    while usable and not bool((tokens_KL[:, 1 : usable + 1] == torch.tensor(words[:usable])).all()):
        usable -= 1
    missing = num_context - usable
    ids = words[:usable]
    if missing:
        fill = (_words(backbone, _WORDS) * (missing // 4 + 1))[:missing]
        tokens_KL = _insert(backbone, tokens_KL, fill)
        ids = fill + ids
    embedding_VW = text.embedding_VW
    return tokens_KL, embedding_VW[torch.tensor(ids, device=embedding_VW.device)].float().cpu()


def _words(backbone: Backbone, text: str) -> list[int]:
    """Token ids of a text without its start and end tokens."""
    row_L = backbone.tokenize([text])
    empty_L = backbone.tokenize([""])[0]
    end = int((empty_L != row_L[0]).nonzero()[0]) if bool((empty_L != row_L[0]).any()) else 1
    assert backbone.text_tower is not None  # for the type checker
    last = int(backbone.text_tower.pooled_positions(row_L)[0])
    return row_L[0, end:last].tolist()


def _insert(backbone: Backbone, tokens_KL: Tensor, fill: list[int]) -> Tensor:
    """Ids put in behind the start token; a prompt that grows too long loses words before its end token."""
    assert backbone.text_tower is not None  # for the type checker
    length = tokens_KL.shape[1]
    places = torch.tensor(fill).expand(len(tokens_KL), -1)
    longer_KL = torch.cat([tokens_KL[:, :1], places, tokens_KL[:, 1:]], dim=1)
    cut_KL = longer_KL[:, :length].clone()
    ends_K = backbone.text_tower.pooled_positions(tokens_KL)
    over_K = ends_K + len(fill) >= length
    cut_KL[over_K, length - 1] = tokens_KL[over_K, ends_K[over_K]]
    return cut_KL
