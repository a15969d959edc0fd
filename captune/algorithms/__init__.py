"""The methods a study can be about: ALGORITHMS, one row per method.

Importing this imports no torch; a method's own module is imported when the method is built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from captune.algorithms.configs import (
    AnchoredConfig,
    BalancedConfig,
    BlendConfig,
    CapConfig,
    CapMixtureConfig,
    CoopConfig,
    CplConfig,
    FplConfig,
    GripConfig,
    IterationConfig,
    Member,
    ProbeConfig,
    SupervisedConfig,
    TextMixtureConfig,
    TransClipConfig,
    ZeroShotConfig,
    ZlapConfig,
)
from captune.algorithms.preset import CAP_SETTINGS, preset_trial
from captune.config import TaskConfig, TrialConfig
from captune.data.catalog import default_settings
from captune.data.roles import has_labels
from captune.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from captune.training.context import Context
    from captune.training.loop import Algorithm


@dataclass(frozen=True)
class Method:
    """A method: its settings, how it is built, whether it trains and can be tuned.

    Attributes:
        name: its key.
        summary: one line for lists.
        config_class: its settings; where a default is not its paper's, the setting's description or README.md says so.
        algorithm: where its class is, as "module:class" in captune.algorithms; imported when it is built.
        trains: whether it has epochs; the others are solved when they are built.
        tunable: whether it has anything to search.
        unsealed: whether it must be given the pool's true labels (research only).
        labels_only: whether it learns from labelled images alone and never looks at the pool: a control.
        packs: whether its trials on frozen features can train together (`captune.training.packs`).
    """

    name: str
    summary: str
    config_class: type[TrialConfig]
    algorithm: str
    trains: bool = True
    tunable: bool = True
    unsealed: bool = False
    labels_only: bool = False
    packs: bool = False

    @property
    def module(self) -> str:
        """The name of its module."""
        return f"{__name__}.{self.algorithm.partition(':')[0]}"

    def build(self, context: Context, config: TrialConfig, seed: int) -> Algorithm:
        """The algorithm before its first epoch."""
        create: Callable[[Context, Any, int], Algorithm] = getattr(
            import_module(self.module), self.algorithm.partition(":")[2]
        )
        return create(context, config, seed)

    def num_epochs(self, config: TrialConfig) -> int:
        """Epochs to train, over all iterations; 0 for methods without training; of a blend those of its longest
        member.
        """
        if isinstance(config, BlendConfig):
            # Its members train side by side.
            own = [(method_named(member.method), member_config(config, member)) for member in config.members]
            return max(method.num_epochs(settings) for method, settings in own)
        iterations = config.num_iterations if isinstance(config, IterationConfig) else 1
        return config.epochs * iterations if self.trains else 0


ALGORITHMS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "cap", "concept alignment and a confusion-aware calibrated margin (ICML 2025)", CapConfig, "cap:Cap",
            packs=True,
        ),
        Method(
            "cap_mixture", "CAP averaged with a text-anchored mixture, trusted as far as the pool looks even",
            CapMixtureConfig, "cap_mixture:CapMixture", packs=True,
        ),
        Method(
            "cpl", "candidate pseudolabels by intra- and inter-instance selection (ICML 2024)", CplConfig, "cpl:Cpl",
            packs=True,
        ),
        Method(
            "grip", "iterated pseudolabels, growing from the surest images to the whole pool (NeurIPS 2023)",
            GripConfig, "grip:Grip", packs=True,
        ),
        Method(
            "fpl", "few pseudolabels per class by zero-shot confidence (UPL, 2022)", FplConfig, "fpl:Fpl", packs=True,
        ),
        Method(
            "transclip", "transductive Gaussian mixture guided by the text, on frozen features (NeurIPS 2024)",
            TransClipConfig, "transclip:TransClip", trains=False,
        ),
        Method(
            "anchored", "Gaussian mixture on frozen features, means and covariance anchored at the text (after StatA)",
            AnchoredConfig, "anchored:Anchored", trains=False,
        ),
        Method(
            "text_mixture", "Gaussian mixture on frozen features, texts counting as images: cap_mixture's, alone",
            TextMixtureConfig, "text_mixture:TextMixture", trains=False,
        ),
        Method(
            "zlap", "labels spread from the texts over the graph of nearest images (CVPR 2024)", ZlapConfig,
            "zlap:Zlap", trains=False,
        ),
        Method(
            "probe", "a linear probe from the labelled images alone, held at the class texts (CLAP, CVPR 2024)",
            ProbeConfig, "probe:Probe", trains=False, labels_only=True,
        ),
        Method(
            "coop", "prompt tuning on the labelled images alone (CoOp, IJCV 2022)", CoopConfig, "coop:Coop",
            labels_only=True,
        ),
        Method(
            "blend", "the mean of what several methods say (an ensemble of unlike members)", BlendConfig, "blend:Blend",
        ),
        Method(
            "balanced", "zero-shot with half a Sinkhorn step toward a balanced pool", BalancedConfig,
            "zero_shot:ZeroShot", trains=False,
        ),
        Method(
            "zero_shot", "the frozen CLIP as it is", ZeroShotConfig, "zero_shot:ZeroShot", trains=False, tunable=False,
        ),
        Method(
            "supervised", "all labels of the pool: the ceiling", SupervisedConfig, "supervised:Supervised",
            unsealed=True, packs=True,
        ),
    )
}  # fmt: skip


def method_named(name: str) -> Method:
    """A row of ALGORITHMS.

    Raises:
        UsageError: no such method.
    """
    if name not in ALGORITHMS:
        raise UsageError("--method must name a method", got=f"'{name}'", next_step=did_you_mean(name, ALGORITHMS))
    return ALGORITHMS[name]


def refuse_unfit(method: str, task: TaskConfig) -> None:
    """Check, before anything is loaded, that the cell has the labels a method learns from and may give them to it.

    Raises:
        UsageError: it has none, or they stay sealed; no such method.
    """
    if method_named(method).labels_only and not has_labels(task):
        raise UsageError(
            f"--method {method} learns from labelled images alone",
            got=f"none of them in --paradigm {task.paradigm}",
            next_step="Use it in ssl (--shots) or trzsl, beside a method that looks at the pool.",
        )
    if method_named(method).unsealed and not task.unseal_pool:
        raise UsageError(
            f"--method {method} trains on the pool's true labels, which stay sealed here",
            where="--method",
            next_step=f"It is the ceiling beside other methods: captune compare --dataset {task.dataset} "
            f"--paradigm {task.paradigm} --methods cap,{method}.",
        )


def default_config(method: str, task: TaskConfig, tuning: str | None = None, preset: str | None = None) -> TrialConfig:
    """The method's defaults at the dataset's training budget and with the dataset's settings.

    Args:
        method: a key of ALGORITHMS.
        task: the cell.
        tuning: "prompts" or "features" where that is asked for; else the dataset's default.
        preset: "paper" puts every published setting in place of the default, the budget included
            (`captune.algorithms.preset`).
    """
    config_class = method_named(method).config_class
    settings = default_settings(task, tuning)
    settings = _cap_settings(config_class, task) | settings
    if preset is not None:
        settings = settings | preset_trial(config_class, task.dataset)
    return config_class.parse(settings, where=f"defaults of {method}")


def member_config(config: BlendConfig, member: Member, task: TaskConfig | None = None) -> TrialConfig:
    """A blend's member's whole configuration: its defaults (and the dataset's), what the blend sets, its settings.

    Raises:
        UsageError: no such method, or one that cannot stand in a blend.
        ConfigError: settings that the method does not have.
    """
    method = method_named(member.method)
    if method.config_class is BlendConfig or method.unsealed:
        raise UsageError("a blend's members must be other methods that see no sealed label", got=f"'{member.method}'")
    own = {} if task is None else _cap_settings(method.config_class, task)
    values = {**own, **config.shared, **member.settings}
    return method.config_class.parse(values, where=f"members: {member.method}")


def _cap_settings(config_class: type[TrialConfig], task: TaskConfig) -> dict[str, Any]:
    return CAP_SETTINGS.get(task.dataset, {}) if issubclass(config_class, CapConfig) else {}
