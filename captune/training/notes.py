"""What a person should know about a cell before reading its numbers.

Imports no PyTorch unless a backbone is named: a study is planned before it is loaded.
"""

from __future__ import annotations

import math

from captune.config import TaskConfig
from captune.data.catalog import TINY, default_backbone, load_dataset
from captune.data.paradigms import Task, build_task
from captune.records import Role

# Below it, no image is ever confident: a published CLIP's scale is 100, a new one's 14.
_SMALLEST_SCALE = 10.0


def cell_notes(config: TaskConfig, task: Task | None = None) -> tuple[str, ...]:
    """What a person should know of a cell's data and backbone before its numbers are read; no weights are opened.

    Args:
        config: the cell.
        task: its task where it is at hand; else the one of role "report" is built.

    Raises:
        UsageError: an unknown backbone or tag, or weights that are not there.
        DataError: the data cannot be read.
    """
    data_notes = (task or build_task(config, role=Role.REPORT)[0]).notes
    if config.dataset.startswith("features:"):
        return (*data_notes, *_logit_scale_note(load_dataset(config).logit_scale))
    name, pretrained = default_backbone(config)
    notes = [] if (name, pretrained) == (TINY, None) else _notes_of_weights(name, pretrained)
    if name == TINY and config.dataset != "digits":
        notes = [
            f"accuracy is not the point here: the embedded model 'tiny' knows only printed digits and letters, not "
            f"{config.dataset}. For numbers that mean something name a CLIP by --backbone and --pretrained.",
            *notes,
        ]
    return (*data_notes, *notes)


def _logit_scale_note(scale: float | None) -> tuple[str, ...]:
    if scale is None or scale >= _SMALLEST_SCALE:
        return ()
    return (
        f"logit_scale in the features file is {scale:.4g}, where CLIP's is 100: it looks like the logarithm "
        f"(exponentiated {math.exp(scale):.4g}). As it stands every probability is nearly flat and few images are ever "
        "confident",
    )


def _notes_of_weights(name: str, pretrained: str | None) -> list[str]:
    from captune.model.sources import find_source  # imports open_clip, and with it PyTorch

    return find_source(name, pretrained).notes
