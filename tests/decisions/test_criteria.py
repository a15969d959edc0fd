"""The table of criteria: what may be chosen where, and what may be compared by it."""

from __future__ import annotations

import pytest

from captune.config import PARADIGMS
from captune.decisions.criteria import (
    CRITERIA,
    DEFAULTS,
    LABEL_FREE_FALLBACKS,
    ORACLE,
    part_against_balanced,
    part_against_zero_shot,
    resolve_criterion,
)
from captune.errors import UsageError


def test_every_paradigm_has_a_default_that_is_neither_a_diagnostic_nor_made_of_test_labels() -> None:
    assert DEFAULTS.keys() == PARADIGMS.keys()
    for paradigm, name in DEFAULTS.items():
        assert resolve_criterion("auto", paradigm) == resolve_criterion(name, paradigm) == name
        assert not CRITERIA[name].diagnostic and name != ORACLE


def test_a_criterion_that_needs_labels_is_refused_where_there_are_none() -> None:
    with pytest.raises(UsageError, match="has such labels"):
        resolve_criterion("val", "ul")
    with pytest.raises(UsageError, match="Did you mean 'entropy'"):
        resolve_criterion("entrpy", "ul")


def test_nothing_is_compared_by_what_it_is_built_into() -> None:
    assert part_against_zero_shot("agree-zero-shot") is None and part_against_balanced("agree-balanced") is None
    assert part_against_zero_shot("agree-smooth") == part_against_balanced("agree-smooth") == "neighbours"
    assert (part_against_zero_shot("val-smooth"), part_against_balanced("val-smooth")) == ("val-smooth", "val")
    assert part_against_zero_shot("of a newer captune") == "of a newer captune"


def test_second_opinions_use_no_label() -> None:
    assert not any(CRITERIA[name].labels for name in LABEL_FREE_FALLBACKS)
