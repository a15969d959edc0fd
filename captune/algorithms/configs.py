"""The settings of every method: one class each. Imports no torch.

Most defaults are those of the method's paper or of its published code; README.md beside this file lists the others, and
`--preset paper` sets what CAP published. A method's own settings are no options of a command, they are given by
`--set NAME=VALUE`; their descriptions explain the columns of a study's tables (`columns.csv`).
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from captune.config import Config, TrialConfig


class Member(Config):
    """A method in a blend."""

    method: str = Field(description="its name")
    weight: float = Field(1.0, gt=0, description="its weight beside the others'")
    seeds: tuple[int, ...] = Field((), description="seeds it is trained with, averaged; default the blend's own")
    settings: dict[str, Any] = Field(default_factory=dict, description="what differs from its defaults")


class BlendConfig(TrialConfig):
    """The members of a blend. Settings that all methods share (epochs, tuning, …) hold for every member if set here."""

    members: tuple[Member, ...] = Field(
        tuple(Member.parse({"method": name}) for name in ("balanced", "anchored", "cap_mixture")),
        min_length=1,
        description="methods, by name or as {method, weight, seeds, settings}",
    )
    average: Literal["probabilities", "logits"] = Field(
        "probabilities", description="what is averaged; averaged logits of linear members are one set of class weights"
    )

    @field_validator("members", mode="before")
    @classmethod
    def _named(cls, members: Any) -> Any:
        """Names alone are members with all defaults."""
        if isinstance(members, str):
            members = [name.strip() for name in members.split(",")]
        if not isinstance(members, list | tuple):
            return members
        return tuple({"method": member} if isinstance(member, str) else member for member in members)

    @property
    def shared(self) -> dict[str, Any]:
        """Settings passed on to every member: the budget always, others where they are not at their default."""
        always = ("tuning", "epochs", "steps_per_epoch")
        values = {name: getattr(self, name) for name in TrialConfig.model_fields}
        return {n: v for n, v in values.items() if n in always or v != TrialConfig.model_fields[n].default}


class CapConfig(TrialConfig):
    """CAP's own settings, numbers as in the paper. `adapter_start`, `crop_source`, `batching`, `margin_features` and
    `mismatched` default to our forms; the published form is another value of each.
    """

    confidence_threshold: float = Field(0.85, ge=0, lt=1, description="tau: pseudolabels count strictly above it")
    main_samples: bool = Field(True, description="train on main samples (off: an ablation)")
    self_training: bool = Field(True, description="train on the pool's pseudolabels (off: an ablation)")
    shared_adapter: bool = Field(False, description="one adapter for main samples and pool (an ablation)")
    num_main_samples: int = Field(16, ge=1, description="k: main samples per class at the start")
    max_main_ratio: float = Field(
        0.8, gt=0, le=1, description="rho: largest share of a class's images that may be its main samples"
    )
    grow_every: int | None = Field(
        None,
        ge=1,
        description="epochs between renewals of the main samples; default a tenth of all, as the paper's 5 of 50",
    )
    leaderboard: Literal["published", "exclusive"] = Field(
        "published", description="rule by which the first main samples are chosen"
    )
    contest: Literal["class_order", "confidence"] = Field(
        "class_order", description="which class gets an image that several claim"
    )
    adapter_start: Literal["identity", "random"] = Field(
        "identity", description="adapters before training: the identity, or random as a linear layer's (published)"
    )
    crop_source: Literal["store", "original"] = Field(
        "store", description="strong views are cropped from the resized copies, or from the originals (published)"
    )
    batching: Literal["full", "published"] = Field(
        "full",
        description="full: every batch is full and every epoch shuffles anew; published: passes run on through epochs, "
        "and a pass over labelled or main images ends with a smaller batch",
    )
    pseudolabel_classes: Literal["all", "unseen"] = Field(
        "all",
        description="TRZSL: classes a pool image is predicted over; published: all, seen ones left out afterwards",
    )
    margin_features: Literal["remembered", "reencoded"] = Field(
        "remembered",
        description="the main samples' features in the margin: those of their last step, or encoded anew each epoch",
    )
    margin_scale: float = Field(12.0, ge=0, description="m, in logits; 0 turns the margin off")
    margin_form: Literal["published", "paper"] = Field("published", description="formula of the margin")
    confusion: Literal["similarity", "matrix"] = Field(
        "similarity", description="S: feature cosines, or soft confusion"
    )
    alignment_weight: float = Field(
        0.0, ge=0, description="lambda_a of the contrastive alignment loss; the paper has none"
    )
    alignment_temperature: float = Field(0.1, gt=0, description="tau_a of the alignment loss")
    prototype_momentum: float = Field(0.9, ge=0, lt=1, description="EMA of the class prototypes")
    reweighting_strength: float = Field(0.0, ge=0, description="gamma; the paper has none")
    count_momentum: float = Field(0.0, ge=0, lt=1, description="EMA of pseudolabel counts over epochs")
    mismatched: Literal["detect", "published", "none"] = Field("detect", description="which classes are mismatched")
    description_choice: Literal["nearest", "together"] = Field(
        "nearest", description="each mismatched class's description by its own cluster (paper), or all at once (ours)"
    )
    mismatch_threshold: int | None = Field(None, ge=0, description="t: candidates kept; default ceil(K/10)")

    @property
    def epochs_between_renewals(self) -> int:
        """`grow_every`, its default filled in: a short budget renews the boards as often as the paper's."""
        return self.grow_every if self.grow_every is not None else max(1, self.epochs // 10)

    def boards_are_due(self, epoch: int) -> bool:
        """Whether the boards are renewed when an epoch (from 0) ends."""
        return epoch % self.epochs_between_renewals == 0

    def kept_of_counts(self, epoch: int) -> float:
        """The share of the pseudolabel counts that the end of an epoch keeps of those before it."""
        return self.count_momentum if epoch > 0 else 0.0


class CapMixtureConfig(CapConfig):
    """CAP's settings, the mixture's and the guard's."""

    mixture_weight: float = Field(0.5, ge=0, le=1, description="w: the mixture's share beside CAP (0: an ablation)")
    text_images: float | None = Field(
        None, gt=0, description="kappa: images that a class's text counts as in the mixture; default: estimated"
    )
    pool_prior: bool = Field(True, description="the mixture estimates the pool's class shares (off: an ablation)")
    imbalance_from: Literal["both", "mixture", "zero_shot"] = Field(
        "both", description="whose class shares of the pool d is measured on; both: the mean of their distances"
    )
    trust_below: float = Field(
        0.1, ge=0, le=1, description="distance d from an even pool up to which CAP and the mixture are fully trusted"
    )
    trust_until: float = Field(
        0.25, ge=0, le=1, description="distance from which the fallback alone predicts (1: never)"
    )
    enough_images: int = Field(
        10, ge=0, description="pool images per class from which they are fully trusted; at half as many, not at all"
    )
    fallback: Literal["anchored", "zero_shot"] = Field(
        "anchored", description="what predicts where CAP and the mixture are not trusted; zero_shot: an ablation"
    )

    @model_validator(mode="after")
    def _shares_are_estimated(self) -> Self:
        if self.imbalance_from != "zero_shot" and not self.pool_prior:
            raise ValueError(
                f"imbalance_from must be 'zero_shot' where pool_prior is off, but got '{self.imbalance_from}'"
            )
        return self


class LearnerConfig(TrialConfig):
    """Textual prompts, as the pseudolabelling papers use by default; no adapters."""

    prompts: Literal["text", "image", "multimodal"] = Field("text", description="which towers are prompted")
    num_context: int = Field(
        4, ge=1, le=16, description="context vectors (papers: 16, which no short text tower holds)"
    )
    prompt_depth: int = Field(1, ge=1, description="layers that are prompted; 1 is CoOp's shallow prompt")
    training_view: Literal["weak", "strong"] = Field("weak", description="view of the images that are trained on")


class FplConfig(LearnerConfig):
    """FPL's own settings."""

    num_pseudolabels: int = Field(16, ge=1, description="K: pseudolabelled images per class")
    leaderboard: Literal["grip", "published", "exclusive"] = Field(
        "grip", description="rule of the boards: as GRIP's code fills them, as CAP's does, or each image on one"
    )
    learning_rate: float = Field(0.1, gt=0, description="peak learning rate of SGD")
    weight_decay: float = Field(0.1, ge=0, description="SGD weight decay")
    batch_size: int = Field(16, ge=1, description="B: images per stream and step")


class IterationConfig(LearnerConfig):
    """What methods share that train afresh in every iteration."""

    num_iterations: int = Field(
        10, ge=1, le=50, description="I: how often the pseudolabels are renewed; each time E epochs are trained"
    )


class GripConfig(IterationConfig, FplConfig):
    """GRIP's own settings; `num_pseudolabels` is not read: K_i follows from the pool.

    Learning rate, decay and batches are those of `LearnerConfig`, not FPL's, because `IterationConfig` comes first.
    """


class CplConfig(IterationConfig):
    """CPL's own settings."""

    intra_quantile: float = Field(0.75, ge=0, le=1, description="alpha (published: 0.6 to 0.9 by dataset)")
    inter_classes: float = Field(2.0, gt=0, description="c in beta = 1 - c/C (published: about 1 to 3)")
    learning_rate: float = Field(0.05, gt=0, description="peak learning rate of SGD")
    weight_decay: float = Field(0.05, ge=0, description="SGD weight decay")
    batch_size: int = Field(64, ge=1, description="B: images per stream and step")


class CoopConfig(LearnerConfig):
    """CoOp's own settings: those of the pseudolabelling methods, which take them from it, and its weight decay."""

    learning_rate: float = Field(0.1, gt=0, description="peak learning rate of SGD")
    weight_decay: float = Field(0.0005, ge=0, description="SGD weight decay")
    batch_size: int = Field(16, ge=1, description="B: labelled images per step")


class SupervisedConfig(LearnerConfig):
    """The pseudolabelling methods' settings, with labels and CoOp's weight decay."""

    learning_rate: float = Field(0.1, gt=0, description="peak learning rate of SGD")
    weight_decay: float = Field(0.0005, ge=0, description="SGD weight decay")


class TransClipConfig(TrialConfig):
    """TransCLIP's own settings; the defaults are those of its published code."""

    text_strength: float = Field(1.0, ge=0, le=10, description="lambda; halved where there are labelled images")
    likelihood_weight: float = Field(
        0.02, gt=0, le=1, description="beta of the likelihood against text and neighbours (published: 1/50)"
    )
    labelled_weight: float = Field(0.02, ge=0, description="gamma (published: searched over 0.002 to 0.2)")
    num_neighbors: int = Field(3, ge=0, description="number of nearest images that an image is tied to")
    num_rounds: int = Field(10, ge=0, description="rounds of updates")
    affinity_form: Literal["published", "paper"] = Field(
        "published",
        description="with labelled images: their rows as the published code mixes them up, or as in the paper",
    )


class AnchoredConfig(TrialConfig):
    """The anchored mixture's own settings."""

    text_images: float = Field(8.0, gt=0, description="kappa: images that a class's text counts as in its mean")
    covariance_images: float = Field(
        1.0, ge=0, description="nu: images that a class's text counts as in the covariance"
    )
    likelihood_weight: float = Field(0.15, ge=0, description="beta: weight of the Gaussians' log-density")
    text_strength: float = Field(1.0, ge=0, le=10, description="lambda: weight of the zero-shot logits")
    prior_strength: float | None = Field(
        None,
        ge=0,
        le=1,
        description="rho: share of log pi in predictions; default ½ if test images are the pool, else 0",
    )
    num_rounds: int = Field(10, ge=1, description="rounds of updates")


class TextMixtureConfig(TrialConfig):
    """The text mixture's own settings; the defaults are those of `cap_mixture`."""

    text_images: float | None = Field(
        None, gt=0, description="kappa: images that a class's text counts as; default: estimated"
    )
    pool_prior: bool = Field(True, description="the fit estimates the pool's class shares, which predictions leave out")


class ZlapConfig(TrialConfig):
    """ZLaP's own settings; the defaults are what its authors run it with."""

    num_neighbors: int = Field(5, ge=1, description="n: nearest images, and nearest texts, an image is tied to")
    gamma: float = Field(5.0, gt=0, description="power of the cosine in a tie")
    alpha: float = Field(0.3, ge=0, le=0.99, description="how far labels spread over the graph")


class ProbeConfig(TrialConfig):
    """The text-initialised linear probe's own settings; the defaults are the paper's."""

    penalty: float = Field(1.0, ge=0, description="weight of the penalty that holds each class at its text")
    num_steps: int = Field(200, ge=0, description="maximum number of L-BFGS iterations")


class ZeroShotConfig(TrialConfig):
    """Which prompts make the class features."""

    templates: tuple[str, ...] = Field(
        (), description="prompt templates with one {} each, averaged; default the cell's"
    )


class BalancedConfig(ZeroShotConfig):
    """Zero-shot with a class bias estimated on the pool."""

    balance_rule: Literal["sinkhorn", "logit_adjustment"] = Field("sinkhorn", description="how the bias is found")
    balance_strength: float = Field(0.5, ge=0, le=1, description="share of the full bias that is added; half is robust")
