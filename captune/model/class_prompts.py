"""Class names into zero-shot prompts (CLIP, Radford et al., ICML 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from captune.errors import ConfigError, DataError
from captune.model.backbone import Backbone


def class_prompts(
    class_names: Sequence[str], template: str, form: Literal["template", "published"] = "template"
) -> list[str]:
    """One prompt per class: the template with the class name in place of {}, `_` read as a space.

    CAP's published code appends the name to the template with its braces ("a photo of a {}. cat");
    `form="published"` does the same, to reproduce its numbers.

    Raises:
        ConfigError: the template does not hold exactly one {}.
    """
    names = [name.replace("_", " ") for name in class_names]
    if form == "published":
        return [f"{template} {name}" for name in names]
    if template.count("{}") != 1:
        raise ConfigError("a template must hold exactly one {}", got=repr(template), where="template")
    return [template.replace("{}", name) for name in names]


def prompts_that_fit(backbone: Backbone, class_names: Sequence[str], prompts: Sequence[str]) -> list[str]:
    """See that the text tower can tell the prompts apart; a note names those that are longer than its context.

    Args:
        backbone: the frozen CLIP.
        class_names: K names, for messages.
        prompts: K prompts.

    Raises:
        DataError: two classes whose prompts are the same tokens, cut to the context or not.
    """
    tokens_KL = backbone.tokenize(prompts)
    cut = backbone.cut_texts(prompts)
    first: dict[tuple[int, ...], str] = {}
    for label, row in enumerate(tokens_KL.tolist()):
        name, other = class_names[label], first.setdefault(tuple(row), class_names[label])
        if other != name or (label and name in class_names[:label]):
            raise DataError(
                f"class names must differ in the {tokens_KL.shape[1]} tokens that {backbone.name} reads",
                got=f"'{other}' and '{name}'" + (", which are longer and equal once cut" if label in cut else ""),
                next_step="Give shorter or other names by --class-names, or a shorter --template.",
            )
    if not cut:
        return []
    named = ", ".join(f"'{class_names[label]}'" for label in cut[:3]) + (", …" if len(cut) > 3 else "")
    return [
        f"{len(cut)} class names do not fit the {tokens_KL.shape[1]} tokens that {backbone.name} reads, so their ends "
        f"are cut off: {named}"
    ]


def learned_template(template: str, form: Literal["template", "published"]) -> str:
    """The template that prompts are learned in: with `form="published"` it ends in a full stop, which the published
    code's zero-shot prompts lack.
    """
    return template if form == "template" else template.rstrip(". ") + "."
