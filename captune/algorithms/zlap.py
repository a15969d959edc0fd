"""ZLaP: class labels spread from the texts over the graph of nearest neighbours among the unlabelled images.

S   an image is tied to its n nearest images and its n nearest texts, s = max(cosine, 0)^gamma
z   (I - alpha·D^(-1/2) S D^(-1/2))⁻¹ Y, Y one-hot at the texts and at labelled images
predict   z / Σ z for an image of the pool; Σ_j s_j d_j^(-1/2) z_j over its neighbours, to sum 1, for any other

Solved when it is built: there is nothing to train. An image outside the pool is answered from the graph of the pool as
it is (the inductive form), so no test image is looked at together with others unless the pool is the test set (tft).

Stojnić, Kalantidis & Tolias, "Label Propagation for Zero-shot Classification with Vision-Language Models", CVPR 2024
(arXiv 2404.04072). n = 5, gamma = 5 and alpha = 0.3 are what its authors run it with on CLIP's texts.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from captune.algorithms.configs import ZlapConfig
from captune.algorithms.transductive import Transductive
from captune.data.paradigms import IntArray
from captune.equations.label_propagation import PropagatedLabels, propagate_labels
from captune.training.context import Context


class Zlap(Transductive):
    """ZLaP on one cell; see the module's box."""

    def __init__(self, context: Context, config: ZlapConfig, seed: int) -> None:
        scores_NK, self.graph = propagate_labels(
            context.pool_features_PD,
            context.text_features_KD,
            open_K=context.pseudolabelled_K,
            labelled_features_MD=context.labelled_features_LD,
            labels_M=context.labels_L,
            num_neighbors=config.num_neighbors,
            gamma=config.gamma,
            alpha=config.alpha,
        )
        super().__init__(context, context.text_features_KD, None, as_probabilities(scores_NK))

    def predict_other(self, indices: IntArray) -> Tensor:
        """The graph's answer, (N, K)."""
        rows = torch.as_tensor(np.array(indices), device=self.context.device)
        return as_probabilities(self.graph.scores(self.context.image_features_MD[rows].double()))

    def tensors(self) -> dict[str, Tensor]:
        """The graph, for images that are not in it."""
        graph = self.graph
        return {
            "nodes": graph.nodes_MD.float(), "reach": graph.reach_MK.float(), "text_reach": graph.text_reach_KK.float()
        }  # fmt: skip

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Nothing: the graph was made again when this was built."""


def graph_of(tensors: dict[str, Tensor], texts_KD: Tensor, config: ZlapConfig) -> PropagatedLabels:
    """The graph of a checkpoint.

    Args:
        tensors: of the checkpoint, by the names of `Zlap.tensors`.
        texts_KD: class texts of the frozen backbone.
        config: the method's configuration.
    """
    nodes_MD, reach_MK, text_reach_KK = (tensors[name].double() for name in ("nodes", "reach", "text_reach"))
    return PropagatedLabels(nodes_MD, texts_KD.double(), reach_MK, text_reach_KK, config.num_neighbors, config.gamma)


def as_probabilities(scores_NK: Tensor) -> Tensor:
    """Scores to sum 1; an image that nothing reaches may be anything."""
    scores_NK = scores_NK + 1e-30
    return (scores_NK / scores_NK.sum(dim=1, keepdim=True)).float()
