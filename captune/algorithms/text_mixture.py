"""Text mixture: Gaussians with one covariance over frozen features, each class's text counting as kappa images of it.

fit       EM over the pool (captune/equations/anchored_mixture.py), which learns the pool's class shares on the way
predict   softmax(v·w_k + b_k), linear in v; the shares are left out again

It is the mixture of `cap_mixture` alone, without CAP and without a guard (ours). It moves further from the texts toward
the images than `anchored` does. That gains most where the backbone is weak, and loses on uneven and small pools.
Solved when it is built: there is nothing to train.
"""

from __future__ import annotations

from captune.algorithms.cap_mixture import anchored_mixture
from captune.algorithms.configs import TextMixtureConfig
from captune.algorithms.zero_shot import Untrained
from captune.training.context import Context


class TextMixture(Untrained):
    """The mixture on one cell; see the module's box."""

    def __init__(self, context: Context, config: TextMixtureConfig, seed: int) -> None:
        mixture = anchored_mixture(context, config.text_images, pool_prior=config.pool_prior)
        super().__init__(context, mixture.weights_KD / context.logit_scale, mixture.bias_K)
