"""Probe: a linear classifier learned from the labelled images alone, held at the class texts (CLAP).

lambda_k   mean zero-shot probability of class k over its own labelled images
w          argmin (1/M)·Σ_i CE(s·v_i·w, y_i) + Σ_k lambda_k·|w_k - t_k|², from w = t
predict    softmax(s·v·w)

A control for ssl and trzsl: the pool is never looked at, so the lead of a semi-supervised method over it is what the
pool was worth. Solved when it is built. Silva-Rodríguez et al., "A Closer Look at the Few-Shot Adaptation of Large
Vision-Language Models", CVPR 2024 (arXiv 2312.12730).
"""

from __future__ import annotations

from captune.algorithms.configs import ProbeConfig
from captune.algorithms.zero_shot import Untrained
from captune.equations.linear_probe import fit_text_initialised_probe
from captune.training.context import Context


class Probe(Untrained):
    """The probe on one cell; see the module's box. Without a labelled image it is zero-shot."""

    def __init__(self, context: Context, config: ProbeConfig, seed: int) -> None:
        weights_KD = fit_text_initialised_probe(
            context.labelled_features_LD,
            context.labels_L,
            context.text_features_KD,
            logit_scale=context.logit_scale,
            penalty=config.penalty,
            num_steps=config.num_steps,
        )
        super().__init__(context, weights_KD)
