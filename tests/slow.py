"""Parametrisations of which the default tests run a part and `-m slow` the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def slow_but(kept: Callable[..., bool], values: Iterable[Any]) -> list[Any]:
    """All values of a parametrisation in their order; those that are not `kept` are run with `-m slow` only.

    `kept` is given a value, or the members of one that is a tuple.
    """
    cases = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*case, marks=() if kept(*case) else pytest.mark.slow) for case in cases]
