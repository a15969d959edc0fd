"""TransCLIP: one Gaussian mixture over all unlabelled features, held in place by the text.

ŷ    zero-shot probabilities; w_ij = the cosine with each of an image's n nearest neighbours
mu_k     the mean of the images surest of class k, weighted by ŷ, or of its labelled images
repeat   z_i ∝ ŷ_i^lambda ⊙ exp(beta·log N(v_i; mu, Sigma) + Σ_j (w_ij + w_ji)/2n z_j)       a few times over
         mu_k, Sigma ← means and shared diagonal covariance under z (and the labelled images)

Solved when it is built: there is nothing to train. An image of the pool has its z; any other image is assigned by the
fitted parameters, ŷ^lambda ⊙ N(v; mu, Sigma)^beta, which is linear in v. So no test image is looked at together with
others unless the pool is the test set (tft), which is the setting it was made for.

Zanella, Gérin & Ben Ayed, "Boosting Vision-Language Models with Transduction", NeurIPS 2024 (arXiv 2406.01837).
"""

from __future__ import annotations

from captune.algorithms.configs import TransClipConfig
from captune.algorithms.transductive import Transductive
from captune.equations.transduction import fit_text_guided_mixture
from captune.training.context import Context


class TransClip(Transductive):
    """TransCLIP on one cell; see the module's box."""

    def __init__(self, context: Context, config: TransClipConfig, seed: int) -> None:
        task = context.task
        strength = config.text_strength * (0.5 if len(task.labelled.indices_N) else 1.0)
        logits_NK = context.pool_logits(context.zero_shot_logits(task.pool))
        mixture = fit_text_guided_mixture(
            context.pool_features_PD,
            logits_NK.log_softmax(-1),
            text_strength=strength,
            likelihood_weight=config.likelihood_weight,
            num_neighbors=config.num_neighbors,
            labelled_features_MD=context.labelled_features_LD,
            labels_M=context.labels_L,
            labelled_weight=config.labelled_weight,
            num_steps=config.num_rounds,
            form=config.affinity_form,
        )
        weights_KD, bias_K = (config.likelihood_weight * part for part in mixture.linear())
        # In units of the logit scale, so that s·v·w + b is the log-assignment and the weights can be exported.
        weights_KD = strength * context.text_features_KD + weights_KD / context.logit_scale
        super().__init__(context, weights_KD, bias_K, mixture.assignments_NK)
