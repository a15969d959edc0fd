"""The fixed words of a journal: phases, states and roles of trials."""

from __future__ import annotations

from enum import StrEnum


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
        """Whether a trial in this state will not go on."""
        return self in (State.COMPLETE, State.PRUNED, State.FAILED)


class Role(StrEnum):
    """What a trial is for.

    A SCORE trial is trained to be compared with others, so it holds images (trzsl: classes) out for the selection
    score. A REPORT trial is trained on everything and measured on the test images.
    """

    SCORE = "score"
    REPORT = "report"
