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
    """Check that the text tower can tell the prompts apart; notes name those that it cannot, or that are too long.

    Args:
        backbone: the frozen CLIP.
        class_names: K names, for messages.
        prompts: K prompts.

    Raises:
        DataError: two classes whose prompts differ, but not once they are cut to the context.
    """
    tokens_KL = backbone.tokenize(prompts)
    length, cut, notes = tokens_KL.shape[1], backbone.cut_texts(prompts), []
    first: dict[tuple[int, ...], int] = {}
    alike: list[str] = []
    for label, row in enumerate(tokens_KL.tolist()):
        other = first.setdefault(tuple(row), label)
        if other == label:
            continue
        both = f"'{class_names[other]}' and '{class_names[label]}'"
        if label in cut and prompts[label] != prompts[other]:
            raise DataError(
                f"class names must differ in the {length} tokens that {backbone.name} reads",
                got=f"{both}, which are longer and equal once cut",
                next_step="Give shorter names by --class-names, or a shorter --template.",
            )
        alike.append(both)
    if alike:  # as in ImageNet's published names
        notes.append(f"{backbone.name} cannot tell these classes apart by their prompts: {_some(alike)}")
    if cut:
        names = _some([f"'{class_names[label]}'" for label in cut])
        notes.append(
            ("1 class name does" if len(cut) == 1 else f"{len(cut)} class names do")
            + f" not fit the {length} tokens that {backbone.name} reads; what is over is cut off: {names}"
        )
    return notes


def learned_template(template: str, form: Literal["template", "published"]) -> str:
    """The template that prompts are learned in: with `form="published"` it ends in a full stop, which the published
    code's zero-shot prompts lack.
    """
    return template if form == "template" else template.rstrip(". ") + "."


def _some(texts: Sequence[str], most: int = 3) -> str:
    return ", ".join(texts[:most]) + (", …" if len(texts) > most else "")
