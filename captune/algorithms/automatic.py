"""`--method auto`: which methods one study tries, each with its own configuration. Imports no torch.

They stand in the order in which they cover development tasks best (the exam's portfolio,
analysis/measurements/advice_portfolio.csv). The references of every study (zero-shot, balanced zero-shot, the two
text-anchored mixtures, transclip and, with labelled images, the probe) compete anyway and are not among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from captune.algorithms import default_config, member_config, method_named
from captune.algorithms.configs import BlendConfig, IterationConfig
from captune.config import COMMAND_LINE, TaskConfig, TrialConfig
from captune.data.roles import has_labels
from captune.errors import ConfigError, did_you_mean

AUTO = "auto"
PORTFOLIO = ("grip", "cap", "cap_mixture")
_EPOCHS, _STEPS, _ROUNDS, _ROUND_EPOCHS = 10, 20, 5, 4
"""The budget on frozen features: the development data of the advice were made with it."""


def methods_for(task: TaskConfig, names: Sequence[str] = PORTFOLIO) -> tuple[str, ...]:
    """The methods that a study of this cell tries, in their order.

    Raises:
        UsageError: an unknown method, or one that cannot be one of several.
    """
    for name in names:
        blend = BlendConfig.parse({"members": [name]})
        member_config(blend, blend.members[0])  # raises for a method that cannot be one of several
    return tuple(name for name in names if has_labels(task) or not method_named(name).labels_only)


def auto_configs(
    task: TaskConfig,
    fixed: Mapping[str, Any],
    methods: Sequence[str],
    *,
    preset: str | None = None,
    where: object = COMMAND_LINE,
) -> dict[str, TrialConfig]:
    """Method → the configuration its search begins with.

    On frozen features the budget is cut to what the exam's candidates had, unless a preset or the user sets it.

    Args:
        task: the cell.
        fixed: given settings; each goes to the methods that have it.
        methods: their names.
        preset: "paper" for published settings.
        where: what errors call the place of `fixed`.

    Raises:
        ConfigError: a setting that no method has, or a value out of range.
    """
    found: dict[str, TrialConfig] = {}
    for name in methods:
        base = default_config(name, task, fixed.get("tuning"), preset)
        own = {key: value for key, value in fixed.items() if key in type(base).model_fields}
        if preset is None and base.tuning == "features":
            budget = {"epochs": min(base.epochs, _EPOCHS), "steps_per_epoch": min(base.steps_per_epoch, _STEPS)}
            if isinstance(base, IterationConfig):
                budget |= {"epochs": min(base.epochs, _ROUND_EPOCHS)}
                budget |= {"num_iterations": min(base.num_iterations, _ROUNDS)}
            own = budget | own
        found[name] = base.with_values(own, where=where)
    known = {key for config in found.values() for key in type(config).model_fields}
    for key in fixed:
        if key not in known:
            raise ConfigError(
                "a setting must be one of the methods' own", got=f"unknown option '{key}'",
                where=where, next_step=did_you_mean(key, known),
            )  # fmt: skip
    return found


def starting_configs(
    method: str,
    task: TaskConfig,
    fixed: Mapping[str, Any],
    preset: str | None,
    methods: Sequence[str] = (),
    *,
    where: object = COMMAND_LINE,
) -> dict[str, TrialConfig]:
    """Method → configuration of a study of one method, or of several (`auto`); `where` is what errors call their place.

    Raises:
        UsageError, ConfigError: as `auto_configs`.
    """
    if method == AUTO:
        return auto_configs(task, fixed, methods or methods_for(task), preset=preset, where=where)
    published = default_config(method, task, fixed.get("tuning"), preset)
    return {method: published.with_values(dict(fixed), where=where)}


def check_method(name: str) -> str:
    """A method's name, or `auto`.

    Raises:
        UsageError: neither.
    """
    return name if name == AUTO else method_named(name).name
