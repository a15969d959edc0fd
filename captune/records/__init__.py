"""What a study leaves on disk: its journal, the events in it, the state they add up to, and the names of its files."""

from captune.records.enums import Phase, Role, State
from captune.records.event import Event
from captune.records.events import SCHEMA_VERSION, Epoch
from captune.records.files import atomic_write
from captune.records.journal import Journal, read_journal
from captune.records.layout import JOURNAL
from captune.records.lenient import number_or_none
from captune.records.study import (
    ANCHORED,
    BALANCED,
    ENSEMBLE,
    PROBE,
    REFERENCES,
    TEXT_MIXTURE,
    TRANSCLIP,
    ZERO_SHOT,
    StudyRecord,
    is_against_zero_shot,
)
from captune.records.trial import Trial

__all__ = [
    "ANCHORED",
    "BALANCED",
    "ENSEMBLE",
    "JOURNAL",
    "PROBE",
    "REFERENCES",
    "SCHEMA_VERSION",
    "TEXT_MIXTURE",
    "TRANSCLIP",
    "ZERO_SHOT",
    "Epoch",
    "Event",
    "Journal",
    "Phase",
    "Role",
    "State",
    "StudyRecord",
    "Trial",
    "atomic_write",
    "is_against_zero_shot",
    "number_or_none",
    "read_journal",
]
