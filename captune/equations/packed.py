"""A step on frozen features for P configurations at once, its gradients written by hand (README.md, rows § 5 and § 6),
and the margins and weights of an epoch's beginning (7 and 9).

The operations of such a step are so small that calling them takes longer than computing them. Here every tensor has a
first dimension P, one entry per configuration, and no graph is recorded: a tenth of the calls for all configurations
together. Each entry is computed by itself, so its numbers do not depend on what stands beside it.

For speed nothing here checks shapes: the names tell them. N rows of features, D their width, H the adapter's hidden
width, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from captune.equations.margin import CONSTANT_ROW

# As torch's `normalize`: a vector shorter than this stays short.
_SHORTEST = 1e-12


class AdapterTensors(NamedTuple):
    """The tensors of P adapters, or their gradients: W1 (P, H, D), b1 (P, H), W2 (P, D, H), b2 (P, D)."""

    down_weight_PHD: Tensor
    down_bias_PH: Tensor
    up_weight_PDH: Tensor
    up_bias_PD: Tensor


class Adapted(NamedTuple):
    """What adapters made of features, and what their gradients need.

    Attributes:
        features_PND: x + r·A(x), normalised.
        hidden_PNH: ReLU(W1·x + b1).
        length_PN1: of x + r·A(x).
    """

    features_PND: Tensor
    hidden_PNH: Tensor
    length_PN1: Tensor

    def rows(self, start: int) -> Adapted:
        """The rows from `start` on."""
        return Adapted(self.features_PND[:, start:], self.hidden_PNH[:, start:], self.length_PN1[:, start:])


def normalised(vectors_PND: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors divided in place by their lengths, and the lengths (P, N, 1)."""
    length_PN1 = torch.linalg.vector_norm(vectors_PND, dim=-1, keepdim=True).clamp_(min=_SHORTEST)
    return vectors_PND.div_(length_PN1), length_PN1


def through_normalised(gradient_PND: Tensor, unit_PND: Tensor, length_PN1: Tensor) -> Tensor:
    """The gradient before a normalisation from the one behind it: (g - u·(u·g)) / |x| with u = x/|x|."""
    along_PN1 = (gradient_PND * unit_PND).sum(-1, keepdim=True)
    return torch.addcmul(gradient_PND, unit_PND, along_PN1, value=-1).div_(length_PN1)


def adapt(features_PND: Tensor, adapter: AdapterTensors, residual_P11: Tensor) -> Adapted:
    """x + r·(W2·ReLU(W1·x + b1) + b2), normalised, for P adapters.

    Args:
        features_PND: x, normalised.
        adapter: W1, b1, W2, b2.
        residual_P11: r of each configuration.
    """
    hidden_PNH = torch.baddbmm(adapter.down_bias_PH[:, None], features_PND, adapter.down_weight_PHD.mT).relu_()
    mixed_PND = torch.baddbmm(adapter.up_bias_PD[:, None], hidden_PNH, adapter.up_weight_PDH.mT)
    unit_PND, length_PN1 = normalised(mixed_PND.mul_(residual_P11).add_(features_PND))
    return Adapted(unit_PND, hidden_PNH, length_PN1)


def adapter_gradients(
    gradient_PND: Tensor,
    adapted: Adapted,
    features_PND: Tensor,
    adapter: AdapterTensors,
    residual_P11: Tensor,
    out: AdapterTensors,
) -> tuple[Tensor, Tensor]:
    """Gradients of P adapters into `out`, from those of the adapted features; `adapted.hidden_PNH` is used up.

    Args:
        gradient_PND: of the loss by `adapted.features_PND`.
        adapted, features_PND, adapter, residual_P11: of the forward pass.
        out: where the gradients go.

    Returns:
        What `input_gradient` needs: the gradients before the normalisation (P, N, D) and before ReLU (P, N, H).
    """
    mixed_PND = through_normalised(gradient_PND, adapted.features_PND, adapted.length_PN1)
    output_PND = mixed_PND * residual_P11
    torch.bmm(output_PND.mT, adapted.hidden_PNH, out=out.up_weight_PDH)
    torch.sum(output_PND, 1, out=out.up_bias_PD)
    hidden_PNH = torch.bmm(output_PND, adapter.up_weight_PDH).mul_(adapted.hidden_PNH.sign_())
    torch.bmm(hidden_PNH.mT, features_PND, out=out.down_weight_PHD)
    torch.sum(hidden_PNH, 1, out=out.down_bias_PH)
    return mixed_PND, hidden_PNH


def input_gradient(mixed_PND: Tensor, hidden_PNH: Tensor, adapter: AdapterTensors) -> Tensor:
    """The gradient of an adapter's input, from what `adapter_gradients` returned."""
    return torch.baddbmm(mixed_PND, hidden_PNH, adapter.down_weight_PHD)


def margin_rows(margin_PKK: Tensor, labels_PN: Tensor, first_P1: Tensor) -> Tensor:
    """What the margin adds to the logits of rows with some labels: (P, N, K), 0 at the label itself.

    Args:
        margin_PKK: contiguous, its diagonals already 0.
        labels_PN: long.
        first_P1: K·p, the first row of each configuration among all, long.
    """
    num_classes = margin_PKK.shape[-1]
    flat_PK = margin_PKK.view(-1, num_classes).index_select(0, (labels_PN + first_P1).view(-1))
    return flat_PK.view(*labels_PN.shape, num_classes)


def cross_entropy_with_gradient(logits_PNK: Tensor, labels_PN: Tensor, factors_PN: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_i f_i·CE(z_i, y_i) of each configuration, (P,), and its gradient by the logits, (P, N, K).

    A row with a factor of 0 adds exactly 0, whatever its loss.
    """
    log_probs_PNK = logits_PNK.log_softmax(-1)
    labels_PN1 = labels_PN[..., None]
    losses_PN = log_probs_PNK.gather(-1, labels_PN1)[..., 0] * -factors_PN
    losses_P = losses_PN.masked_fill_(factors_PN == 0, 0.0).sum(-1)
    gradient_PNK = log_probs_PNK.exp_()
    gradient_PNK.scatter_(-1, labels_PN1, -1.0, reduce="add")
    return losses_P, gradient_PNK.mul_(factors_PN[..., None])


def alignment_with_gradient(
    text_PKD: Tensor, prototypes_PKD: Tensor, present_PK: Tensor, temperature_P11: Tensor, weight_P11: Tensor
) -> tuple[Tensor, Tensor]:
    """The weighted contrastive alignment loss of each configuration (`alignment.alignment_loss`), (P,), and its
    gradient by the texts, (P, K, D).

    Args:
        text_PKD: T, of length 1.
        prototypes_PKD: M, of length 1 or 0.
        present_PK: bool, classes with a prototype.
        temperature_P11, weight_P11: tau and lambda of each configuration.
    """
    absent_PK, num_packed = ~present_PK, len(text_PKD)
    share_P11 = weight_P11 / (2 * present_PK.sum(1).clamp(min=1)[:, None, None])
    logits_PKK = torch.bmm(text_PKD, prototypes_PKD.mT).div_(temperature_P11)
    # Texts to prototypes, and prototypes to texts.
    open_QKK = torch.stack([logits_PKK, logits_PKK.mT])
    open_QKK.masked_fill_(absent_PK[:, None], float("-inf")).masked_fill_(absent_PK[..., None], 0.0)
    log_probs_QKK = open_QKK.log_softmax(-1)
    own_QPK = log_probs_QKK.diagonal(dim1=-2, dim2=-1).masked_fill(absent_PK, 0.0)
    to_prototypes_P, to_texts_P = own_QPK.sum(-1)  # not both dimensions at once: the order would depend on P
    losses_P = (to_prototypes_P + to_texts_P).mul_(share_P11.view(num_packed)).neg_()
    gradient_QKK = log_probs_QKK.exp_()
    gradient_QKK.diagonal(dim1=-2, dim2=-1).sub_(1.0)
    gradient_QKK.masked_fill_(absent_PK[..., None], 0.0)
    gradient_PKK = gradient_QKK[0].add_(gradient_QKK[1].mT)
    return losses_P, torch.bmm(gradient_PKK.mul_(share_P11 / temperature_P11), prototypes_PKD)


def class_sums(features_PND: Tensor, labels_PN: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Sums of each class's features, (P, K, D), and how many those are, (P, K); a label of K is of no class."""
    classes_K1 = torch.arange(num_classes, device=labels_PN.device)[:, None]
    member_PKN = (labels_PN[:, None] == classes_K1).to(features_PND.dtype)
    return torch.bmm(member_PKN, features_PND), member_PKN.sum(-1)


def class_means(sums_PKD: Tensor, counts_PK: Tensor) -> Tensor:
    """Normalised means from what `class_sums` gave, which is overwritten; 0 for a class without features."""
    return normalised(sums_PKD.div_(counts_PK.clamp(min=1)[..., None]))[0]


def move_prototypes(
    prototypes_PKD: Tensor,
    present_PK: Tensor,
    features_PND: Tensor,
    labels_PN: Tensor,
    momentum_P11: Tensor,
    moved_P1: Tensor,
) -> None:
    """`alignment.class_prototypes` of a batch, then `ema_update`, in place where `moved_P1` is true."""
    sums_PKD, counts_PK = class_sums(features_PND, labels_PN, prototypes_PKD.shape[1])
    batch_PKD = class_means(sums_PKD, counts_PK)
    taken_PK = (counts_PK > 0).logical_and_(moved_P1)
    mixed_PKD, _ = normalised(torch.lerp(batch_PKD, prototypes_PKD, momentum_P11))
    moved_PKD = torch.where(present_PK[..., None], mixed_PKD, batch_PKD)
    torch.where(taken_PK[..., None], moved_PKD, prototypes_PKD, out=prototypes_PKD)
    present_PK.logical_or_(taken_PK)


def partial_label_with_gradient(logits_PNK: Tensor, candidates_PNK: Tensor, factors_N: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_i f_i·(-log Σ_{k in S_i} softmax(z_i)_k) of each configuration, (P,), and its gradient by the logits.

    Args:
        logits_PNK: z.
        candidates_PNK: S, bool, at least one per row.
        factors_N: f.
    """
    within_PNK = logits_PNK.masked_fill(~candidates_PNK, float("-inf"))
    losses_PN = logits_PNK.logsumexp(-1) - within_PNK.logsumexp(-1)
    gradient_PNK = logits_PNK.softmax(-1).sub_(within_PNK.softmax(-1))
    return (losses_PN * factors_N).sum(-1), gradient_PNK.mul_(factors_N[:, None])


def class_similarities(text_PKD: Tensor, prototypes_PKD: Tensor) -> Tensor:
    """`confusion.class_similarity` of each configuration, (P, K, K), of texts of length 1 and prototypes of 1 or 0."""
    absent_PK1 = (prototypes_PKD == 0).all(dim=-1, keepdim=True)
    seen_PKD = torch.where(absent_PK1, text_PKD, prototypes_PKD)
    return torch.maximum(torch.bmm(text_PKD, text_PKD.mT), torch.bmm(seen_PKD, seen_PKD.mT))


def calibrated_margins(
    similarity_PKK: Tensor, counts_PK: Tensor, scale_P1: Tensor, published_P1: Tensor, open_K: Tensor
) -> Tensor:
    """`margin.calibrated_margin` of each configuration, (P, K, K), its diagonal 0.

    Args:
        similarity_PKK, counts_PK, scale_P1: S, σ and m.
        published_P1: bool, whether the form is "published".
        open_K: bool, the classes that may be pseudolabelled.
    """
    most_P1 = counts_PK.amax(1, keepdim=True)
    share_PK = (counts_PK / most_P1.clamp(min=torch.finfo(counts_PK.dtype).tiny)).masked_fill(~open_K, 1.0)
    span_P1 = share_PK.amax(1, keepdim=True) - share_PK.amin(1, keepdim=True)
    lacking_PK = 1 - share_PK
    paper_PK = lacking_PK * lacking_PK.amax(1, keepdim=True)
    row_PK = torch.where(published_P1, lacking_PK / (1 + share_PK) * span_P1, paper_PK) * scale_P1
    constant_PK = similarity_PKK.amax(-1) - similarity_PKK.amin(-1) <= CONSTANT_ROW
    margin_PKK = row_PK.masked_fill(constant_PK | (most_P1 == 0), 0.0)[..., None] * similarity_PKK
    margin_PKK.diagonal(dim1=-2, dim2=-1).zero_()
    return margin_PKK


def class_weights(counts_PK: Tensor, strength_P1: Tensor, open_K: Tensor, *, clip: float = 10.0) -> Tensor:
    """`reweighting.class_weights` of each configuration, (P, K), toward uniform over `open_K`."""
    member_K = open_K.to(counts_PK.dtype)
    size, tiny = member_K.sum().clamp(min=1), torch.finfo(counts_PK.dtype).tiny
    wanted_P1 = (counts_PK * member_K).sum(1, keepdim=True) / size
    weights_PK = (wanted_P1 / counts_PK.clamp(min=1)).pow(strength_P1).clamp(1 / clip, clip)
    mean_P1 = (weights_PK * member_K).sum(1, keepdim=True) / size
    return torch.where(open_K, weights_PK / mean_P1.clamp(min=tiny), 1.0)
