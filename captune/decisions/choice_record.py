"""What a study's choice is: the advice, the candidate it stands for, and what was compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from captune.records.events import Chosen

AdviceWords = Literal[
    "adapt", "keep zero-shot", "use balanced zero-shot", "use the anchored mixture", "use the text mixture",
    "use transclip", "use the probe", "adaptation changed nothing", "use the ensemble",
]  # fmt: skip
"""What a choice advises, in the words of journals and tables; `captune.decisions.advice.Advice` holds the numbers."""


@dataclass(frozen=True)
class Candidate:
    """One candidate of the final choice; scores are those that the choice compares by."""

    name: str
    config_id: int | None
    mean_score: float | None
    sd: float | None
    num_seeds: int


@dataclass(frozen=True)
class Choice:
    """The advice, and the configuration that was best whatever the advice (None when nothing finished).

    `name` is the candidate the advice stands for (`c7`, `zero_shot`, `balanced`, `anchored`, `ensemble`). The fields
    from `sentence` on are those of the event `Chosen`; a choice by a criterion leaves them empty.
    """

    advice: AdviceWords
    name: str
    config_id: int | None
    config: dict[str, Any]
    reason: str
    candidates: tuple[Candidate, ...]
    sentence: str | None = None
    weights: dict[str, float] = field(default_factory=dict)
    expected: dict[str, float] = field(default_factory=dict)
    advised: dict[str, Any] = field(default_factory=dict)
    learned_from: tuple[str, ...] = ()

    def as_event(self) -> Chosen:
        """The choice as the journal holds it."""
        return Chosen(**{**asdict(self), "candidates": tuple(asdict(candidate) for candidate in self.candidates)})
