"""Published accuracies with their sources. They are printed beside a reproduction that follows their protocol.

A number that could not be read where it is printed is not here, and its place in the paper's table stays empty. That
holds for all numbers of CAP, CPL and FPL: their authors' repositories print none (GRIP's does), and the papers
themselves could not be opened. Summaries of CAP's table disagree with the sources: one gives as GRIP's `ul` number on
RESISC45 (74.11) what GRIP's authors print for `ssl`, and as zero-shot numbers of `trzsl` those of `ul`. So no number is
taken from a summary.
"""

from __future__ import annotations

from dataclasses import dataclass

from captune.config import Paradigm, TaskConfig


@dataclass(frozen=True)
class Published:
    """One published number.

    Attributes:
        value: accuracy in percent; in trzsl the harmonic mean of seen and unseen.
        sd: standard deviation over its seeds, in points; None if it is not printed.
        source: where it is printed.
    """

    value: float
    sd: float | None
    source: str


_GRIP = (
    "Menghini et al., NeurIPS 2023: table of textual prompts in the README of "
    "github.com/BatsResearch/menghini-neurips23-code"
)
_LONG_TAILED = (
    "Chen et al., Unsupervised long-tailed adaptation of vision-language models, table 1: zero-shot CLIP, whose pool "
    "does not matter; its numbers on the other datasets are those of GRIP's authors"
)
# method → dataset → accuracy in ssl, ul, trzsl. ViT-B/32 of OpenAI, the paper's splits.
_PARADIGMS: tuple[Paradigm, ...] = ("ssl", "ul", "trzsl")
BACKBONES = ("ViT-B-32", "ViT-B-32-quickgelu")
"""Two names of the published model: with OpenAI's weights they give the same one."""
# Seeds of the published splits into seen and unseen classes; one for each training seed.
SPLIT_SEEDS = (500, 0, 200)
_TABLE: dict[str, dict[str, tuple[float | None, float | None, float | None]]] = {
    "zero_shot": {
        "flowers102": (63.7, 63.7, 63.4),
        "resisc45": (54.5, 54.5, 54.5),
        "fgvc_aircraft": (17.6, 17.6, 17.9),
        "eurosat": (32.9, 32.9, 30.5),
        "dtd": (43.2, 43.2, 43.4),
        "cub200": (51.82, 51.82, None),
    },
    "coop": {
        "flowers102": (76.8, None, 63.2),
        "resisc45": (58.5, None, 63.4),
        "fgvc_aircraft": (14.9, None, 21.7),
        "eurosat": (59.5, None, 49.7),
        "dtd": (37.1, None, 46.3),
    },
    "grip": {
        "flowers102": (83.6, 69.8, 86.3),
        "resisc45": (74.1, 70.6, 81.1),
        "fgvc_aircraft": (17.0, 15.2, 26.1),
        "eurosat": (58.7, 57.2, 92.3),
        "dtd": (56.1, 46.1, 65.3),
    },
}


def published(dataset: str, paradigm: str, method: str) -> Published | None:
    """The number of a cell on the paper's splits with ViT-B/32; None if none could be read."""
    values = _TABLE.get(method, {}).get(dataset)
    if values is None or paradigm not in _PARADIGMS:
        return None
    value = values[_PARADIGMS.index(paradigm)]
    return None if value is None else Published(value, None, _LONG_TAILED if dataset == "cub200" else _GRIP)


def published_results(task: TaskConfig, method: str) -> list[str]:
    """Lines with published numbers that belong beside a result of this cell; none if it follows another protocol.

    Args:
        task: the cell.
        method: ours; if a number is published for it, that comes first.
    """
    if not is_published_protocol(task):
        return []
    found = {name: published(task.dataset, task.paradigm, name) for name in (method, *_TABLE)}
    numbers = {name: number for name, number in found.items() if number is not None}
    if not numbers:
        return []
    return [
        f"published (ViT-B/32, {task.paradigm}, the paper's splits): "
        + ", ".join(f"{name} {number.value:.1f} %" for name, number in numbers.items()),
        *(f"  from {source}" for source in dict.fromkeys(number.source for number in numbers.values())),
    ]


def is_published_protocol(task: TaskConfig) -> bool:
    """Whether published numbers belong beside results of this cell: the paper's splits, its seeds, shots and prompts,
    and OpenAI's weights of ViT-B/32.
    """
    plain = (
        task.pool_imbalance == 1
        and task.pool_fraction == task.present_fraction == 1
        and not task.open_set_fraction
        and not task.shot_noise
        and task.pixels != "viewer"
    )
    own = task.class_names is None and task.template is None and task.shots in (None, 2)
    model = is_published_model(task.backbone or BACKBONES[0], task.pretrained or "openai")
    seeded = task.paradigm != "trzsl" or task.split_seed in SPLIT_SEEDS
    return plain and own and model and seeded and task.protocol == "paper"


def is_published_model(backbone: str, pretrained: str | None) -> bool:
    """Whether these are OpenAI's weights of ViT-B/32, however the architecture is written."""
    return backbone.replace("/", "-") in BACKBONES and pretrained == "openai"
