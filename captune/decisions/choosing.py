"""Where a study's choice is made: from what its candidates predict, else by its criterion.

The two rules have a module each, `by_predictions` and `by_criterion`; both return a
`captune.decisions.choice_record.Choice`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from captune.decisions.by_criterion import choose_by_criterion
from captune.decisions.candidates import advised_config, advised_shares
from captune.decisions.choice_record import Choice
from captune.decisions.criteria import ORACLE
from captune.records import StudyRecord

if TYPE_CHECKING:
    from captune.decisions.evidence import Evidence


def chooses_by_criterion(study: StudyRecord) -> bool:
    """Whether the criterion chooses even where predictions are there: where it sees the sealed labels."""
    return study.select_by == ORACLE


def choose(study: StudyRecord, evidence: Evidence | None = None, class_names: Sequence[str] = ()) -> Choice:
    """The choice of a study whose trials have ended; no test label enters it, except by `oracle`.

    Args:
        study: its record.
        evidence: of the trials in `candidate_trials`; None if they left no predictions. The criterion then chooses, as
            it does where `chooses_by_criterion` is true.
        class_names: where given, the reason names those that seem absent from the pool.
    """
    if evidence is not None and not chooses_by_criterion(study):
        # Imported here, since it brings PyTorch along: a report of recorded studies has no evidence and needs none.
        from captune.decisions.by_predictions import choose_by_predictions

        return choose_by_predictions(study, evidence, class_names)
    choice = choose_by_criterion(study)
    return replace(choice, advised=advised_config(study, advised_shares(study, choice)))
