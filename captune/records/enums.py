"""The fixed words of a journal: phases, states and roles of trials, and what epochs report."""

from __future__ import annotations

from enum import StrEnum

PART, WHOLE = "part", "whole"
"""What the advised trials trained on: a part of the pool, the rest being held out, or all of it."""


class Phase(StrEnum):
    """The part of a study that a trial belongs to, in the order in which they run."""

    REFERENCE = "reference"
    SCREEN = "screen"
    SEARCH = "search"
    CONFIRM = "confirm"
    STRESS = "stress"


class State(StrEnum):
    """How far a trial is; the last three are final."""

    PLANNED = "PLANNED"
    RUNNING = "RUNNING"
    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAILED = "FAILED"

    @property
    def final(self) -> bool:
        """Whether a trial in this state has ended for good."""
        return self in (State.COMPLETE, State.PRUNED, State.FAILED)


class Role(StrEnum):
    """What a trial is for.

    A SCORE trial is trained to be compared with others, so it holds images (trzsl: classes) out for the selection
    score. A REPORT trial is trained on everything and measured on the test images.
    """

    SCORE = "score"
    REPORT = "report"


EPOCH_VALUES = {
    "loss": "mean training loss of the epoch",
    "num_confident": "pool images whose pseudolabel passed the confidence threshold",
    "num_main": "images on the per-class list of trusted pseudolabels (CAP)",
    "balance": "normalised entropy of the pseudolabel counts, 1 when all classes are equally frequent",
    "learning_rate": "learning rate of the last step",
    "images": "images seen in the epoch, all streams",
    "seconds": "duration of the epoch",
    "micro_batch": "images at once in a gradient step, once a trial ran out of memory",
    "memory_bytes": "peak memory of the worker's process",
    "gpu_memory_bytes": "peak GPU memory of the worker's process",
}
"""What `Epoch.values` usually holds, with the meaning of each; a method may report more."""
